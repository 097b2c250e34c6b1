"""Clusters through cuts, crashes, freezes and late answers, each from one seed; and faults that the same seeds must find.

A failure prints its seed; `python -m ha.sim --seed N` tells its story. `KVORUM_HA_SEEDS=2000` runs more of them.
"""

import os
from dataclasses import replace

import msgspec
import pytest

from ha.leases import FAST, Terms
from ha.manager import release
from ha.sim.world import Mutation, Outcome, simulate
from ha.status import Service
from ha.view import Node

SEEDS = int(os.environ.get("KVORUM_HA_SEEDS", "100"))
GROUP = 10
# Within so many seeds each fault must be found.
PATIENCE = 300


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_no_guest_runs_twice_and_all_come_to_rest(first: int) -> None:
    outcomes = [simulate(seed) for seed in range(first, min(first + GROUP, SEEDS))]
    assert [f"seed {outcome.seed}: {outcome.violation}" for outcome in outcomes if outcome.violation] == []
    # A simulation in which nothing happens proves nothing.
    assert sum(outcome.starts for outcome in outcomes) > 10
    assert sum(outcome.fences for outcome in outcomes) > 0


def test_a_seed_always_tells_the_same_story() -> None:
    assert simulate(3) == simulate(3)


def _first_violation(mutation: Mutation, rule: str, first: int = 0) -> Outcome:
    for seed in range(first, first + PATIENCE):
        outcome = simulate(seed, mutation)
        if outcome.violation.startswith(rule):
            return outcome
    raise AssertionError(f"{PATIENCE} seeds did not notice {mutation}")


@pytest.mark.parametrize(
    ("mutation", "rule"),
    [
        pytest.param(
            Mutation(counts_from_reply=True), "S", id="the keeper counts from the answer, not from the sending"
        ),
        pytest.param(Mutation(unguarded_fence=True), "S", id="a fence does not ask whether the lease was renewed"),
        pytest.param(Mutation(rejoins_uncleared=True), "S", id="a keeper takes a new lease before its guests are gone"),
        pytest.param(Mutation(terms=Terms(3.5, 5.0)), "S3", id="the manager takes over before T"),
        pytest.param(Mutation(goes_by_settings=True), "S", id="the manager goes by the profile that is chosen now"),
        pytest.param(Mutation(lives_by_the_longer=True), "S1", id="a shorter profile is said before it is lived by"),
    ],
)
def test_the_simulation_finds_a_fault_that_was_built_in(mutation: Mutation, rule: str) -> None:
    assert _first_violation(mutation, rule).violation


def test_the_simulation_finds_a_recovery_of_a_guest_that_was_never_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def careless(node: Node | None, sid: str, service: Service) -> str:
        if node is not None:
            node = replace(node, lrm=msgspec.structs.replace(node.lrm, tracked=(sid,)))
        return honest(node, sid, service)

    monkeypatch.setattr(release, "has_released", careless)
    assert _first_violation(Mutation(), "S1", first=150).violation


def test_the_simulation_finds_a_recovery_before_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def hasty(node: Node | None, sid: str, service: Service) -> str:
        if node is not None and node.lease is not None and node.lease.age_s > FAST.pause_after_s:
            return "it has been silent for a while"
        return honest(node, sid, service)

    monkeypatch.setattr(release, "has_released", hasty)
    assert _first_violation(Mutation(), "S1").violation
