"""When balancing begins, what it moves, and that it ends."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ha.balance import Budget, History, balance
from ha.load import Demand, Mode, Use, imbalance, load, strain
from ha.placement import Board, NodeFacts, Placed, Policy, Situation
from ha.rules import Affinity, ResourceAffinity, compile_rules
from kvorum.ids import NodeName, Sid

GIB = 1 << 30
NODES = tuple(NodeName(f"n{number}") for number in range(1, 4))
SIDS = tuple(Sid(f"vm:{number}") for number in range(100, 112))
BUDGET = Budget(hold_s=30.0, cooldown_s=300.0, max_moves=2)
DUE = History(over_since=0.0)


def cluster(places: dict[Sid, str | Placed], *rules: ResourceAffinity, sizes: tuple[int, ...] = (4,)) -> Situation:
    placed = {sid: Placed(place) if isinstance(place, str) else place for sid, place in places.items()}
    demands = {sid: Demand(Use(1, sizes[index % len(sizes)] * GIB)) for index, sid in enumerate(placed)}
    nodes = {name: NodeFacts(capacity=Use(16, 64 * GIB)) for name in NODES}
    return Situation(nodes, placed, compile_rules(rules, SIDS, NODES), demands, Policy(Mode.static))


CROWDED = cluster(dict.fromkeys(SIDS[:6], "n1"))


def test_nothing_moves_before_the_imbalance_has_lasted() -> None:
    plan = balance(CROWDED, BUDGET, 100.0, History(), SIDS)
    assert plan.moves == ()
    assert plan.history.over_since == 100.0
    assert "not lasted" in plan.why
    plan = balance(CROWDED, BUDGET, 129.0, plan.history, SIDS)
    assert plan.moves == ()
    plan = balance(CROWDED, BUDGET, 130.0, plan.history, SIDS)
    assert [(move.sid, move.source, move.target) for move in plan.moves] == [
        ("vm:100", "n1", "n2"),
        ("vm:101", "n1", "n3"),
    ]
    assert plan.moves[0].why == "n1 is at 38% and n2 at 0%; the mean is 12%"


def test_a_calm_moment_starts_the_wait_anew() -> None:
    calm = cluster({sid: NODES[index % 3] for index, sid in enumerate(SIDS)})
    plan = balance(calm, BUDGET, 50.0, DUE, SIDS)
    assert plan.history == History()
    assert "within its limit" in plan.why


def test_no_more_moves_at_once_than_the_budget_allows() -> None:
    moving = {**dict.fromkeys(SIDS[:6], "n1"), SIDS[6]: Placed("n2", "n3")}
    assert len(balance(cluster(moving), BUDGET, 99.0, DUE, SIDS).moves) == 1
    assert len(balance(cluster(moving), replace(BUDGET, max_moves=1), 99.0, DUE, SIDS).moves) == 0


def test_a_guest_on_its_way_is_not_sent_elsewhere() -> None:
    places: dict[Sid, str | Placed] = {SIDS[0]: Placed("n2", "n1"), SIDS[1]: Placed("n1", "n2"), SIDS[2]: "n1"}
    plan = balance(cluster(places), replace(BUDGET, max_moves=9), 99.0, DUE, SIDS)
    assert {move.sid for move in plan.moves} <= {SIDS[2]}


def test_a_guest_that_was_moved_rests() -> None:
    history = History(over_since=0.0, moved_at={SIDS[0]: 50.0})
    assert SIDS[0] not in [move.sid for move in balance(CROWDED, BUDGET, 349.0, history, SIDS).moves]
    assert SIDS[0] in [move.sid for move in balance(CROWDED, BUDGET, 350.0, history, SIDS).moves]


def test_only_what_may_move_moves_and_rules_are_kept() -> None:
    assert balance(CROWDED, BUDGET, 99.0, DUE, SIDS[6:]).moves == ()
    apart = ResourceAffinity("apart", frozenset((SIDS[0], SIDS[7])), Affinity.negative)
    places: dict[Sid, str | Placed] = {**dict.fromkeys(SIDS[:6], "n1"), SIDS[7]: "n2", SIDS[8]: "n3", SIDS[9]: "n3"}
    for move in balance(cluster(places, apart), BUDGET, 99.0, DUE, SIDS[:1]).moves:
        assert move.target == "n3"


def test_guests_that_run_together_move_together() -> None:
    pair = ResourceAffinity("pair", frozenset(SIDS[:2]), Affinity.positive)
    plan = balance(cluster(dict.fromkeys(SIDS[:4], "n1"), pair), replace(BUDGET, max_moves=4), 99.0, DUE, SIDS)
    assert plan.moves[0].group == SIDS[:2]
    alone = balance(cluster(dict.fromkeys(SIDS[:4], "n1"), pair), BUDGET, 99.0, DUE, SIDS[1:])
    assert all(SIDS[1] not in move.group for move in alone.moves)


def test_many_small_guests_on_many_nodes_are_evened_out_as_well() -> None:
    names = [NodeName(f"n{number:02}") for number in range(40)]
    sids = [Sid(f"vm:{number}") for number in range(1000, 1400)]
    placed = {sid: Placed(names[index % 20]) for index, sid in enumerate(sids)}
    nodes = {name: NodeFacts(capacity=Use(16, 64 * GIB)) for name in names}
    demands = dict.fromkeys(sids, Demand(Use(0.1, GIB)))
    situation = Situation(nodes, placed, demands=demands, policy=Policy(Mode.static))
    plan = balance(situation, BUDGET, 99.0, DUE, sids)
    assert round(plan.imbalance, 6) == 1.0
    assert len(plan.moves) == 2
    assert {move.target for move in plan.moves} <= set(names[20:])


def test_a_guest_alone_is_not_carried_from_an_equal_node_to_another() -> None:
    assert balance(cluster({SIDS[0]: "n1"}), BUDGET, 99.0, DUE, SIDS).moves == ()


def test_basic_mode_and_a_switch_turn_it_off() -> None:
    basic = replace(CROWDED, policy=Policy(Mode.basic))
    assert balance(basic, BUDGET, 99.0, DUE, SIDS).moves == ()
    assert balance(CROWDED, replace(BUDGET, is_enabled=False), 99.0, DUE, SIDS).why == "balancing is off"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(NODES), min_size=2, max_size=12),
    st.lists(st.integers(1, 16), min_size=1, max_size=12).map(tuple),
    st.integers(1, 3),
)
def test_each_move_lowers_the_strain_and_the_moves_come_to_an_end(
    where: list[NodeName], sizes: tuple[int, ...], at_once: int
) -> None:
    situation = cluster(dict(zip(SIDS, where, strict=False)), sizes=sizes)
    budget = Budget(threshold=0.1, margin=0.05, hold_s=0.0, cooldown_s=0.0, max_moves=at_once)
    history = History()
    before = total_strain(situation)
    for now in range(60):
        plan = balance(situation, budget, float(now), history, SIDS)
        history = plan.history
        if not plan.moves:
            break
        moved = {sid: Placed(move.target) for move in plan.moves for sid in move.group}
        situation = replace(situation, placed={**situation.placed, **moved})
        after = total_strain(situation)
        assert after < before
        before = after
    assert not plan.moves
    assert plan.imbalance == measured_imbalance(situation)


def total_strain(situation: Situation) -> float:
    board = Board(situation)
    return sum(strain(board.use(name), fact.capacity) for name, fact in situation.nodes.items())


def measured_imbalance(situation: Situation) -> float:
    board = Board(situation)
    return imbalance([load(board.use(name), fact.capacity) for name, fact in situation.nodes.items()])
