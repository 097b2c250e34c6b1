"""Founding, joining, leaving and removing, between real agents over real TLS."""

import asyncio
import datetime
from collections.abc import Callable
from typing import Any

import pytest

from agent.membership import admission, joining
from kvorum import errors
from kvorum.v1 import cluster_pb2 as pb
from kvorum.v1 import store_pb2


async def found(world: Any) -> Any:
    node = await world.node()
    await node.cluster.BootstrapCluster(pb.BootstrapClusterRequest(cluster_name="test", address=node.address))
    return node


async def token_of(node: Any, ttl_s: int = 0) -> str:
    return (await node.cluster.CreateJoinToken(pb.CreateJoinTokenRequest(ttl_seconds=ttl_s))).token


async def join(world: Any, first: Any, node: Any, token: str, **fields: str) -> pb.Node:
    request = pb.JoinClusterRequest(
        **{"address": first.target, "token": token, "local_address": node.address, **fields}
    )
    return (await node.cluster.JoinCluster(request)).node


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_node_founds_a_cluster_and_writes_its_first_files(world: Any) -> None:
    node = await found(world)
    entries = node.store.entries
    assert sorted(entries) == ["datacenter.cfg", "kvorum-root-ca.pem", "priv/kvorum-root-ca.key", "storage.cfg"]
    assert entries["kvorum-root-ca.pem"].content == node.paths.pki.ca.read_bytes()
    assert node.paths.pki.key.stat().st_mode & 0o777 == 0o600
    assert (node.paths.pki.directory / "qemu" / "server-key.pem").read_bytes() == node.paths.pki.key.read_bytes()
    assert node.paths.identity.stat().st_mode & 0o777 == 0o600
    assert node.is_listening()
    status = await node.cluster.GetClusterStatus(pb.GetClusterStatusRequest())
    assert (status.cluster_name, status.quorate, status.leader) == ("test", True, "nodes/n1")
    assert status.nodes[0].local


async def test_a_second_node_joins_by_a_token(world: Any) -> None:
    first = await found(world)
    second = await world.node()
    node = await join(world, first, second, await token_of(first))
    assert node.name == "nodes/n2"
    assert [member.name for member in first.store.members.values()] == ["n1", "n2"]
    assert not [path for path in first.store.entries if path.startswith("priv/join-tokens")]
    for each in (first, second):
        status = await each.cluster.GetClusterStatus(pb.GetClusterStatusRequest())
        assert [node.name for node in status.nodes] == ["nodes/n1", "nodes/n2"]
        assert status.cluster_name == "test"


async def test_a_used_token_is_refused(world: Any, raises: Any) -> None:
    first = await found(world)
    token = await token_of(first)
    await join(world, first, await world.node(), token)
    third = await world.node()
    with raises(errors.PermissionDenied, "used already"):
        await join(world, first, third, token)
    assert third.is_untouched()


async def test_tokens_that_are_no_good_change_nothing(world: Any, raises: Any) -> None:
    first = await found(world)
    other = await world.node()
    good = await token_of(first)
    version, name, secret, expires, ca = good.split(".")
    swapped = secret[::-1] if secret[::-1] != secret else "a" * 32
    cases: list[tuple[str, type[errors.KvorumError], str]] = [
        ("kv1.nonsense", errors.InvalidInput, "no join token"),
        (good[:-1], errors.InvalidInput, "no join token"),
        (f"{version}.{name}.{swapped}.{expires}.{ca}", errors.PermissionDenied, "does not know this join token"),
        (f"{version}.aaaaaaaa.{secret}.{expires}.{ca}", errors.PermissionDenied, "does not know this join token"),
        (f"{version}.{name}.{secret}.{'0' * 8}.{ca}", errors.Refused, "has expired"),
        (f"{version}.{name}.{secret}.{expires}.{'0' * 64}", errors.Refused, "its CA is another one"),
    ]
    for token, kind, words in cases:
        with raises(kind, words):
            await join(world, first, other, token)
        assert other.is_untouched(), token
    assert [member.name for member in first.store.members.values()] == ["n1"]
    assert (await join(world, first, other, good)).name == "nodes/n2"  # and the good one is good still


async def test_a_token_expires_at_the_cluster_whatever_the_joiner_thinks(world: Any, raises: Any) -> None:
    first = await found(world)
    other = await world.node()
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)
    first.agent.core.now = other.agent.core.now = lambda: past
    token = await token_of(first)
    with raises(errors.PermissionDenied, "does not know this join token"):
        await join(world, first, other, token)
    assert other.is_untouched()


async def test_a_token_of_another_cluster_is_refused_before_it_is_shown(world: Any, raises: Any) -> None:
    first, stranger = await found(world), await found(world)
    other = await world.node()
    token = await token_of(first)
    with raises(errors.Refused, "its CA is another one"):
        await join(world, stranger, other, token)
    assert other.is_untouched()


