"""Lines of the cluster log: what a text may hold, what a ring keeps, and who comes first."""

import pytest

from clusterfs import clusterlog
from clusterfs.clusterlog import LogLine


def line(uid: int, *, time: int = 1, node: str = "n1", message: str = "m", user: str = "root") -> LogLine:
    return clusterlog.line(uid=uid, time=time, priority=6, tag="t", pid=1, node=node, user=user, message=message)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\tc", "a#010b#009c"),
        ("\0\x1f\x7f", "#000#031#127"),
        ("ä€", "ä€"),
        ("\x9b2J", "#1552J"),
        ("a\udc80b", "ab"),
    ],
)
def test_control_characters_become_numbers(text: str, shown: str) -> None:
    assert clusterlog.harmless(text, 99) == shown


def test_a_line_has_a_limit_and_is_cut_between_characters() -> None:
    long = clusterlog.line(
        uid=1, time=1, priority=6, tag="t" * 500, pid=1, node="n" * 500, user="ä" * 500, message="€" * 9000
    )
    assert (len(long.tag), len(long.node), len(long.user.encode())) == (254, 254, 254)
    assert clusterlog.MAX_LINE_BYTES - 3 < long.size <= clusterlog.MAX_LINE_BYTES
    assert clusterlog.why_not(long) == ""


def test_a_ring_keeps_the_newest_that_fit() -> None:
    rings = clusterlog.added({}, [line(uid, message="x" * 1000) for uid in range(1, 500)])
    kept = [one.uid for one in rings["n1"]]
    assert kept == list(range(kept[0], 500))
    assert sum(one.size for one in rings["n1"]) <= clusterlog.RING_BYTES < (len(kept) + 1) * rings["n1"][0].size
    assert clusterlog.added(rings, [line(3, message="x" * 1000)]) == rings


def test_the_newest_of_all_nodes_come_first() -> None:
    lines = [line(1, time=5), line(2, time=5), line(1, time=5, node="n2"), line(2, time=4, node="n2", user="ann")]
    rings = clusterlog.added({}, lines)
    order = [(one.time, one.node, one.uid) for one in clusterlog.newest(rings, 3)]
    assert order == [(5, "n2", 1), (5, "n1", 2), (5, "n1", 1)]
    assert [one.user for one in clusterlog.newest(rings, 50, user="ann")] == ["ann"]
    assert clusterlog.newest(rings, 0) == []


def test_rings_of_nodes_that_are_long_gone_make_room() -> None:
    rings = clusterlog.added({}, [line(1, time=n, node=f"n{n}") for n in range(clusterlog.MAX_RINGS + 2)])
    assert len(rings) == clusterlog.MAX_RINGS
    assert {"n0", "n1"}.isdisjoint(rings)


def test_copies_with_the_same_lines_have_the_same_check() -> None:
    one = clusterlog.added({}, [line(1), line(2)])["n1"]
    two = clusterlog.added({}, [line(2), line(1)])["n1"]
    assert clusterlog.check(one) == clusterlog.check(two) != clusterlog.check(one[:1])


@pytest.mark.parametrize(
    "bad",
    [
        LogLine(-1, 1, 6, "t", 1, "n1", "root", "m"),
        LogLine(1, 1 << 63, 6, "t", 1, "n1", "root", "m"),
        LogLine(1, 1, 8, "t", 1, "n1", "root", "m"),
        LogLine(1, 1, 6, "t", 1, "", "root", "m"),
        LogLine(1, 1, 6, "t", 1, "n1", "root", "m" * 5000),
    ],
)
def test_a_line_that_no_node_makes_is_known(bad: LogLine) -> None:
    assert clusterlog.why_not(bad)
