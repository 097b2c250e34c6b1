"""The side channel: what replicas whisper reaches whoever is connected and never enters the log."""

import uuid

from raft_cluster import Cluster, until

from clusterfs.raft.consensus import WHISPER_BACKLOG_BYTES
from clusterfs.raft.replica import MAX_WHISPER_BYTES


class Ears:
    def __init__(self, cluster: Cluster, uid: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.links: list[frozenset[str]] = []
        cluster.replicas[uid].listen(lambda peer, payload: self.heard.append((peer, payload)), self.links.append)


def test_a_whisper_reaches_voters_and_learners_and_leaves_no_trace(cluster: Cluster) -> None:
    uids = cluster.found(2)
    leader = cluster.leader()
    learner = str(uuid.uuid4())
    for uid in uids:
        cluster.replicas[uid].allow_peer(learner, cluster.address(learner))
    cluster.start(learner, joining=True)
    ears = {uid: Ears(cluster, uid) for uid in (*uids, learner)}
    until(lambda: all(ear.links and len(ear.links[-1]) == 2 for ear in ears.values()), what="the links")
    before = cluster.replicas[leader].status().commit_index
    payload = b"x" * MAX_WHISPER_BYTES
    cluster.replicas[learner].whisper(payload)
    cluster.replicas[leader].whisper(b"to one", learner)
    until(lambda: all((learner, payload) in ears[uid].heard for uid in uids), what="the learner's whisper")
    until(lambda: ears[learner].heard == [(leader, b"to one")], what="the leader's whisper")
    assert cluster.replicas[leader].status().commit_index == before
    assert all(cluster.machines[uid].entries == [] for uid in ears)


def test_links_that_end_are_told_and_a_whisper_to_nobody_is_lost(cluster: Cluster) -> None:
    uids = cluster.found(2)
    cluster.leader()
    ears = Ears(cluster, uids[0])
    until(lambda: ears.links[-1:] == [frozenset({uids[1]})], what="the link")
    cluster.crash(uids[1])
    until(lambda: ears.links[-1] == frozenset(), what="the end of the link")
    cluster.replicas[uids[0]].whisper(b"lost", uids[1])
    cluster.start(uids[1])
    other = Ears(cluster, uids[1])
    until(lambda: ears.links[-1] == frozenset({uids[1]}), what="the link")
    cluster.replicas[uids[0]].whisper(b"heard")
    until(lambda: bool(other.heard), what="a whisper")
    assert other.heard == [(uids[0], b"heard")]


def test_a_peer_with_a_long_queue_is_not_whispered_to(cluster: Cluster) -> None:
    uids = cluster.found(2)
    cluster.leader()
    ears = [Ears(cluster, uid) for uid in uids]
    until(lambda: all(ear.links and ear.links[-1] for ear in ears), what="the links")
    consensus = cluster.replicas[uids[0]]._consensus
    assert consensus is not None
    backlog = [WHISPER_BACKLOG_BYTES + 1]
    consensus.exchange.backlog_bytes = lambda _uid: backlog[0]  # type: ignore[method-assign]
    cluster.replicas[uids[0]].whisper(b"one too many")
    done: list[bool] = []
    consensus.call_soon(lambda: done.append(True))
    until(lambda: bool(done), what="a tick")
    backlog[0] = 0
    cluster.replicas[uids[0]].whisper(b"heard")
    until(lambda: bool(ears[1].heard), what="a whisper")
    assert ears[1].heard == [(uids[0], b"heard")]
