"""Control groups of a lab: what belongs to it, frozen, killed and removed as one.

Each process of a lab lives in a cgroup named after it, from before it runs any of our code: that is how `down` finds
everything, however `up` ended. Works with cgroup v1, with the hybrid layout and with pure v2, whatever is mounted.
Names and parsing are pure; the rest touches /sys/fs/cgroup only below the lab's own names.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvorum.errors import Timeout, Unsupported

ROOT = Path("/sys/fs/cgroup")
# In v2 only leaves may hold processes once controllers are passed down, so a node's own live one level below its root.
LEAF = "init.scope"
# Realtime budget of one node out of the machine's 950000 us a second: the lease keeper asks for SCHED_FIFO.
RT_RUNTIME_US = 20_000

_NOT_CONTROLLERS = frozenset(
    {"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "clone_children", "xattr"}
)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup tree. `controllers` is empty for v2."""

    path: Path
    controllers: tuple[str, ...] = ()
    is_v2: bool = False

    @property
    def mount_options(self) -> str:
        """What mounts the same v1 hierarchy again."""
        named_only = all(word.startswith("name=") for word in self.controllers)
        return ",".join(("none", *self.controllers) if named_only else self.controllers)


def parse_mounts(text: str, *, root: Path = ROOT) -> tuple[Hierarchy, ...]:
    """The cgroup trees in the text of /proc/mounts, each once, in order."""
    found: dict[Path, Hierarchy] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or not Path(fields[1]).is_relative_to(root):
            continue
        path, kind, options = Path(fields[1]), fields[2], fields[3]
        if kind == "cgroup2":
            found[path] = Hierarchy(path=path, is_v2=True)
        elif kind == "cgroup":
            words = (word for word in options.split(",") if word not in _NOT_CONTROLLERS)
            found[path] = Hierarchy(
                path=path, controllers=tuple(w for w in words if not w.startswith("release_agent="))
            )
    return tuple(found.values())


def hierarchies() -> tuple[Hierarchy, ...]:
    """Raises Unsupported when none is mounted."""
    found = parse_mounts(Path("/proc/mounts").read_text())
    if not found:
        raise Unsupported("no cgroups are mounted below /sys/fs/cgroup", remedy="mount cgroup2 there")
    return found


def make(name: str, *, has_leaf: bool) -> None:
    """A cgroup `name` in every hierarchy; there already is fine. `has_leaf`: processes go one level lower in v2."""
    for hierarchy in hierarchies():
        directory = hierarchy.path / name
        if hierarchy.is_v2:
            _pass_controllers_down(hierarchy.path)
            (directory / LEAF if has_leaf else directory).mkdir(parents=True, exist_ok=True)
            continue
        directory.mkdir(exist_ok=True)
        if (directory / "cpuset.cpus").exists():
            for key in ("cpuset.cpus", "cpuset.mems"):
                (directory / key).write_text((hierarchy.path / key).read_text())
            (directory / "cgroup.clone_children").write_text("1")
        if (directory / "cpu.rt_runtime_us").exists():
            with contextlib.suppress(OSError):  # the machine's budget may be spent: the keeper then runs without
                (directory / "cpu.rt_runtime_us").write_text(str(RT_RUNTIME_US))


def entrance(name: str, *, leaf: bool) -> list[Path]:
    """The files a process writes its id to in order to be in the cgroup everywhere."""
    return [(h.path / name / LEAF if h.is_v2 and leaf else h.path / name) / "cgroup.procs" for h in hierarchies()]


def joining(name: str, command: Sequence[str], *, leaf: bool = True) -> list[str]:
    """A command line that joins the cgroup first and then becomes `command`; it fails when the cgroup is gone.

    A shell does it, and not code between fork and exec, because the caller may run threads.
    """
    script = 'set -e; while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'
    return ["/bin/sh", "-c", script, "join", *map(str, entrance(name, leaf=leaf)), "--", *command]


def existing(pattern: str) -> list[Path]:
    """The cgroup directories of a lab in all hierarchies, outermost only."""
    return sorted(path for h in hierarchies() for path in h.path.glob(pattern) if path.is_dir())


def processes(pattern: str) -> set[int]:
    """Ids, as this PID namespace sees them, of everything in the cgroups that match `pattern`."""
    return {pid for top in existing(pattern) for directory in _tree(top) for pid in _members(directory)}


def freeze(name: str, *, timeout_s: float = 10.0) -> None:
    """Stop every process of the cgroup where it is. Raises Timeout."""
    for hierarchy, directory in _freezers(name):
        key, value = ("cgroup.freeze", "1") if hierarchy.is_v2 else ("freezer.state", "FROZEN")
        (directory / key).write_text(value)
    _wait_frozen(name, timeout_s=timeout_s)


def thaw(name: str) -> None:
    for hierarchy, directory in _freezers(name):
        key, value = ("cgroup.freeze", "0") if hierarchy.is_v2 else ("freezer.state", "THAWED")
        (directory / key).write_text(value)


def is_frozen(name: str) -> bool:
    return any(
        (directory / "cgroup.freeze").read_text().strip() == "1"
        if hierarchy.is_v2
        else (directory / "freezer.state").read_text().strip() != "THAWED"
        for hierarchy, directory in _freezers(name)
    )


def destroy(pattern: str, *, timeout_s: float = 15.0) -> None:
    """Kill everything in the cgroups that match `pattern` and remove them. Raises Timeout, naming what stays.

    Frozen ones are killed before they are thawed, so that nobody runs a last instruction.
    """
    deadline = time.monotonic() + timeout_s
    while tops := existing(pattern):
        for pid in processes(pattern):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in {top.name for top in tops}:
            with contextlib.suppress(FileNotFoundError):
                thaw(name)
        for top in tops:
            _remove(top)
        if time.monotonic() > deadline and existing(pattern):
            raise Timeout(
                f"cgroups of {pattern} stay: processes {sorted(processes(pattern))}",
                remedy="look for processes in state D",
            )
        time.sleep(0.01)


def _freezers(name: str) -> Iterator[tuple[Hierarchy, Path]]:
    """The hierarchy that freezes: v1's freezer when there is one, else v2."""
    found = hierarchies()
    v1 = [h for h in found if "freezer" in h.controllers]
    for hierarchy in v1 or [h for h in found if h.is_v2]:
        if (hierarchy.path / name).is_dir():
            yield hierarchy, hierarchy.path / name


def _pass_controllers_down(root: Path) -> None:
    wanted = (root / "cgroup.controllers").read_text().split()
    for controller in wanted:
        with contextlib.suppress(OSError):  # some refuse at the root; the node lives without
            (root / "cgroup.subtree_control").write_text(f"+{controller}")


def _tree(top: Path) -> Iterable[Path]:
    return [Path(directory) for directory, _, _ in os.walk(top)]


def _members(directory: Path) -> list[int]:
    try:
        return [int(word) for word in (directory / "cgroup.procs").read_text().split()]
    except OSError:  # removed, or a threaded v2 cgroup
        return []


def _remove(top: Path) -> None:
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):  # still busy: the caller comes back
            Path(directory).rmdir()


def _wait_frozen(name: str, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(_has_settled(hierarchy, directory) for hierarchy, directory in _freezers(name)):
        if time.monotonic() > deadline:
            raise Timeout(f"{name} does not freeze within {timeout_s:g} s")
        time.sleep(0.005)


def _has_settled(hierarchy: Hierarchy, directory: Path) -> bool:
    if hierarchy.is_v2:
        return "frozen 1" in (directory / "cgroup.events").read_text()
    return (directory / "freezer.state").read_text().strip() == "FROZEN"
