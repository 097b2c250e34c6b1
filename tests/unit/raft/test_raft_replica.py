"""Three replicas with real sockets, TLS and disks: what a user of consensus relies on."""

from raft_cluster import Cluster

from clusterfs.raft import Role


def test_three_replicas_elect_a_leader_and_commit_entries_from_any_of_them(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    for number, uid in enumerate(uids):
        assert cluster.replicas[uid].propose(f"from {number}".encode(), deadline_s=5) == number + 1
    cluster.settled(["from 0", "from 1", "from 2"])
    status = cluster.replicas[leader].status()
    assert status.role is Role.leader and status.is_quorate and status.caught_up and status.missing == ()
    assert status.members == dict.fromkeys(uids, True)
