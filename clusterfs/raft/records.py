"""The bytes of the log file: records in batches. Pure; `journal` does the writing.

A batch is what one fdatasync made durable, and it is all or nothing. Each record carries its batch's number and a CRC32;
the last of a batch is marked. That lets a reader tell the two kinds of damage apart: an unfinished batch at the end is a
torn write that nobody was told about, and is dropped. Damage before a batch that is whole was durable once: somebody may
rely on it, so it is refused, never skipped.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"\xf5KvR"
_HEAD = struct.Struct("<4sIIQBB")  # magic, length of the body, crc, batch, kind, last of its batch
_PAIR = struct.Struct("<QQ")
_ONE = struct.Struct("<Q")


class Kind(IntEnum):
    base = 1
    entry = 2
    truncate = 3
    vote = 4
    commit = 5


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    body: bytes


class Damaged(Exception):
    """Something that was durable once is no longer readable."""


def pack(records: list[Record], batch: int) -> bytes:
    """The bytes of one batch."""
    parts: list[bytes] = []
    for position, record in enumerate(records):
        is_last = position == len(records) - 1
        unsigned = _HEAD.pack(MAGIC, len(record.body), 0, batch, record.kind, is_last)
        crc = zlib.crc32(record.body, zlib.crc32(unsigned))
        parts += (_HEAD.pack(MAGIC, len(record.body), crc, batch, record.kind, is_last), record.body)
    return b"".join(parts)


def read(data: bytes) -> tuple[list[Record], int, int]:
    """The records of all whole batches, the number of the last batch, and the length of what is whole.

    Raises Damaged when what follows the whole part is more than a torn write.
    """
    records: list[Record] = []
    pending: list[Record] = []
    end = position = batch = 0
    while (found := _record_at(data, position)) is not None:
        record, number, is_last, position = found
        if number != batch + 1:
            raise Damaged(f"batch {number} follows batch {batch} at byte {end}")
        pending.append(record)
        if is_last:
            records += pending
            pending = []
            batch, end = number, position
    _require_torn(data, position, batch + 1)
    return records, batch, end


def _record_at(data: bytes, position: int) -> tuple[Record, int, bool, int] | None:
    if len(data) - position < _HEAD.size:
        return None
    magic, length, crc, batch, kind, is_last = _HEAD.unpack_from(data, position)
    end = position + _HEAD.size + length
    if magic != MAGIC or end > len(data):
        return None
    body = data[position + _HEAD.size : end]
    unsigned = _HEAD.pack(magic, length, 0, batch, kind, is_last)
    if zlib.crc32(body, zlib.crc32(unsigned)) != crc:
        return None
    return Record(Kind(kind), body), batch, bool(is_last), end


def _require_torn(data: bytes, position: int, batch: int) -> None:
    """`batch` is the one that is not whole: a batch is begun only when the one before is durable, so a record of a later
    one proves that it was whole once."""
    for start in _candidates(data, position):
        found = _record_at(data, start)
        if found is not None and found[1] > batch:
            raise Damaged(f"batch {batch} is damaged near byte {position}, but batch {found[1]} after it is there")


def _candidates(data: bytes, position: int) -> Iterator[int]:
    while (position := data.find(MAGIC, position)) >= 0:
        yield position
        position += 1


def base(uid: str, index: int, term: int) -> Record:
    """The first record: whose log this is, and the entry that it begins after."""
    return Record(Kind.base, _PAIR.pack(index, term) + uid.encode())


def entry(command: bytes, index: int, term: int) -> Record:
    return Record(Kind.entry, _PAIR.pack(index, term) + command)


def truncate(index: int) -> Record:
    """Entries from `index` on are void."""
    return Record(Kind.truncate, _ONE.pack(index))


def vote(term: int, voted_for: str | None) -> Record:
    return Record(Kind.vote, _ONE.pack(term) + (voted_for or "").encode())


def commit(index: int) -> Record:
    return Record(Kind.commit, _ONE.pack(index))


def pair_and_rest(body: bytes) -> tuple[int, int, bytes]:
    first, second = _PAIR.unpack_from(body)
    return first, second, body[_PAIR.size :]


def one_and_rest(body: bytes) -> tuple[int, bytes]:
    (first,) = _ONE.unpack_from(body)
    return first, body[_ONE.size :]
