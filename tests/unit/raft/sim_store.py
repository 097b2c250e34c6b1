"""The production state machine under the simulated replicas: the whole of `clusterfs.machine`, looked at in each step.

Equal answers, events and states at equal indices; a command takes effect once and is answered alike for ever; a lock has one
holder, whose token grows; time never runs backwards; a snapshot is the state, and so is the log applied from its beginning.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from sim_checks import Applied, Ledger, require

from clusterfs import rules, snapshot
from clusterfs.commands import Envelope, LockAcquire, Malformed, SessionExpire, SessionRenew, decode, stamped
from clusterfs.machine import Compacted, StoreMachine
from clusterfs.outcomes import Code, Done, Event, MembersChanged, Refusal, Result
from clusterfs.state import State
from clusterfs.tree import Directory, File, lookup

# Every so often the whole state is compared, and not only what came of the commands.
LOOK_EVERY = 16
# Of what a session's holder counts on. Clocks differ by a tenth at most, in either direction.
HONEST_SHARE = 0.75

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode


@dataclass
class Kept:
    """What the applied entries were and led to, in one cluster, by whichever replica came there first."""

    entries: dict[int, bytes] = field(default_factory=dict)
    events: dict[int, tuple[Event, ...]] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    # By client and number: where it took effect, and the answer.
    effects: dict[tuple[str, int], int] = field(default_factory=dict)
    answers: dict[tuple[str, int], tuple[int, Result]] = field(default_factory=dict)
    holders: dict[tuple[str, int], str] = field(default_factory=dict)

    def until(self, index: int) -> "Kept":
        return Kept(
            {at: entry for at, entry in self.entries.items() if at <= index},
            {at: events for at, events in self.events.items() if at <= index},
            {at: digest for at, digest in self.states.items() if at <= index},
            {name: at for name, at in self.effects.items() if at <= index},
            {name: answer for name, answer in self.answers.items() if answer[0] <= index},
            {held: session for held, session in self.holders.items() if held[1] <= index},
        )


def digest_of(state: State) -> bytes:
    return hashlib.blake2b(b"".join(snapshot.encode(state)), digest_size=16).digest()


class SimStore(StoreMachine):
    def __init__(
        self,
        uid: str,
        ledger: Ledger,
        *,
        ring: int,
        clock: Callable[[], float],
        now: Callable[[], float],
        sent_at: dict[tuple[str, int], float],
    ) -> None:
        """`now`: the true time; `sent_at`: when a command, by its node and number, was first sent."""
        super().__init__(clock=clock, ring=ring)
        self._uid, self._ledger, self._true_now, self._sent_at = uid, ledger, now, sent_at
        assert isinstance(ledger.kept, Kept)
        self._kept = ledger.kept
        self._digest = b""
        # When the client of a session last sent what renewed it.
        self._renewed: dict[str, float] = {}

    def apply(self, index: int, entry: bytes) -> Applied:  # type: ignore[override]
        before = self.state
        result = super().apply(index, entry)
        events = self._batches[-1].events if self._batches and self._batches[-1].index == index else ()
        self._same(index, entry, result, events)
        try:
            envelope = decode(entry)
        except Malformed:
            require(self.state == before, f"{self._uid}: entry {index} is no command and changed something")
            return Applied(index, result)
        self._once(index, envelope, result, events)
        self._timely(index, before, envelope, result)
        self._guarded(index, before, envelope, result, events)
        if self.state.locks is not before.locks:
            self._one_holder(index)
        if index % LOOK_EVERY == 0:
            self._look(index)
        return Applied(index, result)

    def snapshot(self) -> Callable[[], Iterable[bytes]]:
        self._look(self.view.index)
        return super().snapshot()

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        super().restore(index, chunks)
        self._renewed.clear()
        at = max((at for at in self._kept.entries if at <= index), default=0)
        if at:
            self._digest = self._ledger.checks.digests[at]
            self._look(at)

    def require_all(self, ledger: Ledger) -> None:
        """Every acknowledged command is in the log that was applied, and this state is that log's."""
        state, kept = self.state, self._kept
        for key, index in ledger.acknowledged.items():
            entry = kept.entries.get(index)
            require(entry is not None, f"{self._uid} lost {key}, which was acknowledged")
            require(key == key_of(entry or b""), f"{self._uid} has another entry at {index} than {key}")
        for path, (_, content) in ledger.promised.items():
            node = lookup(state.root, tuple(path.split("/")))
            is_there = isinstance(node, File) and node.content == content
            require(is_there, f"{self._uid} lost {path}, whose making was acknowledged")
        done = {key_of(entry) for at, entry in kept.entries.items() if at <= self.view.index}
        ledger.require_none_denied(self._uid, done)
        require(digest_of(state) == self._replayed(self.view.index), f"{self._uid} is not what its log makes")

    def _replayed(self, index: int) -> bytes:
        """The digest of the whole log, applied from its beginning without any snapshot."""
        if self._ledger.replayed[0] != index:
            machine = StoreMachine()
            for at in sorted(at for at in self._kept.entries if at <= index):
                machine.apply(at, self._kept.entries[at])
            self._ledger.replayed = index, digest_of(machine.state)
        return self._ledger.replayed[1]

    def watch(self, index: int) -> int:
        """What a watcher is told that has seen everything up to `index`; up to where it has by then."""
        if self.view.index < index:
            return index
        is_in_ring = index >= self._compacted_index
        try:
            batches, upto = self.events_after(index, timeout_s=0)
        except Compacted as error:
            require(error.oldest_index > index, f"{self._uid} says that {index} is forgotten, and has it")
            return self.view.index
        told = [(batch.index, batch.events) for batch in batches]
        wanted = [(at, self._kept.events[at]) for at in sorted(self._kept.events) if index < at <= upto]
        if not is_in_ring:
            # Made again from the history: without what it does not keep.
            told, wanted = _lasting(told), _lasting(wanted)
        require(told == wanted, f"{self._uid} tells a watcher at {index} of {told}, where {wanted} happened")
        return upto

    # The checks.

    def _same(self, index: int, entry: bytes, result: Result, events: tuple[Event, ...]) -> None:
        kept = self._kept
        require(kept.entries.setdefault(index, entry) == entry, f"{self._uid} applies another entry {index}")
        if events:
            kept.events.setdefault(index, events)
        self._digest = hashlib.blake2b(
            b"%d" % index + entry + _encode((result, events)), key=self._digest, digest_size=16
        ).digest()
        known = self._ledger.checks.digests.setdefault(index, self._digest)
        require(known == self._digest, f"{self._uid} answers otherwise than others did, up to {index}")

    def _look(self, index: int) -> None:
        if index:
            digest = digest_of(self.state)
            known = self._kept.states.setdefault(index, digest)
            require(known == digest, f"{self._uid}'s state at {index} is not the others'")

    def _once(self, index: int, envelope: Envelope, result: Result, events: tuple[Event, ...]) -> None:
        if not envelope.client:
            return
        name = envelope.client, envelope.seq
        if events:
            effect = self._kept.effects.setdefault(name, index)
            require(effect == index, f"{self._uid}: command {name} takes effect at {effect} and at {index}")
        if isinstance(result, Refusal) and result.code is Code.forgotten:
            return
        _, answer = self._kept.answers.setdefault(name, (index, result))
        require(answer == result, f"{self._uid}: command {name} was answered {answer}, and now {result}")

    def _timely(self, index: int, before: State, envelope: Envelope, result: Result) -> None:
        after = self.state
        require(after.clock_ms >= before.clock_ms, f"{self._uid}'s time runs backwards")
        op = envelope.op
        if not isinstance(result, Done):
            return
        if isinstance(op, LockAcquire | SessionRenew):
            session = after.locks.sessions.get(op.session)
            # A copy that is answered from memory renews nothing.
            if session is not None and session.renewed == index:
                self._renewed[op.session] = self._sent_at.get((envelope.node, envelope.seq), float("-inf"))
        ended = before.locks.sessions.get(op.session) if isinstance(op, SessionExpire) else None
        if isinstance(op, SessionExpire) and ended is not None and after.locks is not before.locks:
            silent = self._true_now() - self._renewed.get(op.session, float("-inf"))
            require(
                silent >= ended.ttl_s * HONEST_SHARE,
                f"session {op.session} is ended after {silent:.1f} s, and was to live for {ended.ttl_s} s",
            )

    def _guarded(
        self, index: int, before: State, envelope: Envelope, result: Result, events: tuple[Event, ...]
    ) -> None:
        if envelope.lock and isinstance(result, Done) and events:
            lock = before.locks.held.get(envelope.lock)
            token = lock.holder.token if lock is not None and lock.holder is not None else 0
            require(token == envelope.token, f"entry {index} counts under token {envelope.token}, and {token} holds")

    def _one_holder(self, index: int) -> None:
        state = self.state
        for name, lock in state.locks.held.items():
            waiting = [claim.session for claim in lock.waiters]
            require(len(set(waiting)) == len(waiting), f"{waiting} wait for {name}")
            there = lookup(state.root, (*rules.LOCKS, name))
            require(isinstance(there, Directory), f"{name} is wanted, and nobody has it")
            if lock.holder is None:
                continue
            session, token = lock.holder.session, lock.holder.token
            require(session not in waiting, f"{session} waits for {name}, which it holds")
            require(session in state.locks.sessions, f"{name} is held by {session}, which is over")
            known = self._kept.holders.get((name, token))
            if known is None:
                newest = max((at for held, at in self._kept.holders if held == name), default=0)
                require(token > newest, f"{name} is granted under {token} after {newest}")
                require(token == index, f"{name} is granted under {token} at {index}")
                self._kept.holders[name, token] = session
            else:
                require(known == session, f"{known} and {session} hold {name} under {token}")


def key_of(entry: bytes) -> str:
    """How a client calls its command."""
    try:
        envelope = decode(entry)
    except Malformed:
        return entry.hex()
    return f"{envelope.node} {envelope.seq}"


def stamp(entry: bytes, now: float) -> bytes:
    return stamped(entry, time_ms=int(now * 1000))


def _lasting(batches: list[tuple[int, tuple[Event, ...]]]) -> list[tuple[int, list[Event]]]:
    found = []
    for index, events in batches:
        kept = [event for event in events if not isinstance(event, MembersChanged) and not _is_lock(event)]
        if kept:
            found.append((index, [(type(event), event.path) for event in kept]))
    return found


def _is_lock(event: Event) -> bool:
    return not isinstance(event, MembersChanged) and event.path.startswith("priv/lock")


__all__ = ["Kept", "SimStore", "digest_of", "key_of", "stamp"]
