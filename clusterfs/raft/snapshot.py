"""Snapshots on disk: one file with its own checksum, verified before it replaces anything.

A file holds the index and term it stands for, the members at that point, the chunks that the state machine made, and a
SHA-256 of all of it. What the chunks mean is the state machine's. Sending one to another node is `catchup`'s work.
"""

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .files import File, Files
from .membership import Configuration
from .values import Address, StorageDamaged

MAGIC = b"KvRaftS1"
NAME = "snapshot"
FRESH = "snapshot.new"
# What is being received; the rest of the name says of what it is a part.
INCOMING = "snapshot.incoming-"
_LENGTH = struct.Struct("<I")
_BLOCK = 2**20
_MAX_CHUNK = 2**28
_SYNC_EVERY = 2 * 2**20


class _Header(msgspec.Struct, frozen=True):
    index: int
    term: int
    members: dict[str, tuple[str, int]]
    learners: dict[str, tuple[str, int]] = {}
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """What a snapshot stands for."""

    index: int
    term: int
    configuration: Configuration


class SnapshotStore:
    """The snapshots of one replica. Only `write` may run outside the raft thread."""

    def __init__(self, files: Files, *, rest: Callable[[], None] = lambda: None) -> None:
        """`rest` is called between the pieces of a snapshot that is written, by the thread that writes: others need the
        processor and the disk as well."""
        self._files = files
        self._rest = rest
        files.remove(FRESH)

    @property
    def files(self) -> Files:
        return self._files

    def is_there(self) -> bool:
        return NAME in self._files.names()

    def open(self) -> File:
        """The current one, to be read; it stays whole when another takes its place."""
        return self._files.open(NAME)

    def current(self) -> Point | None:
        """The verified snapshot on disk, or None when there is none. Raises StorageDamaged."""
        if not self.is_there():
            return None
        point = verify(self._files, NAME)
        for name in self._files.names():
            if name.startswith(INCOMING) and not _is_newer(name, point.index):
                self._files.remove(name)
        return point

    def write(self, point: Point, chunks: Iterable[bytes]) -> None:
        """Serialise beside the current snapshot; `adopt_written` makes it the current one."""
        # Sorted: then two nodes' snapshots of one point are the same bytes, and a transfer may go on with another leader.
        voters, learners = (
            {uid: (address.host, address.port) for uid, address in sorted(members.items())}
            for members in (point.configuration.voters, point.configuration.learners)
        )
        header = _Header(point.index, point.term, voters, learners, point.configuration.epoch)
        file = self._files.create(FRESH)
        try:
            self._write(file, _parts(header, chunks))
        except BaseException:
            # It would take the space that the log may be waiting for.
            self._files.remove(FRESH)
            raise
        finally:
            file.close()

    def _write(self, file: File, parts: Iterable[bytes]) -> None:
        """Synced a little at a time: one sync of everything would keep the log's waiting behind it."""
        digest = hashlib.sha256()
        end = synced = 0
        for part in parts:
            digest.update(part)
            file.write(part, at=end)
            end += len(part)
            if end - synced > _SYNC_EVERY:
                file.datasync()
                synced = end
            self._rest()
        file.write(digest.digest(), at=end)
        file.datasync()

    def adopt_written(self) -> None:
        self._replace(FRESH)

    def adopt_incoming(self, name: str, index: int, term: int) -> Point:
        """Make a received snapshot the current one. Raises StorageDamaged before anything is replaced."""
        point = verify(self._files, name)
        if (point.index, point.term) != (index, term):
            raise _damaged(self._files.path / name, f"it stands for {point.index}, not for {index}")
        with contextlib.closing(self._files.open(name)) as file:
            file.datasync()
        self._replace(name)
        return point

    def _replace(self, source: str) -> None:
        self._files.rename(source, NAME)
        self._files.sync()

    def chunks(self) -> Iterator[bytes]:
        """What the state machine made of the current snapshot, which has been verified."""
        return chunks_in(self._files, NAME)


def chunks_in(files: Files, name: str) -> Iterator[bytes]:
    """What the state machine made of a snapshot that has been verified."""
    with contextlib.closing(files.open(name)) as file:
        reader = _Reader(file, files.path / name)
        reader.header()
        while chunk := reader.chunk():
            yield chunk


def incoming_name(index: int, term: int, size: int) -> str:
    return f"{INCOMING}{index}-{term}-{size}"


def _is_newer(name: str, index: int) -> bool:
    digits = name.removeprefix(INCOMING).partition("-")[0]
    return digits.isascii() and digits.isdigit() and int(digits) > index


def verify(files: Files, name: str) -> Point:
    """Read all of a snapshot file. Raises StorageDamaged unless it is as it was written."""
    digest = hashlib.sha256()
    path = files.path / name
    with contextlib.closing(files.open(name)) as file:
        end = file.size() - digest.digest_size
        for at in range(0, end, _BLOCK):
            digest.update(file.read(min(_BLOCK, end - at), at=at))
        if end < 0 or file.read(digest.digest_size, at=end) != digest.digest():
            raise _damaged(path, "its checksum is wrong")
        header = _Reader(file, path).header()
    voters, learners = (
        {uid: Address(host, port) for uid, (host, port) in members.items()}
        for members in (header.members, header.learners)
    )
    return Point(header.index, header.term, Configuration(voters, learners, header.epoch))


def _parts(header: _Header, chunks: Iterable[bytes]) -> Iterator[bytes]:
    encoded = msgspec.msgpack.encode(header)
    yield MAGIC + _LENGTH.pack(len(encoded)) + encoded
    for chunk in chunks:
        if chunk:
            assert len(chunk) <= _MAX_CHUNK
            yield _LENGTH.pack(len(chunk))
            yield chunk
    yield _LENGTH.pack(0)


class _Reader:
    """From the beginning of a file, whose digest has been checked."""

    def __init__(self, file: File, path: Path) -> None:
        self._file = file
        self._path = path
        self._at = 0
        self._end = file.size()

    def header(self) -> _Header:
        if self._take(len(MAGIC)) != MAGIC:
            raise _damaged(self._path, "it is no snapshot, or one of an unknown version")
        try:
            return msgspec.msgpack.decode(self.chunk(), type=_Header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(self._path, f"its header does not parse: {error}") from error

    def chunk(self) -> bytes:
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        if length > _MAX_CHUNK:
            raise _damaged(self._path, f"a chunk of {length} bytes")
        return self._take(length)

    def _take(self, size: int) -> bytes:
        # Before it is read: a length that lies must not take the memory for it.
        if size > self._end - self._at or len(data := self._file.read(size, at=self._at)) != size:
            raise _damaged(self._path, "it ends early")
        self._at += size
        return data


def _damaged(path: Path, why: str) -> StorageDamaged:
    return StorageDamaged(
        f"the snapshot {path} is damaged: {why}",
        remedy="remove this node from the cluster, empty the directory and join again; with a single node, restore a backup",
        details={"path": str(path)},
    )
