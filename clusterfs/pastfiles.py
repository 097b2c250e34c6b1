"""`.history` as the kernel sees it: inodes that are made when they are asked for, and of which nothing is cached.

What is there is `clusterfs.past`. Each answer is computed for the state of the moment; an opened version is a snapshot.
Answers take milliseconds when the history is long, so that `clusterfs.mount` lets the session's pool wait for them. Nothing
below `.history` can be changed.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable

from clusterfs import fusewire as wire
from clusterfs import past, rules
from clusterfs.fusewire import Call
from clusterfs.inodes import Inode, Inodes, PastInode
from clusterfs.openfiles import OpenFile, OpenFiles
from clusterfs.past import Entry, Past
from clusterfs.state import State
from clusterfs.tree import Parts

_NAME = rules.HISTORY.encode()
_WRITES = os.O_ACCMODE | os.O_TRUNC


class PastFiles:
    def __init__(self, *, state: Callable[[], State], inodes: Inodes, files: OpenFiles, gid: int) -> None:
        self._state = state
        self._inodes = inodes
        self._files = files
        self._gid = gid
        self._past = Past()
        self._mutex = threading.Lock()

    def is_asked(self, call: Call, parent: Inode) -> bool:
        """Whether a lookup is for `.history` or for what is below it."""
        return isinstance(parent, PastInode) or (parent is self._inodes.root and wire.name(call.body) == _NAME)

    def is_at_hand(self, call: Call, inode: Inode) -> bool:
        """Whether the answer takes no time: that of `.history` itself, which everybody meets who lists the top."""
        return inode is self._inodes.root or (inode.parent is self._inodes.root and call.opcode == wire.GETATTR)

    def need_present(self, inode: Inode) -> None:
        if isinstance(inode, PastInode):
            raise OSError(errno.EROFS, "the past is not changed")

    def answer(self, call: Call, inode: Inode) -> bytes:
        match call.opcode:
            case wire.LOOKUP:
                return self._lookup(inode, wire.name(call.body))
            case wire.GETATTR:
                shown = self._attributes(inode, self._entry(inode))
                return wire.attributes_answer(shown, valid_s=0)
            case wire.READDIR:
                return self._page(inode, call.body)
            case _:
                return self._open(inode, wire.flags(call.body))

    def _lookup(self, parent: Inode, label: bytes) -> bytes:
        try:
            name = label.decode()
        except UnicodeDecodeError:
            raise OSError(errno.ENOENT, "names are UTF-8") from None
        parts = (*self._parts(parent), name) if isinstance(parent, PastInode) else ()
        entry = self._at(parts)
        if entry is None:
            raise OSError(errno.ENOENT, name)
        with self._inodes.mutex:
            inode = self._inodes.past(parent, name, ino=past.number(parts), is_directory=entry.is_directory)
            self._inodes.told(inode)
        return wire.entry(inode.id, self._attributes(inode, entry), name_s=0, attributes_s=0)

    def _page(self, inode: Inode, body: bytes) -> bytes:
        _handle, offset, size = wire.transfer(body)
        parts = self._parts(inode)
        with self._mutex:
            state = self._state()
            found = self._past.listing(state.history, state.root, parts)
        if found is None:
            raise OSError(errno.ENOENT, "nothing is known of it any more")
        above = inode.parent.ino if inode.parent is not None else inode.ino
        entries = [(b".", inode.ino, stat.S_IFDIR), (b"..", above, stat.S_IFDIR)]
        entries += [(name.encode(), past.number((*parts, name)), entry.mode) for name, entry in found.items()]
        return wire.directory_page(entries, offset, size)

    def _open(self, inode: Inode, flags: int) -> bytes:
        if flags & _WRITES:
            self.need_present(inode)
        parts = self._parts(inode)
        with self._mutex:
            state = self._state()
            content = self._past.content(state.history, state.root, parts)
        if content is None:
            raise OSError(errno.ESTALE, "nothing is known of it any more")
        file = OpenFile((rules.HISTORY, *parts), special=content)
        return wire.open_answer(self._files.add(file), wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH)

    def _entry(self, inode: Inode) -> Entry:
        entry = self._at(self._parts(inode))
        # The kernel gives an inode up for bad when it turns from a file into a directory.
        if entry is None or (isinstance(inode, PastInode) and entry.is_directory != inode.is_directory):
            raise OSError(errno.ESTALE, "nothing is known of it any more")
        return entry

    def _at(self, parts: Parts) -> Entry | None:
        if not parts:
            state = self._state()
            return self._past.entry(state.history, state.root, parts)
        with self._mutex:
            # Taken in here, so that the states that are asked about never go back.
            state = self._state()
            return self._past.entry(state.history, state.root, parts)

    def _parts(self, inode: Inode) -> Parts:
        """Below `.history`."""
        return self._inodes.parts(inode)[1:]

    def _attributes(self, inode: Inode, entry: Entry) -> wire.Attributes:
        return wire.Attributes(inode.ino, entry.mode, entry.size, entry.mtime, 1, self._gid)
