"""Snapshots on disk: one file with its own checksum, verified before it replaces anything.

A file holds the index and term it stands for, the members at that point, the chunks that the state machine made, and a
SHA-256 of all of it. What the chunks mean is the state machine's. Sending one to another node is `catchup`'s work.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from .journal import sync_directory
from .membership import Members
from .values import Address, StorageDamaged

MAGIC = b"KvRaftS1"
_LENGTH = struct.Struct("<I")
_BLOCK = 2**20
_MAX_CHUNK = 2**28


class _Header(msgspec.Struct, frozen=True):
    index: int
    term: int
    members: dict[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Point:
    """What a snapshot stands for."""

    index: int
    term: int
    members: Members


class SnapshotStore:
    """The snapshots of one replica. Only `write` may run outside the raft thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "snapshot"
        self._fresh = directory / "snapshot.new"
        self.incoming = directory / "snapshot.incoming"
        for leftover in (self._fresh, self.incoming):
            leftover.unlink(missing_ok=True)

    def current(self) -> Point | None:
        """The verified snapshot on disk, or None when there is none. Raises StorageDamaged."""
        if not self.path.exists():
            return None
        return verify(self.path)

    def write(self, point: Point, chunks: Iterable[bytes]) -> None:
        """Serialise beside the current snapshot; `adopt_written` makes it the current one."""
        header = _Header(point.index, point.term, {uid: (a.host, a.port) for uid, a in point.members.items()})
        digest = hashlib.sha256()
        with self._fresh.open("wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            for part in _parts(header, chunks):
                digest.update(part)
                stream.write(part)
            stream.write(digest.digest())
            stream.flush()
            os.fsync(stream.fileno())

    def adopt_written(self) -> None:
        self._replace(self._fresh)

    def adopt_incoming(self, index: int, term: int) -> Point:
        """Make a received snapshot the current one. Raises StorageDamaged before anything is replaced."""
        point = verify(self.incoming)
        if (point.index, point.term) != (index, term):
            raise _damaged(self.incoming, f"it stands for {point.index}, not for {index}")
        with self.incoming.open("rb") as stream:
            os.fsync(stream.fileno())
        self._replace(self.incoming)
        return point

    def _replace(self, source: Path) -> None:
        source.rename(self.path)
        sync_directory(self._directory)

    def drop_incoming(self) -> None:
        self.incoming.unlink(missing_ok=True)

    def chunks(self) -> Iterator[bytes]:
        """What the state machine made of the current snapshot, which has been verified."""
        with self.path.open("rb") as stream:
            _read_header(stream, self.path)
            while chunk := _read_chunk(stream, self.path):
                yield chunk


def verify(path: Path) -> Point:
    """Read all of a snapshot file. Raises StorageDamaged unless it is as it was written."""
    digest = hashlib.sha256()
    size = path.stat().st_size - digest.digest_size
    with path.open("rb") as stream:
        left = size
        while left > 0 and (block := stream.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
        if left or stream.read() != digest.digest():
            raise _damaged(path, "its checksum is wrong")
        stream.seek(0)
        header = _read_header(stream, path)
    members = {uid: Address(host, port) for uid, (host, port) in header.members.items()}
    return Point(header.index, header.term, members)


def _parts(header: _Header, chunks: Iterable[bytes]) -> Iterator[bytes]:
    encoded = msgspec.msgpack.encode(header)
    yield MAGIC + _LENGTH.pack(len(encoded)) + encoded
    for chunk in chunks:
        if chunk:
            assert len(chunk) <= _MAX_CHUNK
            yield _LENGTH.pack(len(chunk))
            yield chunk
    yield _LENGTH.pack(0)


def _read_header(stream: BinaryIO, path: Path) -> _Header:
    if stream.read(len(MAGIC)) != MAGIC:
        raise _damaged(path, "it is no snapshot, or one of an unknown version")
    try:
        return msgspec.msgpack.decode(_read_chunk(stream, path), type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"its header does not parse: {error}") from error


def _read_chunk(stream: BinaryIO, path: Path) -> bytes:
    head = stream.read(_LENGTH.size)
    (length,) = _LENGTH.unpack(head) if len(head) == _LENGTH.size else (_MAX_CHUNK + 1,)
    data = stream.read(length) if length <= _MAX_CHUNK else b""
    if length > _MAX_CHUNK or len(data) != length:
        raise _damaged(path, "it ends early")
    return data


def _damaged(path: Path, why: str) -> StorageDamaged:
    return StorageDamaged(
        f"the snapshot {path} is damaged: {why}",
        remedy="remove this node from the cluster, empty the directory and join again; with a single node, restore a backup",
        details={"path": str(path)},
    )
