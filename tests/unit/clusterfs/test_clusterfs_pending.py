"""Commands for which no thread waits end as those do for which one does."""

import queue
import threading
from typing import Any, TypeAlias

import pytest

from clusterfs import pending
from clusterfs.commands import Delete, Write
from clusterfs.machine import StoreMachine
from clusterfs.outcomes import Code, Done, Refusal, Result
from clusterfs.proposer import Proposer
from clusterfs.state import REMEMBERED_RESULTS
from kvorum.errors import DiskFull, InvalidInput, KvorumError, NoQuorum, OutcomeUnknown

Answers: TypeAlias = "queue.SimpleQueue[Result | KvorumError]"


@pytest.fixture
def answers() -> Answers:
    return queue.SimpleQueue()


def test_a_result_and_a_refusal_come_as_values(proposer: Proposer, answers: Answers) -> None:
    proposer.submit(Write("a", b"x"), on_result=answers.put)
    proposer.submit(Delete("b"), on_result=answers.put)
    first, second = answers.get(timeout=5), answers.get(timeout=5)
    assert isinstance(first, Done) and first.path == "a"
    assert isinstance(second, Refusal) and second.code is Code.not_found


def test_no_quorum_and_a_full_disk_are_told_at_once_and_nothing_waits(
    proposer: Proposer, replica: Any, machine: StoreMachine, answers: Answers
) -> None:
    replica.is_quorate = False
    proposer.submit(Write("a", b""), on_result=answers.put)
    missing = answers.get_nowait()
    assert isinstance(missing, NoQuorum) and missing.missing == ["n2", "n3"]

    class Full:
        def submit(self, _entry: bytes, _on_done: object, _on_open: object) -> None:
            raise DiskFull("no space", remedy="free some")

        propose, barrier, status = replica.propose, replica.barrier, replica.status

    full = Proposer(replica=Full(), machine=machine, node_uid="n", names={})
    full.submit(Write("a", b""), on_result=answers.put)
    error = answers.get_nowait()
    assert isinstance(error, DiskFull) and error.remedy == "free some"


def test_a_command_whose_answer_was_lost_goes_on_in_a_thread_and_is_applied_once(
    proposer: Proposer, replica: Any, machine: StoreMachine, answers: Answers
) -> None:
    replica.lose_answers = 3
    proposer.submit(Write("a", b"", absent=True), on_result=answers.put)
    done = answers.get(timeout=5)
    assert isinstance(done, Done) and done.version == 1
    assert len(replica.log) == 4
    assert machine.state.root.count == 1


def test_a_quorum_lost_after_sending_is_an_unknown_outcome(
    machine: StoreMachine, replica: Any, answers: Answers
) -> None:
    class LosesQuorum:
        is_sent = True

        def submit(self, _entry: bytes, _on_done: object, on_open: Any) -> None:
            on_open(self.is_sent)

        def propose(self, _entry: bytes, *, deadline_s: float) -> object:
            raise NoQuorum

        barrier, status = replica.barrier, replica.status

    loses = LosesQuorum()
    proposer = Proposer(replica=loses, machine=machine, node_uid="n", names={})
    proposer.submit(Write("a", b""), on_result=answers.put)
    assert type(answers.get(timeout=5)) is OutcomeUnknown
    # Nobody had it: then it is only that.
    loses.is_sent = False
    proposer.submit(Write("a", b""), on_result=answers.put)
    assert type(answers.get(timeout=5)) is NoQuorum


class Silent:
    """Takes entries and says nothing until it is told to."""

    def __init__(self, replica: Any) -> None:
        self.ways: list[tuple[Any, Any]] = []
        self.sent: list[bytes] = []
        self.barrier, self.status, self._propose = replica.barrier, replica.status, replica.propose

    def submit(self, entry: bytes, on_done: Any, on_open: Any) -> None:
        self.sent.append(entry)
        self.ways.append((on_done, on_open))

    def propose(self, entry: bytes, *, deadline_s: float) -> object:
        self.sent.append(entry)
        return self._propose(entry, deadline_s=deadline_s)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_attempt_without_an_answer_is_given_up_and_made_again_with_the_same_entry(
    machine: StoreMachine, replica: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "LOOK_S", 0.01)
    clock, silent = Clock(), Silent(replica)
    proposer = Proposer(replica=silent, machine=machine, node_uid="n", names={}, clock=clock)
    proposer.submit(Write("a", b"x"), on_result=answers.put, deadline_s=10)
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.05)
    clock.now += 3.1
    assert isinstance(answers.get(timeout=5), Done)
    assert silent.sent[0] == silent.sent[1]
    # What the first attempt has to say now comes too late.
    on_done, on_open = silent.ways[0]
    on_done(Done(7))
    on_open(True)
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.05)


