"""Writes the archive format that the Linux kernel unpacks as its first file system (cpio "newc"). Pure.

Our own few lines, because they need no cpio program, no root and no device nodes on disk, and give the same bytes each
time. Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

import stat
from pathlib import PurePosixPath


class Archive:
    """Parents of what is added are made on the way. Names are relative to the root."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._directories: set[str] = set()
        self._count = 0

    def file(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int, *, mode: int = 0o600) -> None:
        """A character device."""
        self._add(name, stat.S_IFCHR | mode, b"", device=(major, minor))

    def directory(self, name: str) -> None:
        if name not in self._directories:
            self._add(name, stat.S_IFDIR | 0o755, b"")
            self._directories.add(name)

    def finish(self) -> bytes:
        """The whole archive; nothing may be added afterwards."""
        self._entry("TRAILER!!!", 0, b"", (0, 0))
        return bytes(self._data)

    def _add(self, name: str, mode: int, content: bytes, *, device: tuple[int, int] = (0, 0)) -> None:
        parents = [str(parent) for parent in PurePosixPath(name).parents if str(parent) != "."]
        for parent in reversed(parents):
            self.directory(parent)
        self._entry(name, mode, content, device)

    def _entry(self, name: str, mode: int, content: bytes, device: tuple[int, int]) -> None:
        self._count += 1
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device, device of a node, length of the name, checksum (unused)
        numbers = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._data += b"070701" + "".join(f"{number:08X}" for number in numbers).encode() + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += b"\0" * (-len(self._data) % 4)
