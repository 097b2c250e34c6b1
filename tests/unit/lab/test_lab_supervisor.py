"""The supervisor with real processes; here it runs as an ordinary process, not as PID 1."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import sys
from pathlib import Path
from lab.supervisor import Supervisor, Unit
place = Path(sys.argv[1])
def unit(name, *command, needs=()):
    return Unit(name=name, command=command, needs=[Path(need) for need in needs], log=place / f"{name}.log")
units = [
    unit("good", "/bin/sh", "-c", "echo hello; exec sleep 1000"),
    unit("bad", "/bin/sh", "-c", "echo ouch; exit 3"),
    unit("absent", "/bin/true", needs=[place / "absent"]),
    unit("parent", "/bin/sh", "-c", "setsid sleep 1000 & echo $! > " + str(place / "child") + "; exec sleep 1000"),
]
Supervisor(units={u.name: u for u in units}, environment={"PATH": "/bin:/usr/bin"}, socket_path=place / "s").start_all()
"""
PROGRAM = PROGRAM.replace("Supervisor(units", "it = Supervisor(units").replace(
    ").start_all()", ")\nit.start_all()\nit.run_forever()"
)


class Supervised:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(place)], stdout=subprocess.DEVNULL)

    def ask(self, verb: str, unit: str = "") -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.place / "s"))
            connection.sendall(json.dumps({"do": verb, "unit": unit}).encode() + b"\n")
            reply: dict[str, Any] = json.loads(connection.makefile("rb").readline())
            return reply

    def unit(self, name: str) -> dict[str, Any]:
        return next(unit for unit in self.ask("units")["units"] if unit["unit"] == name)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    one = Supervised(tmp_path)
    wait_for((tmp_path / "s").exists)
    wait_for((tmp_path / "child").exists)
    yield one
    one.process.terminate()
    one.process.wait(timeout=15)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_daemon_that_dies_is_started_again(supervised: Supervised) -> None:
    before = supervised.unit("good")
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(lambda: supervised.unit("good")["starts"] == 2)
    after = supervised.unit("good")
    assert after["pid"] not in (0, before["pid"])
    assert after["last_status"] == -signal.SIGKILL


def test_a_daemon_that_fails_at_once_is_tried_again_with_pauses(supervised: Supervised) -> None:
    wait_for(lambda: (supervised.place / "bad.log").read_text().startswith("ouch\nouch\n"))
    assert supervised.unit("bad")["starts"] >= 2
    assert supervised.unit("bad")["state"] in ("waiting", "running")
    assert supervised.unit("bad")["last_status"] == 3


def test_a_program_that_is_not_there_is_missing_until_it_comes_and_somebody_asks(supervised: Supervised) -> None:
    found = supervised.unit("absent")
    assert (found["state"], found["starts"]) == ("missing", 0)
    assert found["missing"] == [str(supervised.place / "absent")]
    (supervised.place / "absent").touch()
    supervised.ask("restart", "absent")
    wait_for(lambda: supervised.unit("absent")["starts"] > 0)


def test_restarting_a_daemon_leaves_what_it_started_alone(supervised: Supervised) -> None:
    child = int((supervised.place / "child").read_text())
    before = supervised.unit("parent")["pid"]
    supervised.ask("restart", "parent")
    wait_for(lambda: supervised.unit("parent")["pid"] not in (0, before))
    assert "sleep" in Path(f"/proc/{child}/comm").read_text()
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: int((supervised.place / "child").read_text()) != child)  # the fixture ends the new one


def test_a_stopped_daemon_stays_down(supervised: Supervised) -> None:
    supervised.ask("stop", "good")
    wait_for(lambda: supervised.unit("good")["state"] == "stopped")
    assert supervised.unit("good")["pid"] == 0


def test_nonsense_is_answered_and_harms_nobody(supervised: Supervised) -> None:
    assert "error" in supervised.ask("dance", "good")
    assert "error" in supervised.ask("restart", "nobody")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(supervised.place / "s"))
        connection.sendall(b"\xff{]\n")
        assert b"error" in connection.makefile("rb").readline()
    assert supervised.unit("good")["state"] == "running"


def test_it_ends_its_daemons_and_itself_when_asked(supervised: Supervised) -> None:
    pid = supervised.unit("good")["pid"]
    supervised.process.terminate()
    assert supervised.process.wait(timeout=15) == 0
    assert not Path(f"/proc/{pid}").exists()
