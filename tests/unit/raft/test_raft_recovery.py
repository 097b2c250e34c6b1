"""A majority lost for good: one replica goes on under a new epoch, and the old ones can neither overwrite nor feed it."""

import logging
import shutil

import pytest
from raft_cluster import Cluster, until

from clusterfs.raft.frames import FrameReader, epoch_of, hello
from clusterfs.raft.recovery import recover, survey
from clusterfs.raft.values import Role
from kvorum import epochs
from kvorum.errors import AlreadyExists

FIRST = epochs.following(0, 5)


@pytest.mark.parametrize("epoch", [0, FIRST, 2**63])
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
        recover(cluster.directory / uid, uid=uid, address=cluster.address(uid), mark=5)


def test_the_survivor_goes_on_and_the_old_majority_cannot_touch_it(cluster: Cluster) -> None:
    uids = cluster.found(3)
    cluster.replicas[cluster.leader()].propose(b"together", deadline_s=5)
    cluster.settled(["together"])
    survivor = cluster.follower()
    for uid in uids:
        cluster.crash(uid)
    held = survey(cluster.directory / survivor, uid=survivor)
    found = recover(cluster.directory / survivor, uid=survivor, address=cluster.address(survivor), mark=5)
    assert (found.last_index, found.configuration.epoch, set(found.configuration.voters)) == (
        held.last_index + 1,
        FIRST,
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
        assert status().superseded_by == FIRST
        assert "kvorum cluster rejoin" in str(status().failure)
    alone.propose(b"still alone", deadline_s=5)
    assert cluster.machines[survivor].entries == ["together", "alone", "still alone"]
    # Their data aside, they join anew.
    for uid in old:
        cluster.crash(uid)
        shutil.move(cluster.directory / uid, cluster.directory / f"retired-{uid}")
        cluster.start(uid, joining=True, epoch=FIRST)
        alone.add_learner(uid, cluster.address(uid), deadline_s=15)
        alone.add_member(uid, cluster.address(uid), deadline_s=15)
    cluster.settled(["together", "alone", "still alone"])
    assert {replica.status().epoch for replica in cluster.replicas.values()} == {FIRST}
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
    fresh = cluster.start(emptied, joining=True, epoch=FIRST)
    past = cluster.start(old)
    until(lambda: past.status().superseded_by == FIRST, what="the end of the past")
    assert (fresh.status().term, dict(fresh.status().members)) == (0, {})


def test_recovering_twice_counts_on(cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    cluster.leader()
    cluster.crash(uid)
    directory, address = cluster.directory / uid, cluster.address(uid)
    assert recover(directory, uid=uid, address=address, mark=5).configuration.epoch == FIRST
    above = epochs.following(5 << 32, 3)
    assert recover(directory, uid=uid, address=address, mark=1, above=above).configuration.epoch == 7 << 32 | 1
    cluster.start(uid).propose(b"x", deadline_s=10)


def test_two_recoveries_of_one_cluster_never_mix_and_one_of_them_stops(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Two people, two halves, the same number of the recovery, logs of the same length and term."""
    caplog.set_level(logging.WARNING)
    uids = cluster.found(3)
    cluster.replicas[cluster.leader()].propose(b"together", deadline_s=5)
    cluster.settled(["together"])
    for uid in uids:
        cluster.crash(uid)
    # The one with the lower mark stops; the other one may be the one that dials.
    lower, higher, third = uids
    for mark, uid in ((7, lower), (8, higher)):
        recover(cluster.directory / uid, uid=uid, address=cluster.address(uid), mark=mark)
    half = cluster.start(lower)
    half.propose(b"of the lower half", deadline_s=10)
    cluster.start(higher).propose(b"of the higher half", deadline_s=10)
    until(lambda: half.status().role is Role.failed, what="the end of one half")
    failure = str(half.status().failure)
    for word in ("recovered twice", "1-00000007", "1-00000008", "kvorum cluster rejoin", "--force"):
        assert word in failure
    cluster.replicas[higher].propose(b"still", deadline_s=5)
    assert cluster.machines[lower].entries == ["together", "of the lower half"]
    assert cluster.machines[higher].entries == ["together", "of the higher half", "still"]
    # The third one learns of whichever half it meets first that it is of the past.
    old = cluster.start(third)
    until(lambda: old.status().superseded_by == 1 << 32 | 8, what="the end of the past")
    # Whoever wants the other half back gives it a number of its own, and the first one has to give way.
    cluster.crash(lower)
    above = 1 << 32 | 8
    recover(cluster.directory / lower, uid=lower, address=cluster.address(lower), mark=1, above=above)
    chosen = cluster.start(lower)
    chosen.propose(b"chosen", deadline_s=10)
    until(lambda: cluster.replicas[higher].status().superseded_by == 2 << 32 | 1, what="the end of the other half")
    assert cluster.machines[lower].entries == ["together", "of the lower half", "chosen"]


def test_a_node_without_quorum_tells_what_it_has_not_applied(cluster: Cluster) -> None:
    uids = cluster.found(3)
    cluster.replicas[cluster.leader()].propose(b"together", deadline_s=5)
    cluster.settled(["together"])
    for uid in uids:
        cluster.crash(uid)
    alone = cluster.start(uids[0])
    applied = cluster.machines[uids[0]].entries
    assert [*applied, *(entry.decode() for entry in alone.unapplied())] == ["together"]
    cluster.crash(uids[0])
    assert alone.unapplied() == []
