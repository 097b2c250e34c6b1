"""A container's processes, as the kernel's cgroups show them: on v1, on v2 and on both at once.

Whether a container runs is asked here and not of liblxc: its answer comes from the container's monitor process, and a monitor
that is stopped or stuck never answers (the binding then holds the interpreter's lock for as long). Files of /proc and
/sys/fs/cgroup always answer. Names of cgroups come from `lxc_config`; nothing here knows what they stand for.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.guests.traffic import of_blkio, of_io_stat

PROC = Path("/proc")
_MOUNT_OPTIONS = frozenset(("rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "xattr", "clone_children"))
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the hierarchies are mounted: v1 by controller (`name=systemd` counts as one), v2 at most once."""

    v1: Mapping[str, Path] = field(default_factory=dict)
    v2: Path | None = None
    v2_controllers: frozenset[str] = frozenset()

    def roots(self) -> list[Path]:
        """Each hierarchy once."""
        return list(dict.fromkeys([*self.v1.values(), *([self.v2] if self.v2 else [])]))


def parse_mounts(mounts: str) -> Layout:
    """Of the text of /proc/self/mounts; the controllers of v2 are not in there."""
    v1: dict[str, Path] = {}
    v2 = None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        path = Path(fields[1].replace("\\040", " "))
        if fields[2] == "cgroup2":
            v2 = v2 or path
        elif fields[2] == "cgroup":
            for option in fields[3].split(","):
                if option not in _MOUNT_OPTIONS and not option.startswith("release_agent="):
                    v1.setdefault(option, path)
    return Layout(v1, v2)


def read_layout(proc: Path = PROC) -> Layout:
    """Of this process' mount namespace."""
    layout = parse_mounts((proc / "self/mounts").read_text())
    if layout.v2 is None:
        return layout
    try:
        controllers = (layout.v2 / "cgroup.controllers").read_text().split()
    except OSError:
        controllers = []
    return Layout(layout.v1, layout.v2, frozenset(controllers))


def names(layout: Layout, prefix: str) -> set[str]:
    """Top-level cgroups that begin with `prefix`, in any hierarchy."""
    found: set[str] = set()
    for root in layout.roots():
        with contextlib.suppress(OSError):
            found.update(path.name for path in root.iterdir() if path.name.startswith(prefix))
    return found


def pids(layout: Layout, name: str) -> set[int]:
    """Processes in this top-level cgroup and below it, in any hierarchy."""
    found: set[int] = set()
    for directory in _directories(layout, name):
        # The cgroup may go away at any moment, and then there is nothing in it.
        with contextlib.suppress(OSError):
            found.update(int(line) for line in (directory / "cgroup.procs").read_text().split())
    return found - {0}


def kill(layout: Layout, name: str) -> set[int]:
    """SIGKILL to all that are in it now, even when frozen; the pids that were there. Call again until none are left."""
    found = pids(layout, name)
    for pid in found:
        signal_member(pid, name, signal.SIGKILL)
    thaw(layout, name)
    return found


def signal_member(pid: int, name: str, number: int) -> bool:
    """Signal the process if it is (still) in this cgroup. False when there is no such process."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The pid may have been given to a stranger meanwhile; with the pidfd open it no longer can.
        if not _is_member(pid, name):
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def is_frozen(layout: Layout, name: str) -> bool:
    if freezer := layout.v1.get("freezer"):
        return _read(freezer / name / "freezer.state").strip() in {"FROZEN", "FREEZING"}
    if layout.v2 is not None:
        return "frozen 1" in _read(layout.v2 / name / "cgroup.events")
    return False


def io_bytes(layout: Layout, name: str) -> tuple[int, int] | None:
    """Bytes that the cgroup has read and written; None when no controller counts them."""
    if blkio := layout.v1.get("blkio"):
        for file in ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"):
            if text := _read(blkio / name / file):
                return of_blkio(text)
        return None
    path = layout.v2 / name / "io.stat" if layout.v2 is not None else None
    return of_io_stat(_read(path)) if path is not None and path.exists() else None


def thaw(layout: Layout, name: str) -> None:
    for directory in _directories(layout, name):
        for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (directory / file).exists():
                with contextlib.suppress(OSError):
                    (directory / file).write_text(word)


def sweep(layout: Layout, name: str) -> bool:
    """Remove the cgroup, empty ones below it first. False when something is still in it."""
    is_gone = True
    for directory in reversed(_directories(layout, name)):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            is_gone = False
    return is_gone


def find_init(layout: Layout, name: str, proc: Path = PROC) -> int | None:
    """The first process of the container in this cgroup: the one that is pid 1 one namespace below ours."""
    for pid in sorted(pids(layout, name)):
        for line in _read(proc / str(pid) / "status").splitlines():
            if line.startswith("NSpid:") and line.split()[2:] == ["1"]:
                return pid
    return None


def uptime_s(pid: int, proc: Path = PROC) -> float:
    """How long the process has been there; 0 when it is gone."""
    stat, uptime = _read(proc / str(pid) / "stat"), _read(proc / "uptime")
    # The second field is the program's name in parentheses and may hold anything, so count from its end.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or not uptime:
        return 0.0
    return max(0.0, float(uptime.split()[0]) - int(fields[19]) / _TICKS)


def blocks_signal(pid: int, number: int, proc: Path = PROC) -> bool:
    """Whether the process waits for this signal rather than being killed by it, as systemd does for SIGRTMIN+3."""
    for line in _read(proc / str(pid) / "status").splitlines():
        if line.startswith("SigBlk:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def all_pids(proc: Path = PROC) -> list[int]:
    return [int(path.name) for path in proc.iterdir() if path.name.isdigit()]


def command_line(pid: int, proc: Path = PROC) -> bytes:
    """Words that each end with a NUL; empty for a kernel thread and for a process that is gone."""
    try:
        return (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def program(pid: int, proc: Path = PROC) -> str:
    """Name of the file that the process runs; empty when it is gone."""
    try:
        return (proc / str(pid) / "exe").readlink().name
    except OSError:
        return ""


def _directories(layout: Layout, name: str) -> list[Path]:
    """The cgroup and all below it, parents first, over all hierarchies."""
    return [path for root in layout.roots() for path in _tree(root / name)]


def _tree(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        return
    yield directory
    for path, inner, _ in os.walk(directory):
        yield from (Path(path) / entry for entry in inner)


def _is_member(pid: int, name: str) -> bool:
    lines = _read(PROC / str(pid) / "cgroup").splitlines()
    return any(line.partition(":")[2].partition(":")[2].split("/")[1:2] == [name] for line in lines)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
