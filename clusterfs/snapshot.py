"""The state as bytes and back: what a snapshot file holds and a lagging replica is sent.

Frames of a length and a msgpack body: the head with everything but the tree, batches of entries with parents before their
children, batches of the history's records, and an end that counts both, so that a cut-off snapshot is refused whole. What
only a newer program knows is not in it as long as the cluster writes entries of the version before (`clusterfs.formats`).
Everything is sorted: equal states give equal bytes, which is how replicas are compared. Chunk borders mean nothing.

A content is written once: the history names those that the tree or an older record has by their number, in the order in which
they are written. Format 1, before there was a history, is still read; format 3 says in which version entries are written.
"""

import struct
from collections.abc import Iterable, Iterator
from sys import intern

import msgspec

from clusterfs.commands import BASE_VERSION
from clusterfs.history import History, Kind, Record
from clusterfs.locks import Lock, Locks, Session
from clusterfs.membership import Lease, Member, Removed
from clusterfs.outcomes import Done, Refusal
from clusterfs.settings import DEFAULT, Settings
from clusterfs.state import ClientMemory, State
from clusterfs.tree import Directory, File, Node, Parts, walk, weight

FORMAT = 3
_OLDEST = 1
BATCH_BYTES = 256 * 1024
_LENGTH = struct.Struct(">I")
# Far above any batch or head that we write; a damaged length must not ask for all the memory.
_MAX_FRAME = 256 << 20


class BadSnapshot(AssertionError):
    """The bytes are no snapshot of a format that this program knows. The node must not start from them."""


class _Memory(msgspec.Struct, frozen=True, array_like=True, gc=False):
    client: str
    floor: int
    last_index: int
    results: list[tuple[int, Done | Refusal]]


class _Head(msgspec.Struct, frozen=True, tag="head", forbid_unknown_fields=True):
    format: int
    clock_ms: int
    next_number: int
    members_version: int
    members: list[Member]
    leases: list[tuple[str, Lease]]
    clients: list[_Memory]
    settings: Settings = DEFAULT
    history_since: int = -1
    locks: list[tuple[str, Lock]] = []
    sessions: list[tuple[str, Session]] = []
    removed: list[tuple[str, Removed]] = []


class _Head3(_Head, frozen=True, tag="head3", forbid_unknown_fields=True):
    """As of format 3: in which version entries are written."""

    entry_format: int = BASE_VERSION


