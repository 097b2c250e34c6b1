"""Opening a file to be read from the kernel's pages: the one request of a cached read that somebody waits for.

Each open is asked, and compared with the tree of the moment. When the inode is no longer what its name stands for, the
answer is ESTALE, on which the kernel looks the name up again and opens that. Freshness of content rests on this alone. For
the session's thread only, which answers most of it from the raw request (`express`); who opens for writing is led elsewhere
by `clusterfs.mount`.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping

from clusterfs import fusewire as wire
from clusterfs.fusesession import Express
from clusterfs.fusewire import Call
from clusterfs.inodes import FileInode, Inode, Inodes
from clusterfs.openfiles import OpenFile, OpenFiles
from clusterfs.state import State
from clusterfs.tree import File, lookup
from clusterfs.underway import UnderWay

# The handle of everybody who reads a file from the kernel's pages.
CACHED = 0
WRITES = os.O_ACCMODE | os.O_TRUNC
_OPEN_CACHED = wire.open_answer(CACHED, wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH)
_DONE = b""
# Threads whose return is awaited; one that never comes must not be remembered for ever.
_MAX_AWAITED = 1024
# The kernel opens what it has looked up at once. A thread that was kept from it must not open that later as the newest.
_REOPEN_S = 1.0
# Who has not come back by then never will.
_FORGET_S = 10.0


class CachedReads:
    def __init__(
        self,
        *,
        state: Callable[[], State],
        inodes: Inodes,
        files: OpenFiles,
        under_way: UnderWay,
        soon: Callable[[Call, Callable[[], bytes]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._clock = clock
        self._inodes = inodes
        self._files = files
        self._under_way = under_way
        # Answers a call from a thread that may wait; False when there is none.
        self._soon = soon
        # Threads that have been sent back with ESTALE from an inode that is not current, and what they have looked up since.
        # (0: nothing yet), and when.
        self._sent_back: dict[int, tuple[int, float]] = {}
        self.express: Mapping[int, Express] = {wire.OPEN: self._open_unchanged, wire.RELEASE: self._release_cached}

    def open(self, call: Call, inode: FileInode) -> bytes | None:
        """An open for reading."""
        if self._under_way.is_behind() and self._is_put_off(call, inode):
            return None
        if inode.seen is not self._state().root and not self._is_current(inode):
            return self._open_stale(call, inode)
        if self._sent_back:
            self._sent_back.pop(call.pid, None)
        inode.readers += 1
        return _OPEN_CACHED

    def _is_put_off(self, call: Call, inode: FileInode) -> bool:
        """Until a change of this file is applied that is under way; then it is sent back to look the name up again."""
        index = self._under_way.index_for(self._inodes.parts(inode)) if call.pid not in self._sent_back else 0

        def work() -> bytes:
            self._under_way.wait(index)
            raise OSError(errno.ESTALE, "a change was under way")

        if not index or not self._soon(call, work):
            return False
        self._expect(call.pid)
        return True

    def looked_up(self, pid: int, inode: Inode) -> None:
        """What a name stands for was told to thread `pid`."""
        if pid in self._sent_back:
            self._sent_back[pid] = (inode.id, self._clock())

    def found_nothing(self, pid: int) -> None:
        """Thread `pid` has looked up a name that is not there (any more): it does not come back to open it."""
        if self._sent_back:
            self._sent_back.pop(pid, None)

    def release(self, node: int) -> bytes:
        inode = self._inodes.by_id.get(node)
        if isinstance(inode, FileInode):
            self._inodes.released(inode)
        return _DONE

    def _open_unchanged(self, node: int, request: bytearray) -> bytes | None:
        """An open for reading of what was found to be current in this very tree."""
        inode = self._inodes.by_id.get(node)
        if type(inode) is not FileInode or inode.seen is not self._state().root or self._awaits():
            return None
        if wire.flags_in(request) & WRITES or self._under_way.is_behind():
            return None
        inode.readers += 1
        return _OPEN_CACHED

    def _awaits(self) -> bool:
        """Whether a thread is to come back; one that was killed on its way, or took another way, does not."""
        if not self._sent_back:
            return False
        oldest = next(iter(self._sent_back))
        if self._clock() - self._sent_back[oldest][1] > _FORGET_S:
            del self._sent_back[oldest]
        return True

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
        """Sent back to look the name up again. What is found then was the newest in the midst of this very open, and is what is
        opened, whatever has happened since: its size has been told already. Who comes again without having looked up (a
        bind mount of one file, /proc/self/fd) gets what is there now, past the kernel's pages."""
        if call.pid not in self._sent_back:
            self._expect(call.pid)
            raise OSError(errno.ESTALE, "a former version")
        found = self._sent_back.pop(call.pid, (0, 0.0))
        is_growing = inode.size != len(inode.content)
        if found[0] == inode.id and self._clock() - found[1] < _REOPEN_S and not is_growing:
            inode.readers += 1
            return _OPEN_CACHED
        parts = self._inodes.parts(inode)
        node = lookup(self._state().root, parts)
        content = node.content if isinstance(node, File) else inode.content
        file = OpenFile(parts, snapshot=content, is_unlinked=not isinstance(node, File))
        return wire.open_answer(self._files.add(file), wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH)

    def _expect(self, pid: int) -> None:
        if len(self._sent_back) >= _MAX_AWAITED:
            self._sent_back.clear()
        self._sent_back[pid] = (0, self._clock())
