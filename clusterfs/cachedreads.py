"""Opening a file to be read from the kernel's pages: the one request of a cached read that somebody waits for.

Each open is asked, and compared with the tree of the moment. When the inode is no longer what its name stands for, the
answer is ESTALE, on which the kernel looks the name up again and opens that. Freshness of content rests on this alone. For
the session's thread only, which answers most of it from the raw request (`express`); who opens for writing is led elsewhere
by `clusterfs.mount`.
"""

import errno
import os
from collections.abc import Callable, Mapping

from clusterfs import fusewire as wire
from clusterfs.fusesession import Express
from clusterfs.fusewire import Call
from clusterfs.inodes import FileInode, Inodes
from clusterfs.openfiles import OpenFile, OpenFiles
from clusterfs.state import State
from clusterfs.tree import File, lookup

# The handle of everybody who reads a file from the kernel's pages.
CACHED = 0
WRITES = os.O_ACCMODE | os.O_TRUNC
_OPEN_CACHED = wire.open_answer(CACHED, wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH)
_DONE = b""
# Threads whose return is awaited; one that never comes must not be remembered for ever.
_MAX_AWAITED = 1024


class CachedReads:
    def __init__(self, *, state: Callable[[], State], inodes: Inodes, files: OpenFiles) -> None:
        self._state = state
        self._inodes = inodes
        self._files = files
        # Threads that have been sent back with ESTALE from an inode that is not current.
        self._sent_back: set[int] = set()
        self.express: Mapping[int, Express] = {wire.OPEN: self._open_unchanged, wire.RELEASE: self._release_cached}

    def open(self, call: Call, inode: FileInode) -> bytes:
        """An open for reading."""
        if inode.seen is not self._state().root and not self._is_current(inode):
            return self._open_stale(call, inode)
        if self._sent_back:
            self._sent_back.discard(call.pid)
        inode.readers += 1
        return _OPEN_CACHED

    def release(self, node: int) -> bytes:
        inode = self._inodes.by_id.get(node)
        if isinstance(inode, FileInode):
            self._inodes.released(inode)
        return _DONE

    def _open_unchanged(self, node: int, request: bytearray) -> bytes | None:
        """An open for reading of what was found to be current in this very tree."""
        inode = self._inodes.by_id.get(node)
        if type(inode) is not FileInode or inode.seen is not self._state().root or self._sent_back:
            return None
        if wire.flags_in(request) & WRITES:
            return None
        inode.readers += 1
        return _OPEN_CACHED

    def _release_cached(self, node: int, request: bytearray) -> bytes | None:
        inode = self._inodes.by_id.get(node)
        if type(inode) is not FileInode or wire.handle_in(request) != CACHED:
            return None
        self._inodes.released(inode)
        return _DONE

    def _is_current(self, inode: FileInode) -> bool:
        """And readable from the kernel's pages: not just growing."""
        root = self._state().root
        if inode.is_gone or not inode.is_version(lookup(root, self._inodes.parts(inode))):
            return False
        inode.seen = root
        return True

    def _open_stale(self, call: Call, inode: FileInode) -> bytes:
        """Sent back to look the name up again. Who comes again has no name to look up (a bind mount of one file, /proc/self/fd),
        or the file has changed once more: it gets what is there now, past the kernel's pages."""
        if call.pid not in self._sent_back:
            if len(self._sent_back) >= _MAX_AWAITED:
                self._sent_back.clear()
            self._sent_back.add(call.pid)
            raise OSError(errno.ESTALE, "a former version")
        self._sent_back.discard(call.pid)
        parts = self._inodes.parts(inode)
        node = lookup(self._state().root, parts)
        content = node.content if isinstance(node, File) else inode.content
        file = OpenFile(parts, snapshot=content, is_unlinked=not isinstance(node, File))
        return wire.open_answer(self._files.add(file), wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH)
