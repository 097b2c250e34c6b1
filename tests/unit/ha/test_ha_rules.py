"""ha/rules.cfg: what is read, what is said about what cannot be read, and what contradicts what."""

import pytest

from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rule, RuleCache, Rules, compile_rules, parse_rules
from kvorum.errors import ConfigError, InvalidInput
from kvorum.ids import NodeName, Sid

TEXT = """\
# kept
node-affinity: near-the-san
\tresources ct:101,vm:100
\tnodes n1:2,n2
\tstrict 1
\tcomment the SAN is there

resource-affinity: apart
\tresources vm:100,vm:200
\taffinity negative
\tdisable
"""
A, B, C, D = Sid("vm:100"), Sid("vm:200"), Sid("ct:300"), Sid("ct:400")
NODES = tuple(NodeName(name) for name in ("n1", "n2", "n3"))


def node(rule_id: str, sids: tuple[Sid, ...], nodes: dict[str, int] | str, *, strict: bool = True) -> NodeAffinity:
    named = nodes if isinstance(nodes, dict) else dict.fromkeys(nodes.split(), 0)
    return NodeAffinity(rule_id, frozenset(sids), {NodeName(name): rank for name, rank in named.items()}, strict)


def apart(rule_id: str, *sids: Sid, strict: bool = True) -> ResourceAffinity:
    return ResourceAffinity(rule_id, frozenset(sids), Affinity.negative, strict)


def together(rule_id: str, *sids: Sid, strict: bool = True) -> ResourceAffinity:
    return ResourceAffinity(rule_id, frozenset(sids), Affinity.positive, strict)


def test_rules_are_read_in_the_files_order_and_written_back_unchanged() -> None:
    rules = parse_rules(TEXT)
    assert [rule.id for rule in rules] == ["near-the-san", "apart"]
    first, second = rules
    assert isinstance(first, NodeAffinity)
    assert first.nodes == {"n1": 2, "n2": 0}
    assert first.is_strict
    assert first.comment == "the SAN is there"
    assert second == ResourceAffinity("apart", frozenset({A, B}), Affinity.negative, is_enabled=False)
    assert rules.render() == TEXT


def test_a_changed_rule_keeps_its_place_and_foreign_keys() -> None:
    rules = parse_rules(TEXT.replace("\tstrict 1\n", "\tstrict 1\n\tcolour blue\n"))
    first = rules.find("near-the-san")
    assert first is not None
    text = rules.with_rule(node("near-the-san", (A,), {"n3": 0}, strict=False)).render()
    assert text.startswith("# kept\nnode-affinity: near-the-san\n\tresources vm:100\n\tnodes n3\n\tcolour blue\n")
    assert "strict" not in text
    assert "comment" not in text
    assert rules.without("near-the-san").without("nobody").rules == rules.rules[1:]


def test_a_wish_between_resources_and_its_weight_are_keys_of_ours() -> None:
    rules = Rules().with_rule(ResourceAffinity("a", frozenset({A, B}), Affinity.negative, False, weight=7))
    assert (
        rules.render()
        == "resource-affinity: a\n\tresources vm:100,vm:200\n\taffinity negative\n\tstrict 0\n\tweight 7\n"
    )
    with pytest.raises(InvalidInput):
        rules.with_rule(node("a", (A,), "n1"))


@pytest.mark.parametrize(
    ("section", "key", "word"),
    [
        ("node-affinity: x\n\tnodes n1\n", "resources", "lacks"),
        ("node-affinity: x\n\tresources vm:1\n\tnodes n1\n", "resources", "vm:1"),
        ("node-affinity: x\n\tresources vm:100\n\tnodes n1:high\n", "nodes", "no number"),
        ("node-affinity: x\n\tresources vm:100\n\tnodes n1,n1:2\n", "nodes", "twice"),
        ("resource-affinity: x\n\tresources vm:100\n\taffinity near\n", "affinity", "near"),
        ("resource-affinity: x\n\tresources vm:100\n\taffinity negative\n\tweight 0\n", "weight", "range"),
        ("resource-affinity: x\n\tresources vm:100\n\taffinity negative\n\tdisable 0\n", "disable", "off"),
        ("colour-affinity: x\n\tresources vm:100\n", "", "no colour-affinity rules"),
        ("node-affinity: apart\n\tresources vm:100\n\tnodes n1\n", "id", "name"),
    ],
)
def test_a_section_that_cannot_be_read_is_named_and_harms_no_other(section: str, key: str, word: str) -> None:
    rules = parse_rules(f"{TEXT}\n{section}")
    assert len(rules) == 2
    (problem,) = rules.problems
    assert problem.key == key
    assert word in problem.message
    assert problem.remedy
    assert section.split("\n", maxsplit=1)[0].split(": ")[1] in problem.section
    assert rules.render().startswith(TEXT)


