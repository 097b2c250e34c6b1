"""Clusters of replicas under virtual time, through crashes, cuts, freezes, bad disks and a bad network, each run from one seed.

A failing seed prints itself and the command that replays it. `KVORUM_SIM_SEEDS=5000` runs more; `make sim` runs 10,000.
"""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from pysyncobj.node import Node
from raft_sim import Crash, Sim
from sim_disk import SimDisk, SimFiles
from sim_epochs import recover, rejoin
from sim_mutations import acknowledges_before_the_sync
from sim_run import least, run_all
from sim_weather import STEPS, require_write, simulate

from clusterfs.raft.journal import FileLog
from clusterfs.raft.membership import Change
from clusterfs.raft.messages import AnyMessage, AppendEntries, RequestVote, VoteReply, encode

SEEDS = int(os.environ.get("KVORUM_SIM_SEEDS", "240"))


@pytest.mark.timeout(1800)
def test_no_seed_breaks_a_rule() -> None:
    assert run_all(range(SEEDS), STEPS, os.cpu_count() or 1) == 0


@pytest.mark.parametrize(
    "seed", [31, 570, 736, 1026, 3137, 8754, 100340, 100700, 100734, 101465, 101799, 102019, 102051]
)
def test_a_seed_that_broke_a_rule_once_holds(seed: int) -> None:
    assert simulate(seed).violation == ""


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    """Whatever the order of sets and dicts there."""
    stories = {
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("sim_run.py")), "--seed", "7", "--steps", "400"],
            env={**os.environ, "PYTHONHASHSEED": str(salt)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for salt in (1, 2)
    }
    assert len(stories) == 1 and "leads in term" in stories.pop()


def test_a_seed_tells_its_story() -> None:
    outcome = simulate(11, steps=200, has_story=True)
    assert outcome.violation == "" and outcome.acknowledged
    assert any("leads in term" in line for line in outcome.story)


def test_a_failing_seed_is_told_with_as_little_as_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acknowledges_before_the_sync(monkeypatch)
    assert run_all(range(3, 4), STEPS, jobs=1) == 1
    told = capsys.readouterr().out
    assert "make sim SEED=3\n" in told and "seeds/s" in told
    steps, without = least(3, STEPS)
    assert steps < STEPS and without
    assert f"SEED=3 STEPS={steps} WITHOUT=" in told and "1 of 1 seeds FAILED: 3" in told
    assert simulate(3, steps=steps, without=without).violation


def test_a_rename_that_a_killed_process_had_done_survives_a_power_loss_after_the_next_one() -> None:
    """Found by seeds 147 and 218: the next process believed the new name, which was not durable yet, and built on it."""

    def killed_at_sync(operation: str, _name: str, _is_done: bool) -> None:
        if operation == "sync":
            raise Crash

    for seed in range(20):
        disk = SimDisk()
        held = FileLog(SimFiles(disk, lambda *_: None), uid="n1")
        for index in range(1, 21):
            held.add(b"x", index, 1)
        held.setRaftCommitIndex(20)
        with pytest.raises(Crash):
            dying = FileLog(SimFiles(disk, killed_at_sync), uid="n1")
            dying.compact(10)
        disk_of_the_killed = SimFiles(disk, lambda *_: None)
        again = FileLog(disk_of_the_killed, uid="n1")
        again.add(b"acknowledged", again.last_index + 1, 1)
        again.sync()
        disk.lose_power(random.Random(seed))
        assert FileLog(SimFiles(disk, lambda *_: None), uid="n1")[-1] == (b"acknowledged", 21, 1)


def test_a_node_that_was_away_follows_a_leader_it_never_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Sim(None, monkeypatch, seed=7)
    sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    leader = sim.leader()
    away = next(uid for uid in sim.nodes if uid != leader)
    sim.crash(away)
    sim.add("n4")
    sim.boot("n4")
    while "n4" not in sim.members():
        want(sim, Change("add", "n4", "n4", 1))
        sim.run(0.2)
    lead(sim, "n4")
    sim.boot(away)
    sim.run_until(lambda: follows(sim, away, "n4"), limit_s=5)
    require_write(sim, away)


