"""What of a lab is still on the machine: found by looking at the machine, never by believing our own records.

After `down` the answer must be nothing. Everything a lab makes carries its name in a cgroup, an environment variable,
a path or a loop device's backing file; that is what is searched for here.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab import cgroups
from lab.layout import LabLayout

_LOOP_GET_STATUS64 = 0x4C05


class Kind(StrEnum):
    process = "process"
    cgroup = "cgroup"
    mount = "mount"
    loop = "loop device"
    directory = "directory"


@dataclass(frozen=True, slots=True)
class Leftover:
    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


def find(layout: LabLayout) -> list[Leftover]:
    """Sorted by kind. Namespaces show as the processes and mounts that hold them."""
    found = [Leftover(Kind.process, text) for text in _processes(layout)]
    found += [Leftover(Kind.cgroup, str(path)) for path in cgroups.existing(f"{layout.cgroup_prefix}*")]
    found += [Leftover(Kind.mount, text) for text in _mounts(layout)]
    found += [Leftover(Kind.loop, text) for text in loops(layout)]
    if layout.directory.exists():
        found.append(Leftover(Kind.directory, str(layout.directory)))
    return found


def loops(layout: LabLayout) -> list[str]:
    """Loop devices on files of the lab, by inode: a node's path to the file means nothing out here."""
    inodes = _inodes(layout.directory)
    found = []
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            device = backing.parent.parent.name
            if str(layout.directory) in backing.read_text() or _backing_inode(device) in inodes:
                found.append(f"/dev/{device}")
    return found


def mount_points(layout: LabLayout, mountinfo: str) -> list[str]:
    """Mount points of the text of /proc/PID/mountinfo that lie in the lab's directory, deepest first."""
    points = (line.split()[4] for line in mountinfo.splitlines())
    inside = {point for point in points if Path(point).is_relative_to(layout.directory)}
    return sorted(inside, key=lambda point: point.count("/"), reverse=True)


def _processes(layout: LabLayout) -> Iterator[str]:
    in_cgroups = cgroups.processes(f"{layout.cgroup_prefix}*")
    marker = f"KVORUM_LAB={layout.name}".encode()
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        if int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            is_marked = marker in (entry / "environ").read_bytes().split(b"\0")
            if is_marked or int(entry.name) in in_cgroups:
                yield f"{entry.name} {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')[:120]}"


def _mounts(layout: LabLayout) -> Iterator[str]:
    """In every mount namespace that some process is in."""
    seen = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            namespace = str((entry / "ns/mnt").readlink())
            if namespace in seen:
                continue
            seen.add(namespace)
            text = (entry / "mountinfo").read_text()
            overlays = [line for line in text.splitlines() if f"upperdir={layout.directory}/" in line]
            for point in (*mount_points(layout, text), *(line.split()[4] for line in overlays)):
                yield f"{point} in {namespace} of process {entry.name}"


def _inodes(directory: Path) -> set[tuple[int, int]]:
    found = set()
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(parent, name).lstat()
                found.add((status.st_dev, status.st_ino))
    return found


def _backing_inode(device: str) -> tuple[int, int]:
    """Device and inode of the file behind a loop device: LOOP_GET_STATUS64 of linux/loop.h."""
    handle = os.open(f"/dev/{device}", os.O_RDONLY)
    try:
        answer = fcntl.ioctl(handle, _LOOP_GET_STATUS64, bytes(232))
    finally:
        os.close(handle)
    number, inode = struct.unpack_from("QQ", answer)
    return number, inode
