"""The files that programs on this node hold open through the mount, and how their changes reach the store.

One close or fsync is one command, whatever was written before it. A file that is created without O_EXCL is shown on this node
at once and enters the store with its content: no other node ever sees it empty. O_EXCL must be decided by the whole
cluster, so that enters the store when it is opened. FUSE itself stays in `clusterfs.mount`.
"""

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from clusterfs.buffer import FileBuffer, TooBig
from clusterfs.commands import Op, Write
from clusterfs.outcomes import Code, Done, Refusal, Result
from clusterfs.refusals import to_errno
from clusterfs.rules import MAX_FILE_BYTES
from clusterfs.tree import Directory, File, Parts, join, lookup

# Each round lost means that another writer won; so many in a row is a livelock that the caller should hear of.
MAX_ROUNDS = 32


@dataclass(eq=False)
class OpenFile:
    """One open file description. `buffer` is None while nothing has been changed through it."""

    parts: Parts
    # The thread that opened it; what it forks has the same description.
    opener: int = 0
    is_append: bool = False
    # Content of a computed file, taken when it was opened.
    special: bytes | None = None
    buffer: FileBuffer | None = None
    # Created here, not in the store yet.
    is_new: bool = False
    is_unlinked: bool = False
    # What is being read: one version from its first byte to its last, though others replace it meanwhile.
    snapshot: bytes | None = None
    # The reader has been told that this version ends; asking again, it wants to know whether the file has grown.
    is_end_told: bool = False
    mutex: threading.Lock = field(default_factory=threading.Lock)
    committing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_dirty(self) -> bool:
        return self.buffer is not None and self.buffer.is_dirty


