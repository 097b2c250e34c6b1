"""Start-order rules: never a circle, the smallest one named, and decisions that keep them."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from ha.rules import StartOrder, compile_rules, parse_rules
from ha.rules.order import compile_orders
from ha.rules.text import Rules
from kvorum.ids import Sid

SIDS = tuple(Sid(f"vm:{number}") for number in range(100, 106))


@st.composite
def orders(draw: st.DrawFn) -> StartOrder:
    guests = draw(st.lists(st.sampled_from(SIDS), min_size=2, max_size=4, unique=True))
    cut = draw(st.integers(1, len(guests) - 1))
    delay_s = draw(st.integers(0, 60))
    deadline_s = draw(st.none() | st.integers(delay_s + 1, 400))
    return StartOrder("r", frozenset(guests[:cut]), frozenset(guests[cut:]), delay_s, deadline_s, draw(st.booleans()))


rule_lists = st.lists(orders(), max_size=6).map(
    lambda rules: [replace(rule, id=f"r{index}") for index, rule in enumerate(rules)]
)


def has_circle(rules: list[StartOrder]) -> bool:
    """The definition itself: guests that nobody keeps from starting are taken away until none is left."""
    left = set(SIDS)
    while left:
        free = {sid for sid in left if not any(sid in rule.resources and rule.after & left for rule in rules)}
        if not free:
            return True
        left -= free
    return False


@given(rule_lists)
def test_what_is_written_is_read_back(rules: list[StartOrder]) -> None:
    written = Rules()
    for rule in rules:
        written = written.with_rule(rule)
    assert list(parse_rules(written.render())) == rules


@settings(max_examples=300)
@given(rule_lists)
def test_what_counts_makes_no_circle_and_only_what_would_is_left_out(rules: list[StartOrder]) -> None:
    found, cycles = compile_orders(rules)
    left_out = {cycle.rules[-1] for cycle in cycles}
    kept = [rule for rule in rules if rule.id not in left_out]
    assert not has_circle(kept)
    assert {wait.rule for waits in found.waits.values() for wait in waits} == {rule.id for rule in kept}
    for index, rule in enumerate(rules):
        before = [one for one in rules[:index] if one.id not in left_out]
        assert (rule.id in left_out) == has_circle([*before, rule])
    for waits in found.waits.values():
        assert all(found.depth[wait.first] < found.depth[wait.then] for wait in waits)


@settings(max_examples=300)
@given(rule_lists)
def test_a_named_circle_is_one_and_none_of_its_rules_can_be_spared(rules: list[StartOrder]) -> None:
    by_id = {rule.id: rule for rule in rules}
    for cycle in compile_orders(rules)[1]:
        core = [by_id[name] for name in cycle.rules]
        assert has_circle(core)
        assert not any(has_circle([rule for rule in core if rule is not left_out]) for left_out in core[-1:])
        assert len(set(cycle.guests)) == len(cycle.guests)
        for first, then in pairwise((*cycle.guests, cycle.guests[0])):
            assert any(then in rule.resources and first in rule.after for rule in core)


@given(rule_lists)
def test_a_circle_is_told_and_weakens_no_other_rule(rules: list[StartOrder]) -> None:
    compiled = compile_rules(rules, SIDS, ())
    for conflict in compiled.conflicts:
        assert conflict.is_cycle
        assert "make a cycle" in str(conflict)
        assert conflict.yields in str(conflict)
    assert compiled.by_sid == {}


@given(rule_lists, st.dictionaries(st.sampled_from(SIDS), st.integers(-9, 9)))
def test_nobody_is_less_urgent_than_who_waits_for_it(rules: list[StartOrder], priorities: dict[Sid, int]) -> None:
    found, _ = compile_orders(rules)
    inherited = found.with_inherited(priorities)
    for waits in found.waits.values():
        assert all(inherited[wait.first] >= inherited[wait.then] for wait in waits)
    assert all(inherited[sid] >= priorities.get(sid, 0) for sid in inherited)
    assert all(inherited[sid] in {priorities.get(one, 0) for one in SIDS} for sid in inherited)
