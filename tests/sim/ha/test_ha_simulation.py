"""Clusters through cuts, crashes, freezes and late answers, each from one seed. Faults that they must find: `test_ha_mutants`.

A failure prints its seed; `python -m ha.sim --seed N` tells its story. `KVORUM_HA_SEEDS=2000` runs more of them.
"""

import os
from random import Random

import pytest

from ha.sim.plan import plan
from ha.sim.world import Mutation, simulate

SEEDS = int(os.environ.get("KVORUM_HA_SEEDS", "300"))
GROUP = 25
AGENTS = ("agent", "agent", "cut", "power", "freeze", "restart-daemon")


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_no_guest_runs_twice_and_all_come_to_rest(first: int) -> None:
    outcomes = [simulate(seed) for seed in range(first, min(first + GROUP, SEEDS))]
    assert [f"seed {outcome.seed}: {outcome.violation}" for outcome in outcomes if outcome.violation] == []
    # A simulation in which nothing happens proves nothing.
    assert sum(outcome.starts for outcome in outcomes) > 10
    assert sum(outcome.fences for outcome in outcomes) > 0


def test_a_seed_always_tells_the_same_story() -> None:
    assert simulate(3) == simulate(3)


@pytest.mark.parametrize(
    ("kinds", "fences"),
    [
        pytest.param(AGENTS, 40, id="fence agents that confirm late"),
        pytest.param(("snatch", "snatch", "add", "power"), 0, id="files that are moved as a migration ends"),
        pytest.param(("back-up", "command", "power", "spoil"), 0, id="tasks that hold guests"),
    ],
)
def test_a_few_kinds_of_events_at_a_high_rate_run_no_guest_twice(kinds: tuple[str, ...], fences: int) -> None:
    outcomes = [simulate(seed, Mutation(), plan(Random(f"agents {seed}"), kinds)) for seed in range(40)]
    assert [f"seed {outcome.seed}: {outcome.violation}" for outcome in outcomes if outcome.violation] == []
    assert sum(outcome.fences for outcome in outcomes) >= fences
