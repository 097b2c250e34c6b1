"""The bytes of the log: records in batches. Pure; `journal` does the writing.

A batch is what one fdatasync made durable, and it is all or nothing. Each record carries its batch's number and a CRC32;
the last of a batch is marked. That lets a reader tell the two kinds of damage apart: an unfinished batch at the end is a
torn write that nobody was told about, and is dropped. Damage before a batch that is whole was durable once: somebody may
rely on it, so it is refused, never skipped. Zeros after the last batch are space that was allocated in advance.

Indices, terms, batches and offsets have 64 bits; a record has at most `MAX_BODY` bytes.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec

MAGIC = b"\xf5KvR"
# An entry and what its kind adds; far above what `Options.max_entry_bytes` may be.
MAX_BODY = 32 * 2**20

_HEAD = struct.Struct("<4sI")  # magic, crc of all that follows
_REST = struct.Struct("<IQBB")  # length of the body, batch, kind, last of its batch
_PAIR = struct.Struct("<QQ")
_ONE = struct.Struct("<Q")
_TAIL = struct.Struct("<BQQQQQQB")  # format, base, last, term, commit, length of the uid
_OVERHEAD = _HEAD.size + _REST.size
ENTRY_OVERHEAD = _OVERHEAD + _PAIR.size
_FORMAT = 1


class Kind(IntEnum):
    # Whose log this is, and what a reader knows who has read all segments before.
    head = 1
    entry = 2
    truncate = 3
    vote = 4
    commit = 5
    # A snapshot holds the entries up to this one.
    base = 6
    # A snapshot replaces everything before.
    restart = 7


_KINDS = frozenset(Kind)


class Record(msgspec.Struct, frozen=True):
    kind: Kind
    body: bytes


class Place(msgspec.Struct, frozen=True):
    """An entry: where the log begins after, or where it ends."""

    index: int
    term: int


class Tail(msgspec.Struct, frozen=True):
    """What is known at a point of the log: its beginning and end, the vote, and a hint of what is committed."""

    base: Place = Place(0, 0)
    last: Place = Place(0, 0)
    term: int = 0
    voted_for: str | None = None
    commit_index: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds: records with their offsets, the number of its last whole batch, and where that ends."""

    records: list[tuple[Record, int]]
    batch: int
    end: int


class Damaged(Exception):
    """Something that was durable once is no longer readable."""


def pack(records: Sequence[Record], batch: int) -> bytes:
    """The bytes of one batch."""
    parts: list[bytes] = []
    for position, record in enumerate(records, 1):
        body = record.body
        assert len(body) <= MAX_BODY, f"a record of {len(body)} bytes"
        rest = _REST.pack(len(body), batch, record.kind, position == len(records))
        parts += (_HEAD.pack(MAGIC, zlib.crc32(body, zlib.crc32(rest))), rest, body)
    return b"".join(parts)


def size(record: Record) -> int:
    return _OVERHEAD + len(record.body)


def read(data: bytes, first: int = 1) -> Scan:
    """All whole batches, of which `first` is the number of the first.

    Raises Damaged when what follows the whole part is more than a torn write.
    """
    records: list[tuple[Record, int]] = []
    pending: list[tuple[Record, int]] = []
    end = position = 0
    batch = first - 1
    while (found := _record_at(data, position)) is not None:
        record, number, is_last, following = found
        if number != batch + 1:
            raise Damaged(f"batch {number} follows batch {batch} at byte {end}")
        pending.append((record, position))
        position = following
        if is_last:
            records += pending
            pending = []
            batch, end = number, position
    _require_torn(data, position, batch + 1)
    return Scan(records, batch, end)


def entry_in(data: bytes, index: int, term: int) -> bytes:
    """The command of an entry's record, which is all of `data`. Raises Damaged."""
    found = _record_at(data, 0)
    if found is None or found[3] != len(data) or found[0].kind is not Kind.entry:
        raise Damaged(f"entry {index} is no longer readable")
    there, its_term, command = pair_and_rest(found[0].body)
    if (there, its_term) != (index, term):
        raise Damaged(f"entry {there} is in the place of entry {index}")
    return command


def _record_at(data: bytes, position: int) -> tuple[Record, int, bool, int] | None:
    if len(data) - position < _OVERHEAD:
        return None
    magic, crc = _HEAD.unpack_from(data, position)
    length, batch, kind, is_last = _REST.unpack_from(data, position + _HEAD.size)
    end = position + _OVERHEAD + length
    if magic != MAGIC or length > MAX_BODY or end > len(data):
        return None
    body = data[position + _OVERHEAD : end]
    if zlib.crc32(body, zlib.crc32(_REST.pack(length, batch, kind, is_last))) != crc:
        return None
    if kind not in _KINDS:
        raise Damaged(f"a record of kind {kind} at byte {position}, which only a newer version knows")
    return Record(Kind(kind), body), batch, bool(is_last), end


