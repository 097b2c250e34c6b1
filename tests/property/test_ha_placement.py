"""Placement against its definition, and what must hold whatever the cluster looks like."""

from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ha.load import Demand, Mode, Use, added_strain, imbalance, strain
from ha.placement import Board, NodeFacts, Placed, Policy, Preference, Query, Situation, choose_node
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rule, compile_rules
from kvorum.ids import NodeName, Sid

SIDS = tuple(Sid(f"vm:{number}") for number in range(100, 105))
NODES = tuple(NodeName(f"n{number}") for number in range(1, 5))
ME = SIDS[0]

resource_sets = st.frozensets(st.sampled_from(SIDS), min_size=2, max_size=4)
priorities = st.dictionaries(st.sampled_from(NODES), st.integers(0, 2), min_size=1)
weights = st.sampled_from((1, 100))
contents = st.one_of(
    st.builds(NodeAffinity, st.just("r"), resource_sets, priorities, st.booleans(), weight=weights),
    st.builds(ResourceAffinity, st.just("r"), resource_sets, st.sampled_from(Affinity), st.booleans(), weight=weights),
)
rule_lists = st.lists(contents, max_size=4).map(
    lambda rules: [replace(rule, id=f"r{index}") for index, rule in enumerate(rules)]
)
placements = st.builds(Placed, st.sampled_from(NODES), st.sampled_from(("", "", *NODES)), st.booleans())
facts = st.builds(NodeFacts, st.sampled_from(("", "", "is down")), other_guests=st.integers(0, 3))
queries = st.builds(
    Query,
    st.just(ME),
    st.sampled_from((Preference.best_score, Preference.try_next)),
    failed=st.lists(st.sampled_from(NODES), max_size=2, unique=True).map(tuple),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Situation, list[Rule]]:
    rules = draw(rule_lists)
    nodes = {name: draw(facts) for name in NODES[: draw(st.integers(1, 4))]}
    others = draw(st.dictionaries(st.sampled_from(SIDS[1:]), placements))
    return Situation(nodes, others, compile_rules(rules, SIDS, tuple(nodes))), rules


def destination(situation: Situation, sid: Sid) -> str:
    placed = situation.placed.get(sid)
    return (placed.target or placed.node) if placed is not None and placed.is_active else ""


def oracle(query: Query, situation: Situation) -> str:
    """The definition, read off the rules one by one, for the count of guests."""
    terms = situation.rules.terms(query.sid)
    legal = [
        name
        for name, node in situation.nodes.items()
        if not node.unready and (terms.allowed is None or name in terms.allowed)
    ]
    free = [
        name
        for name in legal
        if not any(
            other in situation.placed
            and situation.placed[other].is_active
            and name in (situation.placed[other].node, situation.placed[other].target)
            for other in terms.apart
        )
    ]
    settled = [name for name in legal if name not in {destination(situation, other) for other in terms.apart}]

    def cost(name: str) -> int:
        total = 0
        for wish in terms.wishes:
            total += wish.weight * wish.steps.get(NodeName(name), wish.otherwise)
        for affinity in terms.affinities:
            places = [place for place in (destination(situation, sid) for sid in affinity.partners) if place]
            bad = [place for place in places if (place == name) == (affinity.affinity is Affinity.negative)]
            total += affinity.weight * len(bad)
        return total

    partners = [destination(situation, sid) for sid in terms.group if sid != query.sid]
    homes = [name for name in settled if name in partners]
    if homes:
        home = min(homes, key=lambda name: (-partners.count(name), cost(name), name))
        free = [name for name in free if name == home]

    def guests(name: str) -> int:
        own = sum(destination(situation, sid) == name for sid in situation.placed if sid != query.sid)
        return own + situation.nodes[NodeName(name)].other_guests

    free = [name for name in free if name not in query.failed]
    return min(free, key=lambda name: (cost(name), guests(name), name), default="")


@settings(max_examples=600, deadline=None)
@given(queries, situations())
def test_the_choice_is_what_the_definition_says(query: Query, found: tuple[Situation, list[Rule]]) -> None:
    situation, _ = found
    choice = choose_node(query, situation)
    assert choice.node == oracle(query, situation)
    assert choose_node(query, situation) == choice
    for name in situation.nodes:
        assert bool(choice.why_not(name)) == (name != choice.node)


@settings(max_examples=400, deadline=None)
@given(queries, situations())
def test_a_choice_keeps_every_strict_rule(query: Query, found: tuple[Situation, list[Rule]]) -> None:
    situation, rules = found
    choice = choose_node(query, situation)
    yielded = {conflict.yields for conflict in situation.rules.conflicts}
    if not choice.node:
        return
    for rule in rules:
        if query.sid not in rule.resources or not rule.is_strict or rule.id in yielded:
            continue
        if isinstance(rule, NodeAffinity):
            assert choice.node in rule.nodes
        elif rule.affinity is Affinity.negative:
            for other in rule.resources - {query.sid}:
                placed = situation.placed.get(other)
                assert placed is None or not placed.is_active or choice.node not in (placed.node, placed.target)


@settings(max_examples=300, deadline=None)
@given(queries, situations(), st.permutations(NODES))
def test_neither_order_nor_names_of_the_nodes_decide(
    query: Query, found: tuple[Situation, list[Rule]], order: list[NodeName]
) -> None:
    situation, _ = found
    shuffled = replace(situation, nodes={name: situation.nodes[name] for name in order if name in situation.nodes})
    choice = choose_node(query, situation)
    assert choose_node(query, shuffled) == choice
    # Renamed, the same one unless names alone told it from another.
    if len(choice.ranked) > 1 and choice.ranked[1].cost == choice.cost and choice.ranked[1].score == choice.score:
        return
    names = dict(zip(NODES, order, strict=True))
    assume(len(situation.rules.terms(query.sid).group) == 1)
    assert choose_node(_renamed_query(query, names), _renamed(found, names)).node == (
        names[NodeName(choice.node)] if choice.node else ""
    )


