"""A majority lost for good: one replica goes on under a new epoch, and the old ones can neither overwrite nor feed it."""

import shutil

import pytest
from raft_cluster import Cluster, until

from clusterfs.raft.frames import FrameReader, epoch_of, hello
from clusterfs.raft.recovery import recover, survey
from clusterfs.raft.values import Role
from kvorum.errors import AlreadyExists


@pytest.mark.parametrize("epoch", [0, 1, 2**63])
def test_a_hello_tells_the_epoch(epoch: int) -> None:
    (payload,) = FrameReader(100).feed(hello(epoch))
    assert epoch_of(payload) == epoch


@pytest.mark.parametrize("payload", [b"E", b"E1234567", b"X12345678", b"E123456789"])
def test_what_is_no_hello_tells_nothing(payload: bytes) -> None:
    assert epoch_of(payload) is None


def test_a_running_replica_is_not_recovered_behind_its_back(cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    cluster.leader()
    with pytest.raises(AlreadyExists):
        recover(cluster.directory / uid, uid=uid, address=cluster.address(uid))


def test_the_survivor_goes_on_and_the_old_majority_cannot_touch_it(cluster: Cluster) -> None:
    uids = cluster.found(3)
    cluster.replicas[cluster.leader()].propose(b"together", deadline_s=5)
    cluster.settled(["together"])
    survivor = cluster.follower()
    for uid in uids:
        cluster.crash(uid)
    held = survey(cluster.directory / survivor, uid=survivor)
    found = recover(cluster.directory / survivor, uid=survivor, address=cluster.address(survivor))
    assert (found.last_index, found.configuration.epoch, set(found.configuration.voters)) == (
        held.last_index + 1,
        1,
        {survivor},
    )
    alone = cluster.start(survivor)
    alone.propose(b"alone", deadline_s=10)
    old = [uid for uid in uids if uid != survivor]
    # The two come back as a majority of three, and meet the survivor.
    for uid in old:
        cluster.start(uid)
    for uid in old:
        status = cluster.replicas[uid].status
        until(lambda s=status: s().role is Role.failed, what="the end of a replica of the past")
        assert status().superseded_by == 1
        assert "kvorum cluster rejoin" in str(status().failure)
    alone.propose(b"still alone", deadline_s=5)
    assert cluster.machines[survivor].entries == ["together", "alone", "still alone"]
    # Their data aside, they join anew.
    for uid in old:
        cluster.crash(uid)
        shutil.move(cluster.directory / uid, cluster.directory / f"retired-{uid}")
        cluster.start(uid, joining=True, epoch=1)
        alone.add_learner(uid, cluster.address(uid), deadline_s=15)
        alone.add_member(uid, cluster.address(uid), deadline_s=15)
    cluster.settled(["together", "alone", "still alone"])
    assert {replica.status().epoch for replica in cluster.replicas.values()} == {1}
    cluster.crash(survivor)
    cluster.replicas[old[0]].propose(b"without it", deadline_s=10)


def test_a_node_that_begins_anew_does_not_vote_for_the_past(cluster: Cluster) -> None:
    """Otherwise one emptied replica and one of the old ones would be a majority of the lost three."""
    uids = cluster.found(3)
    cluster.replicas[cluster.leader()].propose(b"together", deadline_s=5)
    cluster.settled(["together"])
    for uid in uids:
        cluster.crash(uid)
    emptied, old, _ = uids
    shutil.rmtree(cluster.directory / emptied)
    fresh = cluster.start(emptied, joining=True, epoch=1)
    past = cluster.start(old)
    until(lambda: past.status().superseded_by == 1, what="the end of the past")
    assert (fresh.status().term, dict(fresh.status().members)) == (0, {})


def test_recovering_twice_counts_on(cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    cluster.leader()
    cluster.crash(uid)
    directory, address = cluster.directory / uid, cluster.address(uid)
    assert recover(directory, uid=uid, address=address).configuration.epoch == 1
    assert recover(directory, uid=uid, address=address, above=6).configuration.epoch == 7
    cluster.start(uid).propose(b"x", deadline_s=10)