class _Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`content` None: a directory."""

    parts: Parts
    version: int
    placement: int
    mtime: int
    owner: str
    content: bytes | None


class _Batch(msgspec.Struct, frozen=True, tag="batch", forbid_unknown_fields=True):
    entries: list[_Entry]


class _Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """As an entry, by the path below what was changed; `content` a number: one that has been written already."""

    parts: Parts
    version: int
    placement: int
    mtime: int
    owner: str
    content: bytes | int | None


class _Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    index: int
    time_ms: int
    kind: Kind
    path: str
    new_path: str
    author: str
    source: str
    node: str
    reason: str
    before: list[_Kept]
    after: list[_Kept]


class _Past(msgspec.Struct, frozen=True, tag="past", forbid_unknown_fields=True):
    changes: list[_Change]


class _End(msgspec.Struct, frozen=True, tag="end", forbid_unknown_fields=True):
    count: int
    changes: int = 0


_Frame = _Head | _Head3 | _Batch | _Past | _End
_decoder = msgspec.msgpack.Decoder(_Frame)


def encode(state: State) -> Iterator[bytes]:
    """The frames, made one by one; the state is immutable, so this may take its time in another thread."""
    yield _frame(_head(state))
    contents: dict[bytes, int] = {}
    batch: list[_Entry] = []
    size = count = files = 0
    for parts, node in walk(state.root):
        match node:
            case File():
                entry = _Entry(parts, node.version, node.placement, node.mtime, "", node.content)
                size += len(node.content)
                contents.setdefault(node.content, files)
                files += 1
            case Directory():
                entry = _Entry(parts, node.version, node.placement, node.mtime, node.owner, None)
        batch.append(entry)
        size += 64
        count += 1
        if size >= BATCH_BYTES:
            yield _frame(_Batch(batch))
            batch, size = [], 0
    yield _frame(_Batch(batch))
    yield from _past(state.history, contents, files)
    yield _frame(_End(count, len(state.history)))


def _past(history: History, contents: dict[bytes, int], files: int) -> Iterator[bytes]:
    """`contents`: what has been written and under which number; `files`: the next one."""
    batch: list[_Change] = []
    size = 0

    def kept(node: Node | None) -> list[_Kept]:
        nonlocal files, size
        found: list[_Kept] = []
        for parts, below in walk(node) if node is not None else ():
            owner = below.owner if isinstance(below, Directory) else ""
            content: bytes | int | None = None
            if isinstance(below, File):
                content = contents.get(below.content)
                if content is None:
                    content = below.content
                    contents[content] = files
                    files += 1
                    size += len(content)
            found.append(_Kept(parts, below.version, below.placement, below.mtime, owner, content))
            size += 64
        return found

    for at in history:
        names = (at.path, at.new_path, at.author, at.source, at.node, at.reason)
        batch.append(_Change(at.index, at.time_ms, at.kind, *names, kept(at.before), kept(at.after)))
        size += 128 + len(at.reason)
        if size >= BATCH_BYTES:
            yield _frame(_Past(batch))
            batch, size = [], 0
    if batch:
        yield _frame(_Past(batch))


def decode(chunks: Iterable[bytes]) -> State:
    """Raises BadSnapshot."""
    try:
        return _decode(_frames(chunks))
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, IndexError, StopIteration, RecursionError) as error:
        raise BadSnapshot(f"the snapshot does not decode: {error}") from error


def _decode(frames: Iterator[bytes]) -> State:
    head = _decoder.decode(next(frames))
    if not isinstance(head, _Head) or not _OLDEST <= head.format <= FORMAT:
        raise BadSnapshot("the snapshot is of another format: upgrade this node")
    entries: list[_Entry] = []
    changes: list[_Change] = []
    for frame in frames:
        body = _decoder.decode(frame)
        match body:
            case _Batch():
                entries += body.entries
            case _Past():
                changes += body.changes
            case _End():
                if (body.count, body.changes) != (len(entries), len(changes)):
                    raise BadSnapshot(f"the snapshot has {len(entries)} entries, its end says otherwise")
                contents = [entry.content for entry in entries if entry.content is not None]
                return _state(head, _tree(entries), [_record(change, contents) for change in changes])
            case _Head():
                break
    raise BadSnapshot("the snapshot is cut off")


def _record(change: _Change, contents: list[bytes]) -> Record:
    """`contents` grows by what this record is the first to hold."""

    def node(kept: list[_Kept]) -> Node | None:
        if not kept:
            return None
        entries: list[_Entry] = []
        for at in kept:
            content = at.content
            if isinstance(content, bytes):
                contents.append(content)
            elif isinstance(content, int):
                if content < 0:
                    raise BadSnapshot("a content has no number below 0")
                content = contents[content]
            entries.append(_Entry(at.parts, at.version, at.placement, at.mtime, at.owner, content))
        return _subtree(entries)

    return Record(
        index=change.index,
        time_ms=change.time_ms,
        kind=change.kind,
        path=change.path,
        new_path=change.new_path,
        author=intern(change.author),
        source=intern(change.source),
        node=intern(change.node),
        reason=change.reason,
        before=node(change.before),
        after=node(change.after),
    )


def _tree(entries: list[_Entry]) -> Directory:
    root = _subtree(entries)
    if not isinstance(root, Directory):
        raise BadSnapshot("the snapshot's root is a file")
    return root


def _subtree(entries: list[_Entry]) -> Node:
    """Built from the leaves up, so that each directory is made once, however many entries it has."""
    children: dict[Parts, dict[str, Node]] = {}
    for entry in reversed(entries):
        if entry.content is not None:
            node: Node = File(entry.content, entry.version, entry.placement, entry.mtime)
        else:
            below = children.pop(entry.parts, {})
            weights = [weight(child) for child in below.values()]
            node = Directory(
                entries=below,
                version=entry.version,
                placement=entry.placement,
                mtime=entry.mtime,
                owner=entry.owner,
                count=sum(count for count, _size in weights),
                size=sum(size for _count, size in weights),
            )
        if entry.parts:
            children.setdefault(entry.parts[:-1], {})[entry.parts[-1]] = node
        elif not children:
            return node
    raise BadSnapshot("the snapshot's entries make no tree")


def _head(state: State) -> _Head:
    head = _Head(
        format=2,
        clock_ms=state.clock_ms,
        next_number=state.next_number,
        members_version=state.members_version,
        members=[state.members[uid] for uid in sorted(state.members)],
        leases=[(uid, state.leases[uid]) for uid in sorted(state.leases)],
        removed=sorted(state.removed.items(), key=lambda item: item[0]),
        clients=[
            _Memory(client, memory.floor, memory.last_index, sorted(memory.results.items(), key=lambda item: item[0]))
            for client, memory in sorted(state.clients.items())
        ],
        settings=state.settings,
        history_since=state.history.since,
        locks=[(name, state.locks.held[name]) for name in sorted(state.locks.held)],
        sessions=[(name, state.locks.sessions[name]) for name in sorted(state.locks.sessions)],
    )
    if state.format <= BASE_VERSION:
        return head
    told = {name: getattr(head, name) for name in head.__struct_fields__}
    return _Head3(**told | {"format": FORMAT}, entry_format=state.format)


def _state(head: _Head, root: Directory, records: list[Record]) -> State:
    return State(
        root=root,
        members={member.uid: member for member in head.members},
        leases=dict(head.leases),
        removed=dict(head.removed),
        clients={
            memory.client: ClientMemory(dict(memory.results), memory.floor, memory.last_index)
            for memory in head.clients
        },
        clock_ms=head.clock_ms,
        next_number=head.next_number,
        members_version=head.members_version,
        settings=head.settings,
        history=History.of(head.history_since, records),
        locks=Locks(dict(head.locks), dict(head.sessions)),
        format=head.entry_format if isinstance(head, _Head3) else BASE_VERSION,
    )


def _frame(body: _Frame) -> bytes:
    encoded = msgspec.msgpack.encode(body)
    return _LENGTH.pack(len(encoded)) + encoded


def _frames(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The bodies of the frames, wherever the chunks were cut."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held)
            if length > _MAX_FRAME:
                raise BadSnapshot(f"a frame of {length} bytes")
            if len(held) < _LENGTH.size + length:
                break
            yield bytes(held[_LENGTH.size : _LENGTH.size + length])
            del held[: _LENGTH.size + length]
    if held:
        raise BadSnapshot("the snapshot is cut off within a frame")
