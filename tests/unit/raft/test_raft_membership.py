"""Voters and learners: what an entry makes of a configuration, and how a leader lets members come, vote and go."""

import uuid
from pathlib import Path

import msgspec
import pytest
from pysyncobj.node import Node
from raft_cluster import Cluster, until
from raft_sim import Sim

from clusterfs.raft import Address
from clusterfs.raft.core import MEMBERSHIP
from clusterfs.raft.files import LocalFiles
from clusterfs.raft.membership import Change, Configuration, Configurations, changed, decode, encode
from clusterfs.raft.messages import ChangeMember, ChangeProgress
from clusterfs.raft.snapshot import NAME, Point, SnapshotStore, verify
from clusterfs.raft.values import Role
from kvorum.errors import NoQuorum, NotFound, Timeout

A, B, C = (Address(f"10.0.0.{number}", 1) for number in (1, 2, 3))


def of(**members: Address) -> dict[str, Address]:
    return members


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change("add", "c", C.host, 1), Configuration(of(a=A, c=C), of(b=B))),
        (Change("add", "b", B.host, 1), Configuration(of(a=A, b=B), {})),
        (Change("learn", "c", C.host, 1), Configuration(of(a=A), of(b=B, c=C))),
        (Change("learn", "a", C.host, 1), Configuration(of(a=A), of(b=B))),
        (Change("demote", "a"), Configuration({}, of(a=A, b=B))),
        (Change("demote", "x"), Configuration(of(a=A), of(b=B))),
        (Change("move", "a", C.host, 1), Configuration(of(a=C), of(b=B))),
        (Change("move", "b", C.host, 1), Configuration(of(a=A), of(b=C))),
        (Change("move", "x", C.host, 1), Configuration(of(a=A), of(b=B))),
        (Change("remove", "a"), Configuration({}, of(b=B))),
        (Change("remove", "b"), Configuration(of(a=A), {})),
        (Change("recover", "b", C.host, 1, 4), Configuration(of(b=C), of(a=A), 4)),
    ],
)
def test_each_change_makes_one_configuration_of_another(change: Change, expected: Configuration) -> None:
    before = Configuration(of(a=A), of(b=B))
    assert changed(before, decode(encode(change))) == expected
    assert changed(expected, change) == expected, "twice is once"


def test_an_entry_of_an_older_log_still_reads() -> None:
    old = msgspec.msgpack.encode(["add", "c", C.host, 1])
    assert changed(Configuration(of(a=A)), decode(old)) == Configuration(of(a=A, c=C))


def test_a_cut_of_the_log_brings_the_roles_before_it_back() -> None:
    found = Configurations(1, Configuration(of(a=A), of(b=B)))
    found.append(5, Change("add", "b", B.host, 1))
    found.append(9, Change("recover", "b", B.host, 1, 2))
    assert (found.whole.epoch, set(found.current), set(found.at(5).voters)) == (2, {"b"}, {"a", "b"})
    assert found.truncate(9)
    assert found.whole == Configuration(of(a=A, b=B))
    found.compact(4)
    assert found.at(4) == Configuration(of(a=A), of(b=B))


