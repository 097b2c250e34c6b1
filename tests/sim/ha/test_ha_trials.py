"""Liveness: what a cluster that has come to rest must do when it is tried, in seeds in which little happened before.

Also seeds in which no stall is longer than the profile tolerates, so that nothing may be lost (L11), and whole stories that must
not hang on what the wall clocks say (S17).
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec
import pytest

from ha import balance, lrm
from ha.leases import FAST, Lease, Profile
from ha.manager import arming, case, moving, placing, states
from ha.placement import Choice, Preference
from ha.resources import Resource
from ha.rules import Rules
from ha.sim import decisions
from ha.sim.plan import Planned, mild_plan, plan
from ha.sim.world import Mutation, Outcome, simulate
from ha.status import Disarm, LrmStatus, ManagerStatus, Service, State
from ha.view import Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

PATIENCE = 60
# Next to nothing happens before the trial.
CALM = ("join",)

Patch = Callable[[pytest.MonkeyPatch], None]


def drains_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moving, "drain", lambda _case, service: service)


def does_not_come_back(patch: pytest.MonkeyPatch) -> None:
    honest = placing.Placing.choose

    def forgetful(self: placing.Placing, resource: Resource, preference: Preference, **more: Any) -> Choice:
        return honest(self, resource, preference, **{**more, "maintenance_node": ""})

    patch.setattr(placing.Placing, "choose", forgetful)


def balances_towards_the_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(balance, "added_strain", lambda _use, _capacity, _guest: 0.0)


def stays_disarmed(patch: pytest.MonkeyPatch) -> None:
    honest = arming.follow

    def endless(view: View, services: Mapping[str, Service], disarm: Disarm | None, now: float) -> Disarm | None:
        return honest(view, services, disarm, now) or disarm

    patch.setattr(arming, "follow", endless)


def dawdles(patch: pytest.MonkeyPatch) -> None:
    honest = states.recovery

    def slow(held: case.Case, service: Service) -> Service:
        return service if held.now % 60 < 45 else honest(held, service)

    patch.setitem(states._STATES, State.recovery, slow)  # type: ignore[arg-type]


def forgets_no_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lrm, "_forget", lambda memory, _mine: memory)


@pytest.mark.parametrize(
    ("rule", "fault", "trial", "kinds"),
    [
        pytest.param("L1", dawdles, "lose leader", CALM, id="guests of a dead node wait for no reason"),
        pytest.param("L5", drains_nobody, "drain", CALM, id="maintenance drains nobody"),
        pytest.param("L6", balances_towards_the_full, "balance", CALM, id="balancing makes it worse"),
        pytest.param("L7", does_not_come_back, "drain", CALM, id="nobody comes back after maintenance"),
        pytest.param("L8", stays_disarmed, "rearm", CALM, id="HA stays disarmed"),
        pytest.param("L10", forgets_no_answer, "", ("command", "power"), id="answers are kept for ever"),
    ],
)
def test_a_trial_finds_a_fault(
    monkeypatch: pytest.MonkeyPatch, rule: str, fault: Patch, trial: str, kinds: Sequence[str]
) -> None:
    fault(monkeypatch)
    for seed in range(PATIENCE):
        if simulate(seed, Mutation(), plan(Random(f"plan {seed}"), kinds), trial=trial).violation.startswith(rule):
            return
    raise AssertionError(f"{PATIENCE} seeds did not see {rule} broken")


def test_every_kind_of_trial_is_passed() -> None:
    outcomes = [simulate(seed, Mutation(), plan(Random(f"plan {seed}"), CALM)) for seed in range(25)]
    assert [f"seed {outcome.seed}: {outcome.violation}" for outcome in outcomes if outcome.violation] == []
    passed = {what for outcome in outcomes for what in outcome.counts if what.startswith("trials")}
    assert passed == {"trials: balance", "trials: drain", "trials: lose leader", "trials: rearm"}


def test_room_that_goes_to_the_lower_priority_is_noticed() -> None:
    """L12, on entries made by hand: it takes a full cluster to come by, so seeds see it seldom."""
    first, second = Sid("vm:100"), Sid("vm:101")
    lrm_status = LrmStatus(incarnation=1, tracked=(first, second))
    waits = Service(state=State.recovery, node="n1", uid="a", incarnation=1)
    gets = Service(state=State.recovery, node="n1", uid="b", incarnation=1)
    before = ManagerStatus(service_status={first: waits, second: gets})
    after = ManagerStatus(service_status={first: waits, second: msgspec.structs.replace(gets, target="n2")})
    n1, n2 = NodeName("n1"), NodeName("n2")
    view = View(
        is_leader=True,
        is_quorate=True,
        self_node=n2,
        nodes={n2: Node(n2, NodeUid("n2"), Lease(1, 9, False, 0.5, FAST.terms), lrm_status)},
        resources=None,
        configs={sid: Config(n1, 5) for sid in (first, second)},
        status=before,
        status_version=7,
    )
    for priority, rule in ((5, "L12"), (0, "")):
        resources = {first: Resource(first, priority=priority), second: Resource(second)}
        places = {str(first): "n1", str(second): "n1"}
        facts = decisions.Facts(resources, Rules(), places, dict.fromkeys(places, 4.0), {"n2": 4.0})
        assert decisions.broken(before, after, view, facts)[: len("L12")] == rule


# Stalls that the profile tolerates


def mild(seed: int) -> Outcome:
    return simulate(seed, Mutation(), mild_plan(Random(f"mild {seed}")))


def test_stalls_that_the_profile_tolerates_cost_no_guest_and_no_fence() -> None:
    outcomes = [mild(seed) for seed in range(15)]
    assert [f"seed {outcome.seed}: {outcome.violation}" for outcome in outcomes if outcome.violation] == []
    assert sum(outcome.counts.get("keepers: paused", 0) for outcome in outcomes) > 5, (
        "the stalls are long enough to be felt"
    )


def test_a_keeper_that_kills_when_it_should_pause_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Profile, "kill_after_s", property(lambda profile: profile.pause_after_s))
    assert any(mild(seed).violation.startswith("L11") for seed in range(PATIENCE))


# The wall clock


def _events(seed: int) -> tuple[Planned, ...]:
    """All but clocks that jump."""
    return plan(Random(f"clock {seed}"), ("spoil", "crash-guest", "command", "disarm", "maintain", "power"))


def _differs(seed: int) -> bool:
    early, late = (simulate(seed, Mutation(), _events(seed), epoch=epoch) for epoch in (1e9, 1.7e9 + 12345))
    return early.story != late.story


def test_what_the_wall_clocks_say_changes_no_story() -> None:
    assert [seed for seed in range(8) if _differs(seed)] == []


def test_a_decision_that_hangs_on_the_time_of_day_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = case.Case.is_waiting

    def on_the_minute(self: case.Case, until: int, longest_s: int) -> bool:
        return honest(self, until, longest_s) or self.now % 60 < 30

    monkeypatch.setattr(case.Case, "is_waiting", on_the_minute)
    assert any(_differs(seed) for seed in range(PATIENCE))
