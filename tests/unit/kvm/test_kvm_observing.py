"""Who runs: processes found in a /proc of the test's own, and events made up for what was missed."""

from pathlib import Path

import pytest

from agent.guests.driver import RunState
from agent.guests.kvm import Change, GuestEvent, differences, shorten
from agent.guests.processes import guest_in, guest_processes
from kvorum.ids import Vmid

QEMU = b"/usr/bin/qemu-system-x86_64\0-name\0guest=kvorum-100,debug-threads=on\0-S\0-uuid\0abc\0"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "uptime").write_text("1000.50 2000.00\n")
    (tmp_path / "self").mkdir()
    return tmp_path


def process(proc: Path, pid: int, command_line: bytes, *, command: str = "qemu-system-x86") -> None:
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "cmdline").write_bytes(command_line)
    fields = ["S", *["0"] * 18, "90050", *["0"] * 30]
    (directory / "stat").write_text(f"{pid} ({command}) {' '.join(fields)}\n")


def test_a_guest_is_known_by_its_command_line(proc: Path) -> None:
    process(proc, 7, QEMU, command="a) b (c")
    process(proc, 8, b"/bin/grep\0guest=kvorum-100,\0")
    process(proc, 9, b"/usr/bin/qemu-system-x86_64\0-name\0guest=other\0")
    process(proc, 10, b"")
    (proc / "11").mkdir()
    found = guest_processes(proc)
    assert list(found) == [100]
    assert found[Vmid(100)].pid == 7
    assert found[Vmid(100)].uptime_s == pytest.approx(1000.5 - 900.5)


@pytest.mark.parametrize(
    "command_line",
    [
        b"qemu\0-name\0guest=kvorum-1001x,a\0",
        b"qemu\0-name\0kvorum-100\0",
        b"qemu\0-append\0-name guest=kvorum-100,\0",
        b"vim\0-name\0guest=kvorum-100,\0",
        b"qemu\0-name",
    ],
)
def test_what_only_looks_like_a_guest_is_none(command_line: bytes) -> None:
    assert guest_in(command_line) is None


def test_differences_tell_what_was_missed() -> None:
    run, pause = RunState.running, RunState.paused
    before = {Vmid(n): state for n, state in ((100, run), (101, run), (102, pause), (104, run))}
    now = {Vmid(n): state for n, state in ((101, pause), (102, run), (103, run), (104, run), (105, pause))}
    assert differences(before, now) == [
        GuestEvent(Vmid(100), Change.stopped),
        GuestEvent(Vmid(101), Change.paused),
        GuestEvent(Vmid(102), Change.resumed),
        GuestEvent(Vmid(103), Change.started),
        GuestEvent(Vmid(105), Change.paused),
    ]
    assert differences(now, now) == []


def test_a_long_console_log_is_cut_under_the_writers_hands(tmp_path: Path) -> None:
    with (tmp_path / "100.log").open("ab", buffering=0) as qemu:
        qemu.write(b"a" * 50 + b"end")
        (tmp_path / "101.log").write_bytes(b"short")
        shorten(tmp_path, limit_bytes=50, kept_bytes=5)
        qemu.write(b", more")
    assert (tmp_path / "100.log").read_bytes() == b"aaend, more"
    assert (tmp_path / "101.log").read_bytes() == b"short"
