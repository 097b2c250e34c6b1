"""Everything that the log and the snapshots do on disk, in one small place, so that a test can stand in for the disk.

`Files` is one directory without subdirectories, `File` an open file in it. The simulation has its own (torn writes, lost
syncs, no space, slowness) under the real journal; `LocalFiles` is the one that runs. What is written, and when it must be
durable, is `journal`'s and `snapshot`'s business.

All of it may raise OSError. A write that does may have left any part of itself; nothing is durable before `datasync`, and no name
before the directory's `sync`.
"""

import errno
import mmap
import os
from pathlib import Path
from typing import Protocol

Data = bytes | bytearray | memoryview

_ZEROS = bytes(4096)
# What a disk writes at once, from the smallest on.
_SECTORS = (512, 4096)
# Of more than this little is saved by going past the page cache.
_DIRECT_BYTES = 64 * 2**10


class File(Protocol):
    def write(self, data: Data, *, at: int) -> None:
        """All of it, at this offset; beyond the end the gap reads as zeros."""
        ...

    def append(self, data: Data, *, at: int) -> None:
        """As `write`, where nothing counts that lies behind it: up to the end of its sector that may become zeros."""
        ...

    def read(self, size: int, *, at: int) -> bytes:
        """Less than `size` only at the end of the file."""
        ...

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def allocate(self, size: int) -> None:
        """Lengthen to `size` with zeros that are really there: later writes to them need no space and change no metadata, which
        makes `datasync` cheaper. The one call that may take long."""
        ...

    def datasync(self) -> None:
        """What was written, and the length, is durable. After a failure nothing more may be said to be."""
        ...

    def close(self) -> None: ...


class Files(Protocol):
    @property
    def path(self) -> Path:
        """For messages only."""
        ...

    def names(self) -> list[str]:
        """Sorted."""
        ...

    def open(self, name: str) -> File:
        """For reading and writing. Raises FileNotFoundError."""
        ...

    def create(self, name: str) -> File:
        """Empty, for its owner's eyes only; what was there under this name is gone."""
        ...

    def rename(self, old: str, new: str) -> None:
        """At once, in place of what was there under the new name. Open files stay what they are."""
        ...

    def remove(self, name: str) -> None:
        """Nothing when it is not there."""
        ...

    def sync(self) -> None:
        """The names are durable."""
        ...


def is_full(error: OSError) -> bool:
    """No space, which passes when somebody makes some; every other failure of a disk is for good."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class LocalFile:
    """Implements `File`."""

    def __init__(self, path: Path, flags: int) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        self._direct: _Direct | None = None
        self._is_direct = True

    def write(self, data: Data, *, at: int) -> None:
        if self._direct is not None:
            self._direct.forget()
        left = memoryview(data)
        while left:
            written = os.pwrite(self._handle, left, at)
            left, at = left[written:], at + written

    def append(self, data: Data, *, at: int) -> None:
        """By the sector where the file system lets us: through the page cache each small write costs a page, or two where it
        crosses from one to the next, and that is what a quiet cluster writes."""
        if len(data) > _DIRECT_BYTES or (direct := self._past_cache()) is None:
            self.write(data, at=at)
            return
        try:
            direct.append(data, at)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            # Not on this file system.
            self._is_direct = False
            self.write(data, at=at)

    def _past_cache(self) -> "_Direct | None":
        if self._direct is None and self._is_direct:
            try:
                self._direct = _Direct(self._handle)
            except OSError:
                # Not on this file system, without /proc, or with too many files open.
                self._is_direct = False
        return self._direct if self._is_direct else None

    def read(self, size: int, *, at: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := os.pread(self._handle, size, at)):
            parts.append(part)
            size, at = size - len(part), at + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def size(self) -> int:
        return os.fstat(self._handle).st_size

    def truncate(self, size: int) -> None:
        if self._direct is not None:
            self._direct.forget()
        os.ftruncate(self._handle, size)

    def allocate(self, size: int) -> None:
        """Zeros are written, for extents that are only reserved cost the first write to them what was to be saved."""
        start = self.size()
        if size <= start:
            return
        os.posix_fallocate(self._handle, start, size - start)
        # A page at a time: what is written in one go the kernel may keep as one large folio, and each small write into it then
        # counts as one of the whole folio.
        for at in range(start, size, len(_ZEROS)):
            self.write(memoryview(_ZEROS)[: size - at], at=at)

    def datasync(self) -> None:
        os.fdatasync(self._handle)

    def close(self) -> None:
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class _Direct:
    """Another handle of the file that is open as `handle`, past the page cache: whole sectors, from memory that is aligned.

    An append begins in the midst of a sector, most of the time, and what that sector held before is written again with it. It is
    kept here: to read it each time would fetch a page of the disk.
    """

    def __init__(self, handle: int) -> None:
        self._buffered, self._handle = handle, -1
        self._memory = mmap.mmap(-1, _DIRECT_BYTES + 2 * _SECTORS[-1])
        self._handle = os.open(f"/proc/self/fd/{handle}", os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        self._sector = 0
        # Where the last append ended, and what of its last sector lies before that.
        self._end, self._tail = -1, b""

    def append(self, data: Data, at: int) -> None:
        """Raises OSError with EINVAL when the file system has no such thing."""
        for sector in (self._sector,) if self._sector else _SECTORS:
            try:
                self._append(data, at, sector)
            except OSError as error:
                self.forget()
                if error.errno != errno.EINVAL or sector in (self._sector, _SECTORS[-1]):
                    raise
            else:
                self._sector = sector
                return

    def _append(self, data: Data, at: int, sector: int) -> None:
        within = at % sector
        tail = self._tail if self._end == at else os.pread(self._buffered, within, at - within)
        end = within + len(data)
        whole = -(-end // sector) * sector
        self._memory[:within] = tail.ljust(within, b"\0")
        self._memory[within:end] = data
        self._memory[end:whole] = bytes(whole - end)
        done = 0
        with memoryview(self._memory) as memory:
            while done < whole:
                done += os.pwrite(self._handle, memory[done:whole], at - within + done)
        self._end, self._tail = at + len(data), self._memory[end - end % sector : end]

    def forget(self) -> None:
        """Somebody else has changed the file."""
        self._end = -1

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            self._memory.close()

    def __del__(self) -> None:
        # Nobody but its file knows of it, and one that was abandoned without a close keeps one handle open, not two.
        self.close()


class LocalFiles:
    """Implements `Files`: a directory of this machine, which is there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    def names(self) -> list[str]:
        return sorted(path.name for path in self._path.iterdir())

    def open(self, name: str) -> LocalFile:
        return LocalFile(self._path / name, 0)

    def create(self, name: str) -> LocalFile:
        """A new inode, not a truncation: somebody may still read the file that had this name."""
        self.remove(name)
        return LocalFile(self._path / name, os.O_CREAT | os.O_EXCL)

    def rename(self, old: str, new: str) -> None:
        (self._path / old).rename(self._path / new)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
