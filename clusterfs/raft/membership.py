"""Who votes, who only follows, and under which epoch, at each point of the log: a pure history of configurations.

A configuration is in force from the moment its entry is in the log, committed or not (Ongaro's thesis, 4.1); so a cut
of the log must bring back the one before. Keeping the whole history makes that a matter of dropping its end.

A learner is a member like a voter: the log names it, so every replica knows it after any restart; but it neither votes nor
counts. The epoch names the last recovery from a lost majority (`kvorum.epochs`): replicas of different epochs never exchange
a message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import msgspec

from .values import Address

Members = Mapping[str, Address]
Operation = Literal["add", "learn", "demote", "move", "remove"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One membership entry. "add" makes a voter of anybody, "learn" a learner of a newcomer, "demote" takes a vote, "move"
    changes an address; "recover" leaves one voter, with everybody else as a learner, under a new epoch: it is written by
    `recovery` only, never asked for."""

    op: Literal["add", "learn", "demote", "move", "remove", "recover"]
    uid: str
    host: str = ""
    port: int = 0
    epoch: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


def encode(change: Change) -> bytes:
    return _encoder.encode(change)


def decode(payload: bytes) -> Change:
    return _decoder.decode(payload)


@dataclass(frozen=True, slots=True)
class Configuration:
    voters: Members = field(default_factory=dict)
    learners: Members = field(default_factory=dict)
    epoch: int = 0

    @property
    def everybody(self) -> Members:
        return {**self.learners, **self.voters}


def changed(before: Configuration, change: Change) -> Configuration:
    uid, address = change.uid, Address(change.host, change.port)
    voters, learners = _without(before.voters, uid), _without(before.learners, uid)
    match change.op:
        case "add":
            return replace(before, voters={**before.voters, uid: address}, learners=learners)
        case "learn":
            return before if uid in before.voters else replace(before, learners={**before.learners, uid: address})
        case "demote":
            known = before.everybody.get(uid)
            return replace(before, voters=voters, learners={**learners, uid: known}) if known is not None else before
        case "move":
            if uid in before.voters:
                return replace(before, voters={**before.voters, uid: address})
            return replace(before, learners={**before.learners, uid: address}) if uid in before.learners else before
        case "remove":
            return replace(before, voters=voters, learners=learners)
        case "recover":
            return Configuration({uid: address}, _without(before.everybody, uid), change.epoch)


def _without(members: Members, uid: str) -> Members:
    return {other: address for other, address in members.items() if other != uid}


class Configurations:
    """The configurations from `index` (what a snapshot holds) to the end of the log."""

    def __init__(self, index: int = 0, configuration: Configuration | None = None) -> None:
        self._history: list[tuple[int, Configuration]] = [(index, configuration or Configuration())]

    @property
    def whole(self) -> Configuration:
        """The one in force."""
        return self._history[-1][1]

    @property
    def current(self) -> Members:
        """Those who vote."""
        return self.whole.voters

    @property
    def changed_at(self) -> int:
        """Index of the entry that made the current configuration."""
        return self._history[-1][0]

    @property
    def recovered_at(self) -> int:
        """Who has the log up to here has the recovery that began the present epoch; 0 when there was none."""
        epoch = self.whole.epoch
        return next(index for index, found in self._history if found.epoch == epoch) if epoch else 0

    def at(self, index: int) -> Configuration:
        """The configuration in force once `index` is applied, or the oldest one known."""
        history = self._history
        return next((found for since, found in reversed(history) if since <= index), history[0][1])

    def append(self, index: int, change: Change) -> None:
        assert index > self.changed_at or len(self._history) == 1, f"configuration {index} after {self.changed_at}"
        self._history.append((index, changed(self.whole, change)))

    def truncate(self, index: int) -> bool:
        """Forget what entries from `index` on brought. True when the current configuration changed by it."""
        before = len(self._history)
        self._history = self._history[:1] + [item for item in self._history[1:] if item[0] < index]
        return len(self._history) != before

    def compact(self, index: int) -> None:
        """Forget configurations older than the one in force at `index`."""
        found = self.at(index)
        self._history = [(index, found)] + [item for item in self._history if item[0] > index]
