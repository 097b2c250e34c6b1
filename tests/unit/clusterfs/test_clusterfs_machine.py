import errno
import threading
from typing import Any

import pytest

from clusterfs import snapshot
from clusterfs.commands import (
    Delete,
    Envelope,
    LeaseAcquire,
    LeaseRenew,
    MemberPut,
    Mkdir,
    Move,
    Op,
    Touch,
    Write,
    encode,
)
from clusterfs.machine import Compacted, StoreMachine
from clusterfs.outcomes import Refusal, Written
from clusterfs.proposer import Proposer
from clusterfs.refusals import error_errno
from clusterfs.settings import Settings
from clusterfs.state import State
from kvorum.errors import Busy, DiskFull, NoQuorum, OutcomeUnknown

N1 = "11111111-1111-4111-8111-111111111111"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(op: Op) -> bytes:
    return encode(Envelope(op, node=N1, time_ms=1_000_000))


def test_a_watcher_gets_every_event_after_its_index_and_no_other() -> None:
    machine = StoreMachine()
    for index, name in enumerate("abcd", start=1):
        machine.apply(index, entry(Write(name, b"")))
    batches, index = machine.events_after(2, timeout_s=0)
    assert [batch.index for batch in batches] == [3, 4]
    assert index == 4
    assert isinstance(batches[0].events[0], Written)
    assert machine.events_after(4, timeout_s=0) == ([], 4)


def test_a_waiting_watcher_is_woken() -> None:
    machine = StoreMachine()
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(machine.events_after(0, timeout_s=20)[1]))
    waiter.start()
    machine.apply(1, entry(Write("a", b"")))
    machine.settled()
    waiter.join(timeout=10)
    assert got == [1]


def test_events_that_are_no_longer_kept_are_not_passed_over_in_silence() -> None:
    machine = StoreMachine(ring=2)
    machine.restore(0, snapshot.encode(State(settings=Settings(history_changes=3))))
    for index, name in enumerate("abcdef", start=1):
        machine.apply(index, entry(Write(name, b"")))
    assert [batch.index for batch in machine.events_after(4, timeout_s=0)[0]] == [5, 6]
    with pytest.raises(Compacted) as caught:
        machine.events_after(2, timeout_s=0)
    assert caught.value.oldest_index == 3
    other = StoreMachine()
    other.restore(6, machine.snapshot()())
    with pytest.raises(Compacted):
        other.events_after(2, timeout_s=0)
    assert other.events_after(6, timeout_s=0) == ([], 6)


def test_events_that_the_ring_has_lost_are_made_again_from_the_history() -> None:
    machine = StoreMachine()
    ops: list[Op] = [
        Write("a", b"1"),
        Write("d/f", b"1", parents=True),
        Move("a", "d/g"),
        Touch("d/f", 5),
        Delete("d", recursive=True),
    ]
    ops += [Mkdir("priv/lock/x", parents=True), Touch("priv/lock/x"), Touch("priv/lock/x")]
    for index, op in enumerate(ops, start=1):
        machine.apply(index, entry(op))
    told, _index = machine.events_after(0, timeout_s=0)
    other = StoreMachine()
    other.restore(machine.view.index, machine.snapshot()())
    # Of a lock's renewals the last is enough: it is the state that counts.
    assert other.events_after(0, timeout_s=0) == ([batch for batch in told if batch.index != 7], 8)
    assert other.events_after(3, timeout_s=0)[0] == [batch for batch in told if batch.index in (4, 5, 6, 8)]


def test_a_lease_ages_from_its_apply_here_and_starts_anew_after_a_restore() -> None:
    clock = Clock()
    machine = StoreMachine(clock=clock)
    machine.apply(1, entry(MemberPut(N1, "n1", "10.0.0.1")))
    machine.apply(2, entry(LeaseAcquire(N1)))
    clock.now += 4
    assert machine.leases()[0].age_s == 4
    machine.apply(3, entry(LeaseRenew(N1, 1)))
    assert machine.leases()[0].age_s == 0
    clock.now += 2
    assert isinstance(machine.apply(4, entry(LeaseRenew(N1, 7))), Refusal)
    assert machine.leases()[0].age_s == 2
    machine.restore(9, list(machine.snapshot()()))
    assert machine.leases()[0].age_s == 0


def test_a_lock_ages_only_while_it_is_the_same_lock() -> None:
    clock = Clock()
    machine = StoreMachine(clock=clock)
    machine.apply(1, entry(Mkdir("priv/lock", parents=True)))
    machine.apply(2, entry(Mkdir("priv/lock/x")))
    clock.now += 100
    machine.apply(3, entry(Write("other", b"")))
    assert machine.lock_age_s("priv/lock/x", 2) == 100
    machine.apply(4, entry(Touch("priv/lock/x")))
    assert machine.lock_age_s("priv/lock/x", 4) == 0
    assert machine.lock_age_s("priv/lock/x", 2) == 0


