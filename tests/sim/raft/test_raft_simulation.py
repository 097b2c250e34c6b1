"""A cluster of replicas through crashes, cuts, freezes and a bad network, each run from one seed.

A failure prints its seed as the test's parameter. `KVORUM_SIM_SEEDS=500` runs more of them.
"""

import os
from pathlib import Path

import pytest
from raft_sim import Sim

SEEDS = int(os.environ.get("KVORUM_SIM_SEEDS", "12"))


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
