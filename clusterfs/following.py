"""Keeps what the kernel remembers of the mount in step with the store: names, attributes, and inotify.

A thread follows the store's events and takes back from the kernel what they made untrue. It holds nothing while it does so,
because the kernel may let it wait for a change under way in the same directory. An open never depends on it: `clusterfs.mount`
compares with the tree of the moment. What depends on it is how soon stat and inotify show a change of another node.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from clusterfs import fusewire as wire
from clusterfs.fusesession import Session
from clusterfs.inodes import DirectoryInode, FileInode, Inodes
from clusterfs.machine import Batch, Compacted
from clusterfs.outcomes import Deleted, Event, Moved, Result, Written
from clusterfs.tree import Directory, File, Node, Parts, lookup

log = logging.getLogger(__name__)

# How often quorum is looked at when nothing happens.
INTERVAL_S = 0.25
# Commits that come faster than this are handled together.
_PAUSE_S = 0.002
_CLOSED_S = 0.05
_REMEMBERED = 4096

EventsAfter = Callable[[int, float], tuple[list[Batch], int]]


class OwnChanges:
    """Which changes came through this mount: the kernel has told inotify of those itself."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._under_way: list[str] = []
        self._indexes: deque[int] = deque(maxlen=_REMEMBERED)

    @contextmanager
    def making(self, *paths: str) -> Iterator[Callable[[Result], None]]:
        """Called with the result before it is known to anybody else."""
        with self._mutex:
            self._under_way.extend(paths)
        try:
            yield lambda result: self._indexes.append(getattr(result, "index", 0))
        finally:
            with self._mutex:
                for path in paths:
                    self._under_way.remove(path)

    def has(self, index: int, paths: Sequence[str]) -> bool:
        with self._mutex:
            return index in self._indexes or any(path in self._under_way for path in paths)


class Follower:
    """`root` is the tree of the moment; `echo` is told of what came from elsewhere, to pass it on to inotify."""

    def __init__(
        self,
        *,
        events_after: EventsAfter,
        index: Callable[[], int],
        root: Callable[[], Directory],
        inodes: Inodes,
        session: Session,
        own: OwnChanges,
        look_at_quorum: Callable[[], object],
        echo: Callable[[Event, bool], None],
    ) -> None:
        self._events_after = events_after
        self._index = index
        self._root = root
        self._inodes = inodes
        self._session = session
        self._own = own
        self._look_at_quorum = look_at_quorum
        self._echo = echo
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mount-follower", daemon=True)
        self._moves: deque[int] = deque(maxlen=_REMEMBERED)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=2.0)

    def attributes_changed(self) -> None:
        """Of everything: the modes follow from quorum. Never waits."""
        for inode in (self._inodes.root, *self._inodes.current()):
            self._session.notify(wire.inode_changed(inode.id, pages=False))

    def moved(self, index: int, parts: Parts, target: Parts, node: Node) -> None:
        """Inodes follow their entries, once for each move, whoever hears of it first."""
        with self._inodes.mutex:
            if index in self._moves:
                return
            self._moves.append(index)
            parent, new_parent = self._inodes.at(parts[:-1]), self._inodes.at(target[:-1])
            if parent is not None and new_parent is not None:
                self._inodes.moved(parent, parts[-1], new_parent, target[-1], node)
            elif parent is not None:
                self._inodes.unlinked(parent, parts[-1])
            elif new_parent is not None:
                self._inodes.unlinked(new_parent, target[-1])

    def refresh(self, parts: Parts) -> None:
        """Takes back what the kernel knows of `parts`, as far as it is not so any more."""
        inode = self._inodes.at(parts)
        node = lookup(self._root(), parts)
        if inode is None or inode.parent is None:
            return
        if isinstance(inode, FileInode) and isinstance(node, File) and inode.is_version(node):
            inode.mtime = node.mtime
        elif not (isinstance(inode, DirectoryInode) and isinstance(node, Directory)):
            self._inodes.drop(inode)
            label = inode.name.encode()
            if not isinstance(inode, FileInode) or not self._session.notify(
                wire.name_gone(inode.parent.id, inode.id, label)
            ):
                self._session.notify(wire.name_changed(inode.parent.id, label))
            return
        self._session.notify(wire.inode_changed(inode.id, pages=False))

    def _refresh_unless_gone(self, parts: Parts, event: Event) -> None:
        """The tree may be further on than the events. What is gone from it after a write or a move has an event of its own
        coming: dropped here already, a directory that has moved on would not be found by that."""
        if isinstance(event, Deleted) or lookup(self._root(), parts) is not None:
            self.refresh(parts)

    def _grow_readers(self, parts: Parts) -> None:
        parent, node = self._inodes.at(parts[:-1]), lookup(self._root(), parts)
        if parent is not None and isinstance(node, File):
            for inode in self._inodes.read_on(parent, parts[-1]):
                self._grow(inode, node)

    def _grow(self, inode: FileInode, node: File) -> None:
        """A file that was appended to grows under its readers, if its next version begins with all of this one.

        In this order: no page that ends with the old version is left when the kernel learns of the new size, for a reader
        would be given zero bytes in place of what was appended.
        """
        if inode.readers <= 0 or len(node.content) <= inode.size or not node.content.startswith(inode.content):
            return
        inode.content = node.content
        self._session.notify(wire.inode_changed(inode.id, pages=True))
        inode.size = len(node.content)
        self._session.notify(wire.inode_changed(inode.id, pages=False))

    def _follow(self) -> None:
        index = self._index()
        while not self._stopping.is_set():
            asked_at = time.monotonic()
            try:
                batches, upto = self._events_after(index, INTERVAL_S)
            except Compacted:
                index = self._index()
                self._everything()
                continue
            try:
                for batch in batches:
                    for event in batch.events:
                        self._tell(batch.index, event)
                self._look_at_quorum()
                self._session.nearness.leave_if_idle()
            except Exception:
                # Opens are right all the same; everything else is looked at anew.
                log.exception("following the store")
                self._everything()
            if upto != index:
                self._stopping.wait(_PAUSE_S)
            elif time.monotonic() - asked_at < INTERVAL_S / 2:
                # A store that is closed answers at once and for ever.
                self._stopping.wait(_CLOSED_S)
            index = upto

    def _everything(self) -> None:
        for inode in sorted(self._inodes.current(), key=lambda inode: len(self._inodes.parts(inode))):
            if isinstance(inode, FileInode | DirectoryInode):
                self.refresh(self._inodes.parts(inode))

    def _tell(self, index: int, event: Event) -> None:
        was_directory = False
        match event:
            case Written(path=path) | Deleted(path=path):
                parts = tuple(path.split("/"))
                was_directory = isinstance(self._inodes.at(parts), DirectoryInode)
                self._refresh_unless_gone(parts, event)
                self._grow_readers(parts)
                paths: tuple[str, ...] = (path,)
            case Moved(path=path, new_path=new_path, node=node):
                parts, target = tuple(path.split("/")), tuple(new_path.split("/"))
                is_own = self._own.has(index, (path, new_path))
                old_parent = self._inodes.at(parts[:-1])
                self.moved(index, parts, target, node)
                if not is_own and old_parent is not None:
                    self._session.notify(wire.name_changed(old_parent.id, parts[-1].encode()))
                self._refresh_unless_gone(target, event)
                paths = (path, new_path)
            case _:
                return
        if not self._own.has(index, paths):
            self._echo(event, was_directory)
