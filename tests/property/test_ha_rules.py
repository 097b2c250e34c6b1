"""Rules: text and back, merging in any order, and feasibility that only falls."""

from dataclasses import replace
from itertools import permutations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from ha.rules import Affinity, Compiled, NodeAffinity, ResourceAffinity, Rule, Rules, compile_rules, parse_rules
from ha.rules.feasible import contradictions, is_feasible
from kvorum.errors import ConfigError
from kvorum.ids import NodeName, Sid

SIDS = tuple(Sid(f"vm:{number}") for number in range(100, 105))
NODES = tuple(NodeName(f"n{number}") for number in range(1, 5))

resource_sets = st.frozensets(st.sampled_from(SIDS), min_size=1, max_size=4)
priorities = st.dictionaries(st.sampled_from(NODES), st.integers(0, 2), min_size=1)
contents = st.one_of(
    st.builds(NodeAffinity, st.just("r"), resource_sets, priorities, st.booleans(), weight=st.integers(1, 3)),
    st.builds(
        ResourceAffinity,
        st.just("r"),
        resource_sets,
        st.sampled_from(Affinity),
        st.booleans(),
        weight=st.integers(1, 3),
    ),
)


def named(rules: list[Rule]) -> list[Rule]:
    return [replace(rule, id=f"r{index}") for index, rule in enumerate(rules)]


rule_lists = st.lists(contents, max_size=5).map(named)


def place_everything(rules: list[Rule], nodes: tuple[NodeName, ...]) -> bool:
    """The definition itself: is there any way to put the guests that keeps every strict rule?"""
    strict = [rule for rule in rules if rule.is_strict]
    for where in product(nodes, repeat=len(SIDS)):
        place = dict(zip(SIDS, where, strict=True))
        if all(_is_kept(rule, place) for rule in strict):
            return True
    return False


def _is_kept(rule: Rule, place: dict[Sid, NodeName]) -> bool:
    places = [place[sid] for sid in rule.resources]
    match rule:
        case NodeAffinity():
            return all(node in rule.nodes for node in places)
        case ResourceAffinity(affinity=Affinity.positive):
            return len(set(places)) <= 1
    return len(set(places)) == len(places)


@given(rule_lists)
def test_what_is_written_is_read_back(rules: list[Rule]) -> None:
    written = Rules()
    for rule in rules:
        written = written.with_rule(rule)
    again = parse_rules(written.render())
    assert list(again) == rules
    assert again == written
    assert again.problems == ()


@given(st.text(alphabet="node-affinity:resource \n\t#vm:100,n1:2x", max_size=120) | st.text(max_size=50))
def test_any_text_is_rules_or_a_config_error(text: str) -> None:
    try:
        rules = parse_rules(text)
    except ConfigError:
        return
    assert rules.render() == text
    assert parse_rules(rules.render()) == rules


@settings(max_examples=150, deadline=None)
@given(rule_lists, st.integers(2, 4))
def test_feasible_means_that_the_guests_can_be_put_somewhere(rules: list[Rule], count: int) -> None:
    nodes = NODES[:count]
    strict = [rule for rule in rules if rule.is_strict and len(rule.resources) > 1 - isinstance(rule, NodeAffinity)]
    if all(set(rule.nodes) <= set(nodes) for rule in strict if isinstance(rule, NodeAffinity)):
        assert is_feasible(strict, nodes) == place_everything(strict, nodes)


@settings(max_examples=200, deadline=None)
@given(rule_lists)
def test_a_conflict_is_one_and_no_smaller_one_is_hidden_in_it(rules: list[Rule]) -> None:
    strict = [rule for rule in rules if rule.is_strict]
    found = contradictions(strict, NODES)
    for core in found:
        assert not is_feasible(core, NODES)
        for left_out in core:
            assert is_feasible([rule for rule in core if rule is not left_out], NODES)
    yielded = {core[-1].id for core in found}
    assert is_feasible([rule for rule in strict if rule.id not in yielded], NODES)


@settings(max_examples=200, deadline=None)
@given(rule_lists)
def test_taking_a_rule_away_never_makes_the_rest_infeasible(rules: list[Rule]) -> None:
    strict = [rule for rule in rules if rule.is_strict]
    if is_feasible(strict, NODES):
        assert all(is_feasible([other for other in strict if other is not rule], NODES) for rule in strict)


def _essence(compiled: Compiled) -> object:
    return {
        sid: (
            terms.group,
            terms.allowed,
            frozenset(terms.apart),
            frozenset((wish.rule, tuple(sorted(wish.steps.items()))) for wish in terms.wishes),
            frozenset((wish.rule, wish.partners) for wish in terms.affinities),
        )
        for sid, terms in compiled.by_sid.items()
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(contents, max_size=4).map(named))
def test_the_order_of_rules_matters_to_conflicts_alone(rules: list[Rule]) -> None:
    first = compile_rules(rules, SIDS, NODES)
    if not first.conflicts:
        for order in permutations(rules):
            assert _essence(compile_rules(order, SIDS, NODES)) == _essence(first)


@settings(max_examples=200, deadline=None)
@given(st.lists(contents, max_size=5).map(named))
def test_one_rule_more_at_the_end_never_allows_more(rules: list[Rule]) -> None:
    before, after = compile_rules(rules[:-1], SIDS, NODES), compile_rules(rules, SIDS, NODES)
    for sid in SIDS:
        old, new = before.terms(sid), after.terms(sid)
        assert set(old.group) <= set(new.group)
        assert set(old.apart) <= set(new.apart) | set(new.group)
        assert old.allowed is None or (new.allowed is not None and new.allowed <= old.allowed)
