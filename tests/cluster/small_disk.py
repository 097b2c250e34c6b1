"""A small ext4 of its own on a loop device: one that can be full, and one whose power can fail."""

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

# EXT4_IOC_SHUTDOWN without flushing the journal: what was not synced is gone, as when the power fails.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


class SmallDisk:
    def __init__(self, directory: Path, *, size_mib: int) -> None:
        self._image = directory / "disk.img"
        self.path = directory / "disk"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(size_mib * 2**20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        if os.path.ismount(self.path):
            _run("umount", str(self.path))

    def fail_power(self) -> None:
        """From now on every call fails; `unmount` and `mount` show what has survived."""
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)


@contextlib.contextmanager
def small_disk(directory: Path, *, size_mib: int) -> Iterator[SmallDisk]:
    directory.mkdir(exist_ok=True)
    disk = SmallDisk(directory, size_mib=size_mib)
    try:
        yield disk
    finally:
        disk.unmount()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
