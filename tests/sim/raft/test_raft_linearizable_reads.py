"""Linearizable reads among faults: none misses what was acknowledged, anywhere, before it began."""

import os
from pathlib import Path

import pytest
from pysyncobj import FAIL_REASON
from raft_sim import Sim

from clusterfs.raft.reads import Read

SEEDS = int(os.environ.get("KVORUM_SIM_SEEDS", "7"))


class Reader:
    """Reads on one replica at a time and judges each answer by what was acknowledged when the read began."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.served = 0

    def read(self, uid: str) -> None:
        consensus = self.sim.nodes[uid].consensus
        assert consensus is not None
        known = max(self.sim.acknowledged.values(), default=0)

        def done(value: object, reason: int) -> None:
            if reason == FAIL_REASON.SUCCESS:
                assert isinstance(value, int)
                assert value >= known, f"{uid} read at {value}, but {known} was acknowledged before"
                assert consensus.raftLastApplied >= value
                self.served += 1

        consensus.submit_read(Read(done, lambda: None))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_read_misses_what_was_acknowledged_before(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Sim(tmp_path, monkeypatch, seed=seed)
    uids = sim.found(5 if seed % 3 == 0 else 3)
    reader, chance = Reader(sim), sim.random
    sim.loss, sim.doubling = chance.choice([0, 0.05]), chance.choice([0, 0.1])
    if seed % 2:
        sim.delay_s = (0.0, 0.1)
    for number in range(1500):
        alive = sim.alive()
        if alive and chance.random() < 0.4:
            sim.propose(chance.choice(alive).uid, f"e{number}")
        for node in alive:
            if chance.random() < 0.3:
                reader.read(node.uid)
        leader = sim.leader()
        match chance.randrange(150):
            case 0:
                sim.cuts = {frozenset(chance.sample(uids, 2))}
            case 1 if leader is not None:
                # The leader is cut off, with whoever goes on to read there.
                sim.cuts = {frozenset((leader, other)) for other in uids if other != leader}
            case 2 | 3:
                sim.cuts = set()
            case 4 if leader is not None:
                sim.nodes[leader].frozen_until = sim.now + chance.uniform(0.5, 3)
            case 5 if alive:
                sim.crash(chance.choice(alive).uid)
        for uid in uids:
            if sim.nodes[uid].consensus is None and chance.random() < 0.03:
                sim.boot(uid)
        sim.step()
    sim.heal()
    sim.run_until(lambda: sim.leader() is not None)
    before = reader.served
    for uid in uids:
        sim.run_until(lambda u=uid: _is_served(sim, reader, u), limit_s=10)
    sim.require_nothing_lost()
    assert before > 0


def _is_served(sim: Sim, reader: Reader, uid: str) -> bool:
    before = reader.served
    reader.read(uid)
    sim.run(0.5)
    return reader.served > before
