"""GuestService and TaskService without a network: who answers, who is asked, and who is named when he does not answer."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from unit.operations.operation_fakes import FakeDriver, FakeStore, fake_host

from agent.access.caller import LOCAL_ROOT, Caller, CallerKind, calling_as
from agent.background import Background
from agent.context import AgentContext
from agent.guests.driver import RunState
from agent.services.guest import GuestService
from agent.services.hung_starts import HungStarts
from agent.services.task import TaskService
from agent.tasks import TaskRecord, TaskRunner, TaskState, UndoStep, Upid
from kvorum.errors import InvalidInput, NotFound, Refused, Unreachable
from kvorum.ids import Vmid
from kvorum.node import Identity
from kvorum.v1 import guest_pb2, task_pb2

BY_HA = Caller(CallerKind.ha, "ha", is_local=True)
PASSED_ON = Caller(CallerKind.user, "root@pam", via="n2")
IDENTITY = Identity(uid="00000000-0000-0000-0000-000000000001", name="n1", address="10.0.0.1", cluster_name="c")


class SilentPeers:
    def agent(self, node: str) -> Any:
        raise Unreachable(f"node {node} does not answer")


class World:
    def __init__(self, tmp_path: Path, files: dict[str, str]) -> None:
        self.store, self.driver = FakeStore(files), FakeDriver()
        self.host = fake_host(self.store, driver=self.driver)
        self.tasks = TaskRunner("n1", tmp_path)
        context = AgentContext(
            store=self.store,  # type: ignore[arg-type]
            peers=SilentPeers(),  # type: ignore[arg-type]
            identity=lambda: IDENTITY,
            tasks=self.tasks,
            background=Background(),
        )
        self.guests = GuestService(context, SimpleNamespace(host=self.host))  # type: ignore[arg-type]
        self.service = TaskService(context)
        self.hung = HungStarts(context)

    async def ask(self, method: str, request: Any, caller: Caller = LOCAL_ROOT) -> Any:
        with calling_as(caller):
            service = self.guests if hasattr(self.guests, method) else self.service
            return await getattr(service, method)(request, None)

    async def ended(self, upid: str) -> TaskState:
        return (await self.tasks.wait(upid, timeout_s=5)).state


@pytest.fixture
def world(tmp_path: Path) -> World:
    files = {
        "nodes/n1/qemu-server/100.conf": "name: here\nmemory: 64\n",
        "nodes/n1/qemu-server/103.conf": "what\n",
        "nodes/n2/lxc/101.conf": "hostname: there\n",
    }
    return World(tmp_path, files)


async def test_guests_of_a_silent_node_are_listed_as_unknown_and_the_node_is_named(world: World) -> None:
    world.driver.states[Vmid(100)] = RunState.running
    answer = await world.ask("ListGuests", guest_pb2.ListGuestsRequest())
    assert list(answer.unreachable_nodes) == ["nodes/n2"]
    found = {guest.vmid: guest for guest in answer.guests}
    assert found[100].state == guest_pb2.GUEST_STATE_RUNNING and found[100].memory_bytes == 64 << 20
    assert (found[101].state, found[101].display_name) == (guest_pb2.GUEST_STATE_UNKNOWN, "there")
    assert found[103].lock == "broken", "a file that does not parse is still a guest"
    one = await world.ask("GetGuest", guest_pb2.GetGuestRequest(name="guests/101"))
    assert one.guest.state == guest_pb2.GUEST_STATE_UNKNOWN


async def test_pages_of_guests_join_up(world: World) -> None:
    first = await world.ask("ListGuests", guest_pb2.ListGuestsRequest(page_size=2))
    rest = await world.ask("ListGuests", guest_pb2.ListGuestsRequest(page_size=2, page_token=first.next_page_token))
    assert [guest.vmid for page in (first, rest) for guest in page.guests] == [100, 101, 103]
    assert rest.next_page_token == ""


async def test_a_call_is_passed_on_once_at_most(world: World) -> None:
    with pytest.raises(Unreachable):
        await world.ask("StartGuest", guest_pb2.StartGuestRequest(name="guests/101"))
    with pytest.raises(Refused, match="not on n1"):
        await world.ask("StartGuest", guest_pb2.StartGuestRequest(name="guests/101"), PASSED_ON)


async def test_ha_never_reaches_a_guest_that_has_moved_away(world: World) -> None:
    with pytest.raises(Refused, match="belongs to n2"):
        await world.ask("StopGuest", guest_pb2.StopGuestRequest(name="guests/101"), BY_HA)


async def test_a_person_asks_ha_for_its_guests_and_ha_acts(world: World) -> None:
    world.store._put("ha/resources.cfg", b"vm: 100\n\tstate started\n", placed=True)
    world.driver.states[Vmid(100)] = RunState.running
    asked = await world.ask("StopGuest", guest_pb2.StopGuestRequest(name="guests/100"))
    assert Upid.parse(asked.task).type == "hastop"
    assert await world.ended(asked.task) is TaskState.ok
    assert world.store.text("ha/resources.cfg") == "vm: 100\n\tstate stopped\n"
    assert Vmid(100) in world.driver.states
    acted = await world.ask("StopGuest", guest_pb2.StopGuestRequest(name="guests/100"), BY_HA)
    assert await world.ended(acted.task) is TaskState.ok
    assert Vmid(100) not in world.driver.states


async def test_tasks_are_named_after_what_they_do_and_for_whom(world: World) -> None:
    answer = await world.ask("StartGuest", guest_pb2.StartGuestRequest(name="guests/100"))
    upid = Upid.parse(answer.task)
    assert (upid.node, upid.type, upid.subject, upid.user) == ("n1", "qmstart", "100", "root@pam")
    assert await world.ended(answer.task) is TaskState.ok
    listed = await world.ask("ListTasks", task_pb2.ListTasksRequest(vmid=100))
    assert [task.upid for task in listed.tasks] == [answer.task]
    assert not (await world.ask("ListTasks", task_pb2.ListTasksRequest(vmid=101))).tasks


async def test_the_answer_to_a_wrong_create_comes_at_once(world: World) -> None:
    with pytest.raises(InvalidInput):
        await world.ask("CreateGuest", guest_pb2.CreateGuestRequest(vmid=200))
    with pytest.raises(InvalidInput):
        request = guest_pb2.CreateGuestRequest(vmid=200, kind=guest_pb2.GUEST_KIND_VM, config={"nonsense": "1"})
        await world.ask("CreateGuest", request)
    with pytest.raises(NotFound):
        await world.ask("GetGuest", guest_pb2.GetGuestRequest(name="guests/200"))
    assert not world.tasks.newest_first()
    assert (await world.ask("GetNextGuestId", guest_pb2.GetNextGuestIdRequest())).vmid == 102


async def test_a_stop_overrules_a_shutdown_that_hangs(world: World) -> None:
    hanging = asyncio.Event()

    async def hang(vmid: Vmid, *, timeout_s: float) -> None:
        hanging.set()
        await asyncio.Event().wait()

    world.driver.states[Vmid(100)] = RunState.running
    world.driver.shutdown = hang  # type: ignore[method-assign]
    shutdown = await world.ask("ShutdownGuest", guest_pb2.ShutdownGuestRequest(name="guests/100"))
    await asyncio.wait_for(hanging.wait(), 5)
    stop = await world.ask("StopGuest", guest_pb2.StopGuestRequest(name="guests/100"))
    assert await world.ended(stop.task) is TaskState.ok
    assert await world.ended(shutdown.task) is TaskState.cancelled
    assert not world.driver.states


async def test_a_task_of_a_silent_node_is_unreachable_not_unknown(world: World) -> None:
    upid = "UPID:n2:00000001:00000001:66AABBCC:qmstart:101:root@pam:"
    with pytest.raises(Unreachable):
        await world.ask("GetTask", task_pb2.GetTaskRequest(upid=upid))


async def test_a_start_that_an_agents_death_cut_off_counts_as_running_until_libvirt_is_through_with_it(
    tmp_path: Path,
) -> None:
    step = UndoStep(kind="end-late-start", arguments={"vmid": "100"})
    record = TaskRecord(upid="UPID:n1:00000001:00000001:66AABBCC:qmstart:100:root@pam:", undo=(step,))
    (tmp_path / f"{record.upid}.json").write_bytes(msgspec.json.encode(record))
    world = World(tmp_path, {})
    request = task_pb2.ListTasksRequest(node="nodes/n1", running_only=True)
    (task,) = (await world.ask("ListTasks", request)).tasks
    assert (task.type, task.subject, task.state) == ("qmstart", "100", task_pb2.TASK_STATE_INTERRUPTED)

    async def through(_arguments: Mapping[str, str]) -> None:
        pass

    await world.tasks.outlast(step.kind, through)
    assert not (await world.ask("ListTasks", request)).tasks


@pytest.mark.parametrize(
    ("kind", "age_s", "hangs"), [("qmstart", 300, True), ("qmstart", 60, False), ("vzdump", 300, False)]
)
async def test_a_start_hangs_when_it_has_gone_on_for_long(tmp_path: Path, kind: str, age_s: float, hangs: bool) -> None:
    began = time.time() - age_s
    step = UndoStep(kind="end-late-start", arguments={"vmid": "100"})
    record = TaskRecord(
        upid=f"UPID:n1:00000001:00000001:66AABBCC:{kind}:100:root@pam:", start_time_s=began, undo=(step,)
    )
    (tmp_path / f"{record.upid}.json").write_bytes(msgspec.json.encode(record))
    world = World(tmp_path, {})
    with calling_as(LOCAL_ROOT):
        assert await world.hung.since("n1", Vmid(100)) == pytest.approx(began if hangs else 0.0, abs=0.01)
        assert await world.hung.since("n1", Vmid(101)) == 0.0
        assert await world.hung.since("n2", Vmid(100)) == 0.0, "it does not answer"
