"""The state as bytes and back: what a snapshot file holds and a lagging replica is sent.

Frames of a length and a msgpack body: the head with everything but the tree, batches of entries with parents before their
children, and an end that counts them, so that a cut-off snapshot is refused whole. Everything is sorted: equal states give
equal bytes, which is how replicas are compared. Chunk borders mean nothing.
"""

import struct
from collections.abc import Iterable, Iterator

import msgspec

from clusterfs.membership import Lease, Member
from clusterfs.outcomes import Done, Refusal
from clusterfs.state import ClientMemory, State
from clusterfs.tree import Directory, File, Node, Parts, walk, weight

FORMAT = 1
BATCH_BYTES = 256 * 1024
_LENGTH = struct.Struct(">I")
# Far above any batch or head that we write; a damaged length must not ask for all the memory.
_MAX_FRAME = 256 << 20


class BadSnapshot(AssertionError):
    """The bytes are no snapshot of a format that this program knows. The node must not start from them."""


class _Memory(msgspec.Struct, frozen=True, array_like=True):
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


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """`content` None: a directory."""

    parts: Parts
    version: int
    placement: int
    mtime: int
    owner: str
    content: bytes | None


class _Batch(msgspec.Struct, frozen=True, tag="batch", forbid_unknown_fields=True):
    entries: list[_Entry]


class _End(msgspec.Struct, frozen=True, tag="end", forbid_unknown_fields=True):
    count: int


_decoder = msgspec.msgpack.Decoder(_Head | _Batch | _End)


def encode(state: State) -> Iterator[bytes]:
    """The frames, made one by one; the state is immutable, so this may take its time in another thread."""
    yield _frame(_head(state))
    batch: list[_Entry] = []
    size = count = 0
    for parts, node in walk(state.root):
        match node:
            case File():
                entry = _Entry(parts, node.version, node.placement, node.mtime, "", node.content)
                size += len(node.content)
            case Directory():
                entry = _Entry(parts, node.version, node.placement, node.mtime, node.owner, None)
        batch.append(entry)
        size += 64
        count += 1
        if size >= BATCH_BYTES:
            yield _frame(_Batch(batch))
            batch, size = [], 0
    yield _frame(_Batch(batch))
    yield _frame(_End(count))


def decode(chunks: Iterable[bytes]) -> State:
    """Raises BadSnapshot."""
    try:
        return _decode(_frames(chunks))
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, StopIteration) as error:
        raise BadSnapshot(f"the snapshot does not decode: {error}") from error


def _decode(frames: Iterator[bytes]) -> State:
    head = _decoder.decode(next(frames))
    if not isinstance(head, _Head) or head.format != FORMAT:
        raise BadSnapshot("the snapshot is of another format: upgrade this node")
    entries: list[_Entry] = []
    for frame in frames:
        body = _decoder.decode(frame)
        if isinstance(body, _Batch):
            entries += body.entries
        elif not isinstance(body, _End) or body.count != len(entries):
            raise BadSnapshot(f"the snapshot has {len(entries)} entries, its end says otherwise")
        else:
            return _state(head, _tree(entries))
    raise BadSnapshot("the snapshot is cut off")


def _tree(entries: list[_Entry]) -> Directory:
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
        elif isinstance(node, Directory) and not children:
            return node
    raise BadSnapshot("the snapshot's entries make no tree")


def _head(state: State) -> _Head:
    return _Head(
        format=FORMAT,
        clock_ms=state.clock_ms,
        next_number=state.next_number,
        members_version=state.members_version,
        members=[state.members[uid] for uid in sorted(state.members)],
        leases=[(uid, state.leases[uid]) for uid in sorted(state.leases)],
        clients=[
            _Memory(client, memory.floor, memory.last_index, sorted(memory.results.items(), key=lambda item: item[0]))
            for client, memory in sorted(state.clients.items())
        ],
    )


def _state(head: _Head, root: Directory) -> State:
    return State(
        root=root,
        members={member.uid: member for member in head.members},
        leases=dict(head.leases),
        clients={
            memory.client: ClientMemory(dict(memory.results), memory.floor, memory.last_index)
            for memory in head.clients
        },
        clock_ms=head.clock_ms,
        next_number=head.next_number,
        members_version=head.members_version,
    )


def _frame(body: _Head | _Batch | _End) -> bytes:
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
