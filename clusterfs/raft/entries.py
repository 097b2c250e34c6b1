"""The entries of a log: all their terms and places, but only the newest commands in memory.

A log may hold more than a node should keep in memory for the sake of one slow follower. Older commands are read from disk when
somebody asks. Pure but for `fetch`, which reads; which entries there should be is `journal`'s business.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from .messages import Entry

NO_OP = b"\x01"

# Reads an entry's command back: its place, length, index and term.
Fetch = Callable[[int, int, int, int], bytes]

_NOWHERE = 2**64 - 1
_PIECE = 256


class Entries:
    """Those after `base_index`. An entry may leave memory once `place` has said where it is on disk."""

    def __init__(self, *, index: int = 0, term: int = 0, memory_bytes: int = 2**62, fetch: Fetch | None = None) -> None:
        self._memory_bytes = memory_bytes
        self._fetch = fetch
        self.begin(index, term)

    def begin(self, index: int, term: int) -> None:
        """Anew and empty, after an entry that is elsewhere."""
        # Emptied first: other threads read the index of the last one, which must never be beyond what there is.
        self._terms = array("Q")
        self._places = array("Q")
        self._sizes = array("I")
        self._commands: list[bytes] = []
        self.base_index, self._base_term = index, term
        self.size_bytes = self.resident_bytes = 0

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._terms)

    @property
    def last_term(self) -> int:
        return self._terms[-1] if self._terms else self._base_term

    @property
    def _resident_from(self) -> int:
        """The first index whose command is in memory."""
        return self.last_index + 1 - len(self._commands)

    def term_at(self, index: int) -> int | None:
        """None when the entry is not there (any more)."""
        if index == self.base_index:
            return self._base_term
        position = index - self.base_index - 1
        return self._terms[position] if 0 <= position < len(self._terms) else None

    def size_at(self, index: int) -> int:
        return self._sizes[index - self.base_index - 1]

    def place_of(self, index: int) -> int | None:
        """None for an entry that is not durable yet, or not there."""
        position = index - self.base_index - 1
        place = self._places[position] if 0 <= position < len(self._places) else _NOWHERE
        return place if place != _NOWHERE else None

    def append(self, command: bytes, term: int) -> None:
        self._terms.append(term)
        self._places.append(_NOWHERE)
        self._sizes.append(len(command))
        self._commands.append(command)
        self.size_bytes += len(command)
        self.resident_bytes += len(command)

    def place(self, index: int, place: int) -> None:
        """An entry is durable at `place`. Nothing when it has been cut away meanwhile."""
        if self.base_index < index <= self.last_index:
            self._places[index - self.base_index - 1] = place

    def evict(self) -> None:
        """Let the oldest commands leave memory that are over the limit; an eighth more, so that it is not done each time."""
        if self.resident_bytes <= self._memory_bytes:
            return
        first = self._resident_from - self.base_index - 1
        goal = self._memory_bytes - self._memory_bytes // 8
        count = 0
        # The newest stays: it is what is asked for next.
        while self.resident_bytes > goal and count < len(self._commands) - 1:
            if self._places[first + count] == _NOWHERE:
                break
            self.resident_bytes -= len(self._commands[count])
            count += 1
        del self._commands[:count]

    def cut(self, index: int) -> None:
        """Forget entries from `index` on."""
        position = index - self.base_index - 1
        assert position >= 0
        resident = max(0, index - self._resident_from)
        self.size_bytes -= sum(self._sizes[position:])
        self.resident_bytes -= sum(len(command) for command in self._commands[resident:])
        del self._commands[resident:]
        del self._terms[position:], self._places[position:], self._sizes[position:]

    def drop(self, index: int) -> None:
        """Forget entries up to `index`, which becomes the base."""
        term = self.term_at(index)
        assert term is not None
        count = index - self.base_index
        resident = max(0, index + 1 - self._resident_from)
        self.size_bytes -= sum(self._sizes[:count])
        self.resident_bytes -= sum(len(command) for command in self._commands[:resident])
        del self._commands[:resident]
        del self._terms[:count], self._places[:count], self._sizes[:count]
        self.base_index, self._base_term = index, term

    def entry(self, index: int) -> Entry:
        """The base counts as one, without its command."""
        if index == self.base_index:
            return NO_OP, index, self._base_term
        position = index - self.base_index - 1
        term = self._terms[position]
        resident = index - self._resident_from
        if resident >= 0:
            return self._commands[resident], index, term
        assert self._fetch is not None
        return self._fetch(self._places[position], self._sizes[position], index, term), index, term

    def newest(self, count: int) -> list[bytes]:
        """The last commands, so many of them as are in memory, at most `count`; from any thread."""
        return self._commands[-count:] if count > 0 else []

    def between(self, start: int, stop: int) -> list[Entry]:
        """`start` <= index < `stop`, as far as they are there."""
        return [self.entry(index) for index in range(max(start, self.base_index), min(stop, self.last_index + 1))]


class Span(Sequence[Entry]):
    """A slice of a log that reads its entries when they are asked for, a few at a time: a node that starts walks through
    all of its log, which need not fit into memory for that."""

    def __init__(self, entries: Entries, start: int, stop: int) -> None:
        self._entries = entries
        self._range = range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> "Span": ...
    def __getitem__(self, item: "int | slice") -> "Entry | Span":
        if isinstance(item, slice):
            assert item.step in (None, 1)
            chosen = self._range[item]
            return Span(self._entries, chosen.start, chosen.stop)
        return self._entries.entry(self._range[item])

    def __iter__(self) -> Iterator[Entry]:
        for start in range(self._range.start, self._range.stop, _PIECE):
            yield from self._entries.between(start, min(start + _PIECE, self._range.stop))