async def test_a_node_in_a_cluster_neither_founds_nor_joins_another(world: Any, raises: Any) -> None:
    first, second = await found(world), await found(world)
    token = await token_of(first)
    with raises(errors.Refused, "already in cluster test"):
        await join(world, first, second, token)
    with raises(errors.Refused, "already in cluster test"):
        await second.cluster.BootstrapCluster(pb.BootstrapClusterRequest(cluster_name="more", address=second.address))
    assert second.is_listening()
    assert len(second.store.members) == 1


async def test_names_and_addresses_of_members_are_taken_and_the_token_stays_good(world: Any, raises: Any) -> None:
    first = await found(world)
    other = await world.node()
    token = await token_of(first)
    with raises(errors.AlreadyExists, "named N1 is in the cluster"):
        await join(world, first, other, token, node_name="N1")
    with raises(errors.AlreadyExists, "that of node n1"):
        await join(world, first, other, token, local_address=first.address)
    with raises(errors.InvalidInput, "no node name"):
        await join(world, first, other, token, node_name="a_b")
    with raises(errors.InvalidInput, "no address of this node"):
        await join(world, first, other, token, local_address="192.0.2.1")
    assert other.is_untouched()
    await join(world, first, other, token)


async def test_an_address_where_nobody_or_somebody_else_answers_is_said_so(world: Any, raises: Any) -> None:
    first = await found(world)
    other = await world.node()
    token = await token_of(first)
    with raises(errors.Unreachable, "cannot reach 127.0.0.99"):
        await join(world, first, other, token, address=f"127.0.0.99:{world.port}")
    with raises(errors.InvalidInput, "is no address"):
        await join(world, first, other, token, address="127.0.0.1:http")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.98", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with raises(errors.Unreachable, "127.0.0.98"):
            await join(world, first, other, token, address=f"127.0.0.98:{port}")
    assert other.is_untouched()
    await join(world, first, other, token)


async def test_no_quorum_refuses_tokens_and_joins_and_names_the_missing(world: Any, raises: Any) -> None:
    first = await found(world)
    second, third = await world.node(), await world.node()
    await join(world, first, second, await token_of(first))
    token = await token_of(first)
    first.store.quorate = False
    first.store.running.discard(second.clusterfs.uid)
    await first.agent.core.membership.refresh()
    with raises(errors.NoQuorum, "n2 missing"):
        await token_of(first)
    with raises(errors.NoQuorum, "n2 missing"):
        await join(world, first, third, token)
    assert third.is_untouched()
    status = await first.cluster.GetClusterStatus(pb.GetClusterStatusRequest())
    assert (status.quorate, list(status.missing_nodes)) == (False, ["nodes/n2"])


async def test_a_join_that_fails_late_is_undone_on_both_sides(world: Any, raises: Any) -> None:
    first = await found(world)
    other = await world.node()
    other.clusterfs.fail["ActivateReplica"] = errors.CommandFailed("cannot mount")
    with raises(errors.CommandFailed, "cannot mount"):
        await join(world, first, other, await token_of(first))
    assert other.is_untouched()
    assert [member.name for member in first.store.members.values()] == ["n1"]
    node = await join(world, first, other, await token_of(first), node_name="again")
    assert node.name == "nodes/again"


async def test_a_founding_that_fails_late_is_undone(world: Any, raises: Any) -> None:
    node = await world.node()
    for method in ("ActivateReplica", "WriteEntry"):
        node.clusterfs.fail[method] = errors.QuotaExceeded("disk full")
        with raises(errors.QuotaExceeded, "disk full"):
            await node.cluster.BootstrapCluster(pb.BootstrapClusterRequest(cluster_name="x", address=node.address))
        assert node.is_untouched(), method
    for bad in ("", "-a", "with space", "x" * 16):
        with raises(errors.InvalidInput, "no cluster name"):
            await node.cluster.BootstrapCluster(pb.BootstrapClusterRequest(cluster_name=bad, address=node.address))
    await node.cluster.BootstrapCluster(pb.BootstrapClusterRequest(cluster_name="x", address=node.address))


async def test_a_node_that_does_not_come_up_is_no_member_and_its_name_is_free_again(
    world: Any, raises: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "COME_UP_TIMEOUT_S", 1.0)
    monkeypatch.setattr(joining, "READY_TIMEOUT_S", 0.5)
    first = await found(world)
    other = await world.node()
    other.clusterfs.comes_up = False
    with raises(errors.Timeout, "did not become a member"):
        await join(world, first, other, await token_of(first))
    assert other.is_untouched()
    assert [path for path in first.store.entries if path.startswith("priv/admissions")] == ["priv/admissions/n2.json"]
    with raises(errors.Locked, "just joining as n2"):
        await join(world, first, other, await token_of(first))
    await eventually(lambda: not any(path.startswith("priv/admissions") for path in first.store.entries))
    assert [member.name for member in first.store.members.values()] == ["n1"]
    other.clusterfs.comes_up = True
    await join(world, first, other, await token_of(first))


