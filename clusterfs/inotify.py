"""Tells inotify users on this node of changes that came from elsewhere.

The kernel makes inotify events only for calls on this node's own mount. So a thread of the daemon does to the mount what was
done elsewhere (makes, removes, renames, opens for writing and closes), and the mount answers it without changing anything:
it knows the thread by its number. This is done only while somebody watches, which the kernel tells in /proc. Names that
the thread makes or removes are given no time in the kernel's cache: whoever looks next is told the truth.
"""

import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from clusterfs.descriptors import watched_inodes
from clusterfs.inodes import Inode, Inodes
from clusterfs.outcomes import Deleted, Event, Moved, Written
from clusterfs.tree import EMPTY, Directory, File, Node, Parts

log = logging.getLogger(__name__)

# What comes beyond that while the thread is busy is not told.
QUEUE = 1024
# The search for watchers takes no more of the time than one part in this many.
_SEARCH_SHARE = 20
_SEARCH_INTERVAL_S = 0.2

_NO_FILE = File(b"", 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """What the thread is doing: the name that it must find, and the one that it must not find yet.

    `is_real`: what it finds or makes is the entry that is in the store now, if there is one; else it passes.
    """

    present: Parts | None = None
    absent: Parts | None = None
    node: Node = EMPTY
    is_real: bool = False


class Echo:
    """`step` is what the mount's handlers ask for when a request comes from `thread_id`."""

    def __init__(self, *, mountpoint: Path, inodes: Inodes) -> None:
        self._mountpoint = mountpoint
        self._inodes = inodes
        # With whether it was a directory, which a deletion does not say.
        self._queue: deque[tuple[Event, bool]] = deque()
        self._wanted = threading.Event()
        self._stopping = False
        self._device = 0
        self._thread = threading.Thread(target=self._work, name="mount-echo", daemon=True)
        self.thread_id = -1
        self.step = Step()

    def start(self) -> None:
        """When the file system is mounted."""
        self._device = os.stat(self._mountpoint).st_dev  # noqa: PTH116
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wanted.set()
        self._thread.join(timeout=2.0)

    def tell(self, event: Event, was_directory: bool) -> None:
        """Never waits."""
        if len(self._queue) < QUEUE:
            self._queue.append((event, was_directory))
            self._wanted.set()

    def _work(self) -> None:
        self.thread_id = threading.get_native_id()
        pause = 0.0
        while True:
            self._wanted.wait()
            if not self._stopping and pause:
                time.sleep(pause)
            if self._stopping:
                return
            self._wanted.clear()
            # Everything queued by now is told to everybody who watches by now.
            events = [self._queue.popleft() for _number in range(len(self._queue))]
            began = time.monotonic()
            try:
                # Not by path: after an unmount that would lead to the directory below.
                root = os.open(self._mountpoint, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    device = os.fstat(root).st_dev
                    if device != self._device:
                        continue
                    watched = watched_inodes(device)
                    pause = 0.0 if watched else max(_SEARCH_INTERVAL_S, _SEARCH_SHARE * (time.monotonic() - began))
                    for event, was_directory in events if watched else ():
                        self._repeat(root, event, was_directory, watched)
                finally:
                    os.close(root)
            except OSError as error:
                log.debug("inotify: %s", error)

    def _repeat(self, root: int, event: Event, was_directory: bool, watched: set[int]) -> None:
        try:
            match event:
                case Written(path=path, node=node):
                    if self._is_watched(_parts(path), watched):
                        self._written(root, path, node)
                case Deleted(path=path):
                    if self._is_watched(_parts(path), watched):
                        self.step = Step(present=_parts(path), node=EMPTY if was_directory else _NO_FILE)
                        (os.rmdir if was_directory else os.unlink)(path, dir_fd=root)
                case Moved(path=path, new_path=new_path, node=node):
                    if self._is_watched(_parts(path), watched) or self._is_watched(_parts(new_path), watched):
                        self.step = Step(present=_parts(path), absent=_parts(new_path), node=node)
                        os.rename(path, new_path, src_dir_fd=root, dst_dir_fd=root)
                case _:
                    return
        except OSError as error:
            log.debug("inotify: %s", error)
        finally:
            self.step = Step()

    def _is_watched(self, parts: Parts, watched: set[int]) -> bool:
        """The directory that it is in is. A watched inode is one that the kernel remembers, so it is among ours."""
        parent: Inode | None = self._inodes.at(parts[:-1])
        return parent is not None and parent.ino in watched

    def _written(self, root: int, path: str, node: Node) -> None:
        if node.placement == node.version:
            self.step = Step(absent=_parts(path), node=node, is_real=True)
            if isinstance(node, Directory):
                os.mkdir(path, dir_fd=root)
            else:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=root))
        elif isinstance(node, File):
            self.step = Step(present=_parts(path), node=node, is_real=True)
            descriptor = os.open(path, os.O_WRONLY, dir_fd=root)
            try:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)


def _parts(path: str) -> Parts:
    return tuple(path.split("/"))
