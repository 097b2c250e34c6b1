"""A disk in memory under the real log and the real snapshots: what is not synced may be lost, torn or out of order.

A killed process leaves what it wrote. A power loss leaves what was synced, and of the rest any part: nothing, a beginning, or
single sectors in any order, as a drive's cache may write them; of names that were not synced a beginning, as a journalling file
system keeps them. A disk may be full, slow, or fail.
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clusterfs.raft.files import Data

SECTOR = 512

# Called with the operation and the file's name before and after it; may raise, and may let time pass.
Watcher = Callable[[str, str, bool], None]


@dataclass
class Inode:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    # What was done since the last sync: (offset, bytes), or (length, None) for a truncation.
    undone: list[tuple[int, bytes | None]] = field(default_factory=list)


@dataclass
class SimDisk:
    """What one node has; outlives its processes."""

    names: dict[str, Inode] = field(default_factory=dict)
    # The names at the last sync, and each state since.
    durable_names: list[dict[str, Inode]] = field(default_factory=lambda: [{}])
    is_full: bool = False

    def name_changed(self) -> None:
        self.durable_names.append(dict(self.names))

    def lose_power(self, luck: random.Random) -> None:
        self.names = dict(luck.choice(self.durable_names))
        self.durable_names = [dict(self.names)]
        for _, inode in sorted(self.names.items()):
            inode.data = bytearray(_survivor(inode, luck))
            inode.durable, inode.undone = bytes(inode.data), []


def _survivor(inode: Inode, luck: random.Random) -> bytes:
    data = bytearray(inode.durable)
    how = luck.choice(("nothing", "beginning", "sectors", "all"))
    if how == "nothing":
        return bytes(data)
    undone = inode.undone
    if how == "beginning" and undone:
        undone = undone[: luck.randrange(len(undone) + 1)]
        if undone and (last := undone[-1])[1]:
            undone = [*undone[:-1], (last[0], last[1][: luck.randrange(len(last[1]) + 1)])]
    for at, change in undone:
        if change is None:
            _resize(data, at)
        elif how != "sectors":
            _write(data, change, at)
        else:
            _resize(data, max(len(data), at + len(change)))
            for start in range(0, len(change), SECTOR):
                if luck.random() < 0.5:
                    _write(data, change[start : start + SECTOR], at + start)
    return bytes(data)


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data += bytes(size - len(data))


def _write(data: bytearray, change: bytes, at: int) -> None:
    if at > len(data):
        data += bytes(at - len(data))
    data[at : at + len(change)] = change


class SimFile:
    def __init__(self, disk: SimDisk, inode: Inode, name: str, watch: Watcher) -> None:
        self._disk, self._inode, self._name, self._watch = disk, inode, name, watch

    def write(self, data: Data, *, at: int) -> None:
        self._watch("write", self._name, False)
        if self._disk.is_full and at + len(data) > len(self._inode.data):
            # What still fits is written, as the kernel does.
            part = bytes(data)[: max(0, len(self._inode.data) - at)]
            self._put(part, at)
            raise OSError(errno.ENOSPC, "no space left in the simulation")
        self._put(bytes(data), at)
        self._watch("write", self._name, True)

    def append(self, data: Data, *, at: int) -> None:
        """Whole sectors, as the real one does: what was there before is written once more, and zeros behind."""
        within = at % SECTOR
        before = bytes(self._inode.data[at - within : at]).ljust(within, b"\0")
        behind = min(-(at + len(data)) % SECTOR, max(0, len(self._inode.data) - at - len(data)))
        self.write(before + bytes(data) + bytes(behind), at=at - within)

    def _put(self, data: bytes, at: int) -> None:
        if data:
            _write(self._inode.data, data, at)
            self._inode.undone.append((at, data))

    def read(self, size: int, *, at: int) -> bytes:
        return bytes(self._inode.data[at : at + size])

    def size(self) -> int:
        return len(self._inode.data)

    def truncate(self, size: int) -> None:
        self._watch("truncate", self._name, False)
        _resize(self._inode.data, size)
        self._inode.undone.append((size, None))

    def allocate(self, size: int) -> None:
        self._watch("allocate", self._name, False)
        start = len(self._inode.data)
        if size > start:
            if self._disk.is_full:
                raise OSError(errno.ENOSPC, "no space left in the simulation")
            self._put(bytes(size - start), start)

    def datasync(self) -> None:
        self._watch("datasync", self._name, False)
        self._inode.durable, self._inode.undone = bytes(self._inode.data), []
        self._watch("datasync", self._name, True)

    def close(self) -> None: ...


class SimFiles:
    def __init__(self, disk: SimDisk, watch: Watcher) -> None:
        self._disk, self._watch = disk, watch

    @property
    def path(self) -> Path:
        return Path("/simulated")

    def names(self) -> list[str]:
        return sorted(self._disk.names)

    def open(self, name: str) -> SimFile:
        if name not in self._disk.names:
            raise FileNotFoundError(errno.ENOENT, name)
        return SimFile(self._disk, self._disk.names[name], name, self._watch)

    def create(self, name: str) -> SimFile:
        self._watch("create", name, False)
        if self._disk.is_full:
            raise OSError(errno.ENOSPC, "no space left in the simulation")
        self._disk.names[name] = Inode()
        self._disk.name_changed()
        return self.open(name)

    def rename(self, old: str, new: str) -> None:
        self._watch("rename", old, False)
        self._disk.names[new] = self._disk.names.pop(old)
        self._disk.name_changed()
        self._watch("rename", old, True)

    def remove(self, name: str) -> None:
        if self._disk.names.pop(name, None) is not None:
            self._disk.name_changed()

    def sync(self) -> None:
        self._watch("sync", "", False)
        self._disk.durable_names = [dict(self._disk.names)]
        self._watch("sync", "", True)
