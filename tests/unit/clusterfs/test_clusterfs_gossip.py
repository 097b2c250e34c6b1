"""One node's side of the exchange: what it takes from its own processes, what it shows them, and what it says to peers."""

import threading
from collections.abc import Callable

import pytest

from clusterfs import clusterlog, volatile
from clusterfs.gossip import MAX_RRD_BYTES, Gossip
from clusterfs.volatile import Delta, Digest, Lines, Whispered
from kvorum.errors import InvalidInput, KvorumError, QuotaExceeded


class Node:
    def __init__(self) -> None:
        self.now = 100.0
        self.said: list[tuple[Whispered, str | None]] = []
        self.gossip = Gossip(
            uid="u1",
            name="n1",
            send=lambda payload, uid: self.said.append((volatile.decode(payload), uid)),
            clock=lambda: self.now,
            wall=lambda: 1_000.0,
        )

    def step(self) -> list[tuple[Whispered, str | None]]:
        self.said.clear()
        self.gossip.step()
        return list(self.said)


@pytest.fixture
def node() -> Node:
    node = Node()
    node.gossip.links(frozenset({"u2"}))
    node.step()
    return node


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("k", b"x" * (32 * 1024 + 1), QuotaExceeded),
        ("", b"x", InvalidInput),
        ("k" * 256, b"x", InvalidInput),
        ("ä" * 128, b"x", InvalidInput),
        ("k\0", b"x", InvalidInput),
        ("rrd/pve-node-9.0/n1", b"1" * (MAX_RRD_BYTES + 1), QuotaExceeded),
        ("rrd/pve-node-9.0/n1", b"1\n2", InvalidInput),
    ],
)
def test_what_is_too_big_or_no_key_is_refused_and_nothing_of_it_is_set(
    node: Node, key: str, value: bytes, error: type[KvorumError]
) -> None:
    with pytest.raises(error):
        node.gossip.set({"good": b"1", key: value})
    assert node.gossip.shelves["u1"].values == {}


