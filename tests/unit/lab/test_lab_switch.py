"""What nft says of the switch's sets."""

from lab.switch import parse_cuts, parse_dropped


def test_cuts_are_read_back_from_nft() -> None:
    listed = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"family": "bridge", "name": "isolated", "elem": ["p3"]}},
            {"set": {"family": "bridge", "name": "cut", "elem": [{"concat": ["p1", "p2"]}, {"concat": ["p2", "p1"]}]}},
        ]
    }
    assert parse_cuts(listed) == ({"p3"}, {("p1", "p2"), ("p2", "p1")})


def test_empty_sets_have_no_elements_at_all() -> None:
    assert parse_cuts({"nftables": [{"set": {"name": "cut"}}, {"set": {"name": "isolated"}}]}) == (set(), set())


def test_dropped_packets_are_those_of_all_rules() -> None:
    def rule(packets: int) -> dict[str, dict[str, object]]:
        return {"rule": {"expr": [{"match": {}}, {"counter": {"packets": packets, "bytes": 9}}, {"drop": None}]}}

    assert parse_dropped({"nftables": [{"set": {"name": "cut"}}, rule(3), rule(4)]}) == 7
    assert parse_dropped({"nftables": []}) == 0