def test_the_list_of_guests_has_changed_only_when_one_came_went_or_moved() -> None:
    machine = StoreMachine()
    machine.apply(1, entry(Write("nodes/n1/lxc/100.conf", b"a", parents=True)))
    came = machine.view.guests_version
    machine.apply(2, entry(Write("nodes/n1/lxc/100.conf", b"b")))
    assert machine.view.guests_version == came
    machine.apply(3, entry(Move("nodes/n1/lxc/100.conf", "nodes/n1/100")))
    assert machine.view.guests_version == came + 1


def test_a_command_whose_answer_was_lost_is_sent_again_and_applied_once(
    proposer: Proposer, replica: Any, machine: StoreMachine
) -> None:
    replica.lose_answers = 2
    done = proposer.execute(Write("a", b"", absent=True))
    assert len(replica.log) == 3
    assert done.version == 1
    assert machine.state.root.count == 1


def test_no_quorum_names_the_missing_nodes(proposer: Proposer, replica: Any) -> None:
    replica.is_quorate = False
    with pytest.raises(NoQuorum) as caught:
        proposer.execute(Write("a", b""))
    assert caught.value.missing == ["n2", "n3"]
    assert "n2, n3" in str(caught.value)
    assert "2 of 3" in caught.value.remedy


def test_a_quorum_lost_after_sending_is_an_unknown_outcome_and_not_a_refusal(
    machine: StoreMachine, replica: Any
) -> None:
    class LosesQuorum:
        def __init__(self) -> None:
            self.tries = 0

        def propose(self, _entry: bytes, *, deadline_s: float) -> object:
            self.tries += 1
            raise OutcomeUnknown("lost") if self.tries == 1 else NoQuorum()

        barrier, status, submit = replica.barrier, replica.status, replica.submit

    proposer = Proposer(replica=LosesQuorum(), machine=machine, node_uid=N1, names={})
    with pytest.raises(OutcomeUnknown):
        proposer.execute(Write("a", b""))


def test_an_answer_that_never_comes_ends_at_the_deadline(machine: StoreMachine, replica: Any) -> None:
    clock = Clock()

    class NeverAnswers:
        def propose(self, _entry: bytes, *, deadline_s: float) -> object:
            clock.now += deadline_s
            raise OutcomeUnknown("no answer")

        barrier, status, submit = replica.barrier, replica.status, replica.submit

    proposer = Proposer(replica=NeverAnswers(), machine=machine, node_uid=N1, names={}, clock=clock)
    with pytest.raises(OutcomeUnknown):
        proposer.execute(Write("a", b""), deadline_s=10)
    assert clock.now == 110.0


def test_a_node_without_space_for_its_log_says_so_and_not_that_others_are_missing(
    machine: StoreMachine, replica: Any
) -> None:
    class Full:
        def propose(self, _entry: bytes, *, deadline_s: float) -> object:
            raise DiskFull("this node has no space for its log", remedy="free some there")

        barrier, status, submit = replica.barrier, replica.status, replica.submit

    proposer = Proposer(replica=Full(), machine=machine, node_uid=N1, names={})
    with pytest.raises(DiskFull, match="no space") as caught:
        proposer.execute(Write("a", b"x"))
    assert caught.value.remedy == "free some there"
    assert error_errno(caught.value) == errno.ENOSPC
    assert error_errno(NoQuorum()) == errno.EACCES


def test_a_busy_leader_is_an_answer_but_not_after_a_try_that_nobody_answered(
    machine: StoreMachine, replica: Any
) -> None:
    class IsBusy:
        def __init__(self, *before: Exception) -> None:
            self.answers = [*before, Busy("too many")]

        def propose(self, _entry: bytes, *, deadline_s: float) -> object:
            clock.now += deadline_s
            raise self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

        barrier, status = replica.barrier, replica.status

    clock = Clock()
    proposer = Proposer(replica=IsBusy(), machine=machine, node_uid=N1, names={}, clock=clock)
    with pytest.raises(Busy) as caught:
        proposer.execute(Write("a", b"x"))
    assert error_errno(caught.value) == errno.EAGAIN
    lost = Proposer(replica=IsBusy(OutcomeUnknown("lost")), machine=machine, node_uid=N1, names={}, clock=clock)
    with pytest.raises(OutcomeUnknown):
        lost.execute(Write("a", b"x"))
