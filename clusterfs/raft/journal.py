"""The log on disk: entries, term and vote, appended and fdatasync'd before anybody is told of them.

It stands in for pysyncobj's journals, which never sync, rewrite themselves in place when compacted and start anew when they
cannot read what they find. Additions are buffered until `sync`, which makes one batch durable. One file; compaction writes
a new one beside it and renames, so that each moment has a whole log. What the entries mean is not known here.

`journal[0]` is the base: the entry before the first kept one, without its command. A fresh log begins after index 0.
"""

import logging
from collections.abc import Sequence
from typing import overload

import pysyncobj.syncobj
from pysyncobj.journal import Journal as PysyncobjJournal

from . import records
from .files import File, Files
from .messages import Entry
from .records import Damaged, Kind, Record
from .values import StorageDamaged

log = logging.getLogger(__name__)

NO_OP = b"\x01"
NAME = "log"

_create_journal = pysyncobj.syncobj.createJournal


def _pass_through(journal: object) -> object:
    """SyncObj has no parameter for a journal, only a file's name that it hands to this function."""
    return journal if isinstance(journal, PysyncobjJournal) else _create_journal(journal)


pysyncobj.syncobj.createJournal = _pass_through


class Log(PysyncobjJournal):  # type: ignore[misc]
    """A log in memory, and the place where subclasses make it durable. Method names are pysyncobj's."""

    def __init__(self, *, index: int = 0, term: int = 0) -> None:
        self._entries: list[Entry] = [(NO_OP, index, term)]
        self._bytes = 0
        self._term = 0
        self._voted_for: str | None = None
        self._commit_index = index
        self._stored_commit_index = index

    # What a subclass adds durability to.

    def _record(self, record: Record) -> None: ...

    def sync(self) -> None:
        """Everything added so far is durable when this returns. Raises OSError; nothing may be acknowledged then."""

    def _rewrite(self) -> None:
        """Replace what is stored by what is in memory, atomically."""

    # Entries.

    @property
    def base_index(self) -> int:
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def size_bytes(self) -> int:
        """Of the commands kept."""
        return self._bytes

    def term_at(self, index: int) -> int | None:
        """None when the entry is not there (any more)."""
        position = index - self.base_index
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def entries_from(self, index: int, *, count: int, size_bytes: int) -> list[Entry]:
        """From `index` on, at least one if there is one, else bounded by both limits."""
        start = index - self.base_index
        assert start > 0, f"entry {index} is compacted"
        chosen: list[Entry] = []
        for entry in self._entries[start : start + count]:
            if chosen and (size_bytes := size_bytes - len(entry[0])) < 0:
                break
            chosen.append(entry)
        return chosen

    def add(self, command: bytes, idx: int, term: int) -> None:
        assert idx == self.last_index + 1, f"entry {idx} after {self.last_index}"
        self._entries.append((command, idx, term))
        self._bytes += len(command)
        self._record(records.entry(command, idx, term))

    def truncate(self, index: int) -> None:
        """Void the entries from `index` on. Committed ones never are: an assertion, which stops the replica."""
        assert index > self._commit_index, f"cut at {index}, but {self._commit_index} is committed"
        position = index - self.base_index
        self._bytes -= sum(len(entry[0]) for entry in self._entries[position:])
        del self._entries[position:]
        self._record(records.truncate(index))

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a durable snapshot holds; `index` becomes the base."""
        position = index - self.base_index
        if position <= 0:
            return
        _, _, term = self._entries[position]
        self._bytes -= sum(len(entry[0]) for entry in self._entries[1 : position + 1])
        self._entries[: position + 1] = [(NO_OP, index, term)]
        self._rewrite()

    def restart(self, index: int, term: int) -> None:
        """Begin anew after a durable snapshot at `index`, which makes everything held before void."""
        assert index >= self._commit_index
        self._entries = [(NO_OP, index, term)]
        self._bytes = 0
        self._commit_index = index
        self._rewrite()

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
    def __getitem__(self, item: slice) -> list[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """A leader counts itself among those who have an entry: so it must be durable here before it is applied."""
        assert self._commit_index <= raftCommitIndex <= self.last_index, (self._commit_index, raftCommitIndex)
        self.sync()
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Durable when it returns: whoever hears of a vote may rely on it."""
        if (term, votedForNodeId) == (self._term, self._voted_for):
            return
        assert term > self._term or (term == self._term and self._voted_for is None), "a vote is given once in a term"
        self._term, self._voted_for = term, votedForNodeId
        self._record(records.vote(term, votedForNodeId))
        self.sync()

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Keep a hint of the commit index, so that a restarted node can read before it has met a leader."""
        if self._stored_commit_index != self._commit_index:
            self._stored_commit_index = self._commit_index
            self._record(records.commit(self._commit_index))
            self.sync()

    def _destroy(self) -> None:
        """pysyncobj's word for closing."""


