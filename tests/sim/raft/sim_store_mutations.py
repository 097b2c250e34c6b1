"""Deliberate faults in the state machine and in what surrounds it, which the simulation has to find like those in consensus."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from clusterfs import locks, machine, snapshot, state
from clusterfs.commands import Envelope
from clusterfs.locks import Session
from clusterfs.machine import StoreMachine
from clusterfs.outcomes import Result
from clusterfs.state import State


def forgets_what_it_answered_at_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    right = snapshot.decode
    patch.setattr(snapshot, "decode", lambda chunks: replace(right(chunks), clients={}))


def applies_a_command_as_often_as_it_comes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state, "recall", lambda _state, _envelope: None)


def goes_by_its_own_clock(patch: pytest.MonkeyPatch) -> None:
    right = StoreMachine._apply

    def wrong(self: StoreMachine, index: int, entry: bytes) -> Result:
        honest = machine.decode

        def decode(raw: bytes) -> Envelope:
            return replace(honest(raw), time_ms=int(self._clock() * 1000))

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(machine, "decode", decode)
            return right(self, index, entry)

    patch.setattr(StoreMachine, "_apply", wrong)


def lets_time_run_backwards(patch: pytest.MonkeyPatch) -> None:
    right = state.apply

    def wrong(before: State, envelope: Envelope, index: int) -> state.Step:
        return right(replace(before, clock_ms=envelope.time_ms), envelope, index)

    patch.setattr(machine, "apply", wrong)


def takes_writes_under_an_old_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(locks, "fenced", lambda _locks, _name, _token: None)


def ends_sessions_at_half_their_life(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: StoreMachine) -> list[tuple[str, Session]]:
        now, seen = self._clock(), self._sessions_seen
        known = self._view.state.locks.sessions
        return [(name, one) for name, one in known.items() if name in seen and now - seen[name][1] > one.ttl_s / 2]

    patch.setattr(StoreMachine, "old_sessions", wrong)


def forgets_who_waits_at_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    right = snapshot.decode

    def wrong(chunks: Iterable[bytes]) -> State:
        found = right(chunks)
        held = {name: locks.Lock(lock.holder) for name, lock in found.locks.held.items()}
        return replace(found, locks=replace(found.locks, held=held))

    patch.setattr(snapshot, "decode", wrong)


def grants_a_lock_to_all_who_wait(patch: pytest.MonkeyPatch) -> None:
    """Each release hands the lock to the next, and leaves the next in the line."""
    right = locks._pass_on

    def wrong(held: locks.Locks, root: object, name: str, context: locks.Context) -> locks.Step:
        waiting = held.held.get(name, locks.Lock()).waiters
        step = right(held, root, name, context)  # type: ignore[arg-type]
        if name not in step.locks.held or not waiting:
            return step
        lock = locks.Lock(step.locks.held[name].holder, waiting)
        return replace(step, locks=replace(step.locks, held={**step.locks.held, name: lock}))

    patch.setattr(locks, "_pass_on", wrong)


def tells_watchers_of_the_newest_only(patch: pytest.MonkeyPatch) -> None:
    """As if what the ring has lost had never been."""
    right = StoreMachine.events_after

    def wrong(self: StoreMachine, index: int, *, timeout_s: float) -> tuple[list[machine.Batch], int]:
        return right(self, max(index, self._compacted_index), timeout_s=timeout_s)

    patch.setattr(StoreMachine, "events_after", wrong)


STORE_MUTATIONS = {
    forgets_what_it_answered_at_a_snapshot: 60,
    applies_a_command_as_often_as_it_comes: 30,
    goes_by_its_own_clock: 10,
    lets_time_run_backwards: 30,
    takes_writes_under_an_old_token: 30,
    ends_sessions_at_half_their_life: 300,
    forgets_who_waits_at_a_snapshot: 60,
    grants_a_lock_to_all_who_wait: 30,
    tells_watchers_of_the_newest_only: 60,
}
