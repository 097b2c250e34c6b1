"""A leader whose process ends is replaced at once, and one that is only silent is not."""

from collections.abc import Callable
from pathlib import Path

import pysyncobj.syncobj
import pytest
from pysyncobj.node import Node
from raft_cluster import Cluster
from raft_sim import Sim
from test_raft_rules import Alone

from clusterfs.raft.core import CANDIDATE, FOLLOWER
from clusterfs.raft.elections import FORSAKEN_S, TURN_S
from clusterfs.raft.messages import PreVote, PreVoteReply, RequestVote


class Mortal(Sim):
    """Processes that end close their links, as kernels do for them."""

    def crash(self, uid: str) -> None:
        for other in self.alive():
            if other.exchange is not None and uid in other.exchange.up and frozenset((uid, other.uid)) not in self.cuts:
                other.exchange.on_closed(Node(uid))
        super().crash(uid)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(Sim(tmp_path, monkeypatch, seed=1))


def follow(alone: Alone, uid: str) -> None:
    alone.say(uid, alone.append(3, alone.entries(4, 4), commit=4))


def close(alone: Alone, uid: str) -> None:
    alone.exchange.on_closed(Node(uid))
    alone.exchange.link(uid, up=False)
    alone.exchange.sent.clear()


def has_asked(alone: Alone) -> bool:
    return any(isinstance(message, PreVote) for _, message in alone.exchange.sent)


def test_who_is_left_by_the_leaders_process_asks_soon(alone: Alone) -> None:
    follow(alone, "n2")
    close(alone, "n2")
    alone.tick(FORSAKEN_S * 2.01)
    assert has_asked(alone)


def test_silence_and_a_link_that_fails_here_wait_for_the_whole_timeout(alone: Alone) -> None:
    follow(alone, "n2")
    alone.exchange.link("n2", up=False)
    alone.exchange.sent.clear()
    alone.tick(alone.sim.options.election_timeout_min_s * 0.99)
    assert not has_asked(alone)


def test_a_closed_link_to_somebody_else_means_nothing(alone: Alone) -> None:
    follow(alone, "n2")
    close(alone, "n3")
    alone.tick(alone.sim.options.election_timeout_min_s * 0.99)
    assert not has_asked(alone)


def test_a_leader_that_is_back_before_the_delay_is_over_is_followed(alone: Alone) -> None:
    follow(alone, "n2")
    close(alone, "n2")
    alone.exchange.link("n2", up=True)
    alone.say("n2", alone.append(4, [], commit=4))
    alone.tick(alone.sim.options.election_timeout_min_s * 0.9)
    assert not has_asked(alone)
    assert not granted(alone, "n3"), "it is heard again"


def granted(alone: Alone, uid: str) -> bool:
    question = PreVote(alone.raft.raftCurrentTerm + 1, 1, 100, 1)
    (reply,) = [r for r in alone.say(uid, question) if isinstance(r, PreVoteReply)]
    return reply.granted


def test_who_is_left_by_the_leader_votes_for_others(alone: Alone) -> None:
    follow(alone, "n2")
    assert not granted(alone, "n3")
    close(alone, "n2")
    assert granted(alone, "n3")
    alone.tick(TURN_S)
    assert not has_asked(alone), "and lets that one go first"


def test_of_two_who_ask_at_once_one_yields(alone: Alone) -> None:
    follow(alone, "n2")
    close(alone, "n2")
    alone.tick(FORSAKEN_S * 2.01)
    assert has_asked(alone)
    same = PreVote(alone.raft.raftCurrentTerm + 1, 1, alone.raft.log.last_index, alone.raft.log[-1][2])
    better = PreVote(alone.raft.raftCurrentTerm + 1, 1, alone.raft.log.last_index + 1, alone.raft.log[-1][2])
    (first,) = [r for r in alone.say("n3", same) if isinstance(r, PreVoteReply)]
    (second,) = [r for r in alone.say("n3", better) if isinstance(r, PreVoteReply)]
    assert (first.granted, second.granted) == (False, True)


def test_a_won_pre_vote_is_not_put_off_by_somebody_elses(alone: Alone) -> None:
    follow(alone, "n2")
    close(alone, "n2")
    alone.tick(FORSAKEN_S * 2.01)
    (question,) = [m for target, m in alone.exchange.sent if target == "n3" and isinstance(m, PreVote)]
    alone.raft._SyncObj__onMessageReceived(Node("n3"), PreVoteReply(alone.raft.raftCurrentTerm, question.round, True))
    alone.raft._SyncObj__onMessageReceived(Node("n3"), PreVote(alone.raft.raftCurrentTerm + 1, 9, 100, 1))
    alone.exchange.sent.clear()
    alone.tick()
    assert alone.raft._SyncObj__raftState == CANDIDATE
    assert any(isinstance(m, dict | RequestVote) for _, m in alone.exchange.sent)