async def test_of_two_nodes_with_one_token_one_joins(world: Any) -> None:
    first = await found(world)
    others = [await world.node(), await world.node()]
    token = await token_of(first)
    results = await asyncio.gather(*(join(world, first, node, token) for node in others), return_exceptions=True)
    joined = [result for result in results if isinstance(result, pb.Node)]
    assert len(joined) == 1, results
    assert len(first.store.members) == 2
    assert [node.is_untouched() for node in others].count(True) == 1


async def test_a_node_leaves_and_can_come_back(world: Any, raises: Any) -> None:
    first = await found(world)
    second = await world.node()
    await join(world, first, second, await token_of(first))
    await first.files.WriteEntry(
        store_pb2.WriteEntryRequest(path="nodes/n2/qemu-server/100.conf", content=b"memory: 64")
    )
    with raises(errors.Refused, "owns 1 guest(s): vm:100"):
        await second.cluster.LeaveCluster(pb.LeaveClusterRequest())
    assert second.is_listening()
    await first.files.DeleteEntry(store_pb2.DeleteEntryRequest(path="nodes/n2/qemu-server/100.conf"))
    await second.cluster.LeaveCluster(pb.LeaveClusterRequest())
    assert second.is_untouched()
    assert [member.name for member in first.store.members.values()] == ["n1"]
    with raises(errors.NotFound, "in no cluster"):
        await second.cluster.LeaveCluster(pb.LeaveClusterRequest())
    await join(world, first, second, await token_of(first))
    await first.cluster.LeaveCluster(pb.LeaveClusterRequest())  # the leader may go as well
    assert first.is_untouched()
    await second.cluster.LeaveCluster(pb.LeaveClusterRequest())  # and the last one puts out the light
    assert second.is_untouched()


async def test_a_node_is_removed_only_when_it_is_off_and_owns_nothing(world: Any, raises: Any) -> None:
    first = await found(world)
    second = await world.node()
    await join(world, first, second, await token_of(first))
    uid, store = second.clusterfs.uid, first.store
    with raises(errors.NotFound, "no node of this cluster"):
        await first.cluster.RemoveNode(pb.RemoveNodeRequest(name="nodes/n9"))
    with raises(errors.Refused, "n1 is this node"):
        await first.cluster.RemoveNode(pb.RemoveNodeRequest(name="nodes/n1", force=True))
    with raises(errors.Refused, "n2 is online"):
        await first.cluster.RemoveNode(pb.RemoveNodeRequest(name="nodes/n2"))
    store.running.discard(uid)
    await first.files.WriteEntry(store_pb2.WriteEntryRequest(path="nodes/n2/lxc/101.conf", content=b"x"))
    with raises(errors.Refused, "ct:101"):
        await first.cluster.RemoveNode(pb.RemoveNodeRequest(name="nodes/n2"))
    assert uid in store.members
    await first.cluster.RemoveNode(pb.RemoveNodeRequest(name="nodes/n2", force=True))
    assert uid not in store.members
    assert "nodes/n2/lxc/101.conf" in store.entries  # somebody may still want the guest


async def test_an_agent_that_starts_again_listens_again(world: Any) -> None:
    first = await found(world)
    await first.restart_agent()
    await eventually(first.is_listening)
    second = await world.node()
    await join(world, first, second, await token_of(first))
    assert len(first.store.members) == 2


async def test_an_agent_serves_before_its_config_store_does(world: Any, raises: Any) -> None:
    node = await found(world)
    await node.clusterfs.stop()
    await node.restart_agent()
    with raises(errors.Unreachable, "config store of this node does not answer"):
        await node.cluster.GetClusterStatus(pb.GetClusterStatusRequest())
    await node.clusterfs.start()
    await eventually(lambda: node.is_listening() and node.agent.core.membership.view.is_active)
    status = await node.cluster.GetClusterStatus(pb.GetClusterStatusRequest())
    assert status.quorate


async def test_what_an_earlier_cluster_left_does_not_stand_in_the_way(world: Any) -> None:
    node = await found(world)
    await node.clusterfs.stop()  # the replica's data stays where it is
    await node.cluster.LeaveCluster(pb.LeaveClusterRequest(force=True), timeout=20)
    assert node.agent.identity is None
    assert not node.paths.pki.key.exists()
    await node.clusterfs.start()
    assert node.clusterfs.store is not None
    await eventually(lambda: node.agent.core.membership.view.is_active)
    await node.cluster.BootstrapCluster(pb.BootstrapClusterRequest(cluster_name="anew", address=node.address))
    assert node.agent.identity.cluster_name == "anew"
