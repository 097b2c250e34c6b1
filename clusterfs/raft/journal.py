"""The log on disk: entries, term and vote, appended and fdatasync'd before anybody is told of them.

It stands in for pysyncobj's journals, which never sync, rewrite themselves in place when compacted and start anew when they
cannot read what they find. Additions are buffered until `sync`, which makes them durable together. What is written is never
changed: a log is a row of segments (`segments`), and compaction removes those at the front that a snapshot has made superfluous.
What the entries mean is not known here.

`journal[0]` is the base: the entry before the first kept one, without its command. A fresh log begins after index 0.
"""

import bisect
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

import pysyncobj.syncobj
from pysyncobj.journal import Journal as PysyncobjJournal

from kvorum.errors import DiskFull

from . import records, segments
from .entries import Entries, Span
from .files import File, Files, is_full
from .messages import Entry
from .records import Damaged, Kind, Record
from .values import StorageDamaged

log = logging.getLogger(__name__)

SEGMENT_BYTES = 4 * 2**20
# Of the newest entries' commands, kept in memory.
MEMORY_BYTES = 4 * 2**20
# For so many seconds the hint of what is committed waits for something to go along with. Longer than between two renewals of
# leases, so that those of a quiet cluster cost one write each.
HINT_WAITS_S = 6
# What is written before the next fdatasync; more is rare.
_GROUP_BYTES = 4 * 2**20

_create_journal = pysyncobj.syncobj.createJournal


def _pass_through(journal: object) -> object:
    """SyncObj has no parameter for a journal, only a file's name that it hands to this function."""
    return journal if isinstance(journal, PysyncobjJournal) else _create_journal(journal)


pysyncobj.syncobj.createJournal = _pass_through


