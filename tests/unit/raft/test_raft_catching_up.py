"""Who has fallen behind catches up while others go on writing, however often the log is cut meanwhile."""

from dataclasses import replace
from pathlib import Path

import pytest
from raft_sim import QUICK, Sim

from clusterfs.raft.consensus import HELD_SNAPSHOTS

# A snapshot takes some ten steps on its way; in that time more is written than makes the next one due.
NARROW = replace(QUICK, compact_entries=10, keep_entries=0, snapshot_chunk_bytes=200, snapshot_window_bytes=400)


def left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> tuple[Sim, str, str]:
    """The cluster, its leader, and a follower that has been cut off for longer than the log goes back."""
    sim = Sim(tmp_path, monkeypatch, seed=seed, options=NARROW)
    sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    sim.run(1.0)
    leader = sim.leader() or ""
    away = next(node.uid for node in sim.alive() if node.uid != leader)
    sim.cuts |= {frozenset((away, node.uid)) for node in sim.alive() if node.uid != away}
    for number in range(200):
        sim.propose(leader, f"early {number}")
        sim.step()
    return sim, leader, away


@pytest.mark.parametrize("seed", range(5))
def test_a_follower_far_behind_catches_up_while_writers_go_on(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, leader, away = left_behind(tmp_path, monkeypatch, seed)
    sim.cuts.clear()
    lags = []
    for number in range(1000):
        sim.propose(leader, f"late {number}")
        sim.step()
        behind, ahead = sim.nodes[away].consensus, sim.nodes[leader].consensus
        assert behind is not None and ahead is not None
        lags.append(ahead.raftCommitIndex - behind.raftLastApplied)
        if lags[-1] < NARROW.compact_entries:
            break
    assert lags[-1] < NARROW.compact_entries, f"it stays behind by {min(lags[-100:])} to {max(lags[-100:])} entries"
    sim.require_nothing_lost()


def test_the_log_is_not_kept_without_end_for_who_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim, leader, _away = left_behind(tmp_path, monkeypatch, 0)
    # It hears everything and its answers are lost.
    away = next(node.uid for node in sim.alive() if frozenset((leader, node.uid)) in sim.cuts)
    sim.cuts.clear()
    sim.deaf = {(away, node.uid): sim.now for node in sim.alive() if node.uid != away}
    consensus = sim.nodes[leader].consensus
    assert consensus is not None
    for number in range(300):
        sim.propose(leader, f"late {number}")
        sim.step()
        kept = consensus.log.last_index - consensus.log.base_index
        assert kept <= (HELD_SNAPSHOTS + 2) * NARROW.compact_entries + NARROW.batch_entries
