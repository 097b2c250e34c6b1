"""What the tree was: every change with who, when and why, and the content before and after it.

The history is part of the replicated state, so that all replicas keep the same and a snapshot carries it. A record holds nodes
of the tree itself: contents are shared, and only those that are no longer in the tree cost memory. Records are made from the
events of a command, in one place (`recorded`); reading them (`versions`, `changes`, `tree_at`, …) is pure and takes a time in
proportion to their number, which is bounded (`clusterfs.settings`).

Not in it: renewals of locks, which would drown the rest, and whatever entries of format 1 did before the first of format 2.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from sys import intern

import msgspec
from msgspec.structs import replace

from clusterfs import rules
from clusterfs.commands import Envelope, LockBreak, SessionExpire, Touch, Unlock
from clusterfs.outcomes import Deleted, Event, MembersChanged, Moved, Written
from clusterfs.settings import Settings
from clusterfs.tree import Directory, File, Node, Parts, join, lookup, put, remove, weight

# What an entry costs beside its content; a move of a large directory keeps all the nodes that it left behind.
ENTRY_COST_BYTES = 128
MAX_REASON = 1_000
MAX_NAME = 255

_DAY_MS = 86_400_000
_NOT_BEGUN = -1
# Lines of the old version times lines of the new one that are still compared by blame.
_MAX_COMPARED = 4_000_000


class Kind(StrEnum):
    """What happened to a path; the words are written into snapshots, so they stay."""

    write = "write"
    mkdir = "mkdir"
    touch = "touch"
    delete = "delete"
    move = "move"
    unlock = "unlock"
    # Not recorded: what was there before the oldest record that is kept.
    earlier = "earlier"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One entry that was changed; one command may have changed several.

    `before` and `after` are what was and is at `path`, or for a move at `new_path`: `path` itself then held what `after` holds.
    A directory that is made or touched is kept without what is in it.
    """

    index: int
    time_ms: int
    kind: Kind
    path: str
    new_path: str = ""
    author: str = ""
    source: str = ""
    # UUID of the node that proposed it.
    node: str = ""
    reason: str = ""
    before: Node | None = None
    after: Node | None = None

    @property
    def place(self) -> str:
        return self.new_path or self.path


class History(msgspec.Struct, frozen=True, eq=False):
    """A persistent sequence of records, oldest first, in which an append costs the same whatever its length.

    States share one list and see their own range of it. Only what comes after the newest state is written into that list; a
    state that has been overtaken appends to a copy of its own.
    """

    # Every change after this log index is in here.
    since: int = _NOT_BEGUN
    cost_bytes: int = 0
    _shared: list[Record] = msgspec.field(default_factory=list)
    _start: int = 0
    _end: int = 0
    # Forgotten, but still in the list.
    _dead_bytes: int = 0

    @property
    def has_begun(self) -> bool:
        return self.since != _NOT_BEGUN

    @classmethod
    def of(cls, since: int, records: Iterable[Record]) -> "History":
        held = list(records)
        return cls(since, sum(_cost(record) for record in held), held, 0, len(held))

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[Record]:
        shared = self._shared
        return (shared[at] for at in range(self._start, self._end))

    def __getitem__(self, at: int) -> Record:
        """The record at `at`, 0 being the oldest."""
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self._shared[self._start + at]

    def __reversed__(self) -> Iterator[Record]:
        shared = self._shared
        return (shared[at] for at in range(self._end - 1, self._start - 1, -1))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.since == other.since and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((self.since, len(self)))

    def extended(self, records: Sequence[Record]) -> "History":
        history = self
        # Overtaken, or with enough forgotten in front that the list is worth making anew.
        if len(self._shared) != self._end or self._start > len(self) // 4 + 64:
            history = self._copied()
        history._shared.extend(records)
        cost = self.cost_bytes + sum(_cost(record) for record in records)
        return replace(history, cost_bytes=cost, _end=len(history._shared))

    def trimmed(self, settings: Settings, clock_ms: int) -> "History":
        """Without the oldest commands that are beyond a limit; a command's records go together."""
        shared = self._shared
        start, cost, since = self._start, self.cost_bytes, self.since
        oldest_ms = clock_ms - settings.history_days * _DAY_MS
        is_off = 0 in (settings.history_days, settings.history_bytes, settings.history_changes)
        while start < self._end and (
            is_off
            or self._end - start > settings.history_changes
            or cost > settings.history_bytes
            or shared[start].time_ms < oldest_ms
            or shared[start].index == since
        ):
            since = shared[start].index
            cost -= _cost(shared[start])
            start += 1
        if start == self._start:
            return self
        dead = self._dead_bytes + self.cost_bytes - cost
        history = replace(self, since=since, cost_bytes=cost, _start=start, _dead_bytes=dead)
        return history._copied() if dead > settings.history_bytes // 8 else history

    def _copied(self) -> "History":
        held = self._shared[self._start : self._end]
        return replace(self, _shared=held, _start=0, _end=len(held), _dead_bytes=0)


