"""What the kernel's inode numbers of the mount stand for, for as long as the kernel remembers them.

A version of a file has an inode of its own, and that never stands for any other bytes: the pages that the kernel keeps of it
cannot become a mix of two versions, and an open file is a snapshot. (It may grow while somebody reads it, see `FileInode`.)
Who writes a file gets its writers' inode, of which the kernel caches nothing, so that what is not committed is seen by no
reader. Directories keep their inode wherever they are moved. No I/O here, and no FUSE.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator
from zlib import crc32

from clusterfs.fusewire import ROOT_ID
from clusterfs.openfiles import OpenFile
from clusterfs.tree import Directory, File, Node, Parts

_REMEMBERED_INOS = 4096
# Of st_ino, while the file is not in the store.
_UNPLACED = 1 << 62


class Inode:
    """`lookups`: how often the kernel has been told of it and not yet given it back."""

    __slots__ = ("id", "ino", "is_gone", "lookups", "name", "parent")

    def __init__(self, number: int, parent: "Inode | None", name: str, ino: int) -> None:
        self.id = number
        self.parent = parent
        self.name = name
        # What stat shows as st_ino.
        self.ino = ino
        self.lookups = 0
        # Its name stands for something else now, or for nothing.
        self.is_gone = False


class DirectoryInode(Inode):
    """`placement`: at which log index it came to where it was when the kernel was told of it, or moved by a notice."""

    __slots__ = ("placement",)

    def __init__(self, number: int, parent: Inode | None, name: str, ino: int, *, placement: int) -> None:
        super().__init__(number, parent, name, ino)
        self.placement = placement

    def is_moved_here(self, node: Node | None) -> bool:
        return isinstance(node, Directory) and node.placement == self.placement


class ComputedInode(Inode):
    """A computed file or a link at the top."""

    __slots__ = ()


class PastInode(Inode):
    """`.history` and what is below it (`clusterfs.past`)."""

    __slots__ = ("is_directory",)

    def __init__(self, number: int, parent: Inode, name: str, ino: int, *, is_directory: bool) -> None:
        super().__init__(number, parent, name, ino)
        self.is_directory = is_directory


class FileInode(Inode):
    """One version. `seen` is the tree in which it was last found to be what its name stands for.

    When the next version begins with all of this one, and somebody is reading, it may grow: `content` first, `size` when
    the kernel has dropped its pages. A reader then gets the new version to its end, which is no mix of the two.
    """

    __slots__ = ("content", "mtime", "readers", "seen", "size")

    def __init__(self, number: int, parent: Inode | None, name: str, ino: int, *, file: File) -> None:
        super().__init__(number, parent, name, ino)
        self.content = file.content
        self.size = len(file.content)
        self.mtime = file.mtime
        self.readers = 0
        self.seen: Directory | None = None

    def is_version(self, node: Node | None) -> bool:
        return isinstance(node, File) and (node.content is self.content or node.content == self.content)


class WriterInode(Inode):
    """What everybody on this node who writes one file has open; each opener has a handle, and its changes, of its own."""

    __slots__ = ("latest",)

    def __init__(self, number: int, parent: Inode | None, name: str, ino: int) -> None:
        super().__init__(number, parent, name, ino)
        # The last that opened it.
        self.latest: OpenFile | None = None


Key = tuple[int, str]


class Inodes:
    """Used by several threads; what changes more than one entry holds the mutex. Lookups need none."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self._numbers = itertools.count(ROOT_ID)
        self.root = DirectoryInode(next(self._numbers), None, "", ROOT_ID, placement=0)
        self.by_id: dict[int, Inode] = {ROOT_ID: self.root}
        self._named: dict[Key, Inode] = {}
        self._writers: dict[Key, WriterInode] = {}
        # Versions that are no longer current and are still being read, by name.
        self._read_on: dict[Key, list[FileInode]] = {}
        # st_ino that a file showed before the store gave it a place.
        self._inos: dict[int, int] = {}

    def parts(self, inode: Inode) -> Parts:
        found: list[str] = []
        at: Inode | None = inode
        while at is not None and at.parent is not None:
            found.append(at.name)
            at = at.parent
        found.reverse()
        return tuple(found)

    def at(self, parts: Parts) -> Inode | None:
        """The current inode of a path, if the kernel was ever told of one."""
        inode: Inode | None = self.root
        for name in parts:
            if inode is None:
                return None
            inode = self._named.get((inode.id, name))
        return inode

    def named(self, parent: Inode, name: str) -> Inode | None:
        return self._named.get((parent.id, name))

    def current(self) -> list[Inode]:
        with self.mutex:
            return list(self._named.values())

    def read_on(self, parent: Inode, name: str) -> list[FileInode]:
        with self.mutex:
            return list(self._read_on.get((parent.id, name), ()))

    def public(self, parent: Inode, name: str, node: Node) -> Inode:
        """The inode that readers of `node`, which is at this name in the store, get."""
        with self.mutex:
            there = self._named.get((parent.id, name))
            if isinstance(node, Directory):
                if isinstance(there, DirectoryInode):
                    return there
            elif isinstance(there, FileInode) and there.is_version(node):
                there.mtime = node.mtime
                return there
            if there is not None:
                self.drop(there)
            number, ino = next(self._numbers), self._ino(name, node)
            made: Inode
            if isinstance(node, Directory):
                made = DirectoryInode(number, parent, name, ino, placement=node.placement)
            else:
                made = FileInode(number, parent, name, ino, file=node)
            self.by_id[number] = self._named[parent.id, name] = made
            return made

    def loose(self, parent: Inode, name: str, node: Node) -> Inode:
        """An inode that no name leads to."""
        with self.mutex:
            number = next(self._numbers)
            made: Inode
            if isinstance(node, Directory):
                made = DirectoryInode(number, parent, name, self._ino(name, node), placement=node.placement)
            else:
                made = FileInode(number, parent, name, self._ino(name, node), file=node)
            made.is_gone = True
            self.by_id[number] = made
            return made

    def computed(self, name: str) -> Inode:
        with self.mutex:
            there = self._named.get((ROOT_ID, name))
            if there is None:
                number = next(self._numbers)
                there = ComputedInode(number, self.root, name, number | 1 << 61)
                self.by_id[number] = self._named[ROOT_ID, name] = there
            return there

    def past(self, parent: Inode, name: str, *, ino: int, is_directory: bool) -> PastInode:
        with self.mutex:
            there = self._named.get((parent.id, name))
            if isinstance(there, PastInode) and there.is_directory == is_directory:
                return there
            if there is not None:
                self.drop(there)
            number = next(self._numbers)
            made = PastInode(number, parent, name, ino, is_directory=is_directory)
            self.by_id[number] = self._named[parent.id, name] = made
            return made

    def writer(self, parent: Inode, name: str, node: Node | None) -> WriterInode:
        with self.mutex:
            there = self._writers.get((parent.id, name))
            if there is None:
                number = next(self._numbers)
                ino = self._ino(name, node) if node is not None else number | _UNPLACED
                there = WriterInode(number, parent, name, ino)
                self.by_id[number] = self._writers[parent.id, name] = there
            return there

    def committed(self, parent: Inode, name: str, node: Node) -> None:
        """A new file has its place in the store: it goes on showing the number that its writers saw."""
        with self.mutex:
            writer = self._writers.get((parent.id, name))
            if writer is not None and writer.ino & _UNPLACED:
                self._inos[node.placement] = writer.ino
                while len(self._inos) > _REMEMBERED_INOS:
                    del self._inos[next(iter(self._inos))]

    def drop(self, inode: Inode) -> None:
        """Its name does not stand for it any more. The kernel may go on using it."""
        with self.mutex:
            key = self._key(inode)
            inode.is_gone = True
            if self._named.get(key) is inode:
                del self._named[key]
            if self._writers.get(key) is inode:
                del self._writers[key]
            if isinstance(inode, FileInode) and inode.readers:
                self._read_on.setdefault(key, []).append(inode)

    def unlinked(self, parent: Inode, name: str) -> None:
        """The name is gone, whoever had it."""
        with self.mutex:
            key = (parent.id, name)
            for inode in (self._named.get(key), self._writers.get(key)):
                if inode is not None:
                    self.drop(inode)
            self._read_on.pop(key, None)

    def moved(self, parent: Inode, name: str, new_parent: Inode, new_name: str, node: Node) -> None:
        """`node` is what has been moved there. If the kernel has asked for it there already, that inode stays."""
        with self.mutex:
            key, target = (parent.id, name), (new_parent.id, new_name)
            there = self._named.get(target)
            if isinstance(there, DirectoryInode) and there.is_moved_here(node):
                self.unlinked(parent, name)
                return
            if isinstance(there, FileInode) and there.is_version(node):
                self._named.pop(target)
                self.unlinked(new_parent, new_name)
                self._named[target] = there
            else:
                self.unlinked(new_parent, new_name)
            self._read_on.pop(key, None)
            found: list[Inode] = []
            if key in self._named and target in self._named:
                # The kernel may have moved its name as well: a writer who comes by it is led to where that is now.
                overtaken = self._named.pop(key)
                overtaken.parent, overtaken.name = new_parent, new_name
                self.drop(overtaken)
            elif key in self._named:
                found.append(self._named.pop(key))
                self._named[target] = found[-1]
            if key in self._writers:
                writer = self._writers.pop(key)
                found.append(writer)
                self._writers[target] = writer
            for inode in found:
                inode.parent, inode.name = new_parent, new_name
                if isinstance(inode, DirectoryInode):
                    inode.placement = node.placement

    def opened(self, inode: FileInode) -> None:
        inode.readers += 1

    def released(self, inode: FileInode) -> None:
        inode.readers -= 1
        if inode.readers <= 0 and inode.is_gone:
            with self.mutex:
                self._stop_reading(inode)

    def forget(self, given_back: Iterable[tuple[int, int]]) -> None:
        for number, count in given_back:
            inode = self.by_id.get(number)
            if inode is None or inode is self.root:
                continue
            with self.mutex:
                inode.lookups -= count
                if inode.lookups <= 0:
                    self._remove(inode)

    def below(self, top: Inode) -> Iterator[Inode]:
        """What the kernel may know below a directory."""
        for inode in self.current():
            at: Inode | None = inode
            while at is not None and at is not top:
                at = at.parent
            if at is top and inode is not top:
                yield inode

    def _remove(self, inode: Inode) -> None:
        del self.by_id[inode.id]
        key = self._key(inode)
        if self._named.get(key) is inode:
            del self._named[key]
        if self._writers.get(key) is inode:
            del self._writers[key]
        if isinstance(inode, FileInode):
            self._stop_reading(inode)

    def _stop_reading(self, inode: FileInode) -> None:
        key = self._key(inode)
        kept = [other for other in self._read_on.get(key, ()) if other is not inode]
        if kept:
            self._read_on[key] = kept
        else:
            self._read_on.pop(key, None)

    def told(self, inode: Inode) -> None:
        """The kernel is about to be told of it once more.

        It may have given it back since it was looked up: a name that is looked at anew is given back before it is asked for
        again. Without its name, the next to ask would get another inode beside it.
        """
        with self.mutex:
            inode.lookups += 1
            self.by_id[inode.id] = inode
            if not inode.is_gone and inode.parent is not None:
                if isinstance(inode, WriterInode):
                    self._writers.setdefault(self._key(inode), inode)
                else:
                    self._named.setdefault(self._key(inode), inode)

    def ino_at(self, parent: Inode, name: str, node: Node) -> int:
        there = self._named.get((parent.id, name))
        return there.ino if there is not None else self._ino(name, node)

    def _ino(self, name: str, node: Node) -> int:
        """Steady while the file is at its place, another one when a different file takes that place."""
        known = self._inos.get(node.placement)
        return known if known is not None else node.placement << 20 | crc32(name.encode()) & 0xFFFFF | 1 << 60

    @staticmethod
    def _key(inode: Inode) -> Key:
        return (inode.parent.id if inode.parent is not None else 0, inode.name)