class FileLog(Log):
    """The log in a file of a directory. Opening repairs a torn end; any other damage raises StorageDamaged."""

    def __init__(self, files: Files, *, uid: str) -> None:
        super().__init__()
        self._files = files
        self._path = files.path / NAME
        self._uid = uid
        self._pending: list[Record] = []
        self._batch = 0
        self._failure: OSError | None = None
        self._file: File | None = None
        self._end = 0
        if NAME in files.names():
            self._load()
        else:
            self._rewrite()

    def _load(self) -> None:
        self._file = file = self._files.open(NAME)
        data = file.read(file.size(), at=0)
        try:
            found, self._batch, self._end = records.read(data)
            self._replay(found)
        except (Damaged, ValueError, AssertionError) as error:
            raise self._damaged(str(error)) from error
        if self._end < len(data):
            log.warning(
                "%s: the last %d bytes were being written at a crash and are dropped", self._path, len(data) - self._end
            )
            file.truncate(self._end)
        file.datasync()

    def _replay(self, found: Sequence[Record]) -> None:
        assert found and found[0].kind is Kind.base, "there is no beginning"
        index, term, uid = records.pair_and_rest(found[0].body)
        if uid.decode() != self._uid:
            raise self._damaged(f"it belongs to node {uid.decode()}, this is {self._uid}")
        self._entries = [(NO_OP, index, term)]
        self._commit_index = index
        for record in found[1:]:
            match record.kind:
                case Kind.entry:
                    index, term, command = records.pair_and_rest(record.body)
                    assert index == self.last_index + 1, f"entry {index} follows {self.last_index}"
                    self._entries.append((command, index, term))
                    self._bytes += len(command)
                case Kind.truncate:
                    index, _ = records.one_and_rest(record.body)
                    assert self._commit_index < index <= self.last_index + 1, f"cut at {index}"
                    del self._entries[index - self.base_index :]
                    self._bytes = sum(len(entry[0]) for entry in self._entries[1:])
                case Kind.vote:
                    self._term, name = records.one_and_rest(record.body)
                    self._voted_for = name.decode() or None
                case Kind.commit:
                    self._commit_index, _ = records.one_and_rest(record.body)
                    assert self._commit_index <= self.last_index, f"{self._commit_index} is committed but not there"
                case Kind.base:
                    raise AssertionError("a second beginning")
        self._stored_commit_index = self._commit_index

    def _damaged(self, why: str) -> StorageDamaged:
        return StorageDamaged(
            f"the Raft log {self._path} is damaged: {why}",
            remedy="remove this node from the cluster, empty the directory and join again; with a single node, restore a backup",
            details={"path": str(self._path)},
        )

    def _record(self, record: Record) -> None:
        self._pending.append(record)

    def sync(self) -> None:
        if self._failure is not None:
            # After a failed fsync the kernel may have dropped the pages: trying again would lie.
            raise OSError(self._failure.errno, f"the log failed before: {self._failure}")
        if not self._pending:
            return
        assert self._file is not None
        data = records.pack(self._pending, self._batch + 1)
        try:
            self._file.write(data, at=self._end)
            self._file.datasync()
        except OSError as error:
            self._failure = error
            raise
        self._end += len(data)
        self._batch += 1
        self._pending.clear()

    def _rewrite(self) -> None:
        """The vote and the commit index go along; what was pending is in memory and so in the new file."""
        if self._failure is not None:
            raise self._failure
        _, index, term = self._entries[0]
        found = [records.base(self._uid, index, term), records.vote(self._term, self._voted_for)]
        found += [records.entry(*entry) for entry in self._entries[1:]]
        found.append(records.commit(self._commit_index))
        data = records.pack(found, 1)
        try:
            file = self._files.create(NAME + ".new")
            file.write(data, at=0)
            file.datasync()
            self._files.rename(NAME + ".new", NAME)
            self._files.sync()
        except OSError as error:
            # The old file may or may not be replaced: this process no longer knows what is on disk.
            self._failure = error
            raise
        self._close_file()
        self._file, self._end, self._batch = file, len(data), 1
        self._pending.clear()
        self._stored_commit_index = self._commit_index

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """A clean end also seals the last batch: damage to it is recognised from now on."""
        if self._file is not None and self._failure is None:
            self._record(records.commit(self._commit_index))
            self.sync()
        self._close_file()

    def abandon(self) -> None:
        """Close without writing anything, as a crash would."""
        self._close_file()

    def _destroy(self) -> None:
        self._close_file()