def recorded(
    history: History, envelope: Envelope, index: int, *, before: Directory, events: Sequence[Event]
) -> History:
    """The history with what `events` changed in `before`. It begins with the first entry of format 2.

    The envelope's time is taken as it is: `clusterfs.state` has made it one that does not run backwards.
    """
    if not history.has_begun:
        if envelope.version < 2:
            return history
        # Before the first entry of a new cluster there was nothing that could have been forgotten.
        history = replace(history, since=index - 1 if before.entries else 0)
    if not events:
        return history
    records = [record for event in events if (record := _record(envelope, index, before, event)) is not None]
    return history.extended(records) if records else history


def _record(envelope: Envelope, index: int, root: Directory, event: Event) -> Record | None:
    new_path = ""
    after: Node | None = None
    match event:
        case Written(path=path, node=node):
            after = _bare(node)
            kind = Kind.write if isinstance(node, File) else Kind.mkdir
            if isinstance(envelope.op, Touch):
                kind = Kind.touch
                if rules.is_lock(_parts(path), node):
                    return None
        case Deleted(path=path):
            kind = Kind.unlock if isinstance(envelope.op, Unlock | LockBreak | SessionExpire) else Kind.delete
        case Moved(path=path, new_path=new_path, node=node):
            kind, after = Kind.move, node
        case MembersChanged():
            return None
    there = lookup(root, _parts(new_path or path))
    return Record(
        index=index,
        time_ms=envelope.time_ms,
        kind=kind,
        path=path,
        new_path=new_path,
        author=intern(envelope.author[:MAX_NAME]),
        source=intern(envelope.source[:MAX_NAME]),
        node=intern(envelope.node[:MAX_NAME]),
        reason=envelope.reason[:MAX_REASON],
        before=there if isinstance(event, Deleted) else _bare(there),
        after=after,
    )


def _bare(node: Node | None) -> Node | None:
    """A directory without its entries: the record of a touch must not hold on to a whole tree of the past."""
    return replace(node, entries={}, count=0, size=0) if isinstance(node, Directory) and node.entries else node


def _cost(record: Record) -> int:
    """Bytes that only the history holds."""
    before, after = record.before, record.after
    if isinstance(before, File):
        is_same = isinstance(after, File) and after.content == before.content
        return 0 if is_same else len(before.content)
    count, size = weight(before)
    moved = weight(after)[0] if record.new_path else 0
    return size + ENTRY_COST_BYTES * (max(0, count - 1) + max(0, moved - 1))


# Reading


