"""Processes that we started and must be able to tell from strangers later: id plus start time.

A process id alone is reused by the kernel; killing by it after a crash could hit somebody else's work.
"""

import contextlib
import os
import select
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from kvorum.errors import CommandFailed, Timeout
from kvorum.node import write_atomically

# Children of this process that outlive it, or are killed by their cgroup: see `reap`.
_detached: set[int] = set()


class Recorded(msgspec.Struct, frozen=True):
    """`started` is field 22 of /proc/PID/stat, in clock ticks since the machine's boot."""

    pid: int
    started: int


def start_time(pid: int) -> int | None:
    """None when there is no such process, or only a zombie of it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def record(pid: int, path: Path) -> Recorded | None:
    """Note down a process of ours; None when it has ended already."""
    started = start_time(pid)
    if started is None:
        return None
    noted = Recorded(pid=pid, started=started)
    write_atomically(path, msgspec.json.encode(noted))
    return noted


def recall(path: Path) -> Recorded | None:
    """The process noted in `path` if that very one still lives."""
    try:
        noted = msgspec.json.decode(path.read_bytes(), type=Recorded)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return noted if is_alive(noted) else None


def is_alive(noted: Recorded) -> bool:
    return start_time(noted.pid) == noted.started


def kill(noted: Recorded, *, timeout_s: float = 10.0) -> None:
    """SIGKILL and wait until it is gone. Raises Timeout."""
    try:
        handle = os.pidfd_open(noted.pid)
    except ProcessLookupError:
        return
    try:
        # From here on the handle means one process; only now is comparing the start time conclusive.
        if not is_alive(noted):
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], timeout_s)[0]:
            raise Timeout(f"process {noted.pid} does not die", remedy="look for it in state D")
        reap()
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def spawn_detached(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, keep: Mapping[int, int] | None = None
) -> int:
    """Start a program that outlives us, in a session of its own; its output goes to `log`. Returns its process id.

    `keep` maps file descriptors of ours to the numbers that the program shall find them under.
    """
    program = shutil.which(command[0])
    if program is None:
        raise CommandFailed(f"{command[0]} is not installed")
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in (keep or {}).items()),
    ]
    pid = os.posix_spawn(
        program,
        list(command),
        dict(environment),
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
    _detached.add(pid)
    return pid


def reap() -> None:
    """Let go of detached children that have ended; only theirs, so that nobody else's wait is spoilt."""
    for pid in tuple(_detached):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _detached.discard(pid)