class OpenFiles:
    """`root` gives the tree of the moment, `propose` takes a command through the log; both from the replica's side."""

    def __init__(
        self,
        *,
        root: Callable[[], Directory],
        propose: Callable[[Op], Result],
        max_file_bytes: Callable[[], int] = lambda: MAX_FILE_BYTES,
    ) -> None:
        self._root = root
        self._max_file_bytes = max_file_bytes
        self._propose = propose
        self._mutex = threading.Lock()
        self._by_handle: dict[int, OpenFile] = {}
        self._by_path: dict[Parts, list[OpenFile]] = {}
        self._next_handle = 1

    def add(self, file: OpenFile) -> int:
        with self._mutex:
            handle = self._next_handle
            self._next_handle += 1
            self._by_handle[handle] = file
            self._by_path.setdefault(file.parts, []).append(file)
            return handle

    def get(self, handle: int) -> OpenFile:
        try:
            return self._by_handle[handle]
        except KeyError:
            raise OSError(errno.EBADF, "no such open file") from None

    def discard(self, handle: int) -> OpenFile | None:
        with self._mutex:
            file = self._by_handle.pop(handle, None)
            if file is not None:
                self._forget_path(file)
            return file

    def pending(self, parts: Parts) -> OpenFile | None:
        """The file at `parts` whose latest change is not in the store yet."""
        with self._mutex:
            for file in reversed(self._by_path.get(parts, [])):
                if file.is_dirty and not file.is_unlinked:
                    return file
        return None

    def new_names(self, parent: Parts) -> list[str]:
        """Names in `parent` that are shown here already and are not in the store yet."""
        with self._mutex:
            return sorted(
                {at[-1] for at, files in self._by_path.items() if at[:-1] == parent and any(f.is_new for f in files)}
            )

    def settle(self, parts: Parts) -> None:
        """Commits whatever is pending at or below `parts`, because the entry is about to move or to be touched."""
        with self._mutex:
            found = [file for at, files in self._by_path.items() if at[: len(parts)] == parts for file in files]
        for file in found:
            if file.is_dirty:
                self.commit(file)

    def moved(self, parts: Parts, target: Parts) -> None:
        with self._mutex:
            at_or_below = [at for at in self._by_path if at[: len(parts)] == parts]
            # What is open at the target has been replaced: it lives on for its openers only.
            for at in [at for at in self._by_path if at[: len(target)] == target]:
                self._mark_unlinked(at)
            for at in at_or_below:
                for file in self._by_path.pop(at, []):
                    file.parts = target + at[len(parts) :]
                    self._by_path.setdefault(file.parts, []).append(file)

    def is_only_pending(self, parts: Parts) -> bool:
        """The file at `parts` was created here and never committed."""
        with self._mutex:
            return any(file.is_new for file in self._by_path.get(parts, []))

    def hold(self, parts: Parts) -> None:
        """The name is about to go: its openers keep what is there."""
        node = lookup(self._root(), parts)
        with self._mutex:
            for file in self._by_path.get(parts, []):
                if not file.is_unlinked and file.snapshot is None and isinstance(node, File):
                    file.snapshot = node.content

    def unlinked(self, parts: Parts) -> None:
        """The name has gone; openers keep what they have."""
        with self._mutex:
            self._mark_unlinked(parts)

    def read(self, file: OpenFile, size: int, offset: int) -> bytes:
        """Own changes if there are any, else the store's; a sequential reader gets one version throughout."""
        if file.special is not None:
            return file.special[offset : offset + size]
        with file.mutex:
            if file.buffer is not None and file.buffer.is_dirty:
                return bytes(file.buffer.content[offset : offset + size])
        held = file.snapshot
        if held is None or offset == 0 or (file.is_end_told and offset >= len(held)):
            node = None if file.is_unlinked else lookup(self._root(), file.parts)
            if isinstance(node, File):
                held = file.snapshot = node.content
            elif held is None:
                raise OSError(errno.ESTALE, "the file is gone")
        # Going on in a longer version where a shorter one ended would hand out a mix of the two.
        file.is_end_told = offset >= len(held)
        return held[offset : offset + size]

    def change(self, file: OpenFile, edit: Callable[[FileBuffer], int]) -> int:
        """Runs `edit` on the file's buffer, which starts as what the store has."""
        with file.mutex:
            buffer = file.buffer
            if buffer is None or not buffer.is_dirty:
                node = lookup(self._root(), file.parts)
                if isinstance(node, File) and not file.is_unlinked:
                    buffer = file.buffer = FileBuffer(
                        node.content, base_version=node.version, limit=self._max_file_bytes()
                    )
                elif buffer is None:
                    buffer = file.buffer = FileBuffer(
                        file.snapshot or b"", base_version=None, limit=self._max_file_bytes()
                    )
            try:
                return edit(buffer)
            except TooBig:
                raise OSError(errno.EFBIG, f"a file is at most {self._max_file_bytes()} bytes") from None

    def commit(self, file: OpenFile) -> None:
        """Makes the changes of an open file part of the store. Raises OSError and KvorumError."""
        with file.committing:
            if file.is_unlinked or not file.is_dirty:
                return
            for _round in range(MAX_ROUNDS):
                with file.mutex:
                    buffer = file.buffer
                    if buffer is None or not buffer.is_dirty:
                        return
                    op = self._write_command(file, buffer)
                result = self._propose(op)
                match result:
                    case Done():
                        with file.mutex:
                            buffer.committed(op.content, result.version)
                            file.is_new = False
                            file.snapshot = op.content
                        self._overtaken(file)
                        return
                    case Refusal(code=Code.stale | Code.exists) if op.expected_version is not None or op.absent:
                        if not _is_about_version(self._root(), file.parts, op):
                            raise OSError(to_errno(result), result.message)
                    case Refusal():
                        raise OSError(to_errno(result), result.message)
            raise OSError(errno.EBUSY, "too many others write this file")

    def _write_command(self, file: OpenFile, buffer: FileBuffer) -> Write:
        path = join(file.parts)
        there = lookup(self._root(), file.parts)
        content = buffer.seal()
        if not isinstance(there, File):
            if not file.is_new:
                raise OSError(errno.ESTALE, "the file is gone")
            return Write(path, content, absent=True)
        if buffer.starts_empty:
            return Write(path, content)
        if there.version == buffer.base_version:
            return Write(path, content, expected_version=there.version)
        try:
            return Write(path, buffer.on_top_of(there.content), expected_version=there.version)
        except TooBig:
            raise OSError(errno.EFBIG, f"a file is at most {self._max_file_bytes()} bytes") from None

    def _overtaken(self, file: OpenFile) -> None:
        """Who emptied the file before this one was opened, and has written nothing since, has nothing left to save."""
        with self._mutex:
            for other in self._by_path.get(file.parts, []):
                if other is file:
                    return
                if other.buffer is not None and other.buffer.is_blank and not other.is_new:
                    other.buffer.drop()

    def _forget_path(self, file: OpenFile) -> None:
        files = self._by_path.get(file.parts, [])
        if file in files:
            files.remove(file)
        if not files:
            self._by_path.pop(file.parts, None)

    def _mark_unlinked(self, parts: Parts) -> None:
        for file in self._by_path.get(parts, []):
            if not file.is_unlinked and file.snapshot is None:
                node = lookup(self._root(), parts)
                file.snapshot = node.content if isinstance(node, File) else None
            file.is_unlinked = True
            file.is_new = False


def _is_about_version(root: Directory, parts: Parts, op: Write) -> bool:
    """Somebody else came first, which a further round cures; a guest id that is taken elsewhere stays taken."""
    there = lookup(root, parts)
    if op.absent:
        return there is not None
    return there is None or there.version != op.expected_version


def emptied(buffer: FileBuffer) -> int:
    """An edit: as opened with O_TRUNC."""
    buffer.empty()
    return 0


def cut(length: int) -> Callable[[FileBuffer], int]:
    """An edit: cut to `length`, or filled up with zero bytes."""

    def edit(buffer: FileBuffer) -> int:
        buffer.truncate(length)
        return 0

    return edit
