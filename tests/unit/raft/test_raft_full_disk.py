"""A node without space for its log only reads, says so, loses nothing, and comes back by itself."""

import errno
import os
import threading
from pathlib import Path

import pytest
from faulty_files import FaultyFiles
from pysyncobj import FAIL_REASON
from raft_cluster import Cluster, until
from raft_sim import Sim
from test_raft_rules import Alone

from clusterfs.raft import Role
from clusterfs.raft.consensus import Command
from clusterfs.raft.core import REGULAR
from clusterfs.raft.messages import AppendReply, RequestVote, TimeoutNow, VoteReply
from kvorum.errors import DiskFull, OutcomeUnknown


class Disks:
    """Every replica's directory, some of them full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: set[str] = set()
        monkeypatch.setattr("clusterfs.raft.replica.LocalFiles", self.open)

    def open(self, path: Path) -> FaultyFiles:
        files = FaultyFiles(path)

        def check(operation: str, _name: str) -> None:
            if operation in ("write", "create", "allocate") and path.name in self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        files.before = check
        return files


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(monkeypatch)


def test_a_leader_whose_disk_is_full_hands_over_and_comes_back(cluster: Cluster, disks: Disks) -> None:
    uids = cluster.found(3)
    full = cluster.leader()
    cluster.replicas[full].propose(b"before", deadline_s=5)
    disks.full.add(full)
    with pytest.raises((DiskFull, OutcomeUnknown)):
        cluster.replicas[full].propose(b"unlucky", deadline_s=5)
    until(lambda: cluster.replicas[full].status().disk_full)
    status = cluster.replicas[full].status()
    assert status.failure is None and status.role in (Role.follower, Role.candidate)
    assert cluster.changes[full][-1].disk_full, "listeners are told"
    other = next(uid for uid in uids if uid != full)
    with pytest.raises(DiskFull, match="no space") as caught:
        cluster.replicas[full].propose(b"refused", deadline_s=5)
    assert "free some" in caught.value.remedy
    for number in range(20):
        cluster.replicas[other].propose(b"meanwhile %d" % number, deadline_s=10)
    assert cluster.machines[full].entries[:1] == ["before"], "reads go on"
    disks.full.clear()
    until(lambda: not cluster.replicas[full].status().disk_full)
    cluster.replicas[full].propose(b"after", deadline_s=10)
    everything = list(cluster.machines[other].entries)
    assert [entry for entry in everything if entry != "unlucky"] == [
        "before",
        *(f"meanwhile {number}" for number in range(20)),
        "after",
    ]
    cluster.settled(everything)
    for uid in uids:
        cluster.crash(uid)
    for uid in uids:
        cluster.start(uid)
    cluster.settled(everything)


def test_a_full_leader_asks_the_best_follower_to_take_over_and_then_falls_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Alone(Sim(tmp_path, monkeypatch, seed=1))
    term = alone.lead()
    last = alone.raft.log.last_index
    alone.say("n3", AppendReply(term, True, last, last, 0, alone.sim.now))
    alone.say("n2", AppendReply(term, True, last - 1, last - 1, 0, alone.sim.now))

    def no_space() -> None:
        raise DiskFull("no space")

    with monkeypatch.context() as patch:
        patch.setattr(alone.raft.log, "sync", no_space)
        answers: list[int] = []
        alone.raft.submit(Command(REGULAR + b"x", lambda _value, reason: answers.append(reason)))
        alone.exchange.sent.clear()
        alone.tick(0.1)
        assert [uid for uid, message in alone.exchange.sent if isinstance(message, TimeoutNow)] == ["n3"]
        assert answers == [FAIL_REASON.UNKNOWN_OUTCOME], "the followers may have it"
        assert alone.raft.role() is Role.follower
        # A vote that could not be written is not given, however often it is asked for.
        for _ in range(2):
            assert alone.say("n2", RequestVote(term + 5, last + 9, term + 4, transfer=True)) == []
    alone.tick(1.1)
    assert alone.raft.full is None
    (reply,) = alone.say("n2", RequestVote(term + 5, last + 9, term + 4, transfer=True))
    assert isinstance(reply, VoteReply) and reply.granted


def test_a_follower_whose_disk_is_full_holds_nobody_up(cluster: Cluster, disks: Disks) -> None:
    cluster.found(3)
    full = cluster.follower()
    leader = cluster.leader()
    disks.full.add(full)
    entries = [f"e{number}" for number in range(30)]
    for entry in entries:
        cluster.replicas[leader].propose(entry.encode(), deadline_s=5)
    until(lambda: cluster.replicas[full].status().disk_full)
    assert cluster.replicas[leader].status().role is Role.leader
    disks.full.clear()
    cluster.settled(entries)


def test_a_lone_node_refuses_writers_until_there_is_space(cluster: Cluster, disks: Disks) -> None:
    (uid,) = cluster.found(1)
    replica = cluster.replicas[uid]
    replica.propose(b"before", deadline_s=5)
    disks.full.add(uid)
    with pytest.raises((DiskFull, OutcomeUnknown)):
        replica.propose(b"unlucky", deadline_s=5)
    for _ in range(3):
        with pytest.raises(DiskFull):
            replica.propose(b"refused", deadline_s=5)
    disks.full.clear()
    until(lambda: not replica.status().disk_full)
    replica.propose(b"after", deadline_s=10)
    assert [entry for entry in cluster.machines[uid].entries if entry != "unlucky"] == ["before", "after"]
    cluster.crash(uid)
    cluster.start(uid)
    until(lambda: cluster.machines[uid].entries[-1:] == ["after"])


def test_a_node_that_starts_on_a_full_disk_reads_and_stops_cleanly(cluster: Cluster, disks: Disks) -> None:
    (uid,) = cluster.found(1)
    cluster.replicas[uid].propose(b"before", deadline_s=5)
    cluster.replicas.pop(uid).stop()
    disks.full.add(uid)
    replica = cluster.start(uid)
    until(lambda: replica.status().disk_full)
    until(lambda: cluster.machines[uid].entries == ["before"])
    assert replica.status().failure is None
    cluster.replicas.pop(uid).stop()
    disks.full.clear()
    cluster.start(uid).propose(b"after", deadline_s=10)
    cluster.settled(["before", "after"])


def test_a_snapshot_that_does_not_fit_leaves_the_space_to_the_log(cluster: Cluster, disks: Disks) -> None:
    cluster.with_options(compact_entries=20, keep_entries=0)
    (uid,) = cluster.found(1)
    is_tried = threading.Event()
    files = cluster.replicas[uid]._consensus.snapshots.files  # type: ignore[union-attr]
    assert isinstance(files, FaultyFiles)

    def check(operation: str, name: str) -> None:
        if name == "snapshot.new" and operation == "write":
            is_tried.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.before = check
    entries = [f"e{number}" for number in range(40)]
    for entry in entries:
        cluster.replicas[uid].propose(entry.encode(), deadline_s=5)
    assert is_tried.wait(10)
    until(lambda: "snapshot.new" not in files.names())
    assert not cluster.replicas[uid].status().disk_full
    cluster.crash(uid)
    cluster.start(uid)
    cluster.settled(entries)
