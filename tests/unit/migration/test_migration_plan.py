"""The table, and `settle` tried on every state the world can be in: at most one copy runs, and only where the config is."""

import itertools
from dataclasses import dataclass, replace

import pytest

from agent.migration.plan import Evidence, Look, Outcome, Owner, Phase, Step, may_cancel, next_phase, next_step, settle

REAL = (Look.running, Look.paused, Look.gone)
OWNERS = (Owner.source, Owner.target, Owner.other)


@dataclass(frozen=True)
class World:
    """What is really so, whoever can see it."""

    source: Look
    target: Look
    owner: Owner

    def is_possible(self) -> bool:
        """By the rule: the config leaves the source when its copy has ended, and the target's runs only with the config.

        One exception is allowed for, a target's copy that somebody resumed by hand, because `settle` deals with it.
        """
        if self.owner is not Owner.source and self.source is Look.running:
            return False
        return not (self.source is Look.running and self.target is Look.running)


WORLDS = [world for world in (World(*parts) for parts in itertools.product(REAL, REAL, OWNERS)) if world.is_possible()]
MASKS = list(itertools.product((True, False), repeat=3))


def seen(world: World, mask: tuple[bool, bool, bool], *, was_running: bool = True) -> Evidence:
    source, target, owner = mask
    return Evidence(
        world.source if source else Look.unknown,
        world.target if target else Look.unknown,
        world.owner if owner else Owner.unknown,
        was_running,
    )


def perform(world: World, step: Step) -> World:
    """The step's effect, after checking that it may be done."""
    match step:
        case Step.stop_source:
            return replace(world, source=Look.gone)
        case Step.stop_target:
            return replace(world, target=Look.gone)
        case Step.move_config:
            assert world.source is Look.gone and world.target is not Look.gone
            return replace(world, owner=Owner.target)
        case Step.resume_source | Step.start_source:
            assert world.owner is Owner.source
            assert (world.source is Look.gone) is (step is Step.start_source)
            return replace(world, source=Look.running)
        case Step.resume_target | Step.start_target:
            assert world.owner is Owner.target
            assert (world.target is Look.gone) is (step is Step.start_target)
            return replace(world, target=Look.running)
        case Step.done | Step.wait:
            return world
        case _:
            raise AssertionError(f"{step} is no step of a settlement")


@pytest.mark.parametrize("was_running", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("world", WORLDS)
def test_settling_never_lets_two_copies_run(world: World, mask: tuple[bool, bool, bool], was_running: bool) -> None:
    if not mask[1] and world.owner is Owner.source and world.target is Look.running:
        return  # Resumed by hand against the rule, and unseen: nobody could know.
    for step in settle(seen(world, mask, was_running=was_running)):
        world = perform(world, step)
        assert not (world.source is Look.running and world.target is Look.running), step


@pytest.mark.parametrize("world", WORLDS)
def test_who_sees_everything_ends_with_one_copy_where_the_config_is(world: World) -> None:
    for step in settle(seen(world, (True, True, True))):
        assert step is not Step.wait
        world = perform(world, step)
    match world.owner:
        case Owner.source:
            assert (world.source, world.target) == (Look.running, Look.gone)
        case Owner.target:
            assert (world.source, world.target) == (Look.gone, Look.running)
        case _:
            assert (world.source, world.target) == (Look.gone, Look.gone)
    assert settle(seen(world, (True, True, True))) == (Step.done,)


@pytest.mark.parametrize("world", WORLDS)
def test_the_last_copy_of_the_memory_is_never_given_up_unseen(world: World) -> None:
    """Gone here and unseen there: it may have arrived whole."""
    if world.owner is Owner.source and world.source is Look.gone:
        assert settle(seen(world, (True, False, True))) == (Step.wait,)
    # A copy at the source without the config is older than what went to the target.
    if world.target is Look.paused and world.owner is not Owner.other:
        steps = settle(seen(world, (True, True, True)))
        assert Step.start_source not in steps and Step.start_target not in steps


@pytest.mark.parametrize("world", WORLDS)
def test_without_a_majority_nothing_is_touched(world: World) -> None:
    assert settle(seen(world, (True, True, False))) == (Step.wait,)


def test_a_guest_that_a_person_had_paused_stays_paused() -> None:
    arrived = Evidence(Look.gone, Look.paused, Owner.target, was_running=False)
    assert settle(arrived) == (Step.done,)
    assert settle(replace(arrived, was_running=True)) == (Step.resume_target, Step.done)


def test_the_good_way_leads_through_all_phases() -> None:
    phase, steps = Phase.preparing, []
    while phase is not Phase.resumed:
        steps.append(next_step(phase))
        following = next_phase(phase, Outcome.ok)
        assert following is not None
        phase = following
    assert steps == [Step.prepare, Step.copy, Step.move_config, Step.resume_target]
    assert next_step(phase) is Step.release


def test_every_failure_ends_and_what_is_uncertain_is_looked_at() -> None:
    for phase, outcome in itertools.product(Phase, Outcome):
        seen_phases = []
        following: Phase | None = phase
        while following is not None and following not in (Phase.failed, Phase.resumed):
            assert following not in seen_phases, "a circle"
            seen_phases.append(following)
            following = next_phase(following, outcome if len(seen_phases) == 1 else Outcome.ok)
    # From arrival on, an answer that did not come is no failure.
    assert next_phase(Phase.copying, Outcome.unknown) is None
    assert next_phase(Phase.arrived, Outcome.unknown) is None
    assert next_phase(Phase.owned, Outcome.failed) is None


def test_cancelling_ends_where_the_source_no_longer_has_the_guest() -> None:
    assert [phase for phase in Phase if may_cancel(phase)] == [Phase.preparing, Phase.copying]
