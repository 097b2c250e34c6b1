"""Who votes, at each point of the log: a pure history of configurations.

A configuration is in force from the moment its entry is in the log, committed or not (Ongaro's thesis, 4.1); so a cut
of the log must bring back the one before. Keeping the whole history makes that a matter of dropping its end.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from .values import Address

Members = Mapping[str, Address]


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One membership entry. Adding a member that is there changes its address."""

    op: Literal["add", "remove"]
    uid: str
    host: str = ""
    port: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


def encode(change: Change) -> bytes:
    return _encoder.encode(change)


def decode(payload: bytes) -> Change:
    return _decoder.decode(payload)


def changed(members: Members, change: Change) -> Members:
    if change.op == "remove":
        return {uid: address for uid, address in members.items() if uid != change.uid}
    return {**members, change.uid: Address(change.host, change.port)}


class Configurations:
    """The configurations from `index` (what a snapshot holds) to the end of the log."""

    def __init__(self, index: int = 0, members: Members | None = None) -> None:
        self._history: list[tuple[int, Members]] = [(index, dict(members or {}))]

    @property
    def current(self) -> Members:
        return self._history[-1][1]

    @property
    def changed_at(self) -> int:
        """Index of the entry that made the current configuration."""
        return self._history[-1][0]

    def at(self, index: int) -> Members:
        """The configuration in force once `index` is applied, or the oldest one known."""
        history = self._history
        return next((members for since, members in reversed(history) if since <= index), history[0][1])

    def append(self, index: int, change: Change) -> None:
        assert index > self.changed_at or len(self._history) == 1, f"configuration {index} after {self.changed_at}"
        self._history.append((index, changed(self.current, change)))

    def truncate(self, index: int) -> bool:
        """Forget what entries from `index` on brought. True when the current configuration changed by it."""
        before = len(self._history)
        self._history = self._history[:1] + [item for item in self._history[1:] if item[0] < index]
        return len(self._history) != before

    def compact(self, index: int) -> None:
        """Forget configurations older than the one in force at `index`."""
        members = self.at(index)
        self._history = [(index, members)] + [item for item in self._history if item[0] > index]
