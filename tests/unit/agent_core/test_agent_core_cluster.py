"""Founding, joining, leaving and removing, between real agents over real TLS."""

from typing import Any

from kvorum import errors
from kvorum.v1 import cluster_pb2 as pb


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
