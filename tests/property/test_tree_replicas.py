"""Replicas agree: equal logs give equal bytes, snapshots lose nothing, and no bytes in the log drive two replicas apart."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from clusterfs import snapshot
from clusterfs.commands import (
    VERSION,
    Configure,
    Delete,
    Envelope,
    LeaseAcquire,
    LeaseFence,
    LeaseRenew,
    LeaseRest,
    LockAcquire,
    LockBreak,
    LockRelease,
    MemberPut,
    MemberRemove,
    Mkdir,
    Move,
    SessionEnd,
    SessionExpire,
    SessionRenew,
    Touch,
    UnknownVersion,
    Unlock,
    Write,
    decode,
    encode,
)
from clusterfs.machine import StoreMachine
from clusterfs.outcomes import Done, Refusal

UIDS = st.sampled_from([f"{digit * 8}-{digit * 4}-4{digit * 3}-8{digit * 3}-{digit * 12}" for digit in "123"])
NODES = st.sampled_from(["n1", "n2", "n3"])
PATHS = st.one_of(
    st.lists(st.sampled_from(["a", "b", "priv", "lock"]), min_size=1, max_size=3).map("/".join),
    st.sampled_from(["priv/lock/x", "priv/lock/y"]),
    st.builds(
        lambda node, kind, vmid: f"nodes/{node}/{kind}/{vmid}.conf",
        NODES,
        st.sampled_from(["qemu-server", "lxc"]),
        st.sampled_from([100, 101]),
    ),
    NODES.map(lambda node: f"nodes/{node}"),
)
SMALL = st.integers(0, 5)
OPS = st.one_of(
    st.builds(Write, PATHS, st.binary(max_size=8), st.none() | SMALL, st.booleans(), st.booleans()),
    st.builds(Mkdir, PATHS, parents=st.booleans()),
    st.builds(Delete, PATHS, SMALL, st.booleans()),
    st.builds(Move, PATHS, PATHS, SMALL, st.booleans()),
    st.builds(Touch, PATHS, st.none() | st.integers(-1, 2_000_000_000)),
    st.builds(Unlock, PATHS, SMALL),
    st.builds(MemberPut, UIDS, NODES, st.just("10.0.0.1"), SMALL),
    st.builds(MemberRemove, UIDS),
    st.builds(LeaseAcquire, UIDS),
    st.builds(LeaseRenew, UIDS, SMALL),
    st.builds(LeaseFence, UIDS, SMALL, SMALL),
)
SESSIONS = st.sampled_from(["s1", "s2", "s3", ""])
LOCK_NAMES = st.sampled_from(["x", "y", "", "a/b"])
NEW_OPS = st.one_of(
    st.builds(LockAcquire, LOCK_NAMES, SESSIONS, st.sampled_from([5, 30, 4000]), st.booleans()),
    st.builds(LockRelease, LOCK_NAMES, SESSIONS),
    st.builds(LockBreak, LOCK_NAMES),
    st.builds(SessionRenew, SESSIONS),
    st.builds(SessionEnd, SESSIONS),
    st.builds(SessionExpire, SESSIONS, st.integers(0, 30)),
    st.builds(LeaseRest, UIDS, SMALL),
    st.builds(Configure, st.none() | st.integers(4096, 5000), history_changes=st.none() | st.integers(-1, 9)),
)
NAMES = {
    "client": st.sampled_from(["", "c1", "c2"]),
    "seq": st.integers(1, 6),
    "node": UIDS,
    "time_ms": st.integers(0, 2_000_000_000_000),
}
ENVELOPES = st.one_of(
    st.builds(Envelope, OPS, version=st.just(1), **NAMES),
    st.builds(Envelope, OPS | NEW_OPS, **NAMES),
    st.builds(Envelope, OPS | NEW_OPS, lock=st.sampled_from(["", "x"]), token=st.integers(0, 30), **NAMES),
)
LOGS = st.lists(ENVELOPES.map(encode), max_size=30)
# What a damaged or foreign log could hold, under the versions that we claim to read.
DAMAGED = st.builds(
    lambda version, body: bytes([version]) + body, st.sampled_from([1, VERSION]), st.binary(max_size=40)
)


def replay(log: list[bytes]) -> tuple[StoreMachine, list[object]]:
    machine = StoreMachine()
    return machine, [machine.apply(index, entry) for index, entry in enumerate(log, start=1)]


def digest(machine: StoreMachine) -> bytes:
    return b"".join(snapshot.encode(machine.state))


@settings(max_examples=150, deadline=None)
@given(LOGS)
def test_the_same_log_gives_the_same_bytes_and_the_same_answers(log: list[bytes]) -> None:
    one, answers = replay(log)
    other, again = replay(log)
    assert answers == again
    assert digest(one) == digest(other)


@settings(max_examples=150, deadline=None)
@given(LOGS, LOGS, st.integers(1, 50))
def test_a_replica_restored_from_a_snapshot_goes_on_like_the_others(
    log: list[bytes], more: list[bytes], chunk: int
) -> None:
    steady, _answers = replay(log)
    taken = b"".join(steady.snapshot()())
    restored = StoreMachine()
    restored.restore(len(log), [taken[at : at + chunk] for at in range(0, len(taken), chunk)])
    assert restored.state == steady.state
    for index, entry in enumerate(more, start=len(log) + 1):
        assert restored.apply(index, entry) == steady.apply(index, entry)
    assert digest(restored) == digest(steady)


@settings(max_examples=200, deadline=None)
@example([b"\x02\x81\xa8\x00\x00\x00\x00\x00\x00\x00\x80"])
@given(st.lists(st.one_of(DAMAGED, ENVELOPES.map(encode)), max_size=10))
def test_damaged_entries_are_refused_alike_everywhere(log: list[bytes]) -> None:
    one, answers = replay(log)
    other, again = replay(log)
    assert answers == again
    assert all(isinstance(answer, Done | Refusal) for answer in answers)
    assert digest(one) == digest(other)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=40).filter(lambda entry: not 1 <= entry[0] <= VERSION))
def test_an_entry_of_an_unknown_version_stops_the_node(entry: bytes) -> None:
    told: list[AssertionError] = []
    machine = StoreMachine(on_broken=told.append)
    try:
        machine.apply(1, entry)
    except UnknownVersion:
        assert len(told) == 1
        assert machine.view.index == 0
        return
    raise AssertionError("it went on")


@settings(max_examples=100, deadline=None)
@given(ENVELOPES)
def test_an_envelope_survives_its_encoding(envelope: Envelope) -> None:
    assert decode(encode(envelope)) == envelope


@settings(max_examples=100, deadline=None)
@given(LOGS, st.data())
def test_a_snapshot_that_was_cut_off_is_refused(log: list[bytes], data: st.DataObject) -> None:
    machine, _answers = replay(log)
    whole = digest(machine)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        snapshot.decode([part])
    except snapshot.BadSnapshot:
        return
    raise AssertionError("half a snapshot was taken for a whole one")


@settings(max_examples=150, deadline=None)
@given(LOGS)
def test_time_never_runs_backwards_and_a_guest_is_never_in_two_places(log: list[bytes]) -> None:
    from clusterfs import rules

    machine = StoreMachine()
    clock = 0
    for index, entry in enumerate(log, start=1):
        machine.apply(index, entry)
        assert machine.state.clock_ms >= clock
        clock = machine.state.clock_ms
        vmids = [place.vmid for place, _file in rules.guests(machine.state.root)]
        assert len(vmids) == len(set(vmids))


@settings(max_examples=150, deadline=None)
@given(LOGS, st.data())
def test_a_command_that_comes_again_is_answered_as_before_and_changes_nothing(
    log: list[bytes], data: st.DataObject
) -> None:
    once, _answers = replay(log)
    named: dict[tuple[str, int], object] = {}
    machine, index = StoreMachine(), 0
    for at, entry in enumerate(log, start=1):
        index += 1
        envelope = decode(entry)
        answer = machine.apply(index, entry)
        if envelope.client:
            named.setdefault((envelope.client, envelope.seq), answer)
            assert answer == named[envelope.client, envelope.seq]
            if data.draw(st.booleans()):
                root, held, kept = machine.state.root, machine.state.locks, machine.state.history
                index += 1
                assert machine.apply(index, entry) == answer
                assert (machine.state.root, machine.state.locks, machine.state.history) == (root, held, kept)
        assert at <= index
    assert once.view.index == len(log)
