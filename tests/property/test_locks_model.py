"""Locks against the simplest thing that could be right: a list of names in a row for each lock, the first of whom holds it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs import snapshot
from clusterfs.commands import (
    Delete,
    Envelope,
    LockAcquire,
    LockBreak,
    LockRelease,
    Mkdir,
    Op,
    SessionEnd,
    SessionExpire,
    SessionRenew,
    Touch,
    Unlock,
    Write,
)
from clusterfs.outcomes import Done
from clusterfs.state import State, apply
from clusterfs.tree import Directory, lookup

NAMES = st.sampled_from(["x", "y"])
SESSIONS = st.sampled_from(["s1", "s2", "s3", "s4"])
OPS = st.one_of(
    st.builds(LockAcquire, NAMES, SESSIONS, wait=st.booleans()),
    st.builds(LockAcquire, NAMES, SESSIONS),
    st.builds(LockRelease, NAMES, SESSIONS),
    st.builds(LockBreak, NAMES),
    st.builds(SessionRenew, SESSIONS),
    st.builds(SessionEnd, SESSIONS),
    # Below: the number says how far back the renewal was that the proposer saw; 0 is the newest.
    st.builds(SessionExpire, SESSIONS, st.integers(0, 1)),
    NAMES.map(lambda name: Mkdir(f"priv/lock/{name}", parents=True)),
    NAMES.map(lambda name: Delete(f"priv/lock/{name}", only="directory")),
    NAMES.map(lambda name: Touch(f"priv/lock/{name}")),
    NAMES.map(lambda name: Unlock(f"priv/lock/{name}", 0)),
)
LOGS = st.lists(OPS, max_size=40)
BY_HAND = "by mkdir"


class Model:
    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {"x": [], "y": []}

    def perform(self, op: Op, *, is_newest: bool) -> bool:
        """Whether it is done."""
        match op:
            case LockAcquire(name=name, session=session, wait=wait):
                row = self.rows[name]
                if session not in row:
                    if row and not wait:
                        return False
                    row.append(session)
                return True
            case LockRelease(name=name, session=session):
                return self._leave(name, session)
            case LockBreak(name=name):
                return self._vacate(name)
            case SessionRenew(session=session):
                return any(session in row for row in self.rows.values())
            case SessionEnd(session=session) | SessionExpire(session=session):
                if isinstance(op, SessionExpire) and not is_newest:
                    return False
                left = [self._leave(name, session) for name in self.rows]
                return any(left)
            case Mkdir(path=path):
                if self.rows[path[-1]]:
                    return False
                self.rows[path[-1]].append(BY_HAND)
                return True
            case Delete(path=path):
                return self._vacate(path[-1])
            case Touch(path=path):
                return bool(self.rows[path[-1]])
            case Unlock(path=path):
                return is_newest and self.rows[path[-1]][:1] == [BY_HAND] and self._vacate(path[-1])
        raise AssertionError(op)

    def _leave(self, name: str, session: str) -> bool:
        if session not in self.rows[name]:
            return False
        self.rows[name].remove(session)
        return True

    def _vacate(self, name: str) -> bool:
        if not self.rows[name]:
            return False
        self.rows[name].pop(0)
        return True


def as_seen(state: State, op: Op) -> tuple[Op, bool]:
    """The command with what its proposer has seen, and whether that is the newest."""
    match op:
        case SessionExpire(session=name, renewed=back):
            session = state.locks.sessions.get(name)
            seen = session.renewed - back if session is not None else 7
            return SessionExpire(name, seen), back == 0
        case Unlock(path=path):
            node = lookup(state.root, tuple(path.split("/")))
            return Unlock(path, node.version if node is not None else 7), True
    return op, True


def row_of(state: State, name: str) -> list[str]:
    lock = state.locks.held.get(name)
    node = lookup(state.root, ("priv", "lock", name))
    if node is None:
        assert lock is None
        return []
    holder = lock.holder.session if lock is not None and lock.holder is not None else BY_HAND
    return [holder, *(claim.session for claim in (lock.waiters if lock is not None else ()))]


@settings(max_examples=400, deadline=None)
@given(LOGS)
def test_locks_go_in_the_order_of_asking_whatever_front_they_are_asked_by(ops: list[Op]) -> None:
    model, state, tokens = Model(), State(), {"x": 0, "y": 0}
    for index, asked in enumerate(ops, start=1):
        op, is_newest = as_seen(state, asked)
        before = (state.root, state.locks)
        expected = model.perform(op, is_newest=is_newest)
        state, result, events = apply(state, Envelope(op, node="n"), index)
        assert isinstance(result, Done) == expected, (op, result)
        if not expected:
            assert (state.root, state.locks, events) == (*before, ())
        for name, row in model.rows.items():
            assert row_of(state, name) == row
            lock = state.locks.held.get(name)
            if lock is not None and lock.holder is not None:
                assert lock.holder.token >= tokens[name]
                tokens[name] = lock.holder.token
                node = lookup(state.root, ("priv", "lock", name))
                assert isinstance(node, Directory)
                assert node.placement == lock.holder.token
        used = {session for row in model.rows.values() for session in row} - {BY_HAND}
        assert set(state.locks.sessions) == used
    assert snapshot.decode(list(snapshot.encode(state))) == state


@settings(max_examples=200, deadline=None)
@given(LOGS, st.data())
def test_a_write_under_a_token_counts_only_while_the_lock_is_held_under_it(ops: list[Op], data: st.DataObject) -> None:
    state, tokens = State(), [0]
    for index, asked in enumerate(ops, start=1):
        state, result, _events = apply(state, Envelope(as_seen(state, asked)[0], node="n"), index)
        if isinstance(result, Done) and result.number:
            tokens.append(result.number)
    token = data.draw(st.sampled_from(tokens))
    lock = state.locks.held.get("x")
    is_held = lock is not None and lock.holder is not None and lock.holder.token == token
    after, result, _events = apply(state, Envelope(Write("f", b"1"), lock="x", token=token), len(ops) + 1)
    assert isinstance(result, Done) == is_held
    assert (lookup(after.root, ("f",)) is not None) == is_held