def _require_torn(data: bytes, position: int, batch: int) -> None:
    """`batch` is the one that is not whole: a batch is begun only when the one before is durable, so a record of a later
    one proves that it was whole once."""
    for start in _candidates(data, position, batch):
        if (found := _record_at(data, start)) is not None:
            raise Damaged(f"batch {batch} is damaged near byte {position}, but batch {found[1]} after it is there")


def _candidates(data: bytes, position: int, batch: int) -> Iterator[int]:
    """Where a record of a later batch may begin; its checksum is still to be looked at."""
    while 0 <= (position := data.find(MAGIC, position)) <= len(data) - _OVERHEAD:
        if _REST.unpack_from(data, position + _HEAD.size)[1] > batch:
            yield position
        position += 1


# One kind each: made and taken apart.


def head(uid: str, tail: Tail) -> Record:
    name = uid.encode()
    fixed = _TAIL.pack(
        _FORMAT,
        tail.base.index,
        tail.base.term,
        tail.last.index,
        tail.last.term,
        tail.term,
        tail.commit_index,
        len(name),
    )
    return Record(Kind.head, fixed + name + (tail.voted_for or "").encode())


def entry(command: bytes, index: int, term: int) -> Record:
    return Record(Kind.entry, _PAIR.pack(index, term) + command)


def truncate(index: int, term_before: int) -> Record:
    """Entries from `index` on are void."""
    return Record(Kind.truncate, _PAIR.pack(index, term_before))


def vote(term: int, voted_for: str | None) -> Record:
    return Record(Kind.vote, _ONE.pack(term) + (voted_for or "").encode())


def commit(index: int) -> Record:
    return Record(Kind.commit, _ONE.pack(index))


def base(index: int, term: int) -> Record:
    return Record(Kind.base, _PAIR.pack(index, term))


def restart(index: int, term: int) -> Record:
    return Record(Kind.restart, _PAIR.pack(index, term))


def pair_and_rest(body: bytes) -> tuple[int, int, bytes]:
    """Raises Damaged, as all that take a body apart."""
    if len(body) < _PAIR.size:
        raise Damaged("a record is too short")
    first, second = _PAIR.unpack_from(body)
    return first, second, body[_PAIR.size :]


def place(body: bytes) -> Place:
    if len(body) < _PAIR.size:
        raise Damaged("a record is too short")
    return Place(*_PAIR.unpack_from(body))


def one_and_rest(body: bytes) -> tuple[int, bytes]:
    if len(body) < _ONE.size:
        raise Damaged("a record is too short")
    (first,) = _ONE.unpack_from(body)
    return first, body[_ONE.size :]


def uid_and_tail(body: bytes) -> tuple[str, Tail]:
    if len(body) < _TAIL.size:
        raise Damaged("the head of a segment is too short")
    version, base_index, base_term, index, term, current, committed, length = _TAIL.unpack_from(body)
    if version != _FORMAT:
        raise Damaged(f"the log has format {version}, this version knows {_FORMAT}")
    names = body[_TAIL.size :]
    tail = Tail(
        base=Place(base_index, base_term),
        last=Place(index, term),
        term=current,
        voted_for=_text(names[length:]) or None,
        commit_index=committed,
    )
    return _text(names[:length]), tail


def after(tail: Tail, record: Record) -> Tail:
    """What is known once a record is read. Raises Damaged when it cannot follow."""
    last, commit_index = tail.last, tail.commit_index
    match record.kind:
        case Kind.head:
            raise Damaged("a second beginning")
        case Kind.entry:
            end = place(record.body)
            if end.index != last.index + 1 or end.term < last.term:
                raise Damaged(f"{end} follows {last}")
            return Tail(tail.base, end, tail.term, tail.voted_for, commit_index)
        case Kind.truncate:
            cut = place(record.body)
            _require(commit_index < cut.index <= last.index + 1, f"a cut at {cut.index}")
            return _with(tail, last=Place(cut.index - 1, cut.term))
        case Kind.vote:
            term, name = one_and_rest(record.body)
            _require(term >= tail.term, f"term {term} follows {tail.term}")
            return Tail(tail.base, last, term, _text(name) or None, commit_index)
        case Kind.commit:
            index, _ = one_and_rest(record.body)
            _require(commit_index <= index <= last.index, f"{index} is committed, the log ends at {last.index}")
            return _with(tail, commit_index=index)
        case Kind.base:
            start = place(record.body)
            _require(tail.base.index <= start.index <= last.index, f"the log begins at {start.index}")
            return _with(tail, base=start, commit_index=max(commit_index, start.index))
        case Kind.restart:
            start = place(record.body)
            _require(commit_index <= start.index, f"a restart at {start.index}, but {commit_index} is committed")
            return _with(tail, base=start, last=start, commit_index=start.index)


def _with(tail: Tail, *, base: Place | None = None, last: Place | None = None, commit_index: int | None = None) -> Tail:
    return Tail(
        base=tail.base if base is None else base,
        last=tail.last if last is None else last,
        term=tail.term,
        voted_for=tail.voted_for,
        commit_index=tail.commit_index if commit_index is None else commit_index,
    )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Damaged("a name is not UTF-8") from None


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Damaged(otherwise)