def test_a_node_follows_a_leader_whom_only_an_uncommitted_entry_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by seed 2: it turned that leader away, who alone could have taken the entry back, and was stuck for ever."""
    sim = Sim(None, monkeypatch, seed=3)
    sim.found(5)
    sim.run_until(lambda: sim.leader() is not None)
    sim.run(1)
    old = sim.leader() or ""
    witness, removed, *_ = (uid for uid in sim.nodes if uid != old)
    sim.deaf = {(old, uid): sim.now for uid in sim.nodes if uid not in (old, witness)}
    want(sim, Change("remove", removed))
    sim.run_until(lambda: removed not in voters(sim, witness), limit_s=1)
    sim.deaf.clear()
    sim.crash(old)
    sim.nodes[witness].frozen_until = sim.now + 20
    sim.run_until(lambda: sim.leader() is not None)
    lead(sim, removed)
    sim.nodes[witness].frozen_until = 0.0
    sim.run_until(lambda: follows(sim, witness, removed), limit_s=5)
    assert removed in voters(sim, witness)


def test_a_node_that_joins_a_recovered_cluster_anew_does_not_lead_by_the_vote_it_once_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by seed 193: the first entry of the log that it was sent names it as the only voter, and it elected itself."""
    sim = Sim(None, monkeypatch, seed=1)
    sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    assert recover(sim, "n2", mark=1)
    sim.boot("n2")
    sim.run_until(lambda: sim.leader() == "n2")
    rejoin(sim, "n1")
    first = voters_only(sim, "n1")
    sim.run_until(lambda: voters(sim, "n1") == first, what="the past, in which n1 votes alone")
    sim.nodes["n2"].frozen_until = sim.now + 5
    sim.run(4)
    assert sim.nodes["n1"].consensus is not None
    assert sim.nodes["n1"].consensus.is_learner and not sim.nodes["n1"].consensus._isLeader()


def voters_only(sim: Sim, uid: str) -> set[str]:
    """From now on nodes are sent one entry at a time, and `uid` gets the first and no other."""
    sim.options = replace(sim.options, batch_entries=1)
    carry = sim.carry

    def sparing(source: str, target: str, payload: bytes, message: AnyMessage) -> None:
        if target == uid and isinstance(message, AppendEntries) and message.entries:
            entries = message.entries[: max(0, 1 - message.prev_index)]
            message = msgspec.structs.replace(message, entries=entries, commit_index=min(1, message.commit_index))
        carry(source, target, encode(message), message)

    sim.carry = sparing  # type: ignore[method-assign]
    return {uid}


def test_nodes_of_the_past_elect_nobody_while_they_join_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by seed 168: one had the log up to where two of three would do, the other had nothing and voted for it."""
    sim = Sim(None, monkeypatch, seed=1)
    sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    assert recover(sim, "n1", mark=1)
    sim.boot("n1")
    sim.run_until(lambda: sim.leader() == "n1")
    asked = RequestVote(9, 3, 1, transfer=True)
    rejoin(sim, "n3")
    consensus, exchange = sim.nodes["n3"].consensus, sim.nodes["n3"].exchange
    assert consensus is not None and exchange is not None and consensus.log.last_index == 0
    exchange.up.add("n2")
    exchange.receive("n2", asked)
    assert [message for _, message in exchange.sent if isinstance(message, VoteReply)] == [VoteReply(9, False)]


def test_the_old_majority_lives_on_and_never_meets_the_recovered_node(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Sim(None, monkeypatch, seed=5)
    sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    sim.propose(sim.leader() or "", "together")
    sim.run_until(lambda: "together" in sim.acknowledged)
    old = sim.ledger
    sim.cuts = {frozenset(("n3", "n1")), frozenset(("n3", "n2"))}
    sim.run(3)
    assert recover(sim, "n3", mark=7)
    sim.boot("n3")
    sim.run_until(lambda: sim.leader() == "n3")
    leader = next(n.uid for n in sim.alive() if n.ledger is old and n.consensus and n.consensus._isLeader())
    sim.propose(leader, "elsewhere")
    sim.propose("n3", "alone")
    sim.run_until(lambda: "elsewhere" in old.acknowledged and "alone" in sim.acknowledged)
    sim.cuts.clear()
    sim.run(2)
    assert {node.uid for node in sim.alive()} == {"n3"}
    rejoin(sim, "n1")
    rejoin(sim, "n2")
    sim.require_nothing_lost()
    assert "together" in sim.acknowledged and "elsewhere" not in sim.acknowledged


def want(sim: Sim, change: Change) -> None:
    for node in sim.alive():
        assert node.consensus is not None
        node.consensus.want_change(change)


def lead(sim: Sim, uid: str) -> None:
    """Have leadership handed over until it is there."""
    while sim.leader() != uid:
        for node in sim.alive():
            if node.consensus is not None and node.consensus._isLeader():
                node.consensus.transferLeadership(Node(uid))
        sim.run(0.2)


def voters(sim: Sim, uid: str) -> set[str]:
    consensus = sim.nodes[uid].consensus
    return set(consensus.configurations.current) if consensus else set()


def follows(sim: Sim, uid: str, leader: str) -> bool:
    consensus = sim.nodes[uid].consensus
    return consensus is not None and consensus._getLeader() == Node(leader)
