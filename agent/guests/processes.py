"""QEMU's processes as /proc shows them: the last word on whether a guest runs.

libvirt's answer comes from a daemon that may be dead or new; a process is there or not. Only guests of ours are found, by
the `guest=kvorum-<vmid>` that libvirt puts into the command line.
"""

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kvorum.ids import Vmid

PROC = Path("/proc")
_GUEST = re.compile(rb"(?:^|,)guest=kvorum-([1-9][0-9]{2,8})(?:,|$)")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    uptime_s: float


def guest_in(command_line: bytes) -> Vmid | None:
    """The guest that a /proc/<pid>/cmdline belongs to: the word after `-name`, in a QEMU."""
    words = command_line.split(b"\0")
    if b"qemu" not in words[0]:
        return None
    for option, value in pairwise(words):
        match = _GUEST.search(value) if option == b"-name" else None
        if match:
            return Vmid(int(match[1]))
    return None


def guest_processes(proc: Path = PROC) -> Mapping[Vmid, Process]:
    """Every guest's process of this PID namespace. Zombies have no command line and count as gone."""
    found = {}
    uptime = float((proc / "uptime").read_text().split()[0])
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            vmid = guest_in((entry / "cmdline").read_bytes())
            if vmid is not None:
                # Field 22 of stat(5), counted behind the command in parentheses, which may hold blanks.
                started = int((entry / "stat").read_text().rpartition(")")[2].split()[19]) / _TICKS
                found[vmid] = Process(int(entry.name), max(0.0, uptime - started))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def kill(vmid: Vmid, pid: int) -> None:
    """SIGKILL, if `pid` is still that guest: the number may be somebody else's by now."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Looked at after the handle was taken, so that what is killed is what was looked at.
        if guest_in((PROC / str(pid) / "cmdline").read_bytes()) == vmid:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return
    finally:
        os.close(handle)
