"""The tree below `.history`: what each path was, as directories and read-only files.

A path that has, or had, something at it is a directory there: of the names that are or were in it, and of the versions of
the file that is or was it, each named by log index and time. Private stays private: a version has the mode of the path at
which it lay when it was written. Pure; inodes and answers to the kernel are `clusterfs.pastfiles`.

Which records speak of a path is kept in an index that follows the history record by record, so that a walk over the whole
of the past does not read the whole history for each name. What the index says must equal `clusterfs.history` without it.
"""

import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b

from clusterfs import history as reading
from clusterfs import rules
from clusterfs.history import History, Record, Version
from clusterfs.tree import Directory, File, Parts, join, lookup, walk

# What datetime can say; a file's time may be anything.
_MAX_SECONDS = 253_402_300_799
_FORGOTTEN_KEPT = 64
# Of st_ino: no other inode of the mount has both.
_MARK = 3 << 61


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory, or with an `index` the version of a file."""

    mtime: int = 0
    is_private: bool = False
    size: int = 0
    index: int | None = None

    @property
    def is_directory(self) -> bool:
        return self.index is None

    @property
    def mode(self) -> int:
        if self.is_directory:
            return stat.S_IFDIR | (0o500 if self.is_private else 0o555)
        return stat.S_IFREG | (0o400 if self.is_private else 0o440)


def number(parts: Parts) -> int:
    """st_ino of a path below `.history`: the same whenever it is asked for."""
    digest = blake2b(join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 4 | _MARK


def version_name(version: Version) -> str:
    seconds = min(max(version.time_ms // 1000, 0), _MAX_SECONDS)
    return f"{version.index}-{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%SZ}"


class Past:
    """Answers for the history and tree that each question brings; questions come one at a time.

    Holds no record and no content, so that what the history forgets is free.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        # Log index of each record that was seen, by its number; the first `_start` are forgotten.
        self._indices: list[int] = []
        self._start = 0
        self._last: tuple[int, int, str] | None = None
        # By path: the numbers of the records that name it, and the names below it, each with the last that speaks of it.
        self._numbers: dict[str, list[int]] = {}
        self._names: dict[str, dict[str, int]] = {}
        self._held: tuple[object, dict[str, Entry]] | None = None

    def entry(self, history: History, root: Directory, parts: Parts) -> Entry | None:
        """What is at `parts`, a path below `.history`; empty: itself."""
        if not parts:
            return Entry(history[len(history) - 1].time_ms // 1000 if len(history) else root.mtime)
        self._follow(history)
        if self._is_there(root, parts):
            return self._directory(history, root, parts)
        return self._versions(history, root, parts[:-1]).get(parts[-1])

    def listing(self, history: History, root: Directory, parts: Parts) -> dict[str, Entry] | None:
        """Names first, then versions, oldest first; None: `parts` is no directory."""
        self._follow(history)
        if parts and not self._is_there(root, parts):
            return None
        names = self._children(root, parts)
        found = {name: self._directory(history, root, (*parts, name)) for name in names}
        for name, version in self._versions(history, root, parts).items():
            # A name of the tree that looks like a version's is a name of the tree.
            found.setdefault(name, version)
        return found

    def content(self, history: History, root: Directory, parts: Parts) -> bytes | None:
        """Of the version at `parts`; None: there is none."""
        found = self.entry(history, root, parts)
        if found is None or found.index is None:
            return None
        path = join(parts[:-1])
        return reading.content_at(self._about(history, path), root, path, found.index)

    # Names

    def _children(self, root: Directory, parts: Parts) -> list[str]:
        spoken_of = self._names.get(join(parts), {})
        here = lookup(root, parts)
        now: Iterable[str] = here.entries if isinstance(here, Directory) else ()
        return sorted({*(name for name, last in spoken_of.items() if last >= self._start), *now})

    def _is_there(self, root: Directory, parts: Parts) -> bool:
        if not parts or self._names.get(join(parts[:-1]), {}).get(parts[-1], -1) >= self._start:
            return True
        return lookup(root, parts) is not None

    def _directory(self, history: History, root: Directory, parts: Parts) -> Entry:
        numbers = self._numbers.get(join(parts))
        if numbers and numbers[-1] >= self._start:
            mtime = history[numbers[-1] - self._start].time_ms // 1000
        else:
            node = lookup(root, parts)
            mtime = node.mtime if node is not None else 0
        return Entry(mtime, rules.is_private(parts))

    # Versions

    def _versions(self, history: History, root: Directory, parts: Parts) -> dict[str, Entry]:
        path, node = join(parts), lookup(root, parts)
        # The last answer is kept: whoever lists versions asks for each of them next.
        placed = node.version if isinstance(node, File) else None
        # What is forgotten changes nothing but the cost.
        key = (path, history.since, len(self._indices), self._last, history.cost_bytes, placed)
        if self._held is not None and self._held[0] == key:
            return self._held[1]
        is_private = rules.is_private(parts)
        found: dict[str, Entry] = {}
        for version in reading.versions(self._about(history, path), root, path) if parts else ():
            if version.content is not None:
                hidden = is_private or rules.is_private(tuple(version.path.split("/")))
                found[version_name(version)] = Entry(version.mtime, hidden, len(version.content), version.index)
        self._held = (key, found)
        return found

    def _about(self, history: History, path: str) -> History:
        """The part of the history that speaks of `path`, under the names that it had."""
        found: list[Record] = []
        name, before = path, len(self._indices)
        while (at := self._newest(name, before)) is not None:
            record = history[at - self._start]
            found.append(record)
            name, before = reading.came_from(record, name) or name, at
        found.reverse()
        return History.of(history.since, found)

    def _newest(self, name: str, before: int) -> int | None:
        """The newest record before that number which speaks of `name` or of a directory above it."""
        newest = -1
        for upper in _upwards(name):
            numbers = self._numbers.get(upper)
            if numbers:
                at = bisect_left(numbers, before)
                newest = max(newest, numbers[at - 1] if at else -1)
        return newest if newest >= self._start else None

    # The index

    def _follow(self, history: History) -> None:
        forgotten = bisect_right(self._indices, history.since)
        known = len(self._indices) - forgotten
        if not self._is_continued(history, known) or forgotten > known + _FORGOTTEN_KEPT:
            self._clear()
            forgotten = known = 0
        self._start = forgotten
        for at in range(known, len(history)):
            self._add(history[at])

    def _is_continued(self, history: History, known: int) -> bool:
        """Another history may come with a snapshot."""
        if not known:
            return not self._indices
        return (
            known <= len(history)
            and history[0].index == self._indices[-known]
            and _stamp(history[known - 1]) == self._last
        )

    def _add(self, record: Record) -> None:
        at = len(self._indices)
        self._indices.append(record.index)
        self._last = _stamp(record)
        node = record.after if record.after is not None else record.before
        for place in (record.path, record.new_path) if record.new_path else (record.path,):
            self._numbers.setdefault(place, []).append(at)
            parts = tuple(place.split("/"))
            for depth, name in enumerate(parts):
                self._names.setdefault(join(parts[:depth]), {})[name] = at
            # What came or went as a whole; directories that were only made or touched are kept without what is in them.
            for inside, _node in walk(node) if isinstance(node, Directory) else ():
                if inside:
                    self._names.setdefault(join((*parts, *inside[:-1])), {})[inside[-1]] = at


def _stamp(record: Record) -> tuple[int, int, str]:
    return record.index, record.time_ms, record.place


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
