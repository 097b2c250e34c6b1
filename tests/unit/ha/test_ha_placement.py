"""One choice after the other, and the words for it."""

from collections.abc import Mapping
from dataclasses import replace

from ha.load import Demand, Mode, Use
from ha.placement import (
    Board,
    NodeFacts,
    Placed,
    Policy,
    Preference,
    Query,
    Situation,
    choose_node,
    explain,
)
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rule, compile_rules
from kvorum.ids import NodeName, Sid

GIB = 1 << 30
A, B, C, D = Sid("vm:100"), Sid("vm:101"), Sid("ct:102"), Sid("vm:103")
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
NODES = {name: NodeFacts() for name in (N1, N2, N3)}


def cluster(
    places: Mapping[Sid, str | Placed], *rules: Rule, nodes: Mapping[NodeName, NodeFacts] = NODES, down: str = ""
) -> Situation:
    facts = {name: replace(fact, unready="is silent") if name == down else fact for name, fact in nodes.items()}
    placed = {sid: Placed(place) if isinstance(place, str) else place for sid, place in places.items()}
    return Situation(facts, placed, compile_rules(rules, (A, B, C, D), tuple(nodes)))


def near(rule_id: str, *sids: Sid, nodes: str, strict: bool = False) -> NodeAffinity:
    ranked = [item.partition(":") for item in nodes.split()]
    return NodeAffinity(rule_id, frozenset(sids), {NodeName(n): int(rank or 0) for n, _, rank in ranked}, strict)


def apart(*sids: Sid, strict: bool = True) -> ResourceAffinity:
    return ResourceAffinity("apart", frozenset(sids), Affinity.negative, strict)


def together(*sids: Sid) -> ResourceAffinity:
    return ResourceAffinity("together", frozenset(sids), Affinity.positive)


def test_the_emptiest_node_takes_it_and_the_others_say_why_not() -> None:
    choice = choose_node(Query(D), cluster({A: "n1", B: "n1", C: "n2"}, down="n3"))
    assert (choice.node, choice.why) == ("n2", "n2 has the fewest guests (1)")
    assert choice.why_not(N1) == "would do, but gets fuller than n2 (2 against 1)"
    assert choice.why_not(N3) == "is silent"
    assert choice.why_not(N2) == ""


def test_no_node_is_an_answer_with_every_reason() -> None:
    situation = cluster({B: "n1"}, apart(A, B), near("licence", A, nodes="n1 n3", strict=True), down="n3")
    choice = choose_node(Query(A, failed=("n2",)), situation)
    assert choice.node == ""
    assert choice.why == (
        "none of 3 nodes can take it now: n1 has vm:101, which rule apart keeps apart from it; n2 did not start it; "
        "n3 is silent"
    )


def test_a_wish_for_a_node_and_a_strict_rule_on_the_same_guests_both_hold() -> None:
    situation = cluster({A: "n1"}, near("prefer", A, B, nodes="n1"), apart(A, B))
    choice = choose_node(Query(B), situation)
    assert choice.node == "n2"
    assert choice.why_not(N1) == "has vm:100, which rule apart keeps apart from it"


def test_a_moving_partner_counts_at_both_ends() -> None:
    situation = cluster({A: Placed("n1", "n2"), C: "n3", D: "n3"}, apart(A, B))
    assert choose_node(Query(B), situation).node == "n3"


def test_a_partner_that_leaves_is_no_reason_to_leave() -> None:
    situation = cluster({A: Placed("n1", "n2"), B: "n1"}, apart(A, B))
    assert choose_node(Query(B, Preference.none, "n1"), situation).node == "n1"


def test_the_first_of_a_group_looks_for_room_for_all_of_it() -> None:
    nodes = {N1: NodeFacts(capacity=Use(8, 10 * GIB)), N2: NodeFacts(capacity=Use(8, 30 * GIB), other_guests=9)}
    demands = {sid: Demand(Use(1, 8 * GIB)) for sid in (A, B)}
    dead = {**nodes, N3: NodeFacts("is silent")}
    board = Board(replace(cluster({A: "n3", B: "n3"}, together(A, B), nodes=dead), demands=demands))
    first = board.choose(Query(A), is_explained=True)
    assert first.node == "n2"
    assert first.why_not(N1) == "has no room: the 2 guests that run together may use 16.0 GiB, 10.0 GiB are free"
    board.put(A, Placed("n3", "n2"))
    second = board.choose(Query(B), is_explained=True)
    assert second.node == "n2"
    assert second.why_not(N1) == "is not n2, where vm:100 runs; rule together keeps them together"


def test_those_that_look_for_a_place_themselves_are_thought_of_and_those_that_rest_are_not() -> None:
    nodes = {N1: NodeFacts(capacity=Use(8, 10 * GIB)), N2: NodeFacts(capacity=Use(8, 30 * GIB), other_guests=9)}
    demands = {sid: Demand(Use(1, 8 * GIB)) for sid in (A, B)}
    nowhere = Placed("", is_active=False)
    situation = replace(cluster({A: nowhere, B: nowhere}, together(A, B), nodes=nodes), demands=demands)
    assert choose_node(Query(A), situation).node == "n2"
    stopped = cluster({A: nowhere, B: Placed("n1", is_active=False)}, together(A, B), nodes=nodes)
    assert choose_node(Query(A), replace(stopped, demands=demands)).node == "n1"


def test_members_of_a_group_meet_where_most_are() -> None:
    situation = cluster({A: "n1", B: "n2", C: "n2"}, together(A, B, C))
    assert choose_node(Query(A, Preference.none, "n1", failback=False), situation).node == "n2"
    assert choose_node(Query(B, Preference.none, "n2"), situation).node == "n2"


