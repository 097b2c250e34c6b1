"""Computed files are made anew when what they show has changed, and only then."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from clusterfs import formats, special
from clusterfs.commands import MemberPut, Write
from clusterfs.computed import Computed, is_debugging, set_debug
from clusterfs.gossip import Gossip
from clusterfs.machine import StoreMachine
from clusterfs.membership import Member
from clusterfs.proposer import Proposer

N1 = "11111111-1111-4111-8111-111111111111"


@dataclass
class FakeCluster:
    machine: StoreMachine
    cluster_name: str = "eval"
    members_counter: int = 1
    is_quorate: bool = True
    connected: dict[str, bool] = field(default_factory=lambda: {N1: True})

    def members(self) -> list[Member]:
        return list(self.machine.state.members.values())

    def online(self) -> dict[str, bool]:
        return dict(self.connected)


@dataclass
class Node:
    proposer: Proposer
    gossip: Gossip
    cluster: FakeCluster
    computed: Computed

    def __post_init__(self) -> None:
        self.files = self.computed.files()

    def read(self, name: str) -> Any:
        return json.loads(self.files[name]())


@pytest.fixture
def node(machine: StoreMachine, proposer: Proposer) -> Node:
    gossip = Gossip(uid=N1, name="n1", send=lambda _payload, _uid: None)
    cluster = FakeCluster(machine)
    proposer.execute(MemberPut(N1, "n1", "10.0.0.1", 1))
    return Node(proposer, gossip, cluster, Computed(node_name="n1", machine=machine, gossip=gossip, cluster=cluster))


def test_nothing_is_computed_twice_without_a_reason(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("version", "members", "vmlist", "cluster_log"):
        original = getattr(special, name)
        monkeypatch.setattr(special, name, lambda *a, n=name, o=original, **k: (made.append(n), o(*a, **k))[1])
    for _ in range(3):
        for name in (".version", ".members", ".vmlist", ".clusterlog"):
            node.files[name]()
    assert sorted(made) == ["cluster_log", "members", "version", "vmlist"]
    node.proposer.execute(Write("storage.cfg", b""))
    node.files[".vmlist"]()
    node.files[".version"]()
    assert made.count("vmlist") == 1
    assert made.count("version") == 2


def test_each_change_shows_at_the_next_look(node: Node) -> None:
    def version() -> Any:
        return node.read(".version")

    before = version()
    node.proposer.execute(Write("nodes/n1/lxc/100.conf", b"", parents=True))
    assert version()["vmlist"] == before["vmlist"] + 1 == node.read(".vmlist")["version"]
    assert node.read(".vmlist")["ids"]["100"]["node"] == "n1"
    node.gossip.set(formats.announcement())
    node.gossip.set({"tasklist": b"[]", "rrd/pve-node-9.0/n1": b"1:2", "nodeip": b"192.0.2.1"})
    assert list(version()["kvstore"]["n1"]) == ["tasklist"]
    assert node.files[".rrd"]() == b"pve-node-9.0/n1:1:2\n"
    assert node.read(".members")["nodelist"]["n1"]["ip"] == "192.0.2.1"
    counter = version()["kvstore"]["n1"]["tasklist"]
    node.gossip.set({"tasklist": b"[]"})
    assert version()["kvstore"]["n1"]["tasklist"] > counter
    node.cluster.is_quorate = False
    assert node.read(".members")["cluster"]["quorate"] == 0
    node.cluster.members_counter += 1
    assert version()["clinfo"] == node.read(".members")["version"] == 2
    for number in range(60):
        node.gossip.log(priority=6, tag="t", user="root", message=f"m{number}")
    lines = node.read(".clusterlog")["data"]
    assert [line["msg"] for line in lines[:2]] == ["m59", "m58"]
    assert len(lines) == 50


def test_debug_is_this_daemons_logging(node: Node) -> None:
    assert node.files[".debug"]() == b"0\n"
    try:
        set_debug(True)
        assert is_debugging()
        assert node.files[".debug"]() == b"1\n"
    finally:
        set_debug(False)
    assert node.files[".debug"]() == b"0\n"
