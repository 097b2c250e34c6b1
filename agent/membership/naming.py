"""Another name or another address for a node. A node is its UUID, and its certificate says so: neither needs a new one.

Both are one change of the cluster's state. The node itself follows when its replica learns of it (`follow`), now or when it comes
back: its clusterfs writes the identity anew, and the agent and HA take it from there.
"""

import asyncio
import logging

import grpc

from agent.access.caller import Caller, forwarded
from ha.status import MANAGER_STATUS, parse_manager_status
from kvorum.errors import AlreadyExists, ConfigError, KvorumError, NotFound, Refused, Unreachable
from kvorum.ids import node_resource, parse_node_name
from kvorum.node import Identity, load_identity
from kvorum.rpc import from_rpc_error
from kvorum.v1 import cluster_pb2, replica_pb2
from kvorum.v1.cluster_pb2_grpc import ClusterServiceStub

from .core import Core, require_own_address
from .view import Member, View, require_quorum

log = logging.getLogger(__name__)

MOVE_TIMEOUT_S = 30.0
FOLLOW_S = 0.5


async def rename_node(core: Core, *, name: str, new_name: str, author: str) -> None:
    """Raises NotFound, AlreadyExists, NoQuorum, Refused (HA manages a guest there)."""
    core.require_identity()
    new_name = parse_node_name(new_name, field="new_name")
    view = await core.membership.refresh()
    member = _member(view, name)
    require_quorum(view)
    other = view.by_name(new_name)
    if other is not None and other.uid != member.uid:
        raise AlreadyExists(f"a node named {other.name} is in the cluster already")
    managed = await core.clusterfs.read("ha/resources.cfg")
    text = managed.content.decode(errors="replace") if managed is not None else ""
    sids = {line.replace(" ", "") for line in text.splitlines()}
    held = {sid for sid in await core.guests_of(member.name) if sid in sids}
    status = await core.clusterfs.read(MANAGER_STATUS)
    held |= ordered_to(member.name, status.content if status is not None else b"")
    if held:
        raise Refused(
            f"HA has {', '.join(sorted(held))} on {member.name} or on its way there, and its orders name nodes: under another "
            "name the node would not know them as its own, and HA would take it for gone",
            remedy="migrate them to another node or take them out of HA, end the node's maintenance, then rename it",
        )
    request = replica_pb2.RenameMemberRequest(uid=member.uid, name=new_name)
    await core.clusterfs.ask(core.clusterfs.replica.RenameMember, request, author=author)
    await core.membership.refresh()
    log.info("node %s (%s): called %s from now on, by %s", member.name, member.uid, new_name, author)


def ordered_to(node: str, content: bytes) -> set[str]:
    """What HA's status ties to this name: its guests, those on their way there or that are to return, its maintenance. Their
    configurations may still, or already, lie elsewhere."""
    try:
        status = parse_manager_status(content)
    except ConfigError:
        # Nobody renames under a status that cannot be read.
        return {"what its status does not tell"}
    tied = {
        sid
        for sid, service in status.service_status.items()
        if node in (service.node, service.target, service.carried_to, service.maintenance_node)
    }
    return tied | ({"its maintenance"} if status.is_drained(node) else set())


async def set_address(core: Core, *, name: str, address: str, caller: Caller) -> None:
    """On the node that moves, or passed on to it. Raises NotFound, InvalidInput (not its host's), AlreadyExists, NoQuorum."""
    identity = core.require_identity()
    view = await core.membership.refresh()
    member = _member(view, name)
    require_quorum(view)
    if member.uid != identity.uid:
        if caller.via:
            raise Refused(f"{member.name} is not this node", remedy="try again")
        await _pass_on(core, member, address)
        return
    address = require_own_address(address, field_name="address")
    request = replica_pb2.MoveMemberRequest(uid=member.uid, address=address)
    await core.clusterfs.ask(core.clusterfs.replica.MoveMember, request, author=caller.author)
    log.info("this node moves from %s to %s, by %s", member.address, address, caller.author)


async def readdress(core: Core, *, address: str) -> None:
    """This node's host has another address already. Raises InvalidInput, Refused."""
    core.require_identity()
    core.require_idle()
    address = require_own_address(address, field_name="address")
    async with core.changing:
        request = replica_pb2.ReaddressReplicaRequest(address=address)
        await core.clusterfs.ask(core.clusterfs.replica.ReaddressReplica, request, timeout_s=MOVE_TIMEOUT_S)


async def follow(core: Core) -> None:
    """For ever: when clusterfs has written another name or address of this node, be that."""
    while True:
        await asyncio.sleep(FOLLOW_S)
        before = core.identity
        if before is None or core.changing.locked():
            continue
        try:
            after = load_identity(core.paths.identity)
        except KvorumError:
            continue
        if after != before and after.uid == before.uid:
            await _become(core, before, after)


async def _become(core: Core, before: Identity, after: Identity) -> None:
    log.info("this node is %s at %s now, was %s at %s", after.name, after.address, before.name, before.address)
    if after.address == before.address:
        core.presence.identity = after
        return
    await core.presence.close()
    core.presence.open_soon(after)


async def _pass_on(core: Core, member: Member, address: str) -> None:
    request = cluster_pb2.SetNodeAddressRequest(name=node_resource(member.name), address=address)
    stub = ClusterServiceStub(core.peers.agent(member.name))
    try:
        await stub.SetNodeAddress(request, timeout=MOVE_TIMEOUT_S, metadata=forwarded())
    except grpc.aio.AioRpcError as error:
        found = from_rpc_error(error)
        if isinstance(found, Unreachable):
            raise Unreachable(
                f"node {member.name} does not answer",
                remedy=f"if it has its new address already, run 'kvorum cluster readdress --local {address}' on it",
            ) from error
        raise found from error


def _member(view: View, name: str) -> Member:
    member = view.by_name(name)
    if member is None:
        raise NotFound(f"{name} is no node of this cluster", remedy="see 'kvorum node list'")
    return member
