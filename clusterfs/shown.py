"""What stat, readdir and readlink show of the mount: the store's tree with pmxcfs' modes and owner, and the computed names.

Reads memory only and never waits, so that the session's thread may ask at any time. What the kernel is told of an inode's
number and age is `clusterfs.mount`.
"""

import stat
import time
from collections.abc import Callable

from clusterfs import fusewire as wire
from clusterfs import rules
from clusterfs.inodes import DirectoryInode, FileInode, Inode, Inodes, WriterInode
from clusterfs.openfiles import OpenFiles
from clusterfs.state import State
from clusterfs.tree import Directory, File, Parts, lookup

BLOCK_BYTES = 4096


class Shown:
    def __init__(
        self,
        *,
        state: Callable[[], State],
        is_quorate: Callable[[], bool],
        inodes: Inodes,
        files: OpenFiles,
        specials: dict[str, Callable[[], bytes]],
        links: dict[str, str],
        gid: int,
    ) -> None:
        self._state = state
        self._is_quorate = is_quorate
        self._inodes = inodes
        self._files = files
        self.specials = specials
        self.links = links
        self._gid = gid

    def _root(self) -> Directory:
        return self._state().root

    def is_computed(self, parts: Parts) -> bool:
        return len(parts) == 1 and (parts[0] in self.specials or parts[0] in self.links)

    def of(self, inode: Inode) -> wire.Attributes:
        parts = self._inodes.parts(inode)
        match inode:
            case FileInode():
                links = 0 if inode.is_gone else 1
                return self._attributes(inode, self._file_mode(parts), size=inode.size, mtime=inode.mtime, links=links)
            case DirectoryInode():
                node = lookup(self._root(), parts)
                is_there = isinstance(node, Directory)
                return self._attributes(
                    inode,
                    rules.mode(parts, is_directory=True, is_quorate=self._is_quorate()),
                    mtime=node.mtime if node is not None else 0,
                    links=2 if is_there else 0,
                )
            case WriterInode():
                return self._written(inode, parts)
            case _:
                return self._computed(inode, parts[0])

    def listing(self, inode: Inode) -> list[tuple[bytes, int, int]] | None:
        """(name, ino, mode) of everything in a directory; None when it is gone."""
        parts = self._inodes.parts(inode)
        node = lookup(self._root(), parts)
        if not isinstance(node, Directory):
            return None
        above = inode.parent.ino if inode.parent is not None else inode.ino
        entries = [(b".", inode.ino, stat.S_IFDIR), (b"..", above, stat.S_IFDIR)]
        names = {*node.entries, *self._files.new_names(parts)}
        if not parts:
            # Not the past: a backup or a search of the mount would walk through all of it. It is there for who names it.
            names |= {*self.specials, *self.links}
        for name in sorted(names):
            child = node.entries.get(name)
            if child is not None:
                kind = stat.S_IFDIR if isinstance(child, Directory) else stat.S_IFREG
                entries.append((name.encode(), self._inodes.ino_at(inode, name, child), kind))
            elif not parts and name in self.links:
                entries.append((name.encode(), self._inodes.computed(name).ino, stat.S_IFLNK))
            elif not parts and name in self.specials:
                entries.append((name.encode(), self._inodes.computed(name).ino, stat.S_IFREG))
            else:
                entries.append((name.encode(), self._inodes.writer(inode, name, None).ino, stat.S_IFREG))
        return entries

    def statfs(self) -> bytes:
        root, settings = self._root(), self._state().settings
        blocks, used = settings.max_tree_bytes // BLOCK_BYTES, -(-root.size // BLOCK_BYTES)
        return wire.statfs_answer(
            blocks=blocks,
            free=max(0, blocks - used),
            files=settings.max_entries,
            free_files=max(0, settings.max_entries - root.count),
            block_bytes=BLOCK_BYTES,
            name_bytes=rules.MAX_NAME_BYTES,
        )

    def _written(self, inode: WriterInode, parts: Parts) -> wire.Attributes:
        file = self._files.pending(parts) or inode.latest
        node = lookup(self._root(), parts)
        size, mtime, links = 0, int(time.time()), 1
        if file is not None and file.buffer is not None and (file.is_dirty or file.is_unlinked):
            size = len(file.buffer.content)
        elif isinstance(node, File) and not inode.is_gone:
            size, mtime = len(node.content), node.mtime
        elif file is not None and file.snapshot is not None:
            size = len(file.snapshot)
        if inode.is_gone:
            links = 0
        return self._attributes(inode, self._file_mode(parts), size=size, mtime=mtime, links=links)

    def _computed(self, inode: Inode, name: str) -> wire.Attributes:
        if name in self.links:
            bits = 0o755 if self._is_quorate() else 0o555
            return self._attributes(inode, stat.S_IFLNK | bits, size=len(self.links[name]))
        bits = 0o640 if name == ".debug" else 0o440
        size = len(self.specials[name]())
        return self._attributes(inode, stat.S_IFREG | bits, size=size, mtime=int(time.time()))

    def _file_mode(self, parts: Parts) -> int:
        return rules.mode(parts, is_directory=False, is_quorate=self._is_quorate())

    def _attributes(self, inode: Inode, mode: int, *, size: int = 0, mtime: int = 0, links: int = 1) -> wire.Attributes:
        return wire.Attributes(inode.ino, mode, size, mtime, links, self._gid)