@dataclass(frozen=True, slots=True)
class Version:
    """A file (or directory) as one change left it; `content` None: not there, or a directory.

    `path` is its name after the change, `other_path` where a move brought it from, or took it to when it is gone from `path`.
    """

    index: int
    time_ms: int
    kind: Kind
    path: str
    other_path: str = ""
    author: str = ""
    source: str = ""
    node: str = ""
    reason: str = ""
    content: bytes | None = None
    is_directory: bool = False
    mtime: int = 0

    @property
    def is_there(self) -> bool:
        return self.content is not None or self.is_directory


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its end, and the change that brought it."""

    text: bytes
    index: int
    author: str
    time_ms: int
    reason: str = ""


def versions(history: History, root: Directory, path: str) -> tuple[Version, ...]:
    """Of what has been at `path`, oldest first. Where it came to this name by a move, it goes on under the old one.

    A file that was replaced by a move (a temporary file, renamed) keeps its own past.
    """
    return tuple(reversed(list(_backwards(history, root, path))))


def content_at(history: History, root: Directory, path: str, index: int) -> bytes | None:
    """What the file at `path` held once the log had been applied up to `index`; None: nothing, a directory, or forgotten."""
    found = version_at(history, root, path, index)
    return found.content if found is not None else None


def version_at(history: History, root: Directory, path: str, index: int) -> Version | None:
    """The newest version that is not younger than `index`; None: there was nothing, or it is forgotten."""
    return next((version for version in _backwards(history, root, path) if version.index <= index), None)


def changes(history: History, prefix: str, *, before_index: int = 0) -> Iterator[Record]:
    """What happened at, below or above `prefix` (empty: everywhere), newest first; `before_index` 0: from the newest on."""
    for record in reversed(history):
        if before_index and record.index >= before_index:
            continue
        if any(_below(prefix, place) is not None or _reaches(record, place, prefix) for place in _places(record)):
            yield record


def names(history: History, root: Directory, directory: Parts) -> dict[str, bool]:
    """Names in a directory that are or were there, and whether each is (or was) a directory; what is there now decides."""
    found: dict[str, bool] = {}
    prefix = join(directory)
    for record in history:
        for place in _places(record):
            rest = _below(prefix, place)
            node = _node_at(record, place)
            if rest:
                name, _, deeper = rest.partition("/")
                found[name] = bool(deeper) or isinstance(node, Directory)
                continue
            inside = _below(place, prefix)
            below = lookup(node, _parts(inside)) if inside is not None and isinstance(node, Directory) else None
            if isinstance(below, Directory):
                found.update({name: isinstance(child, Directory) for name, child in below.entries.items()})
    here = lookup(root, directory)
    if isinstance(here, Directory):
        found.update({name: isinstance(child, Directory) for name, child in here.entries.items()})
    return dict(sorted(found.items()))


def tree_at(history: History, root: Directory, index: int) -> Directory | None:
    """The tree as it was at log index `index`, placements and times of directories aside; None: forgotten."""
    if not history.has_begun or index < history.since:
        return None
    for record in reversed(history):
        if record.index <= index:
            break
        root = _undone(root, record)
    return root


def events_after(history: History, root: Directory, index: int) -> list[tuple[int, tuple[Event, ...]]]:
    """What watchers were told of the changes after `index`, by command. Of a lock's renewals only the last."""
    found: dict[int, list[Event]] = {}
    for record in reversed(history):
        if record.index <= index:
            break
        # Records are met newest first, those of one command too.
        found.setdefault(record.index, []).insert(0, _event(record))
    locks = lookup(root, rules.LOCKS)
    for name, node in sorted(locks.entries.items()) if isinstance(locks, Directory) else ():
        if node.version > index and node.version not in found and isinstance(node, Directory):
            found[node.version] = [Written(join((*rules.LOCKS, name)), node)]
    return [(at, tuple(found[at])) for at in sorted(found)]


def _event(record: Record) -> Event:
    if record.after is None:
        return Deleted(record.path)
    if record.new_path:
        return Moved(record.path, record.new_path, record.after)
    return Written(record.path, record.after)


def blame(history: History, root: Directory, path: str) -> tuple[Line, ...]:
    """The lines of the file, each with the change that it came with. Empty when there is no such file.

    A file that was deleted and restored has its lines from those who wrote them.
    """
    lines: tuple[Line, ...] = ()
    for version in versions(history, root, path):
        if version.content is not None and version.content != b"".join(line.text for line in lines):
            lines = _blamed(lines, version)
    node = lookup(root, _parts(path))
    return lines if isinstance(node, File) else ()


def _backwards(history: History, root: Directory, path: str) -> Iterator[Version]:
    """The versions of `path`, newest first."""
    path = join(_parts(path))
    name = path
    earlier: Node | None = lookup(root, _parts(path))
    for record in reversed(history):
        rest = _below(record.place, name)
        if rest is not None:
            before, after = _inner(record.before, rest), _inner(record.after, rest)
            if record.new_path and after is not None:
                origin = came_from(record, name)
                yield _version(record, name, after, other_path=origin or record.path)
                earlier = before
                if origin is not None:
                    name, earlier = origin, _unknown(after, history.since)
            elif not record.new_path and (before is not None or after is not None):
                yield _version(record, name, after)
                earlier = before
        elif record.new_path and (rest := _below(record.path, name)) is not None:
            moved = _inner(record.after, rest)
            if moved is not None:
                yield _version(record, name, None, other_path=_join(record.new_path, rest))
                earlier = _unknown(moved, history.since)
    if isinstance(earlier, File):
        yield Version(
            earlier.version, earlier.mtime * 1000, Kind.earlier, name, content=earlier.content, mtime=earlier.mtime
        )


