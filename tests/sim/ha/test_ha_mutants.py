"""Faults that are built in on purpose: the seeds must see each rule broken, within PATIENCE of them.

Most need a few kinds of events to come together, so only those happen, again and again; `python -m ha.sim` gives every
fourth seed a few kinds of its own in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

from ha import lrm
from ha.keeper import core
from ha.lease_state import LIVE, LeaseState, may_start
from ha.leases import FAST, Terms, may_fence
from ha.manager import FenceLease, arming, case, commands, moving, nodes, ordering, placing, quiet, release, states
from ha.placement import Board, NodeFacts, Placed, Query
from ha.rules import Terms as RuleTerms
from ha.sim import host as hosts
from ha.sim.plan import plan, shrink
from ha.sim.store import Guards
from ha.sim.world import Mutation, Outcome, simulate
from ha.status import Disarm, ManagerStatus, Service, State
from ha.view import Node, View
from kvorum.ids import NodeName

# Within so many seeds each fault must be found.
PATIENCE = 60
HONEST = Mutation()
HASTE = ("command", "command", "maintain")
AGENTS = ("agent", "agent", "cut", "power", "freeze", "restart-daemon")

Patch = Callable[[pytest.MonkeyPatch], None]


def first_violation(rule: str, mutation: Mutation = HONEST, kinds: Sequence[str] = ()) -> Outcome:
    """`kinds`: only such events happen."""
    others: dict[str, int] = {}
    for seed in range(PATIENCE):
        outcome = simulate(seed, mutation, plan(Random(f"plan {seed}"), kinds) if kinds else None)
        if outcome.violation.startswith(rule):
            return outcome
        if outcome.violation:
            others[outcome.violation.split(":")[0]] = seed
    raise AssertionError(f"{PATIENCE} seeds did not see {rule} broken by {mutation}, but {others}")


@pytest.mark.parametrize(
    ("rule", "mutation", "kinds"),
    [
        pytest.param(
            "S3", Mutation(guards=Guards(of_fences=False)), ("freeze", "cut", "power", "restart-daemon"),
            id="a fence does not ask whether the lease was renewed",
        ),
        pytest.param("S8", Mutation(rejoins_uncleared=True), (), id="a keeper takes a new lease before its guests are gone"),
        pytest.param("S3", Mutation(terms=Terms(3.5, 5.0)), (), id="the manager takes over before T"),
        pytest.param(
            "S3", Mutation(goes_by_settings=True), ("profile", "freeze", "cut", "power"),
            id="the manager goes by the profile that is chosen now",
        ),
        pytest.param(
            "S", Mutation(lives_by_the_longer=True), ("profile", "freeze", "cut"),
            id="a shorter profile is said before it is lived by",
        ),
        pytest.param(
            "S4", Mutation(counts_from_reply=True), ("freeze-at-answer", "freeze-at-answer", "freeze", "cut"),
            id="the age counts from the answer",
        ),
        pytest.param(
            "S1", Mutation(guards=Guards(of_confirmations=False)), AGENTS,
            id="a confirmation is for whichever life the node is in",
        ),
        pytest.param(
            "S8", Mutation(guards=Guards(of_renewals=False)), ("agent", "agent", "cut"),
            id="the log renews a lease that was fenced",
        ),
        pytest.param(
            "S6", Mutation(guards=Guards(of_status=False)), ("cut", "freeze", "command", "request"),
            id="a deposed manager's decision counts",
        ),
        pytest.param("S18", Mutation(shows_uncommitted=True), (), id="what is decided is shown before it is committed"),
        pytest.param("S16", Mutation(keeps_watchdog=True), ("disarm", "cut"), id="a watchdog stays armed while disarmed"),
    ],
)  # fmt: skip
def test_the_simulation_finds_a_fault_of_the_model(rule: str, mutation: Mutation, kinds: Sequence[str]) -> None:
    assert first_violation(rule, mutation, kinds).violation


# Faults built into the production code


def never_kills(patch: pytest.MonkeyPatch) -> None:
    honest = core._let_time_pass

    def forgiving(state: core.State, now: float) -> tuple[core.State, tuple[core.Action, ...]]:
        after, actions = honest(state, now)
        is_new = after.phase == core.KILLED and state.phase != core.KILLED
        return (state, ()) if is_new else (after, actions)

    patch.setattr(core, "_let_time_pass", forgiving)


def starts_late(patch: pytest.MonkeyPatch) -> None:
    def lax(state: LeaseState, now: float, sid: str, *, incarnation: int | None = None) -> None:
        may_start(state, min(now, state.valid_until_boottime - 0.1), sid, incarnation=incarnation)

    patch.setattr(hosts, "may_start", lax)
    patch.setattr(lrm, "may_start", lax)


def forgets_what_it_acknowledged(patch: pytest.MonkeyPatch) -> None:
    honest = lrm._register

    def short(memory: lrm.Memory, view: lrm.LocalView, wanted: set[str]) -> tuple[str, ...]:
        return tuple(sorted(wanted)) if view.lease.phase == LIVE else honest(memory, view, wanted)

    patch.setattr(lrm, "_register", short)


def tries_again_what_it_answered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lrm, "_has_failed", lambda _memory, _view, _order: False)


def takes_off_any_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(case, "STALE_LOCKS", frozenset({"backup", "snapshot", "create"}))


def moves_what_a_task_holds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(case.Case, "held_by", lambda _case, _service: "")


def promises_memory_twice(patch: pytest.MonkeyPatch) -> None:
    def roomy(_board: Board, _name: NodeName, _query: Query, _terms: RuleTerms) -> str:
        return ""

    def endless(_board: Board, _facts: NodeFacts) -> float:
        return float("inf")

    patch.setattr(Board, "_lacks_room", roomy)
    patch.setattr(Board, "_limit", endless)


def forgets_an_error(patch: pytest.MonkeyPatch) -> None:
    honest = states.error

    def forgetful(held: case.Case, service: Service) -> Service:
        if not held.wants_running(service) and held.place() == service.node:
            return held.order_stop(service)
        return honest(held, service)

    patch.setitem(states._STATES, State.error, forgetful)  # type: ignore[arg-type]


def fences_whoever_is_silent(patch: pytest.MonkeyPatch) -> None:
    def hasty(view: View, _services: Mapping[str, Service]) -> tuple[FenceLease, ...]:
        return tuple(
            FenceLease(node.name, node.uid, node.lease.incarnation, node.lease.renewal, "it is silent")
            for node in view.nodes.values()
            if node.lease is not None and may_fence(node.lease)
        )

    patch.setattr(nodes, "fences", hasty)


def asks_only_the_source(patch: pytest.MonkeyPatch) -> None:
    begin = moving.begin

    def forgets(*given: Any, **named: Any) -> Service:
        return msgspec.structs.replace(begin(*given, **named), carried_to="")

    patch.setattr(moving, "begin", forgets)


def recovers_what_was_never_guarded(patch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def careless(node: Node | None, sid: str, service: Service) -> str:
        if node is not None:
            node = replace(node, lrm=msgspec.structs.replace(node.lrm, tracked=(sid,)))
        return honest(node, sid, service)

    patch.setattr(release, "has_released", careless)


def recovers_before_the_fence(patch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def hasty(node: Node | None, sid: str, service: Service) -> str:
        if node is not None and node.lease is not None and node.lease.age_s > FAST.pause_after_s:
            return "it has been silent for a while"
        return honest(node, sid, service)

    patch.setattr(release, "has_released", hasty)


def moves_before_it_is_released(patch: pytest.MonkeyPatch) -> None:
    honest = release.has_released

    def hasty(node: Node | None, sid: str, service: Service) -> str:
        return "it will stop" if service.state is State.relocate else honest(node, sid, service)

    patch.setattr(release, "has_released", hasty)


def counts_present_places_only(patch: pytest.MonkeyPatch) -> None:
    def here_only(service: Service) -> Placed:
        return Placed("" if service.state is State.recovery else service.node)

    patch.setattr(placing, "placed", here_only)


def asks_for_no_start_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ordering, "held_start", lambda _case, _service: None)


def takes_an_order_for_a_guest_that_runs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ordering, "is_up", lambda _view, service: service is not None and service.state is State.started)


def disarms_without_an_end(patch: pytest.MonkeyPatch) -> None:
    honest = arming.follow

    def endless(view: View, services: Mapping[str, Service], disarm: Disarm | None, now: float) -> Disarm | None:
        return honest(view, services, disarm, now) or disarm

    patch.setattr(arming, "follow", endless)


def works_while_disarmed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ManagerStatus, "is_disarmed", property(lambda _status: False))
    patch.setattr(states, "rest", lambda _case, service: service)


def overlooks_a_lease_without_renewals(patch: pytest.MonkeyPatch) -> None:
    """Its count, 0, once compared equal to the False of a lease that may not be fenced yet."""
    honest = quiet.inputs

    def confused(view: View, revision: int) -> object:
        before, rest, seen = honest(view, revision)[:4], honest(view, revision)[5:], honest(view, revision)[4]
        changed = tuple(
            (name, uid, lease and (*lease[:-1], False if lease[-1] is None else lease[-1])) for name, uid, lease in seen
        )
        return (*before, changed, *rest)

    patch.setattr(quiet, "inputs", confused)


def answers_no_command(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commands, "settle_answers", lambda answers, _services, _view, _now: dict(answers))


@pytest.mark.parametrize(
    ("rule", "fault", "kinds"),
    [
        pytest.param("S4", never_kills, ("cut", "freeze"), id="never kills"),
        pytest.param("S4", starts_late, ("freeze-at-fork", "freeze-at-fork", "crash-guest", "cut"), id="starts late"),
        pytest.param("S5", forgets_what_it_acknowledged, ("disarm", "remove", "add", "cut"), id="a list that shrinks"),
        pytest.param("S6", tries_again_what_it_answered, ("spoil", "spoil", "cut", "power"), id="tries again"),
        pytest.param("S10", takes_off_any_lock, ("back-up", "back-up", "power", "cut", "freeze"), id="any lock"),
        pytest.param(
            "S10", moves_what_a_task_holds, ("back-up", "back-up", "command", "command", "power", "spoil"),
            id="moves what a task holds",
        ),
        pytest.param("S12", promises_memory_twice, ("power", "cut", "command", "maintain"), id="memory twice"),
        pytest.param("S14", forgets_an_error, ("spoil", "spoil", "crash-guest", "request"), id="forgets an error"),
        pytest.param("S15", fences_whoever_is_silent, ("power", "cut"), id="fences whoever is silent"),
        pytest.param("S1", asks_only_the_source, ("snatch", "add"), id="asks only the source of a migration"),
        pytest.param(
            "S1", recovers_what_was_never_guarded, ("add-and-cut", "add-and-cut", "remove", "add"), id="never guarded"
        ),
        pytest.param("S3", recovers_before_the_fence, ("freeze", "power", "cut"), id="recovers before the fence"),
        pytest.param("S1", moves_before_it_is_released, HASTE, id="moves before it is released"),
        pytest.param("S11", counts_present_places_only, ("maintain", "maintain", "power", "add"), id="counts present places"),
        pytest.param("S20", asks_for_no_start_order, (), id="asks for no start-order"),
        pytest.param("S20", takes_an_order_for_a_guest_that_runs, (), id="takes an order for a guest that runs"),
        pytest.param("liveness", disarms_without_an_end, (), id="disarms without an end"),
        pytest.param("S16", works_while_disarmed, ("disarm", "power"), id="works while disarmed"),
        pytest.param("L2", overlooks_a_lease_without_renewals, ("die-young",), id="overlooks a lease without renewals"),
        pytest.param("liveness", answers_no_command, ("command", "command", "add"), id="answers no command"),
    ],
)  # fmt: skip
def test_the_simulation_finds_a_fault_of_the_code(
    monkeypatch: pytest.MonkeyPatch, rule: str, fault: Patch, kinds: Sequence[str]
) -> None:
    fault(monkeypatch)
    assert first_violation(rule, kinds=kinds).violation


def test_the_simulation_finds_an_order_that_outlives_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the local resource manager nor the agent asks in which life of the node the order was given."""

    def any_life(state: LeaseState, now: float, sid: str, *, incarnation: int | None = None) -> None:
        assert incarnation is not None
        may_start(state, now, sid)

    monkeypatch.setattr(lrm, "_is_of_this_life", lambda view, _order: view.lease.phase == LIVE)
    monkeypatch.setattr(lrm, "may_start", any_life)
    assert first_violation("S", Mutation(skips_generation=True), ("agent", "agent", "power")).violation


def test_what_is_left_of_a_failing_plan_still_fails_and_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    moves_before_it_is_released(monkeypatch)
    outcome = first_violation("S1", kinds=HASTE)
    left = shrink(outcome.events, lambda events: simulate(outcome.seed, events=events).violation.startswith("S1"))
    assert simulate(outcome.seed, events=left).violation.startswith("S1")
    assert len(left) < len(outcome.events)
