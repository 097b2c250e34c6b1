"""What nodes tell each other and no disk ever sees: for each node a shelf of keys and values that only it changes.

Pure: how a shelf changes, how copies of it are compared, what a peer lacks, and how a piece of it is merged. The owner numbers
its changes; a copy says up to which number it is complete (`known`), so two copies compare by one number. A process that starts
anew has a higher incarnation and an empty shelf. Merging twice, late or in any order does no harm. When to talk to whom is
for `clusterfs.gossip`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from clusterfs import clusterlog
from clusterfs.clusterlog import LogLine

MAX_KEY_BYTES = 255
MAX_VALUE_BYTES = 32 << 10
MAX_KEYS = 8192
MAX_SHELF_BYTES = 8 << 20
# Deleted keys stay as long as the incarnation; more of them than this and a new one begins without them.
MAX_DELETED = 1024

# Numbers that a peer tells stay so far below what a message can carry that one may go on counting from them.
MAX_COUNT = 1 << 62
# Nodes that one digest speaks of.
MAX_NODES = 1024

# One message carries about this much, and one answer not more than that: consensus shares the links.
PIECE_BYTES = 48 << 10
ANSWER_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Item:
    """`seq`: the owner's number of the change; a `value` of None: deleted."""

    seq: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Shelf:
    """A copy of what one node has set: each change numbered up to `known`, but of keys that were changed again later."""

    incarnation: int
    known: int = 0
    items: Mapping[str, Item] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, bytes]:
        return {key: item.value for key, item in self.items.items() if item.value is not None}

    @property
    def size(self) -> int:
        return sum(len(key) + len(item.value) for key, item in self.items.items() if item.value is not None)


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """A piece of a shelf: each change after `base` up to `known`, but those that a later one of the same key replaced.

    `more`: the sender has not said all; ask again.
    """

    owner: str
    incarnation: int
    base: int
    known: int
    items: list[tuple[str, int, bytes | None]]
    more: bool = False


class Digest(msgspec.Struct, frozen=True, tag="digest"):
    """What the sender knows: (incarnation, known) of each shelf, the check of each node's log; who is connected to it.

    `turn` counts the sender's digests: the peers take turns in sending what is nobody's own.
    """

    turn: int
    shelves: dict[str, tuple[int, int]]
    logs: dict[str, tuple[int, int]]
    connected: list[str]


class Lines(msgspec.Struct, frozen=True, tag="lines"):
    """Lines of the cluster log, of any nodes."""

    lines: list[LogLine]


@dataclass(frozen=True, slots=True)
class Merged:
    """`changed`: keys with another value than before; `is_gap`: the piece begins beyond what is known, so nothing was taken."""

    shelf: Shelf | None
    changed: tuple[str, ...] = ()
    is_gap: bool = False


Whispered = Delta | Digest | Lines

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Whispered] = msgspec.msgpack.Decoder(Whispered)


def encode(message: Whispered) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes) -> Whispered:
    """Raises ValueError for anything that is no message, or holds what no node would say."""
    message = _decoder.decode(payload)
    match message:
        case Delta(base=base, known=known):
            if not (0 <= base <= known < MAX_COUNT and 0 <= message.incarnation < MAX_COUNT):
                raise ValueError("a delta that ends before it begins, or beyond all bounds")
            for key, seq, value in message.items:
                if not base < seq <= known or why_not(key, value or b""):
                    raise ValueError(f"no item: {key!r:.80} at {seq}")
        case Lines():
            for line in message.lines:
                if clusterlog.why_not(line):
                    raise ValueError(clusterlog.why_not(line))
        case Digest(shelves=shelves, logs=logs, connected=connected):
            if max(len(shelves), len(logs), len(connected)) > MAX_NODES:
                raise ValueError(f"a digest speaks of at most {MAX_NODES} nodes")
            if not all(0 <= number < MAX_COUNT for pair in shelves.values() for number in pair):
                raise ValueError("a number is out of range")
    return message


def why_not(key: str, value: bytes) -> str:
    """Why this cannot be on a shelf; empty when it can."""
    if not key or "\0" in key or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        return f"a key has 1 to {MAX_KEY_BYTES} bytes, none of them NUL"
    if len(value) > MAX_VALUE_BYTES:
        return f"a value has at most {MAX_VALUE_BYTES} bytes"
    return ""


def changed(shelf: Shelf, values: Mapping[str, bytes]) -> Shelf:
    """The owner's shelf with these values; an empty one deletes its key."""
    items, seq = dict(shelf.items), shelf.known
    for key, value in values.items():
        if value or (key in items and items[key].value is not None):
            seq += 1
            items[key] = Item(seq, value or None)
    if sum(item.value is None for item in items.values()) > MAX_DELETED:
        return renewed(Shelf(shelf.incarnation, seq, items), shelf.incarnation + 1)
    return Shelf(shelf.incarnation, seq, items)


def is_full(shelf: Shelf) -> bool:
    """More than a node may say: a copy that grows beyond this is not what its owner has."""
    return len(shelf.items) > MAX_KEYS + MAX_DELETED + 1 or shelf.size > MAX_SHELF_BYTES


def renewed(shelf: Shelf, incarnation: int) -> Shelf:
    """The owner's shelf as a later incarnation, without what was deleted."""
    values = shelf.values
    items = {key: Item(seq, value) for seq, (key, value) in enumerate(values.items(), start=1)}
    return Shelf(incarnation, len(items), items)


def merge(shelf: Shelf | None, delta: Delta) -> Merged:
    """What a copy becomes when a piece arrives. It depends on the newest that was told, not on order or repetition."""
    if shelf is not None and delta.incarnation < shelf.incarnation:
        return Merged(shelf)
    gone: tuple[str, ...] = ()
    if shelf is None or delta.incarnation > shelf.incarnation:
        if delta.base:
            return Merged(shelf, is_gap=True)
        gone = tuple(shelf.values) if shelf is not None else ()
        shelf = Shelf(delta.incarnation)
    elif delta.base > shelf.known:
        return Merged(shelf, is_gap=True)
    items = dict(shelf.items)
    news = []
    for key, seq, value in delta.items:
        before = items.get(key)
        if before is None or before.seq < seq:
            items[key] = Item(seq, value)
            if value is not None or before is not None:
                news.append(key)
    ended = [key for key in gone if key not in items or items[key].value is None]
    return Merged(Shelf(delta.incarnation, max(shelf.known, delta.known), items), (*ended, *news))


def missing(owner: str, shelf: Shelf, told: tuple[int, int] | None, *, limit: int = ANSWER_BYTES) -> Iterator[Delta]:
    """The pieces, in order, for a peer whose copy is `told` (incarnation, known); none when it has all."""
    incarnation, base = told if told is not None else (shelf.incarnation, 0)
    if incarnation > shelf.incarnation or (
        incarnation == shelf.incarnation and base >= shelf.known and told is not None
    ):
        return
    if incarnation < shelf.incarnation:
        base = 0
    later = sorted((item.seq, key, item.value) for key, item in shelf.items.items() if item.seq > base)
    piece: list[tuple[str, int, bytes | None]] = []
    size = sent = 0
    for seq, key, value in later:
        cost = len(key) + len(value or b"") + 16
        if piece and size + cost > PIECE_BYTES:
            sent += size
            more = sent + cost > limit
            yield Delta(owner, shelf.incarnation, base, piece[-1][1], piece, more)
            if more:
                return
            base, piece, size = piece[-1][1], [], 0
        piece.append((key, seq, value))
        size += cost
    yield Delta(owner, shelf.incarnation, base, shelf.known, piece)
