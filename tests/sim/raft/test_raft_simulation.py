"""A cluster of replicas through crashes, cuts, freezes and a bad network, each run from one seed.

A failure prints its seed as the test's parameter. `KVORUM_SIM_SEEDS=500` runs more of them.
"""

import os
from pathlib import Path

import pytest
from pysyncobj.node import Node
from raft_sim import Sim

from clusterfs.raft.membership import Change

SEEDS = int(os.environ.get("KVORUM_SIM_SEEDS", "7"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_fault_loses_an_acknowledged_entry(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Sim(tmp_path, monkeypatch, seed=seed)
    uids = sim.found(5 if seed % 3 == 0 else 3)
    chance = sim.random
    sim.loss, sim.doubling, sim.crash_chance = (
        chance.choice([0, 0.02, 0.2]),
        chance.choice([0, 0.1]),
        chance.choice([0, 0.002]),
    )
    if seed % 4 == 1:
        sim.delay_s = (0.0, 0.2)
    for number in range(2000):
        alive = sim.alive()
        if alive and chance.random() < 0.6:
            sim.propose(chance.choice(alive).uid, f"e{number}")
        match chance.randrange(500):
            case 0:
                sim.cuts = {
                    frozenset((uid, other))
                    for uid in chance.sample(uids, len(uids) // 2)
                    for other in uids
                    if uid != other
                }
            case 1:
                sim.cuts = {frozenset(chance.sample(uids, 2))}
            case 2 | 3:
                sim.cuts = set()
            case 4 if alive:
                sim.crash(chance.choice(alive).uid)
            case 5 if (leader := sim.leader()) is not None:
                sim.crash(leader)
            case 6 if alive:
                chance.choice(alive).frozen_until = sim.now + chance.uniform(0.2, 4)
            case 7:
                for node in list(alive):
                    sim.crash(node.uid)
        for uid in uids:
            if sim.nodes[uid].consensus is None and chance.random() < 0.03:
                sim.boot(uid)
        sim.step()
    sim.heal()
    sim.run_until(lambda: sim.leader() is not None)
    for uid in uids:
        require_write(sim, uid)
    sim.require_nothing_lost()
    assert len(sim.acknowledged) > len(uids)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_members_come_and_go_among_faults_and_nothing_is_lost(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Sim(tmp_path, monkeypatch, seed=seed)
    sim.found(3)
    chance = sim.random
    sim.loss, sim.crash_chance = chance.choice([0, 0.05]), chance.choice([0, 0.001])
    wanted: Change | None = None
    for number in range(2500):
        alive = sim.alive()
        if alive and chance.random() < 0.3:
            sim.propose(chance.choice(alive).uid, f"e{number}")
        if number % 100 == 0:
            wanted = next_change(sim)
        if number % 10 == 0 and wanted is not None and alive:
            consensus = chance.choice(alive).consensus
            assert consensus is not None
            consensus.want_change(wanted)
        match chance.randrange(700):
            case 0:
                sim.cuts = {frozenset(chance.sample(sorted(sim.nodes), 2))}
            case 1:
                sim.cuts = set()
            case 2 if alive:
                sim.crash(chance.choice(alive).uid)
            case 3 if (leader := sim.leader()) is not None:
                sim.crash(leader)
            case 4 if alive:
                chance.choice(alive).frozen_until = sim.now + chance.uniform(0.2, 3)
        for uid, node in sim.nodes.items():
            if node.consensus is None and chance.random() < 0.05:
                sim.boot(uid)
        sim.step()
    sim.heal()
    sim.run_until(lambda: sim.leader() is not None)
    for uid in sim.members():
        require_write(sim, uid)
    sim.require_nothing_lost()
    assert sim.joined


def test_a_node_that_was_away_follows_a_leader_it_never_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Sim(tmp_path, monkeypatch, seed=7)
    sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    leader = sim.leader()
    away = next(uid for uid in sim.nodes if uid != leader)
    sim.crash(away)
    sim.add("n4")
    sim.boot("n4")
    while "n4" not in sim.members():
        for node in sim.alive():
            assert node.consensus is not None
            node.consensus.want_change(Change("add", "n4", "n4", 1))
        sim.run(0.2)
    while sim.leader() != "n4":
        for node in sim.alive():
            assert node.consensus is not None
            if node.consensus._isLeader():
                node.consensus.transferLeadership(Node("n4"))
        sim.run(0.2)
    sim.boot(away)
    sim.run_until(lambda: _follows(sim, away, "n4"), limit_s=5)
    require_write(sim, away)


def _follows(sim: Sim, uid: str, leader: str) -> bool:
    consensus = sim.nodes[uid].consensus
    return consensus is not None and consensus._getLeader() == Node(leader)


def next_change(sim: Sim) -> Change | None:
    """A newcomer, or one member fewer while there are more than three."""
    members = sim.members()
    if not members:
        return None
    if len(members) > 3 and sim.random.random() < 0.6:
        return Change("remove", sim.random.choice(members))
    uid = f"n{len(sim.nodes) + 1}"
    if len(sim.nodes) < 9:
        sim.add(uid)
        sim.boot(uid)
        sim.joined.append(uid)
        return Change("add", uid, uid, 1)
    outside = [uid for uid in sim.nodes if uid not in members]
    return Change("add", sim.random.choice(outside), "again", 1) if outside else None


def require_write(sim: Sim, uid: str) -> None:
    """A node can write, within a few tries, and each try is answered."""
    for attempt in range(5):
        text = f"last {uid} {attempt}"
        sim.propose(uid, text)
        sim.run_until(lambda t=text: t not in sim.waiting, limit_s=10)
        if text in sim.acknowledged:
            return
        sim.run(1.0)
    raise AssertionError(f"{uid} cannot write")