def _renamed_query(query: Query, names: dict[NodeName, NodeName]) -> Query:
    return replace(query, failed=tuple(names[NodeName(name)] for name in query.failed))


def _renamed(found: tuple[Situation, list[Rule]], names: dict[NodeName, NodeName]) -> Situation:
    situation, rules = found
    nodes = {names[name]: node for name, node in situation.nodes.items()}
    placed = {
        sid: replace(one, node=names[NodeName(one.node)], target=names[NodeName(one.target)] if one.target else "")
        for sid, one in situation.placed.items()
    }
    new_rules = [
        replace(rule, nodes={names[name]: rank for name, rank in rule.nodes.items()})
        if isinstance(rule, NodeAffinity)
        else rule
        for rule in rules
    ]
    return Situation(nodes, placed, compile_rules(new_rules, SIDS, tuple(nodes)))


@settings(max_examples=300, deadline=None)
@given(queries, situations())
def test_a_node_that_was_not_chosen_may_go_away(query: Query, found: tuple[Situation, list[Rule]]) -> None:
    """Down, that is; a member less may turn a rule that fitted into one that cannot be kept."""
    situation, _ = found
    choice = choose_node(query, situation)
    assume(choice.node)
    bound = {destination(situation, sid) for sid in situation.rules.terms(query.sid).group}
    for name, fact in situation.nodes.items():
        if name != choice.node and name not in bound:
            without = {**situation.nodes, name: replace(fact, unready="is down")}
            assert choose_node(query, replace(situation, nodes=without)).node == choice.node


@settings(max_examples=300, deadline=None)
@given(situations(), st.sampled_from(NODES), st.booleans())
def test_who_may_stay_stays_and_who_goes_gains(
    found: tuple[Situation, list[Rule]], current: NodeName, failback: bool
) -> None:
    situation, _ = found
    assume(current in situation.nodes)
    situation = replace(situation, placed={**situation.placed, ME: Placed(current)})
    board = Board(situation)
    choice = board.choose(Query(ME, Preference.none, current, failback))
    terms = situation.rules.terms(ME)
    if choice.node in ("", current):
        return
    is_down = bool(situation.nodes[current].unready)
    is_forbidden = terms.allowed is not None and current not in terms.allowed
    is_beside = any(destination(situation, other) == current for other in terms.apart)
    is_alone = len(terms.group) > 1 and not board.is_allowed(ME, current)
    gains = failback and board.cost(ME, NodeName(choice.node)) < board.cost(ME, current)
    assert is_down or is_forbidden or is_beside or is_alone or gains


@settings(max_examples=150, deadline=None)
@given(situations())
def test_guests_that_follow_their_rules_come_to_rest(found: tuple[Situation, list[Rule]]) -> None:
    """Each goes where it is told to at once; after a few rounds nobody moves any more."""
    situation, _ = found
    placed = {sid: Placed(one.node) for sid, one in situation.placed.items() if one.node in situation.nodes}
    for _ in range(12):
        board = Board(replace(situation, placed=placed))
        for sid in sorted(placed):
            here = placed[sid].node
            choice = board.choose(Query(sid, Preference.none, here))
            if choice.node and choice.node != here:
                board.put(sid, Placed(here, choice.node))
        after = {sid: Placed(one.target or one.node) for sid, one in board.placed.items()}
        if after == placed:
            return
        placed = after
    raise AssertionError(f"they still move: {placed}")


uses = st.builds(Use, st.floats(0, 1000), st.floats(0, 1e13))
capacities = st.builds(Use, st.floats(0.5, 1000), st.floats(1e6, 1e13))


@given(uses, capacities, uses, uses)
def test_scores_are_finite_and_grow_with_the_load(use: Use, capacity: Use, guest: Use, more: Use) -> None:
    score = added_strain(use, capacity, guest)
    assert 0 <= score < float("inf")
    assert added_strain(use + more, capacity, guest) >= score - 1e-9 * max(1.0, score, strain(use + more, capacity))
    assert strain(use + more, capacity) >= strain(use, capacity)


@given(st.lists(st.floats(0, 1e6), max_size=20), st.floats(0.5, 10))
def test_imbalance_is_bounded_and_knows_no_unit(loads: list[float], factor: float) -> None:
    assert 0.0 <= imbalance(loads) <= max(1, len(loads) - 1) ** 0.5 + 1e-6
    assert abs(imbalance(loads) - imbalance([factor * one for one in loads])) < 1e-6


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.lists(st.integers(1, 64), min_size=1, max_size=4),
    st.sampled_from((Mode.static, Mode.dynamic)),
)
def test_no_node_is_given_more_memory_than_it_has(guests: list[int], nodes: list[int], mode: Mode) -> None:
    facts = {name: NodeFacts(capacity=Use(8, size)) for name, size in zip(NODES, nodes, strict=False)}
    demands = {sid: Demand(Use(1, size), Use(0.1, size / 2)) for sid, size in zip(SIDS, guests, strict=False)}
    board = Board(Situation(facts, demands=demands, policy=Policy(mode)))
    for sid, demand in demands.items():
        choice = board.choose(Query(sid))
        if choice.node:
            board.put(sid, Placed(choice.node))
        else:
            assert all(board.free_bytes(name) < demand.most.memory_bytes for name in facts)
    for name, fact in facts.items():
        there = [sid for sid, one in board.placed.items() if one.node == name]
        assert sum(demands[sid].most.memory_bytes for sid in there) <= fact.capacity.memory_bytes
