"""The keeper's hands, with real processes: no store answers here, so no lease is ever taken."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ha.keeper import main as keeper_main
from ha.keeper.main import Keeper
from ha.keeper.processes import Guests
from ha.lease_state import LIVE, LeaseState, boot_id, boottime, read
from kvorum.errors import ConfigError, NotFound
from kvorum.node import Identity

UID = "11111111-2222-3333-4444-555555555555"
# Far from any guest of a lab that may run on the same machine.
VMID = 900_000_000 + os.getpid()
SID = f"vm:{VMID}"


class FakeWatchdog:
    def __init__(self) -> None:
        self.said: list[str] = []

    def arm(self, timeout_s: float) -> None:
        self.said.append("arm")

    def pet(self) -> None:
        pass

    def disarm(self) -> None:
        self.said.append("disarm")

    def reset(self) -> None:
        self.said.append("reset")


@pytest.fixture
def guest() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like QEMU to the keeper."""
    script = "import time; time.sleep(60)"
    with subprocess.Popen(["python3", "-c", script, "-name", f"guest=kvorum-{VMID}"]) as process:
        yield process
        process.kill()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keeper's directory with a live lease of the keeper before, and one guarded guest."""
    monkeypatch.setattr(keeper_main, "STATE_FILE", tmp_path / "state.json")
    monkeypatch.setattr(keeper_main, "GUESTS_FILE", tmp_path / "guests.json")
    state = LeaseState(
        phase=LIVE, incarnation=3, valid_until_boottime=boottime() + 60, boot_id=boot_id(), uid=UID, sids=(SID,)
    )
    (tmp_path / "state.json").write_bytes(msgspec.json.encode(state))
    (tmp_path / "guests.json").write_bytes(msgspec.json.encode({"revision": 1, "guests": [{"sid": SID, "uuid": ""}]}))
    return tmp_path


def _keeper(files: Path, watchdog: FakeWatchdog) -> Keeper:
    return Keeper(UID, socket=files / "no.sock", watchdog=watchdog, guests=Guests())


def test_a_node_that_has_left_ends_its_guests_before_it_lets_go(
    files: Path, guest: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> Identity:
        raise NotFound("this node is in no cluster")

    monkeypatch.setattr(keeper_main, "load_identity", load)
    watchdog = FakeWatchdog()
    keeper = _keeper(files, watchdog)
    keeper.run()
    assert guest.poll() is None, "run() alone guards, it does not end"
    keeper.end()
    assert guest.wait(5) == -9
    assert watchdog.said[-1] == "disarm"
    assert "reset" not in watchdog.said
    assert list(files.iterdir()) == []


def test_a_damaged_identity_is_no_reason_to_give_up_guests(
    files: Path, guest: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def load() -> Identity:
        nonlocal looks
        looks += 1
        if looks == 2:
            keeper.stop()
        raise ConfigError("cannot read the node's identity")

    monkeypatch.setattr(keeper_main, "load_identity", load)
    keeper = _keeper(files, FakeWatchdog())
    keeper.run()
    assert guest.poll() is None
    assert read(files / "state.json").phase == LIVE
