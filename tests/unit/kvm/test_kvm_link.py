"""Calls of libvirt run in threads, which nobody can cancel: who must know how one ended waits for it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agent.guests.domain_xml import Host
from agent.guests.driver import Guest
from agent.guests.kvm import KvmDriver
from agent.guests.libvirt_link import LibvirtLink
from agent.guests.processes import Process
from kvorum.config import GuestConfig
from kvorum.errors import NotFound, Refused, Timeout
from kvorum.ids import NodeName, Vmid


class Slow:
    """A call that takes until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.is_done = False

    def __call__(self, *_: object) -> str:
        self.gate.wait(5)
        self.is_done = True
        return "done"


async def in_thread(link: LibvirtLink, work: Callable[[], str], *, to_the_end: bool, timeout_s: float = 0.01) -> str:
    return await link._in_thread(work, timeout_s=timeout_s, subject="x", is_long=False, to_the_end=to_the_end)


@pytest.mark.parametrize("to_the_end", [False, True])
async def test_a_call_that_takes_too_long_is_an_error_at_the_deadline_or_when_it_has_ended(to_the_end: bool) -> None:
    slow = Slow()
    asyncio.get_running_loop().call_later(0.1, slow.gate.set)
    with pytest.raises(Timeout):
        await in_thread(LibvirtLink(), slow, to_the_end=to_the_end)
    assert slow.is_done == to_the_end
    slow.gate.set()


async def test_a_cancel_of_a_call_to_the_end_takes_effect_when_it_has_ended() -> None:
    slow = Slow()
    task = asyncio.ensure_future(in_thread(LibvirtLink(), slow, to_the_end=True, timeout_s=5))
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel()
    assert not task.done()
    slow.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.is_done


async def test_a_start_that_was_given_up_leaves_nothing_that_comes_up_later(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = KvmDriver(Host(accel="tcg"))
    told: list[str] = []

    async def call(work: Any, *, to_the_end: bool = False, **_: Any) -> None:
        told.append(f"create, to the end: {to_the_end}")
        raise Timeout("libvirt did not answer")

    async def stop(vmid: Vmid) -> None:
        told.append(f"stop {vmid}")

    async def nothing() -> dict[Vmid, Any]:
        return {}

    monkeypatch.setattr(driver.link, "call", call)
    monkeypatch.setattr(driver, "stop", stop)
    monkeypatch.setattr(driver, "prepare", nothing)
    monkeypatch.setattr(driver, "_processes", nothing)
    with pytest.raises(Timeout):
        await driver.start(Guest(Vmid(100), GuestConfig.parse("memory: 64\n"), (), NodeName("n1"), 1))
    assert told == ["create, to the end: True", "stop 100"]


class LateStart:
    """A libvirt that has a start of an agent that died under way: `answers` to each attempt to end it, None for "ended"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Exception | None, pids: tuple[int, ...] = ()) -> None:
        self.driver = KvmDriver(Host(accel="tcg"))
        self.answers = list(answers)
        # One for each look; 0: none.
        self.pids = list(pids)
        self.killed: list[int] = []
        for name in ("_processes", "_kill"):
            monkeypatch.setattr(self.driver, name, getattr(self, name))
        monkeypatch.setattr(self.driver.link, "call", self._call)

    async def _call(self, work: Any, *, to_the_end: bool = False, **_: Any) -> None:
        assert to_the_end, "a call that is given up says nothing about the start"
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer

    async def _processes(self) -> dict[Vmid, Process]:
        pid = self.pids.pop(0) if self.pids else 0
        return {Vmid(100): Process(pid, 1.0)} if pid else {}

    async def _kill(self, vmid: Vmid, process: Process) -> None:
        self.killed.append(process.pid)


async def test_a_late_start_is_over_when_libvirt_does_not_know_the_guest_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = LateStart(monkeypatch, None, NotFound("guest 100: does not run here"))
    await late.driver.end_late_start(Vmid(100))
    assert late.answers == []


@pytest.mark.parametrize("error", [Timeout("no answer"), Refused("the domain is not running")])
async def test_what_libvirt_cannot_say_for_certain_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(type(error)):
        await LateStart(monkeypatch, error).driver.end_late_start(Vmid(100))


async def test_a_guest_that_is_up_already_is_no_late_start(monkeypatch: pytest.MonkeyPatch) -> None:
    late = LateStart(monkeypatch, pids=(7,))
    await late.driver.end_late_start(Vmid(100))
    assert late.killed == []


async def test_a_process_that_libvirt_has_forgotten_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    late = LateStart(monkeypatch, NotFound("guest 100: does not run here"), pids=(0, 8))
    await late.driver.end_late_start(Vmid(100))
    assert late.killed == [8]
