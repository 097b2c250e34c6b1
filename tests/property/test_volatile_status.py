"""Status spreads to every node whatever the network does to single messages, and its decoder takes what comes."""

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs import clusterlog, volatile
from clusterfs.clusterlog import LogLine
from clusterfs.gossip import DIGEST_INTERVAL_S, FORGET_S, Gossip
from clusterfs.volatile import Shelf

UIDS = ("u1", "u2", "u3", "u4")
KEYS = st.sampled_from([f"k{number}" for number in range(6)])
VALUES = st.binary(max_size=8)


class Network:
    """Gossips of one process under one clock. Messages are lost, doubled and reordered; links are cut; nodes restart."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.wall = 1_700_000_000.0
        self.is_fair = False
        self.cut: set[frozenset[str]] = set()
        self.under_way: list[tuple[str, str, bytes]] = []
        self.nodes: dict[str, Gossip] = {}
        for uid in UIDS:
            self.start(uid)

    def start(self, uid: str) -> None:
        self.nodes[uid] = Gossip(
            uid=uid,
            name=f"n{uid}",
            send=lambda payload, to: self.carry(uid, payload, to),
            clock=lambda: self.now,
            wall=lambda: self.wall,
        )
        self.under_way = [item for item in self.under_way if uid not in item[:2]]

    def peers(self, uid: str) -> frozenset[str]:
        return frozenset(other for other in self.nodes if other != uid and frozenset((uid, other)) not in self.cut)

    def carry(self, uid: str, payload: bytes, to: str | None) -> None:
        for peer in self.peers(uid) if to is None else self.peers(uid) & {to}:
            copies = 1 if self.is_fair else self.random.choice((0, 1, 1, 2))
            self.under_way.extend([(uid, peer, payload)] * copies)

    def step(self) -> None:
        self.now += 1.0
        self.wall += 1.0
        if not self.is_fair:
            self.random.shuffle(self.under_way)
        late = 0 if self.is_fair else self.random.randint(0, len(self.under_way))
        arriving, self.under_way = self.under_way[late:], self.under_way[:late]
        for uid, peer, payload in arriving:
            if peer in self.peers(uid):
                self.nodes[peer].receive(uid, payload)
        for uid in UIDS:
            self.nodes[uid].links(self.peers(uid))
            self.nodes[uid].step()

    def settle(self) -> None:
        self.cut.clear()
        self.is_fair = True
        for _ in range(int(DIGEST_INTERVAL_S) * (2 * len(UIDS) + 2)):
            self.step()


def seen(shelves: Mapping[str, Shelf]) -> dict[str, dict[str, bytes]]:
    return {uid: shelf.values for uid, shelf in shelves.items()}


def act(network: Network, wanted: dict[str, dict[str, bytes]]) -> None:
    chance = network.random
    uid = chance.choice(UIDS)
    match chance.randrange(8):
        case 0:
            network.start(uid)
            wanted[uid] = {}
        case 1:
            pair = frozenset(chance.sample(UIDS, 2))
            network.cut ^= {pair}
        case 2 | 3:
            network.nodes[uid].log(priority=6, tag="t", user="root", message=f"m{chance.random()}")
        case _:
            values = {
                f"k{chance.randrange(6)}": chance.choice((b"", b"v%d" % chance.randrange(99), b"x" * 20_000))
                for _ in range(chance.randint(1, 6))
            }
            network.nodes[uid].set(values)
            wanted[uid].update(values)
            wanted[uid] = {key: value for key, value in wanted[uid].items() if value}


@pytest.mark.parametrize("seed", range(60))
def test_all_nodes_end_with_what_each_has_set_last(seed: int) -> None:
    network = Network(seed)
    wanted: dict[str, dict[str, bytes]] = {uid: {} for uid in UIDS}
    for _ in range(80):
        for _ in range(network.random.randint(0, 2)):
            act(network, wanted)
        network.step()
    network.settle()
    rings = network.nodes[UIDS[0]].rings
    for node in network.nodes.values():
        assert seen(node.shelves) == wanted
        assert node.rings == rings
        assert {uid: set(node.versions(uid)) for uid in UIDS} == {uid: set(wanted[uid]) for uid in UIDS}


@pytest.mark.parametrize("seed", range(10))
def test_nobody_ever_holds_a_value_that_its_owner_never_set(seed: int) -> None:
    network = Network(seed)
    wanted: dict[str, dict[str, bytes]] = {uid: {} for uid in UIDS}
    ever: set[tuple[str, str, bytes]] = set()
    for _ in range(60):
        act(network, wanted)
        ever |= {(uid, key, value) for uid, values in wanted.items() for key, value in values.items()}
        network.step()
        for node in network.nodes.values():
            assert {(u, k, v) for u, values in seen(node.shelves).items() for k, v in values.items()} <= ever


def test_a_node_that_is_gone_is_forgotten_by_all_and_comes_back_whole() -> None:
    network = Network(1)
    network.is_fair = True
    network.nodes["u1"].set({"load": b"1", "name": b"x"})
    network.settle()
    network.cut = {frozenset(("u1", other)) for other in UIDS[1:]}
    for _ in range(int(FORGET_S) - 1):
        network.step()
    assert network.nodes["u2"].get("u1", "load") == b"1"
    assert network.nodes["u2"].age_s("u1") > FORGET_S - 20
    for _ in range(int(DIGEST_INTERVAL_S) * 4):
        network.step()
    for uid in UIDS[1:]:
        assert "u1" not in network.nodes[uid].shelves
        assert network.nodes[uid].versions("u1") == {}
    assert network.nodes["u1"].get("u1", "load") == b"1"
    network.settle()
    assert network.nodes["u3"].get("u1", "name") == b"x"
    assert network.nodes["u3"].age_s("u1") == 0.0


def test_a_process_whose_clock_is_behind_outdoes_its_earlier_life() -> None:
    network = Network(2)
    network.is_fair = True
    network.nodes["u1"].set({"a": b"old", "b": b"old"})
    network.settle()
    network.wall -= 1_000_000.0
    network.start("u1")
    network.nodes["u1"].set({"a": b"new"})
    network.settle()
    assert all(node.shelves["u1"].values == {"a": b"new"} for node in network.nodes.values())


def test_values_that_take_many_messages_arrive_whole() -> None:
    network = Network(3)
    network.is_fair = True
    values = {f"k{number}": bytes([number]) * 30_000 for number in range(1, 60)}
    network.nodes["u1"].set(values)
    network.settle()
    assert all(node.shelves["u1"].values == values for node in network.nodes.values())


@given(st.lists(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), max_size=20), st.randoms())
def test_pieces_in_any_order_and_number_leave_the_newest(sets: list[dict[str, bytes]], chance: random.Random) -> None:
    owner = Shelf(7)
    pieces = list(volatile.missing("u", owner, None))
    for values in sets:
        before = (owner.incarnation, owner.known)
        owner = volatile.changed(owner, values)
        pieces += volatile.missing("u", owner, before)
    copy: Shelf | None = None
    for piece in chance.choices(pieces, k=2 * len(pieces)):
        copy = volatile.merge(copy, piece).shelf
        assert copy is None or copy.known <= owner.known
    told = (copy.incarnation, copy.known) if copy is not None else None
    for piece in volatile.missing("u", owner, told):
        copy = volatile.merge(copy, piece).shelf
    assert copy == owner
    for piece in pieces:
        assert volatile.merge(copy, piece).shelf == owner


@given(st.dictionaries(st.text(max_size=9), st.integers(0, 9)), st.integers(0, 5))
def test_a_new_incarnation_drops_what_was_deleted_and_nothing_else(seqs: dict[str, int], later: int) -> None:
    shelf = volatile.changed(Shelf(1), {key: bytes([1]) * size for key, size in seqs.items()})
    again = volatile.renewed(shelf, 2 + later)
    assert again.values == shelf.values
    assert again.known == len(again.items)


def test_many_deletions_begin_a_new_incarnation() -> None:
    shelf = Shelf(1)
    for number in range(volatile.MAX_DELETED + 1):
        shelf = volatile.changed(shelf, {f"k{number}": b"x"})
        shelf = volatile.changed(shelf, {f"k{number}": b""})
    shelf = volatile.changed(shelf, {"last": b"x"})
    assert shelf.incarnation == 2
    assert dict(shelf.items) == {"last": volatile.Item(1, b"x")}


LINES = st.lists(
    st.builds(
        LogLine,
        uid=st.integers(1, 5),
        time=st.integers(0, 4),
        priority=st.integers(0, 7),
        tag=st.just("t"),
        pid=st.just(1),
        node=st.sampled_from(["n1", "n2"]),
        user=st.sampled_from(["root", "ann"]),
        message=st.just("m"),
    ),
    max_size=12,
    unique_by=lambda line: line.order,
)


@given(LINES, LINES, LINES)
def test_merging_logs_does_not_depend_on_order_or_repetition(
    one: list[LogLine], two: list[LogLine], three: list[LogLine]
) -> None:
    same = {line.order: line for line in one + two + three}
    one, two, three = ([same[line.order] for line in lines] for lines in (one, two, three))
    left = clusterlog.added(clusterlog.added(clusterlog.added({}, one), two), three)
    right = clusterlog.added(clusterlog.added({}, three + one), two + one)
    assert left == right
    newest = clusterlog.newest(left, 50)
    assert newest == sorted(same.values(), key=lambda line: line.order, reverse=True)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    try:
        message = volatile.decode(payload)
    except ValueError:
        return
    assert volatile.decode(volatile.encode(message)) == message
    gossip = Gossip(uid="u1", name="n1", send=lambda _payload, _uid: None)
    gossip.receive("u2", payload)
    gossip.step()


@given(
    st.integers(-5, 5), st.integers(-5, 9), st.integers(-5, 9), st.lists(st.tuples(KEYS, st.integers(-5, 12), VALUES))
)
def test_a_delta_that_no_node_would_send_is_refused(
    incarnation: int, base: int, known: int, items: list[tuple[str, int, bytes]]
) -> None:
    delta = volatile.Delta("u", incarnation, base, known, list(items))
    is_right = incarnation >= 0 and 0 <= base <= known and all(base < seq <= known for _key, seq, _value in items)
    if is_right:
        assert volatile.decode(volatile.encode(delta)) == delta
    else:
        with pytest.raises(ValueError, match=r"delta|item"):
            volatile.decode(volatile.encode(delta))