class Log(PysyncobjJournal):  # type: ignore[misc]
    """A log in memory, and the place where subclasses make it durable. Method names are pysyncobj's."""

    def __init__(self, entries: Entries | None = None) -> None:
        self._entries = entries or Entries()
        self._term = 0
        self._voted_for: str | None = None
        self._commit_index = self._stored_commit_index = self._entries.base_index
        # Seconds for which it has been behind; 0 when it is not.
        self._hint_age_s = 0

    # What a subclass adds durability to.

    def _record(self, record: Record) -> None: ...

    def sync(self) -> None:
        """Everything added so far is durable when this returns. Otherwise nothing may be acknowledged: DiskFull when it may be
        tried again, OSError when not."""

    def _reclaim(self) -> None:
        """The new base is durable: what lies before it may go."""

    # Entries.

    @property
    def base_index(self) -> int:
        return self._entries.base_index

    @property
    def last_index(self) -> int:
        return self._entries.last_index

    @property
    def size_bytes(self) -> int:
        """Of the commands kept."""
        return self._entries.size_bytes

    def term_at(self, index: int) -> int | None:
        """None when the entry is not there (any more)."""
        return self._entries.term_at(index)

    def size_at(self, index: int) -> int:
        """Of the command of an entry that is there."""
        return self._entries.size_at(index)

    def entries_from(self, index: int, *, count: int, size_bytes: int) -> list[Entry]:
        """From `index` on, at least one if there is one, else bounded by both limits."""
        assert index > self.base_index, f"entry {index} is compacted"
        stop = index
        while stop <= min(self.last_index, index + count - 1):
            size_bytes -= self._entries.size_at(stop)
            if size_bytes < 0 and stop > index:
                break
            stop += 1
        return self._entries.between(index, stop)

    def newest(self, count: int) -> list[bytes]:
        """At most the last `count` commands, of those in memory; from any thread."""
        return self._entries.newest(count)

    def add(self, command: bytes, idx: int, term: int) -> None:
        assert idx == self.last_index + 1, f"entry {idx} after {self.last_index}"
        assert term >= self._entries.last_term, f"term {term} after {self._entries.last_term}"
        self._entries.append(command, term)
        self._record(records.entry(command, idx, term))

    def truncate(self, index: int) -> None:
        """Void the entries from `index` on. Committed ones never are: an assertion, which stops the replica."""
        assert index > self._commit_index, f"cut at {index}, but {self._commit_index} is committed"
        self._entries.cut(index)
        self._record(records.truncate(index, self._entries.last_term))

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a durable snapshot holds; `index` becomes the base."""
        if index <= self.base_index:
            return
        assert index <= self._commit_index, f"a base at {index}, but only {self._commit_index} is committed"
        term = self._entries.term_at(index)
        assert term is not None
        self._record(records.base(index, term))
        self.sync()
        self._entries.drop(index)
        self._reclaim()

    def restart(self, index: int, term: int) -> None:
        """Begin anew after a durable snapshot at `index`, which makes everything held before void."""
        assert index >= self._commit_index
        self._entries.begin(index, term)
        self._commit_index = self._stored_commit_index = index
        self._record(records.restart(index, term))
        self.sync()
        self._reclaim()

    # pysyncobj's interface.

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803
        self.truncate(self.base_index + entryFrom)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        self.compact(self.base_index + entryTo)

    def clear(self) -> None:
        raise AssertionError("a log is never cleared; a snapshot may restart it")

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> Span: ...
    def __getitem__(self, item: int | slice) -> Entry | Span:
        return Span(self._entries, self.base_index, self.last_index + 1)[item]

    def __len__(self) -> int:
        return self.last_index - self.base_index + 1

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """A leader counts itself among those who have an entry: so it must be durable here before it is applied."""
        assert self._commit_index <= raftCommitIndex <= self.last_index, (self._commit_index, raftCommitIndex)
        self.sync()
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Durable when it returns, also if it was set before and could not be made durable then: whoever hears of a vote may
        rely on it."""
        if (term, votedForNodeId) != (self._term, self._voted_for):
            is_first = term > self._term or (term == self._term and self._voted_for is None)
            assert is_first, "a vote is given once in a term"
            self._term, self._voted_for = term, votedForNodeId
            self._record(records.vote(term, votedForNodeId))
        self.sync()

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Keep a hint of the commit index, so that a restarted node can read before it has met a leader. It goes along with the
        next batch, at most once a second; when none comes, it is one of its own in the end."""
        if self._stored_commit_index == self._commit_index:
            self._hint_age_s = 0
            return
        self._hint_age_s += 1
        if self._hint_age_s >= HINT_WAITS_S:
            self._hint()
            self.sync()

    def _hint(self) -> None:
        self._hint_age_s = 0
        if self._stored_commit_index != self._commit_index:
            self._stored_commit_index = self._commit_index
            self._record(records.commit(self._commit_index))

    def _destroy(self) -> None:
        """pysyncobj's word for closing."""


@dataclass
class _Segment:
    """`start`: of its first byte among those of all segments, which is how entries are found."""

    name: str
    start: int
    file: File | None = None


