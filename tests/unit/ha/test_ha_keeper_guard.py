"""The guard's hands, with real processes and files, and a courier that answers as told."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ha.keeper import core, guard
from ha.keeper.guard import Guard, Lateness
from ha.keeper.link import Call
from ha.keeper.processes import Guarded, Guests, scan
from ha.keeper.records import Record
from ha.lease_state import LIVE, NONE, LeaseState, boot_id, boottime, read
from ha.leases import FAST, PATIENT

UID = "11111111-2222-3333-4444-555555555555"
# Far from any guest of a lab that may run on the same machine.
VMID = 900_000_000 + os.getpid()
SID = f"vm:{VMID}"


class FakeWatchdog:
    def __init__(self) -> None:
        self.said: list[str] = []

    def arm(self, timeout_s: float) -> None:
        self.said.append(f"arm {timeout_s:g}")

    def pet(self) -> None:
        pass

    def disarm(self) -> None:
        self.said.append("disarm")

    def reset(self) -> None:
        self.said.append("reset")

    def describe(self) -> str:
        return "a fake"


class FakeLine:
    """`answers`: what comes at each wait; when there is no more, `at_end` is called."""

    def __init__(self, *answers: core.Event | None, at_end: Callable[[], None] = lambda: None) -> None:
        self.answers = list(answers)
        self.at_end = at_end
        self.asked: list[Call] = []

    def ask(self, call: Call, *, rest_deadline_s: float) -> None:
        self.asked.append(call)

    def wait(self, timeout_s: float) -> core.Event | None:
        if self.answers:
            return self.answers.pop(0)
        self.at_end()
        return None


class FakeBox:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def put(self, record: Record) -> None:
        self.records.append(record)


@pytest.fixture
def guest() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like QEMU to the keeper."""
    script = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, "-name", f"guest=kvorum-{VMID}"]) as process:
        # It is no guest before it has become another program.
        while not scan([Guarded(SID)]):
            time.sleep(0.005)
        yield process
        process.kill()
    while scan([Guarded(SID)]):
        time.sleep(0.005)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keeper's directory with a live lease of the keeper before, and one guarded guest."""
    monkeypatch.setattr(guard, "STATE_FILE", tmp_path / "state.json")
    monkeypatch.setattr(guard, "GUESTS_FILE", tmp_path / "guests.json")
    _lives_until(tmp_path, boottime() + FAST.pause_after_s - 0.1)
    (tmp_path / "guests.json").write_bytes(msgspec.json.encode({"revision": 1, "guests": [{"sid": SID, "uuid": ""}]}))
    return tmp_path


def _lives_until(files: Path, at: float) -> None:
    state = LeaseState(
        phase=LIVE,
        incarnation=3,
        valid_until_boottime=at,
        boot_id=boot_id(),
        uid=UID,
        sids=(SID,),
        profile=FAST,
    )
    (files / "state.json").write_bytes(msgspec.json.encode(state))


class Scene:
    def __init__(self, *answers: core.Event | None) -> None:
        self.watchdog, self.box = FakeWatchdog(), FakeBox()
        self.line = FakeLine(*answers)
        self.guard = Guard(UID, line=self.line, watchdog=self.watchdog, guests=Guests(), box=self.box)
        self.line.at_end = self.guard.stop

    @property
    def kinds(self) -> list[str]:
        return [record.kind for record in self.box.records]


def test_a_node_that_has_left_ends_its_guests_before_it_lets_go(files: Path, guest: subprocess.Popen[bytes]) -> None:
    scene = Scene(core.Left())
    scene.guard.run()
    assert guest.poll() is None, "run() alone guards, it does not end"
    scene.line.at_end = lambda: None
    scene.guard.end()
    assert guest.wait(5) == -9
    assert scene.watchdog.said[-1] == "disarm"
    assert "reset" not in scene.watchdog.said
    assert list(files.iterdir()) == []
    assert scene.kinds == ["armed", "killed", "gone", "disarmed"]


def test_a_stop_while_guests_run_leaves_lease_and_watchdog_to_the_next_keeper(
    files: Path, guest: subprocess.Popen[bytes]
) -> None:
    scene = Scene()
    scene.guard.run()
    assert guest.poll() is None
    assert read(files / "state.json").phase == LIVE
    assert scene.watchdog.said == ["arm 5"]


def test_a_stop_when_no_guest_runs_closes_the_watchdog_and_lets_nothing_start(files: Path) -> None:
    scene = Scene()
    scene.guard.run()
    assert read(files / "state.json").phase == NONE
    assert scene.watchdog.said == ["arm 5", "disarm"]
    assert scene.kinds == ["armed", "disarmed"]


def test_a_lease_that_ran_out_kills_and_says_why(files: Path, guest: subprocess.Popen[bytes]) -> None:
    _lives_until(files, boottime() + 0.5)
    scene = Scene(core.Failed("no_quorum: no quorum: missing n2"))
    scene.line.at_end = lambda: scene.guard.stop() if guest.poll() is not None else None
    scene.guard.run()
    assert guest.wait(5) == -9
    paused, killed = (record for record in scene.box.records if record.kind in ("paused", "killed"))
    assert "no renewal was answered for 3.5 s" in paused.cause
    assert killed.age_s["store"] > FAST.kill_after_s
    assert [renewal.failure for renewal in killed.renewals] == ["no_quorum: no quorum: missing n2"]
    assert (killed.guests, killed.profile, killed.watchdog) == ((SID,), "fast", "a fake")


def test_a_shorter_profile_is_the_watchdogs_too_before_anybody_hears_of_it(
    files: Path, guest: subprocess.Popen[bytes]
) -> None:
    scene = Scene(None, core.Renewed(boottime(), 3), core.Renewed(boottime(), 3), core.Renewed(boottime(), 3))
    content = {"revision": 2, "guests": [{"sid": SID, "uuid": ""}], "profile": PATIENT}
    (files / "guests.json").write_bytes(msgspec.json.encode(content))
    scene.guard.run()
    assert scene.watchdog.said == ["arm 5", "arm 26"]
    assert {call.profile.name for call in scene.line.asked if isinstance(call, core.Renew)} == {"fast", "patient"}


def test_a_loop_that_was_late_is_remembered_for_a_minute() -> None:
    late = Lateness()
    late.note(100.0, 0.01)
    assert late.worst(100.0) == (0.0, 0.0)
    late.note(101.0, 2.5)
    late.note(102.0, 0.2)
    assert late.worst(103.0) == (2.5, 2.0)
    assert late.worst(162.0) == (0.2, 60.0)
    assert late.worst(170.0) == (0.0, 0.0)
