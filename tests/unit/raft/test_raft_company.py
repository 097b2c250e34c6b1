"""Entries that may wait for others of their kind: one group for all, and nobody else waits for them."""

from pathlib import Path

import pytest
from raft_sim import Sim, may_wait
from test_raft_rules import Alone

from clusterfs.raft.company import WINDOW_S, left_s
from clusterfs.raft.consensus import Command
from clusterfs.raft.core import REGULAR
from clusterfs.raft.journal import FileLog
from clusterfs.raft.messages import AppendEntries, Forward, Forwarded

PATIENT = [entry for entry in (b"%d" % number for number in range(100)) if may_wait(entry)]
HURRIED = [entry for entry in (b"%d" % number for number in range(100)) if not may_wait(entry)]


@pytest.mark.parametrize(
    ("waiting", "since", "now", "left"),
    [
        ([], 0.0, 0.0, 0.0),
        ([True], 5.0, 5.0, WINDOW_S),
        ([True, True], 5.0, 5.0 + WINDOW_S / 4, WINDOW_S * 3 / 4),
        ([True], 5.0, 5.0 + WINDOW_S, 0.0),
        ([True], 5.0, 99.0, 0.0),
        ([True], 5.0, 1.0, WINDOW_S),
        ([True, False], 5.0, 5.0, 0.0),
        ([False, True], 5.0, 5.0, 0.0),
    ],
)
def test_what_may_wait_waits_for_a_moment_and_for_nothing_else(
    waiting: list[bool], since: float, now: float, left: float
) -> None:
    assert left_s(waiting, since, now) == pytest.approx(left)


def submit(alone: Alone, entry: bytes) -> None:
    alone.raft.submit(Command(REGULAR + entry, may_wait=may_wait(entry)))


class Leader(Alone):
    def __init__(self, sim: Sim) -> None:
        super().__init__(sim)
        self.lead()
        self.tick()
        self._batch_before = self._batch

    @property
    def _batch(self) -> int:
        assert isinstance(self.raft.log, FileLog)
        return self.raft.log._batch

    @property
    def groups(self) -> int:
        """That the log has written since."""
        return self._batch - self._batch_before


@pytest.fixture
def leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leader:
    return Leader(Sim(tmp_path, monkeypatch, seed=1))


def test_renewals_of_all_nodes_are_one_group_of_the_log(leader: Leader) -> None:
    last = leader.raft.log.last_index
    submit(leader, PATIENT[0])
    leader.tick()
    leader.say("n2", Forward([(1, REGULAR + PATIENT[1])]))
    leader.sim.now += WINDOW_S / 2
    leader.say("n3", Forward([(1, REGULAR + PATIENT[2])]))
    assert (leader.raft.log.last_index, leader.groups) == (last, 0)
    leader.sim.now += WINDOW_S / 2
    leader.tick()
    assert (leader.raft.log.last_index, leader.groups) == (last + 3, 1)


def test_the_raft_thread_wakes_when_they_have_waited(leader: Leader) -> None:
    submit(leader, PATIENT[0])
    leader.tick()
    assert 0 < leader.raft._until_due(leader.sim.now) <= WINDOW_S
    leader.sim.now += WINDOW_S
    assert leader.raft._until_due(leader.sim.now) == 0.0


def test_an_ordinary_entry_waits_for_none_and_takes_those_along_that_do(leader: Leader) -> None:
    last = leader.raft.log.last_index
    submit(leader, PATIENT[0])
    leader.tick()
    submit(leader, HURRIED[0])
    assert leader.raft._until_due(leader.sim.now) == 0.0
    leader.tick()
    assert (leader.raft.log.last_index, leader.groups) == (last + 2, 1)
    submit(leader, HURRIED[1])
    leader.tick()
    assert leader.raft.log.last_index == last + 3


def test_the_next_ones_wait_for_the_whole_of_their_moment(leader: Leader) -> None:
    submit(leader, PATIENT[0])
    leader.tick()
    leader.sim.now += WINDOW_S
    leader.tick()
    last = leader.raft.log.last_index
    submit(leader, PATIENT[1])
    leader.sim.now += 0.2
    leader.tick()
    assert leader.raft.log.last_index == last
    leader.sim.now += WINDOW_S
    leader.tick()
    assert leader.raft.log.last_index == last + 1


def test_a_leader_that_steps_down_keeps_nobody_waiting(leader: Leader) -> None:
    answers: list[int] = []
    leader.raft.submit(Command(REGULAR + PATIENT[0], lambda _value, reason: answers.append(reason), may_wait=True))
    leader.say("n2", Forward([(7, REGULAR + PATIENT[1])]))
    assert not answers
    later = AppendEntries(leader.raft.raftCurrentTerm + 1, 0, leader.sim.now, 0.0, leader.base, 0, [])
    leader.say("n3", later)
    sent = [message for _, message in leader.exchange.sent]
    (forward,) = (message for message in sent if isinstance(message, Forward))
    (refusal,) = (message for message in sent if isinstance(message, Forwarded))
    assert [command for _, command in forward.commands] == [REGULAR + PATIENT[0]]
    assert refusal.refused == [7]


def test_the_end_of_a_replica_keeps_nobody_waiting(leader: Leader) -> None:
    answers: list[int] = []
    leader.raft.submit(Command(REGULAR + PATIENT[0], lambda _value, reason: answers.append(reason), may_wait=True))
    leader.tick()
    leader.raft.fail_all()
    assert len(answers) == 1