def test_what_is_not_made_of_sections_is_an_error_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules("\tresources vm:100\n")
    assert caught.value.details["line"] == "1"


def test_sets_that_overlap_merge_and_share_what_binds_one_of_them() -> None:
    rules = (together("t1", A, B), together("t2", B, C), apart("x", A, D), node("n", (C,), "n1 n2"))
    compiled = compile_rules(rules, (A, B, C, D), NODES)
    terms = compiled.terms(B)
    assert terms.group == (C, A, B)
    assert set(terms.together_by) == {"t1", "t2"}
    assert terms.allowed == {"n1", "n2"}
    assert terms.apart == {D: "x"}
    assert set(compiled.terms(D).apart) == {A, B, C}
    assert compiled.conflicts == ()


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([node("a", (A,), "n1"), node("b", (A,), "n2")], [("a", "b")]),
        ([node("a", (A,), "n1 n2"), node("b", (A,), "n2 n3")], []),
        ([together("t", A, B), apart("x", A, B)], [("t", "x")]),
        ([together("t", A, B), together("u", B, C), node("n", (D,), "n1"), apart("x", A, C)], [("t", "u", "x")]),
        ([apart("x", A, B, C, D)], [("x",)]),
        ([node("a", (A, B), "n1"), node("c", (C,), "n1"), apart("x", A, B)], [("a", "x")]),
        ([node("a", (A,), "n1"), node("b", (B,), "n1"), apart("x", A, B)], [("a", "b", "x")]),
        ([apart("x", A, B), apart("y", B, C), apart("z", A, C), node("n", (A, B, C), "n1 n2")], [("x", "y", "z", "n")]),
        ([node("a", (A, B), "n1", strict=False), apart("x", A, B)], []),
        ([together("t", A, B), node("a", (A,), "n1"), node("b", (B,), "n2"), apart("x", C, D)], [("t", "a", "b")]),
        ([node("a", (A,), "gone"), apart("x", A, B)], []),
        # Only when the first guest gives up its first node.
        (
            [
                node("a", (A,), "n1 n2"),
                node("b", (B, C), "n1 n3"),
                apart("x", A, B),
                apart("y", A, C),
                apart("z", B, C),
            ],
            [],
        ),
    ],
)
def test_a_conflict_names_the_fewest_rules_and_the_last_of_them_yields(
    rules: list[Rule], expected: list[tuple[str, ...]]
) -> None:
    compiled = compile_rules(rules, (A, B, C, D), NODES)
    assert [conflict.rules for conflict in compiled.conflicts] == expected
    assert all(conflict.yields == conflict.rules[-1] for conflict in compiled.conflicts)
    assert all(conflict.yields in str(conflict) for conflict in compiled.conflicts)


def test_a_rule_that_yields_is_a_wish_and_the_others_stay_strict() -> None:
    rules = [node("a", (A, B), "n1"), apart("x", A, B), apart("y", A, C)]
    compiled = compile_rules(rules, (A, B, C), NODES)
    terms = compiled.terms(A)
    assert terms.allowed == {"n1"}
    assert terms.apart == {C: "y"}
    assert [(wish.rule, wish.partners) for wish in terms.affinities] == [("x", (B,))]


def test_a_wish_for_nodes_and_a_strict_rule_for_the_same_guests_are_both_kept() -> None:
    rules = [node("prefer", (A, B), "n1", strict=False), apart("x", A, B)]
    compiled = compile_rules(rules, (A, B), NODES)
    assert compiled.terms(A).apart == {B: "x"}
    assert compiled.terms(A).wishes[0].cost(NodeName("n2")) > compiled.terms(A).wishes[0].cost(NodeName("n1"))


def test_what_harms_nothing_is_remarked() -> None:
    rules = [node("a", (A, D), "n1 n9"), apart("x", A, D)]
    compiled = compile_rules(rules, (A,), NODES)
    assert compiled.conflicts == ()
    assert len(compiled.remarks) == 4
    assert compiled.terms(A).apart == {}
    assert compiled.terms(D).is_free


def test_rules_are_compiled_again_only_when_something_changed() -> None:
    cache = RuleCache()
    rules = parse_rules(TEXT)
    first = cache.compile(rules, (A, B), NODES)
    assert cache.compile(rules, [B, A], set(NODES)) is first
    assert cache.compile(parse_rules(TEXT), (A, B), NODES) is first
    assert cache.compile(rules, (A,), NODES) is not first