def test_limits_are_inclusive_and_the_whole_is_limited(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.gossip.set({"k" * 255: b"x" * 32 * 1024})
    monkeypatch.setattr(volatile, "MAX_KEYS", 2)
    node.gossip.set({"b": b"1"})
    with pytest.raises(QuotaExceeded):
        node.gossip.set({"c": b"1"})
    node.gossip.set({"b": b""})
    node.gossip.set({"c": b"1"})
    assert set(node.gossip.shelves["u1"].values) == {"k" * 255, "c"}


def test_an_empty_value_deletes_and_counters_never_come_back(node: Node) -> None:
    gossip = node.gossip
    gossip.set({"a": b"1"})
    first = gossip.versions("u1")["a"]
    gossip.set({"a": b"1"})
    assert gossip.versions("u1")["a"] > first
    gossip.set({"a": b"", "none": b""})
    assert gossip.get("u1", "a") is None
    assert gossip.versions("u1") == {}
    gossip.set({"a": b"1"})
    assert gossip.versions("u1")["a"] > first + 1


def test_what_is_set_is_told_once_and_together(node: Node) -> None:
    node.gossip.set({"a": b"1"})
    node.gossip.set({"b": b"2"})
    assert [(type(message), uid) for message, uid in node.step()] == [(Delta, None)]
    assert node.step() == []


def test_a_new_link_is_greeted_and_digests_go_to_all_at_their_time(node: Node) -> None:
    node.gossip.links(frozenset({"u2", "u3"}))
    assert [(type(message), uid) for message, uid in node.step()] == [(Digest, "u3")]
    node.now += 5.0
    assert [(type(message), uid) for message, uid in node.step()] == [(Digest, None)]


def test_a_gap_is_asked_about_at_once_and_nothing_is_taken(node: Node) -> None:
    node.gossip.receive("u2", volatile.encode(Delta("u2", 5, 3, 4, [("a", 4, b"x")])))
    assert [(type(message), uid) for message, uid in node.step()] == [(Digest, "u2")]
    assert node.gossip.get("u2", "a") is None


def test_nonsense_and_a_node_that_nobody_hears_change_nothing(node: Node) -> None:
    node.gossip.receive("u2", b"nonsense")
    node.gossip.receive("u2", volatile.encode(Delta("ghost", 5, 0, 1, [("a", 1, b"x")])))
    node.step()
    assert set(node.gossip.shelves) == {"u1"}


def test_records_get_old_and_the_later_of_two_nodes_counts(node: Node) -> None:
    gossip = node.gossip
    gossip.set({"rrd/pve-vm-9.0/100": b"old", "rrd/pve-node-9.0/n1": b"mine", "other": b"x"})
    node.now += 10
    gossip.receive("u2", volatile.encode(Delta("u2", 5, 0, 1, [("rrd/pve-vm-9.0/100", 1, b"new")])))
    node.step()
    records = gossip.newest("rrd/", max_age_s=300)
    assert records == [("pve-node-9.0/n1", b"mine"), ("pve-vm-9.0/100", b"new")]
    node.now += 291
    assert gossip.newest("rrd/", max_age_s=300) == [("pve-vm-9.0/100", b"new")]


def test_a_watcher_is_woken_and_told_when_it_came_too_late(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    gossip = node.gossip
    at = gossip.version
    timer = threading.Timer(0.05, gossip.set, [{"a": b"1"}])
    timer.start()
    changes = gossip.changes_after(at, timeout_s=20)
    timer.join()
    assert changes is not None
    assert [(change.uid, change.key) for change in changes] == [("u1", "a")]
    monkeypatch.setattr("clusterfs.gossip._RECENT", 2)
    for number in range(3):
        gossip.set({"a": b"%d" % number})
    assert gossip.changes_after(at, timeout_s=0) is None
    recent = gossip.changes_after(gossip.version - 1, timeout_s=0)
    assert recent is not None
    assert len(recent) == 1


def test_lines_are_numbered_on_from_an_earlier_life(node: Node) -> None:
    assert node.gossip.log(priority=6, tag="t", user="root", message="one").uid == 1
    earlier = Gossip(uid="u1", name="n1", send=lambda _payload, _uid: None)
    lines = [earlier.log(priority=6, tag="t", user="root", message=f"m{number}") for number in range(5)]
    node.gossip.receive("u2", volatile.encode(Lines(lines)))
    node.step()
    assert node.gossip.log(priority=6, tag="t", user="root", message="two").uid == 6


def test_the_thread_tells_without_being_asked_and_ends(node: Node) -> None:
    told = threading.Event()
    send: Callable[[bytes, str | None], None] = lambda payload, _uid: (  # noqa: E731
        told.set() if isinstance(volatile.decode(payload), Delta) else None
    )
    gossip = Gossip(uid="u1", name="n1", send=send)
    gossip.links(frozenset({"u2"}))
    gossip.start()
    gossip.set({"a": b"1"})
    assert told.wait(20)
    gossip.stop()
    assert not gossip._thread.is_alive()


@pytest.mark.parametrize(
    "lie",
    [
        Digest(1, {"u1": (2**63, 0)}, {}, []),
        Digest(1, {"u1": (0, 2**64 - 1)}, {}, []),
        Delta("u1", 2**64 - 1, 0, 0, []),
        Digest(1, {}, {}, [f"u{n}" for n in range(2000)]),
    ],
)
def test_a_number_beyond_all_bounds_does_not_silence_a_node(node: Node, lie: Whispered) -> None:
    """Counting on from it, the node could never again say how far it has come."""
    node.gossip.receive("u2", volatile.encode(lie))
    node.step()
    node.gossip.set({"a": b"1"})
    assert [type(message) for message, _uid in node.step()] == [Delta]
    assert len(node.gossip._heard) < 10


def test_a_line_of_ours_with_a_number_beyond_all_bounds_does_not_silence_our_log(node: Node) -> None:
    lie = clusterlog.line(uid=2**63 - 1, time=1, priority=6, tag="t", pid=1, node="n1", user="root", message="m")
    node.gossip.receive("u2", volatile.encode(Lines([lie])))
    node.step()
    assert clusterlog.why_not(node.gossip.log(priority=6, tag="t", user="root", message="still here")) == ""


def test_a_copy_never_grows_beyond_what_its_owner_may_say(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volatile, "MAX_KEYS", 10)
    monkeypatch.setattr(volatile, "MAX_DELETED", 0)
    for start in range(1, 40, 5):
        items: list[tuple[str, int, bytes | None]] = [(f"k{n}", n, b"x") for n in range(start, start + 5)]
        node.gossip.receive("u2", volatile.encode(Delta("u2", 1, start - 1, start + 4, items)))
        node.step()
    assert len(node.gossip.shelves["u2"].items) <= 11


def test_checks_of_rings_that_are_gone_are_forgotten(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusterlog, "MAX_RINGS", 3)
    for n in range(20):
        line = clusterlog.line(uid=1, time=n, priority=6, tag="t", pid=1, node=f"x{n}", user="root", message="m")
        node.gossip.receive("u2", volatile.encode(Lines([line])))
        node.now += 10
        node.step()
    assert len(node.gossip._checks) <= 4
