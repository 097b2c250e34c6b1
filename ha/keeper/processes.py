"""Finding, stopping and killing the processes of guests, through /proc and signals alone.

libvirt and liblxc are not asked: they may hang, and the keeper must not. A virtual machine is QEMU with the argument
`-uuid <uuid>` or `guest=kvorum-<vmid>`; a container is everything in a cgroup `kvorum-ct-<vmid>`. A process counts as
gone when it is reaped or a zombie without threads: before that its last writes may still be on their way to a disk.
"""

import os
import re
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kvorum.ids import parse_sid

PROC = Path("/proc")
_CGROUP = re.compile(r"/kvorum-ct-([1-9][0-9]*)(?:-[0-9]+)?(?:/|$)", re.MULTILINE)
_NAME = re.compile(rb"(?:^|,)guest=kvorum-([1-9][0-9]*)(?:,|$)")


@dataclass(frozen=True, slots=True)
class Guarded:
    """A guest by what its processes look like. `uuid` may be empty."""

    sid: str
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    pid: int
    sid: str
    # Clock ticks since boot; with the pid, names a process for good.
    start_time: int
    # As in /proc/<pid>/stat: `R`, `S`, `D`, `T` (stopped), `Z`, ...
    state: str

    @property
    def is_paused(self) -> bool:
        return self.state in ("T", "t")


def match(cmdline: bytes, cgroup: str, guests: Mapping[str, Guarded]) -> str:
    """The sid of the guarded guest that a process belongs to, or nothing. `guests` by sid. Pure.

    The cgroup comes first: what a container's process calls itself makes it no virtual machine.
    """
    if container := _CGROUP.search(cgroup):
        sid = f"ct:{container[1]}"
        return sid if sid in guests else ""
    arguments = cmdline.split(b"\0")
    for option, value in pairwise(arguments):
        if option == b"-name" and (name := _NAME.search(value)):
            sid = f"vm:{name[1].decode()}"
            return sid if sid in guests else ""
        if option == b"-uuid":
            uuid = value.decode("ascii", "replace").lower()
            for guest in guests.values():
                if guest.uuid and guest.uuid.lower() == uuid:
                    return guest.sid
    return ""


def scan(guests: Iterable[Guarded], proc: Path = PROC) -> list[Found]:
    """Every process of these guests that is there now, paused ones included, zombies not."""
    by_sid = {guest.sid: guest for guest in guests if parse_sid(guest.sid)}
    if not by_sid:
        return []
    own = os.getpid()
    found: list[Found] = []
    for entry in os.scandir(proc):
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        pid = int(entry.name)
        with suppress(OSError):
            cmdline = (proc / entry.name / "cmdline").read_bytes()
            cgroup = (proc / entry.name / "cgroup").read_text()
            sid = match(cmdline, cgroup, by_sid)
            if sid and (stat := read_stat(pid, proc)) is not None and stat[0] not in ("Z", "X"):
                found.append(Found(pid, sid, stat[1], stat[0]))
    return found


def read_stat(pid: int, proc: Path = PROC) -> tuple[str, int] | None:
    """State letter and start time of a process; None when there is none."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command's name is in parentheses and may hold anything.
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


def is_gone(pid: int, start_time: int, proc: Path = PROC) -> bool:
    """Reaped, or a zombie whose threads have all ended and with them its files and writes."""
    stat = read_stat(pid, proc)
    if stat is None or stat[1] != start_time:
        return True
    if stat[0] not in ("Z", "X"):
        return False
    try:
        return len(os.listdir(proc / str(pid) / "task")) <= 1  # noqa: PTH208 (one system call, no objects)
    except OSError:
        return True


def send(found: Iterable[Found], number: signal.Signals) -> None:
    """A signal to each, unless the pid has been given to another process meanwhile."""
    for process in found:
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:
            continue
        try:
            stat = read_stat(process.pid)
            if stat is not None and stat[1] == process.start_time:
                signal.pidfd_send_signal(handle, number)
        except OSError:
            # It ended between the look and the signal.
            pass
        finally:
            os.close(handle)


class Guests:
    """The processes of the guarded guests, over time: what was killed is remembered until it is proven gone."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._guarded: tuple[Guarded, ...] = ()
        self._killed: dict[tuple[int, int], str] = {}
        self._paused: dict[tuple[int, int], Found] = {}

    def guard(self, guests: Iterable[Guarded]) -> None:
        self._guarded = tuple(guests)

    def running(self) -> list[Found]:
        return scan(self._guarded, self._proc)

    def pause(self) -> int:
        """SIGSTOP to all that run; how many that were."""
        awake = [process for process in self.running() if not process.is_paused]
        send(awake, signal.SIGSTOP)
        self._paused.update({(process.pid, process.start_time): process for process in awake})
        return len(awake)

    def resume(self) -> None:
        """SIGCONT to those that `pause` stopped, and to no others."""
        send(self._paused.values(), signal.SIGCONT)
        self._paused.clear()

    def kill(self) -> int:
        """SIGKILL to all there are; how many that were."""
        found = self.running()
        self._killed.update({(process.pid, process.start_time): process.sid for process in found})
        send(found, signal.SIGKILL)
        self._paused.clear()
        return len(found)

    def is_any_left(self) -> bool:
        """Whether something runs, or something killed is not proven gone."""
        self._killed = {key: sid for key, sid in self._killed.items() if not is_gone(key[0], key[1], self._proc)}
        return bool(self._killed) or bool(self.running())

    def left(self) -> list[str]:
        """What to say about those that do not go: `vm:100 (pid 4711)`."""
        alive = {(process.pid, process.start_time): process.sid for process in self.running()} | self._killed
        return [f"{sid} (pid {pid})" for (pid, _), sid in sorted(alive.items())]