def test_who_was_frozen_in_the_middle_of_a_tick_asks_before_it_stands(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any of its looks at the clock. It stood for election unasked, and its term deposed a leader that was well."""
    for looks in range(12):
        follow(alone, "n2")
        term, clock, left = alone.raft.raftCurrentTerm, alone.raft._now, looks

        def frozen_after_some_looks(clock: Callable[[], float] = clock) -> float:
            nonlocal left
            left -= 1
            if left == -1:
                alone.sim.now += 2.0
            return clock()

        monkeypatch.setattr(alone.raft, "_now", frozen_after_some_looks)
        monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", frozen_after_some_looks)
        alone.tick()
        alone.tick()
        assert alone.raft._SyncObj__raftState == FOLLOWER
        assert alone.raft.raftCurrentTerm == term
        monkeypatch.setattr(alone.raft, "_now", clock)


def test_who_was_frozen_after_the_others_were_willing_asks_again(alone: Alone) -> None:
    follow(alone, "n2")
    close(alone, "n2")
    alone.tick(FORSAKEN_S * 2.01)
    (question,) = [m for target, m in alone.exchange.sent if target == "n3" and isinstance(m, PreVote)]
    alone.raft._SyncObj__onMessageReceived(Node("n3"), PreVoteReply(alone.raft.raftCurrentTerm, question.round, True))
    alone.exchange.sent.clear()
    alone.tick(2.0)
    assert alone.raft._SyncObj__raftState == FOLLOWER
    assert has_asked(alone)


@pytest.mark.parametrize("seed", range(5))
def test_a_follower_whose_disk_stalls_for_seconds_deposes_nobody(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Sim(tmp_path, monkeypatch, seed=seed)
    sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    sim.run(1.0)
    leader = sim.leader()
    terms = {node.uid: node.consensus.raftCurrentTerm for node in sim.alive() if node.consensus is not None}
    slow = next(node for node in sim.alive() if node.uid != leader)
    slow.sync_s = 3.0
    for number in range(1500):
        if sim.nodes[leader or ""].frozen_until <= sim.now:
            sim.propose(leader or "", f"e{number}")
        sim.step()
    assert sim.leader() == leader
    assert {node.uid: node.consensus.raftCurrentTerm for node in sim.alive() if node.consensus is not None} == terms
    assert len(sim.acknowledged) > 1000


@pytest.mark.parametrize("seed", range(20))
def test_the_next_leader_leads_before_anybody_would_miss_the_old_one(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first term after it: no votes are split."""
    sim = Mortal(tmp_path, monkeypatch, seed=seed)
    sim.found(3 if seed % 2 else 5)
    sim.run_until(lambda: sim.leader() is not None)
    sim.run(1.0)
    old = sim.leader()
    assert old is not None
    consensus = sim.nodes[old].consensus
    assert consensus is not None
    term, begin = consensus.raftCurrentTerm, sim.now
    sim.crash(old)
    sim.run_until(lambda: sim.leader() not in (None, old))
    assert sim.now - begin < sim.options.election_timeout_min_s
    new = sim.nodes[sim.leader() or ""].consensus
    assert new is not None and new.raftCurrentTerm == term + 1


@pytest.mark.parametrize("seed", range(5))
def test_leaders_that_die_one_after_the_other_lose_nothing(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Mortal(tmp_path, monkeypatch, seed=seed)
    uids = sim.found(3)
    sim.loss = 0.02
    for number in range(1500):
        for node in sim.alive():
            if sim.random.random() < 0.3:
                sim.propose(node.uid, f"{node.uid} {number}")
        if number % 60 == 30 and (leader := sim.leader()) is not None:
            sim.crash(leader)
        for uid in uids:
            if sim.nodes[uid].consensus is None and sim.random.random() < 0.05:
                sim.boot(uid)
        sim.step()
    sim.heal()
    sim.run(5.0)
    sim.require_nothing_lost()
    assert len(sim.acknowledged) > 100


def test_a_dead_leader_is_replaced_without_waiting_for_a_timeout(cluster: Cluster) -> None:
    """Timeouts of half a minute from now on, and yet the next write is made."""
    cluster.found(3)
    cluster.leader()
    for replica in cluster.replicas.values():
        assert replica._consensus is not None
        replica._consensus.options = type(cluster.options)(election_timeout_min_s=30.0, election_timeout_max_s=60.0)
        replica._consensus._restart_election_timer()
    leader = cluster.leader()
    cluster.crash(leader)
    follower = next(iter(cluster.replicas))
    assert cluster.replicas[follower].propose(b"goes on", deadline_s=20) == 1