class FileLog(Log):
    """The log in the segments of a directory. Opening repairs a torn end; any other damage raises StorageDamaged."""

    def __init__(
        self,
        files: Files,
        *,
        uid: str,
        segment_bytes: int = SEGMENT_BYTES,
        memory_bytes: int = MEMORY_BYTES,
        spawn: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """`spawn` runs something beside this thread: the next segment is allocated there. Without it that waits its turn."""
        super().__init__(Entries(memory_bytes=memory_bytes, fetch=self._fetch))
        self._files = files
        self._uid = uid
        self._segment_bytes = segment_bytes
        self._spawn = spawn
        self._spare = _Spare(files, segment_bytes)
        self._segments: list[_Segment] = []
        self._pending: list[Record] = []
        # What is known where the durable part ends: number of its last batch, its length in the last segment, and the rest.
        self._batch = self._end = 0
        self._written = records.Tail()
        self._failure: OSError | None = None
        # A name may have been seen that a killed process had not made durable: what is built on it now would be lost with it at
        # the next power loss.
        files.sync()
        try:
            self._spare.drop()
            if segments.is_there(files):
                self._load()
            else:
                self._write([])
        except Damaged as error:
            self._close_files()
            raise self._damaged(str(error)) from error

    # Reading.

    def _load(self) -> None:
        replay = segments.Replay(self._entries)
        start = 0
        for segment in segments.read(self._files):
            if replay.uid is None:
                self._batch = segment.first - 1
            self._segments.append(_Segment(segment.name, start))
            replay.take_segment(segment, start)
            start += segment.file_bytes
            self._batch, self._end = segment.scan.batch, segment.scan.end
        replay.finish()
        if replay.uid != self._uid:
            raise Damaged(f"it belongs to node {replay.uid}, this is {self._uid}")
        self._written = tail = replay.tail
        self._term, self._voted_for = tail.term, tail.voted_for
        self._commit_index = self._stored_commit_index = tail.commit_index
        self._repair(segment)

    def _repair(self, last: segments.Segment) -> None:
        file = self._open(self._segments[-1])
        if last.torn_bytes:
            log.warning(
                "%s: the last %d bytes were being written at a crash and are dropped",
                self._files.path / last.name,
                last.torn_bytes,
            )
        if last.torn_bytes or last.file_bytes < self._segment_bytes:
            file.truncate(self._end)
            # Without the space to allocate it is only slower.
            with contextlib.suppress(OSError):
                file.allocate(self._segment_bytes)
        file.datasync()

    def _fetch(self, place: int, size: int, index: int, term: int) -> bytes:
        """An entry that has left memory."""
        segment = self._segment_of(place)
        data = self._open(segment).read(records.ENTRY_OVERHEAD + size, at=place - segment.start)
        try:
            return records.entry_in(data, index, term)
        except Damaged as error:
            raise self._damaged(f"{segment.name}: {error}") from error

    def _segment_of(self, place: int) -> _Segment:
        return self._segments[bisect.bisect_right(self._segments, place, key=lambda segment: segment.start) - 1]

    def _open(self, segment: _Segment) -> File:
        if segment.file is None:
            segment.file = self._files.open(segment.name)
        return segment.file

    def _damaged(self, why: str) -> StorageDamaged:
        return StorageDamaged(
            f"the Raft log in {self._files.path} is damaged: {why}",
            remedy="remove this node from the cluster, empty the directory and join again; with a single node, restore a backup",
            details={"path": str(self._files.path)},
        )

    # Writing.

    def _record(self, record: Record) -> None:
        self._pending.append(record)

    def sync(self) -> None:
        if self._failure is not None:
            # After a failed fsync the kernel may have dropped the pages: trying again would lie.
            raise OSError(self._failure.errno, f"the log failed before: {self._failure}")
        if self._pending and self._hint_age_s:
            self._hint()
        while self._pending:
            group = self._pending[: _group(self._pending)]
            self._write(group)
            del self._pending[: len(group)]
        self._entries.evict()
        if self._spawn is not None and self._end > self._segment_bytes // 2 and self._spare.is_wanted():
            self._spawn(self._spare.make)

    def _write(self, group: list[Record]) -> None:
        """One batch, durable when this returns. Raises DiskFull, and then the log is as it was before."""
        data = records.pack(group, self._batch + 1)
        try:
            if not self._segments or self._end + len(data) > self._segment_bytes:
                start, offset = self._write_in_new_segment(group)
            else:
                start, offset = self._segments[-1].start, self._end
                self._write_at_end(data)
        except DiskFull:
            raise
        except OSError as error:
            self._failure = error
            raise
        self._batch += 1
        for record in group:
            self._written = records.after(self._written, record)
            if record.kind is Kind.entry:
                self._entries.place(self._written.last.index, start + offset)
            offset += records.size(record)
        self._end = offset

    def _write_at_end(self, data: bytes) -> None:
        file = self._open(self._segments[-1])
        try:
            file.append(data, at=self._end)
        except OSError as error:
            if not is_full(error):
                raise
            file.truncate(self._end)
            raise _full(self._files, error) from error
        file.datasync()

    def _write_in_new_segment(self, group: list[Record]) -> tuple[int, int]:
        """It gets its name when its first batch is durable, so that a segment without one is never a torn write. Returns
        its place and where in it the first record of the group is."""
        head = records.head(self._uid, self._written)
        name = segments.name_of(self._batch + 1)
        start = (
            self._segments[-1].start + max(self._end, self._open(self._segments[-1]).size()) if self._segments else 0
        )
        try:
            file = self._spare.take()
        except OSError as error:
            if not is_full(error):
                raise
            raise _full(self._files, error) from error
        try:
            self._name_segment(file, name, records.pack([head, *group], self._batch + 1))
        except (OSError, DiskFull):
            file.close()
            raise
        self._segments.append(_Segment(name, start, file))
        return start, records.size(head)

    def _name_segment(self, file: File, name: str, data: bytes) -> None:
        try:
            file.append(data, at=0)
        except OSError as error:
            if not is_full(error):
                raise
            self._spare.drop()
            raise _full(self._files, error) from error
        file.datasync()
        self._files.rename(segments.SPARE, name)
        self._files.sync()

    def _reclaim(self) -> None:
        """Segments that hold only what lies before the base, from the oldest on; never the last."""
        place = self._entries.place_of(self.base_index + 1)
        first = self._segments[-1] if place is None else self._segment_of(place)
        while self._segments[0] is not first:
            segment = self._segments[0]
            if segment.file is not None:
                segment.file.close()
                segment.file = None
            self._files.remove(segment.name)
            del self._segments[0]

    # The end.

    def close(self) -> None:
        """A clean end also seals the last batch: damage to it is recognised from now on."""
        if self._segments and self._failure is None:
            self._record(records.commit(self._commit_index))
            self.sync()
        self._close_files()

    def abandon(self) -> None:
        """Close without writing anything, as a crash would."""
        self._close_files()

    def _destroy(self) -> None:
        self._close_files()

    def _close_files(self) -> None:
        for segment in self._segments:
            if segment.file is not None:
                segment.file.close()
        self._segments = []
        self._spare.close()


class _Spare:
    """The next segment: its space is allocated in advance, if possible by another thread, because that takes long."""

    def __init__(self, files: Files, size: int) -> None:
        self._files = files
        self._size = size
        self._mutex = threading.Lock()
        self._file: File | None = None
        self._is_asked_for = False

    def is_wanted(self) -> bool:
        """True once, until it is taken: somebody will make it now."""
        is_asked_for, self._is_asked_for = self._is_asked_for, True
        return not is_asked_for

    def make(self) -> None:
        with self._mutex:
            try:
                self._make()
            except OSError as error:
                # Whoever takes it tries again, and can say so to those who wait.
                log.warning("%s: no space could be made for the log: %s", self._files.path, error)

    def take(self) -> File:
        with self._mutex:
            file = self._make()
            self._file, self._is_asked_for = None, False
            return file

    def drop(self) -> None:
        with self._mutex:
            self._files.remove(segments.SPARE)

    def close(self) -> None:
        with self._mutex:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _make(self) -> File:
        if self._file is None:
            file = self._files.create(segments.SPARE)
            try:
                file.allocate(self._size)
                file.datasync()
            except OSError:
                file.close()
                self._files.remove(segments.SPARE)
                raise
            self._file = file
        return self._file


def _group(pending: list[Record]) -> int:
    """How many records go into the next batch."""
    size = 0
    for count, record in enumerate(pending):
        size += records.size(record)
        if size > _GROUP_BYTES and count:
            return count
    return len(pending)


def _full(files: Files, error: OSError) -> DiskFull:
    return DiskFull(
        f"this node has no space for its log in {files.path}: {error.strerror}",
        remedy="free some there; writing goes on by itself then, and reads go on meanwhile",
    )