def test_a_snapshot_keeps_roles_and_epoch_and_an_older_one_reads(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    store = SnapshotStore(files)
    point = Point(7, 3, Configuration(of(a=A), of(b=B, c=C), 2))
    store.write(point, [b"x"])
    store.adopt_written()
    assert verify(files, NAME) == point
    old = msgspec.msgpack.encode({"index": 7, "term": 3, "members": {"a": (A.host, 1)}})
    from clusterfs.raft.snapshot import _Header

    assert msgspec.msgpack.decode(old, type=_Header).learners == {}


class Leading:
    """n1 leads three voters; the test asks it for changes."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        sim.found(3)
        sim.run_until(lambda: sim.leader() is not None)

    @property
    def raft(self):  # type: ignore[no-untyped-def]
        uid = self.sim.leader()
        assert uid is not None
        consensus = self.sim.nodes[uid].consensus
        assert consensus is not None
        return consensus

    def join(self, uid: str) -> None:
        self.sim.add(uid)
        self.sim.boot(uid)

    def ask(self, change: Change, *, seconds: float = 4.0) -> str:
        """As an asker does: again and again. What the leader said last."""
        end = self.sim.now + seconds
        while self.sim.now < end:
            if self.sim.leader() is not None:
                self.raft.want_change(change)
            self.sim.run(0.2)
            if self.sim.leader() is not None and self.raft.change_progress.get(change.uid) == "":
                break
        return str(self.raft.change_progress.get(change.uid))


@pytest.fixture
def leading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leading:
    return Leading(Sim(tmp_path, monkeypatch, seed=3))


def test_a_learner_gets_the_log_and_neither_votes_nor_counts(leading: Leading) -> None:
    sim = leading.sim
    leading.join("n4")
    assert leading.ask(Change("learn", "n4", "n4", 1)) == ""
    sim.propose("n1", "with a learner")
    sim.run_until(lambda: "with a learner" in sim.acknowledged)
    machine, consensus = sim.nodes["n4"].machine, sim.nodes["n4"].consensus
    assert machine is not None and consensus is not None
    sim.run_until(lambda: "with a learner" in dict(machine.entries).values())
    assert sim.members() == ["n1", "n2", "n3"]
    assert consensus.role() is Role.learner
    assert consensus.status(sim.now).is_quorate
    leader = sim.leader()
    others = [uid for uid in ("n1", "n2", "n3") if uid != leader]
    for uid in others:
        sim.crash(uid)
    sim.run(5.0)
    assert sim.leader() is None, "a learner's answers make no quorum"
    assert not consensus.status(sim.now).is_quorate


def test_a_learner_is_a_member_on_every_replica_and_after_restarts(leading: Leading) -> None:
    sim = leading.sim
    leading.join("n4")
    assert leading.ask(Change("learn", "n4", "n4", 1)) == ""
    sim.run(1.0)
    for uid in list(sim.nodes):
        sim.crash(uid)
    sim.founders = {}
    for uid in sim.nodes:
        sim.boot(uid)
    sim.run_until(lambda: sim.leader() is not None)
    for node in sim.alive():
        assert node.consensus is not None
        assert set(node.consensus.configurations.whole.learners) == {"n4"}
    sim.propose("n4", "from the learner")
    sim.run_until(lambda: "from the learner" in sim.acknowledged)


def test_a_learner_is_promoted_once_it_has_the_log_and_not_before(leading: Leading) -> None:
    sim = leading.sim
    leading.join("n4")
    assert leading.ask(Change("learn", "n4", "n4", 1)) == ""
    assert leading.raft.ready_learners() == ("n4",)
    sim.crash("n4")
    for number in range(leading.raft.options.promote_lag_entries + 20):
        sim.propose(sim.leader() or "n1", f"e{number}")
        sim.run(0.02)
    sim.run_until(lambda: not sim.waiting)
    assert "connect" in leading.ask(Change("add", "n4", "n4", 1), seconds=1.0)
    assert leading.raft.ready_learners() == ()
    assert sim.members() == ["n1", "n2", "n3"]
    sim.boot("n4")
    assert leading.ask(Change("add", "n4", "n4", 1)) == ""
    assert sim.members() == ["n1", "n2", "n3", "n4"]
    assert leading.raft.configurations.whole.learners == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_join_goes_on_when_the_leader_dies_in_its_middle(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading = Leading(Sim(tmp_path, monkeypatch, seed=seed))
    sim = leading.sim
    leading.join("n4")
    for change in (Change("learn", "n4", "n4", 1), Change("add", "n4", "n4", 1)):
        first = sim.leader()
        assert first is not None
        leading.raft.want_change(change)
        sim.run(0.02 * (seed + 1))
        sim.crash(first)
        sim.run_until(lambda: sim.leader() is not None)
        assert leading.ask(change, seconds=10.0) == ""
        sim.boot(first)
    assert sim.members() == ["n1", "n2", "n3", "n4"]
    sim.run(2.0)
    sim.require_nothing_lost()


def test_a_demoted_leader_hands_over_and_follows(leading: Leading) -> None:
    sim = leading.sim
    leader = sim.leader()
    assert leader is not None
    assert leading.ask(Change("demote", leader), seconds=10.0) == ""
    assert leader not in sim.members()
    consensus = sim.nodes[leader].consensus
    assert consensus is not None
    sim.run_until(lambda: consensus.role() is Role.learner)
    sim.propose(leader, "from the one that led")
    sim.run_until(lambda: "from the one that led" in sim.acknowledged)


def test_nobody_asks_over_the_wire_for_what_only_recovery_may_write(leading: Leading) -> None:
    raft, members = leading.raft, leading.sim.members()
    index = raft.log.last_index
    for op in ("recover", "nonsense", ""):
        raft._SyncObj__onMessageReceived(Node("n2"), ChangeMember(op, "n2", "n2", 1))
    leading.sim.run(1.0)
    assert leading.sim.members() == members
    assert all(command[:1] != MEMBERSHIP for command, _, _ in raft.log.entries_from(index, count=99, size_bytes=9999))
    assert not any(isinstance(m, ChangeProgress) for _, m in raft.exchange.sent)


def test_over_tls_a_learner_joins_moves_is_promoted_and_leaves(cluster: Cluster) -> None:
    (founder,) = cluster.found(1)
    first = cluster.replicas[founder]
    first.propose(b"before", deadline_s=5)
    uid = str(uuid.uuid4())
    with pytest.raises(Timeout, match="to connect"):
        first.add_learner(uid, cluster.address(uid), deadline_s=1)
    assert set(first.status().learners) == {uid}, "a member already, and the quorum is as it was"
    cluster.start(uid, joining=True)
    first.add_learner(uid, cluster.address(uid), deadline_s=15)
    until(lambda: first.status().ready_learners == (uid,), what="a learner with the log")
    cluster.settled(["before"])
    assert cluster.replicas[uid].status().role is Role.learner
    cluster.crash(uid)
    first.propose(b"alone", deadline_s=5)
    cluster.addresses.pop(uid)
    first.move_member(uid, cluster.address(uid), deadline_s=5)
    cluster.start(uid)
    cluster.settled(["before", "alone"])
    first.add_member(uid, cluster.address(uid), deadline_s=15)
    assert set(first.status().members) == {founder, uid}
    first.remove_member(uid, deadline_s=15)
    assert (set(first.status().members), dict(first.status().learners)) == ({founder}, {})
    with pytest.raises(NotFound):
        first.move_member(uid, cluster.address(uid), deadline_s=5)


def test_a_removed_nodes_certificate_opens_no_link_any_more(cluster: Cluster) -> None:
    cluster.with_options(farewell_s=0.2)
    uids = cluster.found(3)
    leader = cluster.leader()
    gone, left = [uid for uid in uids if uid != leader]
    cluster.replicas[leader].remove_member(gone, deadline_s=15)
    removed, staying = cluster.replicas[gone], [cluster.replicas[uid] for uid in (leader, left)]
    until(lambda: not removed.status().is_quorate, what="the end of its links")
    # It goes on dialling whom it knew, with its good certificate; a restart changes nothing.
    cluster.crash(gone)
    removed = cluster.start(gone)
    for number in range(20):
        staying[0].propose(b"after %d" % number, deadline_s=5)
    until(lambda: cluster.machines[left].entries == cluster.machines[leader].entries)
    assert not any(is_up for uid, is_up in removed.status().members.items() if uid != gone)
    assert cluster.machines[gone].entries == []
    with pytest.raises(NoQuorum):
        until(lambda: bool(removed.propose(b"from outside", deadline_s=3)))