def test_a_running_guest_stays_until_a_better_class_of_node_is_there() -> None:
    rule = near("prefer", A, nodes="n1:2 n2:1")
    here = Query(A, Preference.none, "n2")
    assert choose_node(here, cluster({A: "n2"}, rule, down="n1")).why == (
        "it stays on n2, though rule prefer would rather have it elsewhere"
    )
    assert choose_node(here, cluster({A: "n2"}, rule)).node == "n1"
    assert choose_node(replace(here, failback=False), cluster({A: "n2"}, rule)).node == "n2"
    assert choose_node(replace(here, current="n3"), cluster({A: "n3"}, rule, down="n1")).node == "n2"


def test_after_maintenance_it_goes_back_to_where_it_was() -> None:
    query = Query(A, Preference.none, "n2", maintenance_node="n3")
    assert choose_node(query, cluster({A: "n2"})).why == "n3 is where it was before the node's maintenance"
    assert choose_node(query, cluster({A: "n2"}, down="n3")).node == "n2"
    assert choose_node(replace(query, failback=False), cluster({A: "n2"})).node == "n2"


def test_a_wish_apart_is_fulfilled_where_possible_and_costs_where_not() -> None:
    rule = apart(A, B, C, D, strict=False)
    assert choose_node(Query(D), cluster({A: "n1", B: "n2"}, rule)).node == "n3"
    choice = choose_node(Query(D), cluster({A: "n1", B: "n2", C: "n3"}, rule))
    assert (choice.node, choice.cost) == ("n1", 100)


def test_a_barred_node_and_the_present_one_among_equals() -> None:
    situation = cluster({A: "n2"})
    assert choose_node(Query(A, current="n2"), situation).node == "n2"
    assert choose_node(Query(A, barred={N1: "does not guard it yet"}), situation).refused == {
        N1: "does not guard it yet"
    }


def test_memory_is_not_promised_twice_while_guests_move() -> None:
    nodes = {name: NodeFacts(capacity=Use(4, 10 * GIB)) for name in (N1, N2)}
    demands = {sid: Demand(Use(1, 6 * GIB)) for sid in (A, B)}
    situation = replace(cluster({A: Placed("n1", "n2")}, nodes=nodes), demands=demands)
    assert choose_node(Query(B), situation).node == ""
    generous = replace(situation, policy=Policy(memory_limit=1.5))
    assert choose_node(Query(B), generous).node == "n1"
    assert choose_node(Query(B), replace(situation, policy=Policy(memory_limit=0))).node == "n1"


def test_a_new_guest_leaves_the_reserve_alone_and_a_recovery_uses_it() -> None:
    nodes = {name: NodeFacts(capacity=Use(4, 10 * GIB)) for name in (N1, N2)}
    demands = {sid: Demand(Use(1, 6 * GIB)) for sid in (A, B)}
    situation = replace(cluster({A: "n1"}, nodes=nodes), demands=demands, policy=Policy(reserve_nodes=1))
    refused = choose_node(Query(B, is_new=True), situation)
    assert refused.node == ""
    assert "no room for the loss of 1" in refused.why
    assert choose_node(Query(B), situation).node == "n2"


def test_static_counts_what_is_configured_and_dynamic_what_is_measured() -> None:
    nodes = {
        N1: NodeFacts(capacity=Use(8, 32 * GIB), measured=Use(6, 9 * GIB)),
        N2: NodeFacts(capacity=Use(8, 32 * GIB), measured=Use(1, 2 * GIB)),
    }
    demands = {A: Demand(Use(1, 1 * GIB), Use(6, 1 * GIB)), B: Demand(Use(4, 8 * GIB), Use(1, 1 * GIB))}
    situation = replace(cluster({A: "n1", B: "n2"}, nodes=nodes), demands=demands)
    static = replace(situation, policy=Policy(Mode.static))
    assert choose_node(Query(D), static).node == "n1"
    assert choose_node(Query(D), replace(situation, policy=Policy(Mode.dynamic))).node == "n2"
    assert "strained least" in choose_node(Query(D), static).why


def test_a_node_of_unknown_size_makes_placement_count_guests() -> None:
    nodes = {N1: NodeFacts(capacity=Use(8, 32 * GIB)), N2: NodeFacts()}
    situation = replace(cluster({A: "n1"}, nodes=nodes), policy=Policy(Mode.static))
    assert choose_node(Query(B), situation).why == "n2 has the fewest guests (0)"


def test_an_explanation_says_what_binds_it_and_what_speaks_against_each_other_node() -> None:
    situation = cluster({A: "n1", B: "n2"}, apart(A, B), near("prefer", A, nodes="n1"))
    found = explain(Query(A, Preference.none, "n1"), situation)
    assert found.lines() == (
        "vm:100: it stays on n1",
        "  must not run where vm:101 run (apart)",
        "  would rather run on n1 (prefer, weight 100)",
        "  n3 would do, but n1 suits the rules better: rule prefer would rather have it elsewhere",
        "  n2 has vm:101, which rule apart keeps apart from it",
    )
    assert explain(Query(C), situation).lines()[0] == "ct:102 runs nowhere"


def test_a_board_remembers_what_was_put() -> None:
    board = Board(cluster({}))
    for sid in (A, B, C, D):
        board.put(sid, Placed(board.choose(Query(sid)).node))
    assert [board.placed[sid].node for sid in (A, B, C, D)] == ["n1", "n2", "n3", "n1"]
    board.put(A, Placed("n2"))
    assert [board.guests_on(name) for name in (N1, N2, N3)] == [1, 2, 1]
