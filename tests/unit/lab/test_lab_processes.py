"""A process is known by id and start time, and killed only when both fit."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import processes
from lab.processes import Recorded


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_is_recalled_while_it_lives(sleeper: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    noted = processes.record(sleeper.pid, tmp_path / "record")
    assert processes.recall(tmp_path / "record") == noted
    sleeper.kill()
    sleeper.wait()
    assert processes.recall(tmp_path / "record") is None


def test_a_stranger_with_the_same_id_is_not_killed(sleeper: "subprocess.Popen[bytes]") -> None:
    started = processes.start_time(sleeper.pid)
    assert started is not None
    processes.kill(Recorded(pid=sleeper.pid, started=started - 1))
    assert sleeper.poll() is None


def test_killing_waits_until_it_is_gone(sleeper: "subprocess.Popen[bytes]") -> None:
    started = processes.start_time(sleeper.pid)
    assert started is not None
    processes.kill(Recorded(pid=sleeper.pid, started=started))
    assert processes.start_time(sleeper.pid) is None  # a zombie of ours at most


def test_a_damaged_record_is_no_process(tmp_path: Path) -> None:
    (tmp_path / "record").write_text("{")
    assert processes.recall(tmp_path / "record") is None


def test_a_detached_process_has_its_own_session_and_can_be_let_go(tmp_path: Path) -> None:
    pid = processes.spawn_detached(["sleep", "1000"], environment={}, log=tmp_path / "log")
    started = processes.start_time(pid)
    assert started is not None
    session = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[3]
    assert int(session) == pid
    processes.kill(Recorded(pid=pid, started=started))
    assert not Path(f"/proc/{pid}").exists()
