"""The cluster as people see it: nodes by name, who leads, who is missing, what each runs guests on.

What another node alone knows (its acceleration) is asked of it briefly and remembered; who does not answer leaves a blank.
"""

import asyncio
import logging

import grpc

from agent.access.caller import Caller, CallerKind
from kvorum import __version__
from kvorum.errors import KvorumError
from kvorum.ids import node_resource
from kvorum.v1 import cluster_pb2
from kvorum.v1.cluster_pb2_grpc import ClusterServiceStub

from .core import Core
from .view import Member, View

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 1.0


class ClusterStatus:
    def __init__(self, core: Core) -> None:
        self._core = core
        # By uid: what a node runs on does not change while it is up.
        self._acceleration: dict[str, str] = {}

    async def status(self, caller: Caller) -> cluster_pb2.GetClusterStatusResponse:
        identity = self._core.identity
        if identity is None:
            return cluster_pb2.GetClusterStatusResponse(version=__version__)
        view = await self._core.membership.refresh()
        nodes = await self.nodes(view, caller)
        return cluster_pb2.GetClusterStatusResponse(
            cluster_name=identity.cluster_name,
            quorate=view.is_quorate,
            leader=node_resource(view.leader) if view.leader else "",
            term=view.term,
            applied_index=view.applied_index,
            nodes=nodes,
            missing_nodes=[node_resource(name) for name in view.missing],
            version=__version__,
            epoch=view.epoch,
            failure=view.failure,
        )

    async def nodes(self, view: View, caller: Caller) -> list[cluster_pb2.Node]:
        """All members, sorted by name. For a node that asks, without asking further nodes."""
        if caller.kind is not CallerKind.node:
            await self._ask_others(view)
        return [self._node(view, member) for member in view.members]

    def node(self, view: View, name: str) -> cluster_pb2.Node:
        member = view.by_name(name)
        assert member is not None, f"{name} is a member"
        return self._node(view, member)

    def _node(self, view: View, member: Member) -> cluster_pb2.Node:
        is_local = member.uid == view.self_uid
        online = cluster_pb2.NODE_STATE_ONLINE if view.is_online(member) else cluster_pb2.NODE_STATE_OFFLINE
        return cluster_pb2.Node(
            name=node_resource(member.name),
            uid=member.uid,
            address=member.address,
            state=online,
            leader=member.uid == view.leader_uid,
            local=is_local,
            voter=member.is_voter,
            witness=member.is_witness,
            acceleration=self._core.acceleration() if is_local else self._acceleration.get(member.uid, ""),
        )

    async def _ask_others(self, view: View) -> None:
        unknown = [
            member
            for member in view.members
            if member.uid != view.self_uid and member.is_connected and member.uid not in self._acceleration
        ]
        async with asyncio.TaskGroup() as group:
            for member in unknown:
                group.create_task(self._ask(member))

    async def _ask(self, member: Member) -> None:
        try:
            stub = ClusterServiceStub(self._core.peers.agent(member.name))
            response = await stub.ListNodes(cluster_pb2.ListNodesRequest(), timeout=ASK_TIMEOUT_S)
        except (KvorumError, grpc.aio.AioRpcError) as error:
            log.debug("node %s: does not tell what it runs on: %s", member.name, error)
            return
        for node in response.nodes:
            if node.local and node.uid == member.uid and node.acceleration:
                self._acceleration[member.uid] = node.acceleration
