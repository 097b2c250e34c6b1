"""Taking a node out: of its own will (leaving) or by another member (removing).

A node that owns guests stays unless forced, since its directory in the store is where they live. The vote goes first and the
leftovers after: a node that is out but not tidy is a nuisance, one that is tidy but still votes breaks the quorum.
"""

import logging

import grpc

from agent.access.caller import Caller, CallerKind, forwarded
from kvorum.errors import KvorumError, NotFound, OutcomeUnknown, PermissionDenied, Refused, Timeout, Unreachable
from kvorum.ids import node_resource
from kvorum.rpc import from_rpc_error
from kvorum.v1 import cluster_pb2, replica_pb2, store_pb2
from kvorum.v1.cluster_pb2_grpc import ClusterServiceStub

from .core import Core
from .view import Member, View, require_quorum

log = logging.getLogger(__name__)

REMOVE_TIMEOUT_S = 30.0


async def leave_cluster(core: Core, *, force: bool) -> None:
    """Raises Refused (owns guests), NoQuorum; then nothing has changed. Once the vote is gone the rest goes, whatever happens."""
    identity = core.require_identity()
    core.require_idle()
    async with core.changing:
        view = await _view_or_empty(core, force=force)
        if not force:
            require_quorum(view)
            _require_no_guests(identity.name, await core.guests_of(identity.name))
        others = [member for member in view.members if member.uid != identity.uid]
        if others:
            await _be_removed(core, view, others, force=force)
        await core.presence.close()
        try:
            await core.retire()
        except KvorumError as error:
            if not force:
                raise
            log.warning("the replica's data is still in place, joining again will put it aside: %s", error)
    log.info("left cluster %s", identity.cluster_name)


async def remove_node(core: Core, *, name: str, force: bool, caller: Caller) -> None:
    """Raises NotFound, Refused (online, owns guests, this very node), NoQuorum, PermissionDenied."""
    identity = core.require_identity()
    view = await core.membership.refresh()
    member = view.by_name(name)
    if member is None:
        raise NotFound(f"{name} is no node of this cluster", remedy="see 'kvorum node list'")
    by_itself = caller.is_node and member.name == (caller.via or caller.name)
    if caller.kind is CallerKind.node and not by_itself:
        raise PermissionDenied("a node may take out itself only")
    if member.uid == identity.uid:
        raise Refused(f"{name} is this node", remedy="run 'kvorum cluster leave', or remove it from another node")
    require_quorum(view)
    if view.is_online(member) and not (by_itself or force):
        raise Refused(f"node {name} is online", remedy=f"run 'kvorum cluster leave' on {name}, or add --force")
    guests = await core.guests_of(member.name)
    if not force:
        _require_no_guests(member.name, guests)
    request = replica_pb2.RemoveMemberRequest(uid=member.uid)
    await core.clusterfs.ask(
        core.clusterfs.replica.RemoveMember, request, timeout_s=REMOVE_TIMEOUT_S, author=caller.author
    )
    await core.membership.refresh()
    log.info("node %s (%s): removed by %s", member.name, member.uid, caller.author)
    if not guests:
        await _tidy(core, member.name, author=caller.author)


def _require_no_guests(node: str, guests: list[str]) -> None:
    if guests:
        shown = ", ".join(guests[:5]) + (", ..." if len(guests) > 5 else "")
        raise Refused(
            f"node {node} owns {len(guests)} guest(s): {shown}",
            remedy="migrate or delete them first, or add --force to leave their configs behind",
        )


async def _view_or_empty(core: Core, *, force: bool) -> View:
    """With force a node can leave even when its own config store is broken."""
    try:
        return await core.membership.refresh()
    except Unreachable:
        if force:
            return View()
        raise


async def _be_removed(core: Core, view: View, others: list[Member], *, force: bool) -> None:
    """Have another member take us out: the leader, then whoever is online.

    Raises the last error unless forced; a refusal at once.
    """
    request = cluster_pb2.RemoveNodeRequest(name=node_resource(core.require_identity().name), force=force)
    ordered = sorted(others, key=lambda member: (member.uid != view.leader_uid, not member.is_connected, member.name))
    last: KvorumError = Unreachable("no other member answers", remedy="add --force to leave all the same")
    for member in ordered:
        try:
            stub = ClusterServiceStub(core.peers.agent(member.name))
            await stub.RemoveNode(request, timeout=REMOVE_TIMEOUT_S, metadata=forwarded())
            return
        except grpc.aio.AioRpcError as error:
            last = from_rpc_error(error)
            if type(last) is Unreachable and not last.remedy:
                last = Unreachable(
                    f"node {member.name} does not answer",
                    remedy="try again when another member's agent runs, or add --force to leave all the same",
                )
        except NotFound:
            continue  # that one has gone meanwhile
        if isinstance(last, NotFound) or (isinstance(last, OutcomeUnknown | Timeout) and await _is_out(core)):
            return  # we are no member any more
        if not isinstance(last, Unreachable | OutcomeUnknown | Timeout) and not force:
            raise last
    if not force:
        raise last
    log.warning("left without a word to the others: %s", last)


async def _is_out(core: Core) -> bool:
    try:
        view = await core.membership.refresh()
    except KvorumError:
        return False
    return view.by_uid(core.require_identity().uid) is None


async def _tidy(core: Core, name: str, *, author: str) -> None:
    """The store has archived the node's directory. What came there since is empty, or else somebody's: that stays."""
    request = store_pb2.DeleteEntryRequest(path=f"nodes/{name}", reason="node removed")
    try:
        await core.clusterfs.ask(core.clusterfs.store.DeleteEntry, request, author=author)
    except NotFound:
        return
    except KvorumError as error:
        log.warning("nodes/%s stays: %s", name, error)