def test_an_answer_that_never_comes_ends_at_the_deadline(
    machine: StoreMachine, replica: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "LOOK_S", 0.01)
    clock, silent = Clock(), Silent(replica)
    proposer = Proposer(replica=silent, machine=machine, node_uid="n", names={}, clock=clock)
    # The watcher rests while nothing is under way, and is there again for the second one.
    for _ in range(2):
        proposer.submit(Write("a", b"x"), on_result=answers.put, deadline_s=1)
        clock.now += 1.1
        assert type(answers.get(timeout=5)) is OutcomeUnknown
    assert len(silent.sent) == 2


def test_what_is_under_way_at_once_is_bounded_and_the_rest_waits_in_threads(
    machine: StoreMachine, replica: Any, answers: Answers
) -> None:
    silent = Silent(replica)
    proposer = Proposer(replica=silent, machine=machine, node_uid="n", names={})
    assert pending.UNDER_WAY + pending.STRAGGLERS < REMEMBERED_RESULTS
    for number in range(pending.UNDER_WAY):
        proposer.submit(Write(f"f{number}", b""), on_result=answers.put)
    assert len(silent.ways) == pending.UNDER_WAY
    proposer.submit(Write("beyond", b""), on_result=answers.put)
    done = answers.get(timeout=5)
    assert isinstance(done, Done) and done.path == "beyond"
    assert len(silent.ways) == pending.UNDER_WAY
    silent.ways[0][0](Done(7))
    assert answers.get_nowait() == Done(7)
    proposer.submit(Write("again", b""), on_result=answers.put)
    assert len(silent.ways) == pending.UNDER_WAY + 1


def test_what_waits_for_its_turn_gets_its_number_then_and_is_not_taken_for_one_of_long_ago(
    machine: StoreMachine, replica: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "UNDER_WAY", 0)
    monkeypatch.setattr(pending, "STRAGGLERS", 1)
    proposer = Proposer(replica=replica, machine=machine, node_uid="n", names={})
    goes_on = threading.Event()
    proposer.pass_barrier(lambda _error: goes_on.wait(20), deadline_s=1)
    proposer.submit(Write("waits", b""), on_result=answers.put)
    for number in range(REMEMBERED_RESULTS + 1):
        proposer.execute(Write(f"f{number}", b""))
    goes_on.set()
    done = answers.get(timeout=20)
    assert isinstance(done, Done) and done.path == "waits"


def test_a_way_back_that_is_broken_harms_nobody_else(proposer: Proposer, replica: Any, answers: Answers) -> None:
    def broken(_answer: object) -> None:
        raise RuntimeError

    proposer.submit(Write("a", b"x"), on_result=broken)
    proposer.submit(Write("a", b"y"), on_result=answers.put)
    assert isinstance(answers.get_nowait(), Done)


def test_what_consensus_refuses_reaches_the_caller(machine: StoreMachine, replica: Any, answers: Answers) -> None:
    class Short:
        def submit(self, _entry: bytes, _on_done: object, _on_open: object) -> None:
            raise InvalidInput("an entry of too many bytes")

        propose, barrier, status = replica.propose, replica.barrier, replica.status

    Proposer(replica=Short(), machine=machine, node_uid="n", names={}).submit(Write("a", b""), on_result=answers.put)
    assert isinstance(answers.get_nowait(), InvalidInput)


def test_many_threads_submit_and_each_hears_once(proposer: Proposer, answers: Answers) -> None:
    def work(name: str) -> None:
        for number in range(100):
            proposer.submit(Write(f"{name}{number}", b"x"), on_result=answers.put)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = sorted(getattr(answers.get(timeout=5), "path", "") for _ in range(400))
    assert paths == sorted(f"{name}{number}" for name in "abcd" for number in range(100))
    assert answers.empty()
