"""A slow disk: the kernel lets one node's processes do only so many writes a second to its own block device.

The block layer makes them wait (cgroup's I/O throttling), so a sync takes as long as on a disk that is worn out or shared, and
nothing else of the node slows down. Each node has a group of its own, which must be shown to work before it counts.
"""

import os
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/blkio"), Path("/sys/fs/cgroup")
PREFIX = "kvorum-fault-"

# Four blocks, each written and synced alone: the seconds that it took.
_PROBE = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.posix_fallocate(file, 0, 1 << 16)
os.fsync(file)
begin = time.monotonic()
for number in range(4):
    os.pwrite(file, os.urandom(4096), number * 8192)
    os.fdatasync(file)
print(time.monotonic() - begin)
"""


class NotSlow(Exception):
    """The kernel does not slow the disk down: no such fault was injected."""


def why_not() -> str:
    """What this machine lacks for it; "" when nothing."""
    if (V1 / "cgroup.procs").exists():
        is_there, root = (V1 / "blkio.throttle.write_iops_device").exists(), V1
    else:
        controllers = V2 / "cgroup.controllers"
        is_there, root = controllers.exists() and "io" in controllers.read_text().split(), V2
    if not is_there:
        return "this kernel's cgroups do not throttle block devices"
    return "" if os.access(root, os.W_OK) else f"{root} cannot be written"


class Throttle:
    def __init__(self, name: str) -> None:
        self._is_v1 = (V1 / "cgroup.procs").exists()
        root = V1 if self._is_v1 else V2
        for old in root.glob(f"{PREFIX}*"):
            # Of runs that were killed; those of running ones are not empty.
            with suppress(OSError):
                if not (old / "cgroup.procs").read_text():
                    old.rmdir()
        # By a number of its own: runs at the same time may have the same process ids, in their namespaces.
        self._group = root / f"{PREFIX}{uuid.uuid4().hex[:8]}-{name}"
        self._slowed = ""

    def slow(self, disk: Path, pid: int, *, writes_per_s: int) -> float:
        """From now on, for this process and its threads. How long a sync takes there. Raises NotSlow."""
        device = disk.stat().st_dev
        self._slowed = f"{os.major(device)}:{os.minor(device)}"
        if not self._is_v1:
            (V2 / "cgroup.subtree_control").write_text("+io")
        self._group.mkdir(exist_ok=True)
        self._limit(writes_per_s)
        (self._group / "cgroup.procs").write_text(str(pid))
        took = self._probe(disk)
        if took < 1.0 / writes_per_s:
            self.restore()
            raise NotSlow(f"four synced writes take {took:.3f} s at {writes_per_s} a second")
        return took / 4

    def restore(self) -> None:
        if self._slowed:
            self._limit(0)
            self._slowed = ""

    def remove(self) -> None:
        """Once nobody is in it."""
        self.restore()
        with suppress(FileNotFoundError):
            self._group.rmdir()

    def _limit(self, writes_per_s: int) -> None:
        if self._is_v1:
            (self._group / "blkio.throttle.write_iops_device").write_text(f"{self._slowed} {writes_per_s}")
        else:
            (self._group / "io.max").write_text(f"{self._slowed} wiops={writes_per_s or 'max'}")

    def _probe(self, disk: Path) -> float:
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        command = ["sh", "-c", enter, str(self._group), sys.executable, "-S", "-c", _PROBE, str(disk / "probe")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return float(done.stdout)
