"""The state machine that a replica applies into: the current state, the recent events, and the ages of leases and locks.

Readers take `view` and need no lock: state and index are replaced together, as one value. Watchers read the ring of recent
events; older ones are made again from the history, and whoever asks
for what that has forgotten is told so (`Compacted`). Ages are measured here because they are this
replica's own knowledge: since it applied the last renewal, on the boot-time clock, which neither stops in suspend nor
jumps. The rules are in `clusterfs.state`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from clusterfs import history, rules, snapshot
from clusterfs.commands import LeaseAcquire, LeaseRenew, Malformed, decode, stamped
from clusterfs.locks import Session
from clusterfs.membership import Lease
from clusterfs.outcomes import Code, Deleted, Done, Event, MembersChanged, Moved, Refusal, Result, Written
from clusterfs.state import State, apply
from clusterfs.tree import Directory, lookup

log = logging.getLogger(__name__)

EVENT_RING = 10_000


class View(msgspec.Struct, frozen=True):
    """One moment of this replica. `guests_version` and `members_version` count changes seen by this process."""

    state: State
    index: int
    guests_version: int = 0
    members_version: int = 0


class Batch(msgspec.Struct, frozen=True):
    """The events of one command."""

    index: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class LeaseView:
    uid: str
    lease: Lease
    # Seconds since this replica applied the last renewal.
    age_s: float

    @property
    def is_trusted(self) -> bool:
        """By its holder, as far as can be told here."""
        return not self.lease.fenced and not self.lease.resting and self.age_s * 1000 < self.lease.pause_ms


class Compacted(Exception):
    """Events up to the wanted index are no longer kept; those after `oldest_index` are."""

    def __init__(self, oldest_index: int) -> None:
        super().__init__(f"changes up to {oldest_index} are compacted")
        self.oldest_index = oldest_index


def boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class StoreMachine:
    """Implements `clusterfs.raft.StateMachine`. `apply` and `restore` are called by one thread, in log order."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = boottime_s,
        ring: int = EVENT_RING,
        on_broken: Callable[[AssertionError], None] = lambda _error: None,
    ) -> None:
        """`on_broken` ends the process: it is told of an assertion before that is raised into consensus."""
        self._clock = clock
        self._on_broken = on_broken
        self._view = View(State(), 0)
        self._changed = threading.Condition()
        self._batches: deque[Batch] = deque()
        self._ring = ring
        self._compacted_index = 0
        self._renewed_at: dict[str, float] = {}
        # Path of a lock: the version that was seen, and since when.
        self._locks_seen: dict[str, tuple[int, float]] = {}
        # Name of a session: its last renewal, and since when it is known here.
        self._sessions_seen: dict[str, tuple[int, float]] = {}
        self._is_closed = False

    @property
    def view(self) -> View:
        return self._view

    @property
    def state(self) -> State:
        return self._view.state

    @staticmethod
    def stamp(entry: bytes) -> bytes:
        """Puts the leader's clock into an entry that is about to be appended."""
        return stamped(entry, time_ms=time.time_ns() // 1_000_000)

    def apply(self, index: int, entry: bytes) -> Result:
        """Raises only assertions (UnknownVersion is one): a node that cannot follow the log must stop."""
        try:
            return self._apply(index, entry)
        except AssertionError as error:
            log.critical("entry %d cannot be applied: %s", index, error)
            self._on_broken(error)
            raise

    def _apply(self, index: int, entry: bytes) -> Result:
        before = self._view
        assert index > before.index, f"entry {index} after {before.index}"
        try:
            envelope = decode(entry)
        except Malformed as error:
            self._publish(View(before.state, index, before.guests_version, before.members_version), ())
            return Refusal(Code.invalid, f"no command: {error}")
        state, result, events = apply(before.state, envelope, index)
        if isinstance(envelope.op, LeaseAcquire | LeaseRenew) and isinstance(result, Done):
            self._renewed_at[envelope.op.uid] = self._clock()
        guests = before.guests_version + any(_touches_guests(event) for event in events)
        members = before.members_version + any(isinstance(event, MembersChanged) for event in events)
        self._publish(View(state, index, guests, members), events)
        return result

    def settled(self) -> None:
        """Wakes who waits for events; what was applied is seen without."""
        with self._changed:
            self._changed.notify_all()

    def snapshot(self) -> Callable[[], Iterable[bytes]]:
        state = self._view.state
        return lambda: snapshot.encode(state)

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        """Everything is as at log index `index`; ages begin anew, which can only delay a fence or the breaking of a lock."""
        state = snapshot.decode(chunks)
        before = self._view
        now = self._clock()
        self._renewed_at = dict.fromkeys(state.leases, now)
        with self._changed:
            self._batches.clear()
            self._compacted_index = index
            self._view = View(state, index, before.guests_version + 1, before.members_version + 1)
            self._note_locks()
            self._sessions_seen = {}
            self._note_sessions(state)
            self._changed.notify_all()

    def close(self) -> None:
        """Wakes every watcher for good."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def events_after(self, index: int, *, timeout_s: float) -> tuple[list[Batch], int]:
        """The batches beyond `index` and the index up to which they are complete; waits when there are none yet.

        Raises Compacted when some of them are gone.
        """
        with self._changed:
            if self._view.index <= index and not self._is_closed:
                self._changed.wait(timeout_s)
            view = self._view
            if index >= self._compacted_index:
                found: list[Batch] = []
                for batch in reversed(self._batches):
                    if batch.index <= index:
                        break
                    found.append(batch)
                found.reverse()
                return found, max(index, view.index)
        return _rebuilt(view, index)

    def leases(self) -> list[LeaseView]:
        now = self._clock()
        held = self._view.state.leases
        return [LeaseView(uid, held[uid], max(0.0, now - self._renewed_at.get(uid, now))) for uid in sorted(held)]

    def lock_age_s(self, path: str, version: int) -> float:
        """How long this replica has seen the lock at `path` with this version; 0 for one that it does not know."""
        seen = self._locks_seen.get(path)
        return self._clock() - seen[1] if seen is not None and seen[0] == version else 0.0

    def old_sessions(self) -> list[tuple[str, Session]]:
        """Those that this replica has not seen renewed for their whole life."""
        now = self._clock()
        found: list[tuple[str, Session]] = []
        for name, session in self._view.state.locks.sessions.items():
            seen = self._sessions_seen.get(name)
            if seen is not None and seen[0] == session.renewed and now - seen[1] > session.ttl_s:
                found.append((name, session))
        return found

    def old_lock_directories(self) -> list[tuple[str, int]]:
        """Path and version of locks by mkdir that may be broken and that somebody waits for."""
        state = self._view.state
        found: list[tuple[str, int]] = []
        for name, lock in state.locks.held.items():
            node = lookup(state.root, (*rules.LOCKS, name)) if lock.holder is None else None
            path = "/".join((*rules.LOCKS, name))
            if node is not None and rules.lock_may_be_broken(self.lock_age_s(path, node.version)):
                found.append((path, node.version))
        return found

    def _publish(self, view: View, events: tuple[Event, ...]) -> None:
        with self._changed:
            if view.state.locks is not self._view.state.locks:
                self._note_sessions(view.state)
            self._view = view
            if events:
                self._batches.append(Batch(view.index, events))
                while len(self._batches) > self._ring:
                    self._compacted_index = self._batches.popleft().index
                if any(_touches_locks(event) for event in events):
                    self._note_locks()

    def _note_sessions(self, state: State) -> None:
        now = self._clock()
        before = self._sessions_seen
        self._sessions_seen = {
            name: known
            if (known := before.get(name)) is not None and known[0] == session.renewed
            else (session.renewed, now)
            for name, session in state.locks.sessions.items()
        }

    def _note_locks(self) -> None:
        directory = lookup(self._view.state.root, rules.LOCKS)
        now = self._clock()
        seen: dict[str, tuple[int, float]] = {}
        for name, node in directory.entries.items() if isinstance(directory, Directory) else ():
            path = "/".join((*rules.LOCKS, name))
            known = self._locks_seen.get(path)
            seen[path] = known if known is not None and known[0] == node.version else (node.version, now)
        self._locks_seen = seen


def _rebuilt(view: View, index: int) -> tuple[list[Batch], int]:
    """What the ring has no more, from the history of the state: after a restart, or for who was away for long."""
    kept = view.state.history
    if not kept.has_begun or index < kept.since:
        raise Compacted(kept.since if kept.has_begun else view.index)
    return [Batch(at, events) for at, events in history.events_after(kept, view.state.root, index)], view.index


def _paths(event: Event) -> Iterator[str]:
    match event:
        case Written(path=path) | Deleted(path=path):
            yield path
        case Moved(path=path, new_path=new_path):
            yield path
            yield new_path
        case MembersChanged():
            return


def _touches_guests(event: Event) -> bool:
    """Guests came, went or moved. A change within a guest's file does not count: it is in the same place."""
    if isinstance(event, Written):
        place = rules.guest_at(tuple(event.path.split("/")))
        return place is not None and event.node.placement == event.node.version
    return any(path.partition("/")[0] == "nodes" for path in _paths(event))


def _touches_locks(event: Event) -> bool:
    return any(path.startswith("priv/lock") or path == "priv" for path in _paths(event))
