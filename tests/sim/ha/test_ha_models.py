"""The models to their last state, and the faults that each must find. `python -m ha.model` prints the counterexamples."""

from functools import partial

import pytest

from ha.model import memory, ownership, slot
from ha.model.__main__ import first_broken
from ha.model.explore import explore


@pytest.mark.parametrize("name", ownership.STARTS)
def test_no_order_of_events_lets_a_guest_run_twice(name: str) -> None:
    found = explore(ownership.STARTS[name], partial(ownership.steps, ownership.Rules()), ownership.broken)
    assert found.broken == ""
    assert found.states > 10_000, "a model in which nothing happens proves nothing"


@pytest.mark.parametrize("name", ownership.MUTATIONS)
def test_a_fault_in_the_rules_of_ownership_has_a_counterexample(name: str) -> None:
    found = first_broken(ownership.STARTS, ownership.steps, ownership.MUTATIONS[name], ownership.broken)
    assert found is not None
    assert found.broken.startswith("the guest runs on ")


@pytest.mark.parametrize("name", memory.STARTS)
def test_renewals_that_a_majority_keeps_in_memory_would_be_safe(name: str) -> None:
    found = explore(memory.STARTS[name], partial(memory.steps, memory.Rules()), memory.broken)
    assert found.broken == ""
    assert found.states > 10_000


@pytest.mark.parametrize("name", memory.MUTATIONS)
def test_a_fault_in_the_rules_of_memory_has_a_counterexample(name: str) -> None:
    found = first_broken(memory.STARTS, memory.steps, memory.MUTATIONS[name], memory.broken)
    assert found is not None
    assert found.broken == "X is fenced and lives"


@pytest.mark.parametrize("name", slot.STARTS)
def test_a_slot_on_shared_storage_fences_nobody_who_lives_by_it(name: str) -> None:
    found = explore(slot.STARTS[name], partial(slot.steps, slot.Rules()), slot.broken)
    assert found.broken == ""
    # Without shared storage nothing can be said about a slot, so little happens.
    assert found.states > (10_000 if slot.STARTS[name].is_shared else 100)


@pytest.mark.parametrize("name", slot.MUTATIONS)
def test_a_fault_in_the_rules_of_the_slot_has_a_counterexample(name: str) -> None:
    found = first_broken(slot.STARTS, slot.steps, slot.MUTATIONS[name], slot.broken)
    assert found is not None
    assert found.broken == "X is fenced and lives"


def test_a_survivor_fences_in_the_end_but_not_without_a_look_at_the_slot() -> None:
    def fenced(state: slot.State) -> str:
        return "fenced" if state.is_fenced else ""

    steps = partial(slot.steps, slot.Rules())
    found = explore(slot.STARTS["a slot"], steps, fenced)
    assert (found.broken, found.story[-1]) == ("fenced", "the log applies the fence")
    assert "the read ends: nothing has changed" in found.story
    assert found.story.count("time passes") >= slot.TAKEOVER
    blind = slot.STARTS["a slot"]._replace(reads=False)
    assert explore(blind, steps, fenced).broken == ""


def test_the_shortest_story_is_told() -> None:
    def steps(state: int) -> list[tuple[str, int]]:
        return [("one more", state + 1), ("twice as many", state * 2)] if state < 20 else []

    found = explore(1, steps, lambda state: "ten" if state == 10 else "")
    assert found.story == ("one more", "twice as many", "one more", "twice as many")
    assert explore(1, steps, lambda _state: "").broken == ""


def test_a_model_that_is_too_large_proves_nothing() -> None:
    with pytest.raises(AssertionError, match="smaller"):
        explore(0, lambda state: [("on", state + 1)], lambda _state: "", limit=100)
