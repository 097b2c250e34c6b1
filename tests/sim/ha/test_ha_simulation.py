"""Clusters through cuts, crashes, freezes and late answers, each from one seed; and faults that the same seeds must find.

A failure prints its seed; `python -m ha.sim --seed N` tells its story. `KVORUM_HA_SEEDS=2000` runs more of them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

from ha import lrm
from ha.leases import FAST, Terms
from ha.manager import arming, commands, moving, ordering, placing, release, states
from ha.placement import Placed
from ha.sim.plan import plan, shrink
from ha.sim.world import Mutation, Outcome, simulate
from ha.status import Disarm, ManagerStatus, Service, State
from ha.view import Node, View

SEEDS = int(os.environ.get("KVORUM_HA_SEEDS", "100"))
GROUP = 25
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


def _first_violation(mutation: Mutation, rule: str, first: int = 0, kinds: Sequence[str] = ()) -> Outcome:
    """`kinds`: only such events happen, for faults that need a rare coincidence of a few of them."""
    for seed in range(first, first + PATIENCE):
        outcome = simulate(seed, mutation, plan(Random(f"plan {seed}"), kinds) if kinds else None)
        if outcome.violation.startswith(rule):
            return outcome
    raise AssertionError(f"{PATIENCE} seeds did not notice {mutation}")


@pytest.mark.parametrize(
    ("mutation", "rule"),
    [
        pytest.param(Mutation(unguarded_fence=True), "S", id="a fence does not ask whether the lease was renewed"),
        pytest.param(Mutation(rejoins_uncleared=True), "S", id="a keeper takes a new lease before its guests are gone"),
        pytest.param(Mutation(terms=Terms(3.5, 5.0)), "S3", id="the manager takes over before T"),
        pytest.param(Mutation(goes_by_settings=True), "S", id="the manager goes by the profile that is chosen now"),
        pytest.param(Mutation(lives_by_the_longer=True), "S1", id="a shorter profile is said before it is lived by"),
    ],
)
def test_the_simulation_finds_a_fault_that_was_built_in(mutation: Mutation, rule: str) -> None:
    assert _first_violation(mutation, rule).violation


def test_the_simulation_finds_an_age_that_counts_from_the_answer() -> None:
    kinds = ("freeze-at-answer", "freeze-at-answer", "freeze", "cut")
    assert _first_violation(Mutation(counts_from_reply=True), "S", first=100, kinds=kinds).violation


AGENTS = ("agent", "agent", "cut", "power", "freeze", "restart-daemon")


def test_what_fence_agents_confirm_late_runs_no_guest_twice() -> None:
    outcomes = [simulate(seed, Mutation(), plan(Random(f"agents {seed}"), AGENTS)) for seed in range(40)]
    assert [f"seed {outcome.seed}: {outcome.violation}" for outcome in outcomes if outcome.violation] == []
    assert sum(outcome.fences for outcome in outcomes) > 40


def test_the_simulation_finds_a_confirmation_that_is_for_any_life_of_the_node() -> None:
    assert _first_violation(Mutation(confirms_any_life=True), "S", kinds=AGENTS).violation


def test_the_simulation_finds_a_recovery_of_a_guest_that_was_never_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def careless(node: Node | None, sid: str, service: Service) -> str:
        if node is not None:
            node = replace(node, lrm=msgspec.structs.replace(node.lrm, tracked=(sid,)))
        return honest(node, sid, service)

    monkeypatch.setattr(release, "has_released", careless)
    kinds = ("add-and-cut", "add-and-cut", "remove", "add")
    assert _first_violation(Mutation(), "S1", kinds=kinds).violation


def test_the_simulation_finds_a_recovery_before_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def hasty(node: Node | None, sid: str, service: Service) -> str:
        if node is not None and node.lease is not None and node.lease.age_s > FAST.pause_after_s:
            return "it has been silent for a while"
        return honest(node, sid, service)

    monkeypatch.setattr(release, "has_released", hasty)
    assert _first_violation(Mutation(), "S1").violation


# Faults built into the manager. Each test names the rule that its seeds must see broken.


def test_the_simulation_finds_an_order_that_outlives_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrm, "_is_of_this_life", lambda view, _order: view.lease.phase == "live")
    kinds = ("freeze-at-start", "freeze-at-start", "freeze-at-start", "crash-guest", "power")
    assert _first_violation(Mutation(skips_generation=True), "S", first=1000, kinds=kinds).violation


def test_the_simulation_finds_a_move_before_the_guest_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def hasty(node: Node | None, sid: str, service: Service) -> str:
        return "it will stop" if service.state is State.relocate else honest(node, sid, service)

    monkeypatch.setattr(release, "has_released", hasty)
    assert _first_violation(Mutation(), "S").violation


def test_the_simulation_finds_that_only_present_places_count_for_those_to_be_kept_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here_only(service: Service) -> Placed:
        return Placed("" if service.state is State.recovery else service.node)

    monkeypatch.setattr(placing, "placed", here_only)
    assert _first_violation(Mutation(), "S11").violation


def test_the_simulation_finds_that_start_orders_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "held_start", lambda _case, _service: None)
    assert _first_violation(Mutation(), "S20").violation


def test_the_simulation_finds_that_an_order_counts_as_a_guest_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ordering, "is_up", lambda _view, service: service is not None and service.state is State.started
    )
    assert _first_violation(Mutation(), "S20").violation


def test_the_simulation_finds_a_disarm_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = arming.follow

    def endless(view: View, services: Mapping[str, Service], disarm: Disarm | None, now: float) -> Disarm | None:
        return honest(view, services, disarm, now) or disarm

    monkeypatch.setattr(arming, "follow", endless)
    assert _first_violation(Mutation(), "liveness").violation


def test_the_simulation_finds_that_work_goes_on_while_disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ManagerStatus, "is_disarmed", property(lambda _status: False))
    monkeypatch.setattr(states, "rest", lambda _case, service: service)
    assert _first_violation(Mutation(), "S16").violation


def test_the_simulation_finds_commands_that_are_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "settle_answers", lambda answers, _services, _view, _now: dict(answers))
    assert _first_violation(Mutation(), "liveness").violation


def test_what_is_left_of_a_failing_plan_still_fails_and_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def hasty(node: Node | None, sid: str, service: Service) -> str:
        return "it will stop" if service.state is State.relocate else honest(node, sid, service)

    monkeypatch.setattr(release, "has_released", hasty)
    outcome = _first_violation(Mutation(), "S1")
    left = shrink(outcome.events, lambda events: simulate(outcome.seed, events=events).violation.startswith("S1"))
    assert simulate(outcome.seed, events=left).violation.startswith("S1")
    assert len(left) < len(outcome.events)


def test_a_migration_whose_target_is_not_asked_for_the_guest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target runs its copy a moment before the order follows; in that moment somebody moves the file on."""
    begin = moving.begin

    def forgets(*given: Any, **named: Any) -> Service:
        return msgspec.structs.replace(begin(*given, **named), carried_to="")

    monkeypatch.setattr(moving, "begin", forgets)
    kinds = ("move-by-hand", "command", "command-again", "add")
    assert _first_violation(Mutation(), "S1", 320, kinds).seed < 320 + PATIENCE
    monkeypatch.undo()
    assert simulate(331, events=plan(Random("plan 331"), kinds)).violation == ""
