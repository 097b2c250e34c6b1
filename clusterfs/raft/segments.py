"""The segments of a log as they lie on disk: their names, their order, and what may be wrong with them.

A log is a row of files `log-<number of its first batch>`. All but the last are sealed: what is wrong with one of them was
whole once. Only the last may end in a torn batch. Nothing is changed here; `journal` writes and repairs.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from . import records
from .entries import Entries
from .files import Files
from .records import Damaged, Kind, Record, Scan, Tail

PREFIX = "log-"
# Allocated in advance, nothing in it counts.
SPARE = "log.spare"
# What a version wrote that knew one file only.
_SINGLE = "log"
# A segment holds one batch at least, and a batch has few megabytes. What is longer was not written by us.
MAX_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Segment:
    """`torn_bytes`: at its end, of a batch that a crash cut off."""

    name: str
    first: int
    scan: Scan
    file_bytes: int
    torn_bytes: int


def name_of(first: int) -> str:
    return f"{PREFIX}{first:020d}"


def names(files: Files) -> list[str]:
    """In order. Raises Damaged for a log of an older version."""
    found = files.names()
    if _SINGLE in found:
        raise Damaged("it was written by a version that kept one file; start anew or export with that version")
    return [name for name in found if name.startswith(PREFIX)]


def is_there(files: Files) -> bool:
    return any(name.startswith(PREFIX) or name == _SINGLE for name in files.names())


def read(files: Files) -> Iterator[Segment]:
    """One after the other. Raises Damaged."""
    ordered = names(files)
    following: int | None = None
    for name in ordered:
        digits = name.removeprefix(PREFIX)
        if not (digits.isascii() and digits.isdigit() and name_of(int(digits)) == name):
            raise Damaged(f"{name} is no name of a segment")
        first = int(digits)
        if following is not None and first != following:
            raise Damaged(f"{name} begins with batch {first}, but batch {following} comes next")
        try:
            segment = _read_one(files, name, first, is_sealed=name != ordered[-1])
        except Damaged as error:
            raise Damaged(f"{name}: {error}") from None
        following = segment.scan.batch + 1
        yield segment


def _read_one(files: Files, name: str, first: int, *, is_sealed: bool) -> Segment:
    with contextlib.closing(files.open(name)) as file:
        size = file.size()
        if size > MAX_BYTES:
            raise Damaged(f"it has {size} bytes")
        data = file.read(size, at=0)
    scan = records.read(data, first)
    if not scan.records:
        # A segment gets its name only when its first batch is durable.
        raise Damaged("its first batch is not readable")
    torn = len(data[scan.end :].rstrip(b"\0"))
    if torn and is_sealed:
        raise Damaged(f"it is sealed, but {torn} bytes after batch {scan.batch} are not readable")
    return Segment(name, first, scan, len(data), torn)


class Replay:
    """A log's contents out of its segments, one record after the other."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.tail = Tail()
        self.uid: str | None = None

    def take_segment(self, segment: Segment, start: int) -> None:
        """`start`: the place of its first byte, from which those of entries are counted. Raises Damaged."""
        try:
            (record, _), *others = segment.scan.records
            self._take_head(record)
            for record, offset in others:
                self.tail = records.after(self.tail, record)
                self._take(record, start + offset)
            self.entries.evict()
        except Damaged as error:
            raise Damaged(f"{segment.name}: {error}") from None

    def finish(self) -> None:
        """Raises Damaged when the log's beginning is missing: segments go only when what they held is in a snapshot."""
        if self.uid is None:
            raise Damaged("there is no segment")
        base = self.tail.base
        if self.entries.term_at(base.index) != base.term:
            raise Damaged(f"the log begins after entry {base.index}, its files only after {self.entries.base_index}")
        self.entries.drop(base.index)

    def _take_head(self, record: Record) -> None:
        if record.kind is not Kind.head:
            raise Damaged("it has no head")
        uid, tail = records.uid_and_tail(record.body)
        if self.uid is None:
            if not tail.base.index <= tail.last.index or not tail.commit_index <= tail.last.index:
                raise Damaged("its head makes no sense")
            self.uid, self.tail = uid, tail
            self.entries.begin(tail.last.index, tail.last.term)
        elif (uid, tail) != (self.uid, self.tail):
            raise Damaged("it does not continue the segment before it")

    def _take(self, record: Record, place: int) -> None:
        entries = self.entries
        match record.kind:
            case Kind.entry:
                index, term, command = records.pair_and_rest(record.body)
                entries.append(command, term)
                entries.place(index, place)
            case Kind.truncate if self.tail.last.index < entries.base_index:
                # What is cut lay in segments that are gone.
                entries.begin(self.tail.last.index, self.tail.last.term)
            case Kind.truncate:
                if entries.term_at(self.tail.last.index) != self.tail.last.term:
                    raise Damaged(f"a cut after entry {self.tail.last.index}, which is of another term")
                entries.cut(self.tail.last.index + 1)
            case Kind.base if self.tail.base.index > entries.base_index:
                if entries.term_at(self.tail.base.index) != self.tail.base.term:
                    raise Damaged(f"it begins at entry {self.tail.base.index}, which is of another term")
                entries.drop(self.tail.base.index)
            case Kind.restart:
                entries.begin(self.tail.base.index, self.tail.base.term)