def came_from(record: Record, name: str) -> str | None:
    """Under which name the past of what is at `name` goes on before this record; None: under the same.

    Not when something was there that the move replaced: that has a past of its own.
    """
    rest = _below(record.place, name) if record.new_path else None
    if rest is None or _inner(record.after, rest) is None or _inner(record.before, rest) is not None:
        return None
    return _join(record.path, rest)


def _version(record: Record, name: str, node: Node | None, *, other_path: str = "") -> Version:
    return Version(
        index=record.index,
        time_ms=record.time_ms,
        kind=record.kind,
        path=name,
        other_path=other_path,
        author=record.author,
        source=record.source,
        node=record.node,
        reason=record.reason,
        content=node.content if isinstance(node, File) else None,
        is_directory=isinstance(node, Directory),
        mtime=node.mtime if node is not None else 0,
    )


def _unknown(node: Node, since: int) -> Node:
    """What was moved, before it was: the same content under a version of which only is known that it is older."""
    return replace(node, version=max(0, since))


def _undone(root: Directory, record: Record) -> Directory:
    place = _parts(record.place)
    if record.new_path:
        there = lookup(root, place)
        assert there is not None, record.place
        root = remove(root, place)
        root = put(root, _parts(record.path), there)
        return root if record.before is None else put(root, place, record.before)
    if record.before is None:
        return remove(root, place)
    there = lookup(root, place)
    if isinstance(record.before, Directory) and isinstance(there, Directory):
        return put(root, place, replace(there, version=record.before.version, mtime=record.before.mtime))
    return put(root, place, record.before)


def _blamed(lines: tuple[Line, ...], version: Version) -> tuple[Line, ...]:
    """The new version's lines: those that were there before keep whose they were."""
    assert version.content is not None
    new = version.content.splitlines(keepends=True)
    old = [line.text for line in lines]
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    middle = _matched(old[head : len(old) - tail], new[head : len(new) - tail])
    after: list[Line] = list(lines[:head])
    for at, text in enumerate(new[head : len(new) - tail]):
        kept = middle.get(at)
        if kept is not None:
            after.append(lines[head + kept])
        else:
            after.append(Line(text, version.index, version.author, version.time_ms, version.reason))
    return (*after, *lines[len(lines) - tail :])


def _matched(old: list[bytes], new: list[bytes]) -> dict[int, int]:
    """Which new line is which old one; none when comparing them would take too long."""
    if not old or not new or len(old) * len(new) > _MAX_COMPARED:
        return {}
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    return {b + offset: a + offset for a, b, size in blocks for offset in range(size)}


def _places(record: Record) -> tuple[str, ...]:
    return (record.path, record.new_path) if record.new_path else (record.path,)


def _node_at(record: Record, place: str) -> Node | None:
    """What is or was at one of the record's paths."""
    return record.after if record.after is not None else record.before


def _reaches(record: Record, place: str, prefix: str) -> bool:
    """`prefix` lies within a directory that went or came as a whole."""
    rest = _below(place, prefix)
    return rest is not None and _inner(_node_at(record, place), rest) is not None


def _inner(node: Node | None, rest: str) -> Node | None:
    if not rest or node is None:
        return node
    return lookup(node, _parts(rest)) if isinstance(node, Directory) else None


def _below(upper: str, lower: str) -> str | None:
    """The path from `upper` to `lower`, empty when they are the same; None when `lower` is elsewhere."""
    if not upper:
        return lower
    if lower == upper:
        return ""
    return lower[len(upper) + 1 :] if lower.startswith(upper) and lower[len(upper)] == "/" else None


def _join(upper: str, rest: str) -> str:
    return f"{upper}/{rest}" if rest else upper


def _parts(path: str) -> Parts:
    return tuple(path.strip("/").split("/")) if path.strip("/") else ()
