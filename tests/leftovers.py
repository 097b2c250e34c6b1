"""What tests and labs could leave on a machine: namespaces, mounts, loop devices, control groups, processes."""

from dataclasses import dataclass, fields
from pathlib import Path

PROGRAMS = ("qemu-system", "libvirtd", "kvorum-", "lxc-start", "[lxc monitor]", "lab.init", "lab.relay", "lab.watchdog")


@dataclass(frozen=True)
class Traces:
    network_namespaces: frozenset[str]
    mounts: frozenset[str]
    loop_devices: frozenset[str]
    control_groups: frozenset[str]
    processes: frozenset[str]

    def added_since(self, earlier: "Traces") -> list[str]:
        """One line for each thing that is there now and was not then."""
        lines = []
        for field in fields(self):
            now, then = getattr(self, field.name), getattr(earlier, field.name)
            lines += [f"{field.name}: {item}" for item in sorted(now - then)]
        return lines


def observe() -> Traces:
    return Traces(
        network_namespaces=_names("/run/netns"),
        mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        loop_devices=frozenset(_loop_devices()),
        control_groups=frozenset(_control_groups()),
        processes=frozenset(_processes()),
    )


def _names(directory: str) -> frozenset[str]:
    path = Path(directory)
    return frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else frozenset()


def _loop_devices() -> list[str]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(f"{backing.parts[3]} {backing.read_text().strip()}")
        except OSError:  # detached meanwhile
            continue
    return found


def _control_groups() -> list[str]:
    words = ("kvorum", "lxc", "lab")
    root = Path("/sys/fs/cgroup")
    groups = [*root.glob("*/*/"), *root.glob("*/")]
    return [str(path) for path in groups if any(word in path.name for word in words)]


def _processes() -> list[str]:
    """Told apart by pid, so that the same program started anew counts as new."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended meanwhile
            continue
        if any(program in command for program in PROGRAMS):
            found.append(f"{entry.name} {command[:200]}")
    return found
