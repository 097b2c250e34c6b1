"""ClusterService: forms a cluster, lets nodes in and out, tells how it is. What happens is in `agent.membership`."""

# ruff: noqa: N802 - the methods are named by the proto

import datetime
from typing import Any

from google.protobuf import timestamp_pb2

from agent.access.caller import ROOT_USER, current_caller
from agent.access.certificates import sign_user
from agent.access.join_token import render_token
from agent.membership import admission, founding, joining, leaving, naming, recovering
from agent.membership.core import Core, authority
from agent.membership.status import ClusterStatus
from kvorum.errors import InvalidInput
from kvorum.ids import node_resource, parse_node_resource
from kvorum.v1 import cluster_pb2 as pb
from kvorum.v1 import cluster_pb2_grpc

DEFAULT_CERTIFICATE_TTL_S = 86_400
MAX_CERTIFICATE_TTL_S = 31_536_000
USER_MAX = 64


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, core: Core) -> None:
        self._core = core
        self._status = ClusterStatus(core)

    async def BootstrapCluster(
        self, request: pb.BootstrapClusterRequest, context: object
    ) -> pb.BootstrapClusterResponse:
        await founding.found_cluster(self._core, cluster_name=request.cluster_name, address=request.address)
        return pb.BootstrapClusterResponse(node=self._local_node())

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: object) -> pb.CreateJoinTokenResponse:
        token = await admission.make_token(self._core, ttl_s=request.ttl_seconds, author=current_caller().author)
        return pb.CreateJoinTokenResponse(
            token=render_token(token), expire_time=timestamp_pb2.Timestamp(seconds=token.expires)
        )

    async def JoinCluster(self, request: pb.JoinClusterRequest, context: object) -> pb.JoinClusterResponse:
        await joining.join_cluster(
            self._core,
            address=request.address,
            token_text=request.token,
            local_address=request.local_address,
            node_name=request.node_name,
            witness=request.witness,
        )
        return pb.JoinClusterResponse(node=self._local_node())

    async def AdmitNode(self, request: pb.AdmitNodeRequest, context: object) -> pb.AdmitNodeResponse:
        certificate, ca, view = await admission.admit(
            self._core,
            token_id=current_caller().name,
            name=request.node_name,
            address=request.address,
            uid=request.uid,
            request=request.certificate_signing_request.encode(),
            witness=request.witness,
        )
        new = pb.Node(
            name=f"nodes/{request.node_name}", uid=request.uid, address=request.address, witness=request.witness
        )
        return pb.AdmitNodeResponse(
            cluster_name=self._core.require_identity().cluster_name,
            certificate=certificate.decode(),
            ca_certificate=ca.decode(),
            nodes=[*(self._status.node(view, member.name) for member in view.members), new],
            epoch=view.epoch,
        )

    async def LeaveCluster(self, request: pb.LeaveClusterRequest, context: object) -> pb.LeaveClusterResponse:
        await leaving.leave_cluster(self._core, force=request.force)
        return pb.LeaveClusterResponse()

    async def RemoveNode(self, request: pb.RemoveNodeRequest, context: object) -> pb.RemoveNodeResponse:
        name = parse_node_resource(request.name, field="name")
        await leaving.remove_node(self._core, name=name, force=request.force, caller=current_caller())
        return pb.RemoveNodeResponse()

    async def RenameNode(self, request: pb.RenameNodeRequest, context: object) -> pb.RenameNodeResponse:
        name = parse_node_resource(request.name, field="name")
        await naming.rename_node(self._core, name=name, new_name=request.new_name, author=current_caller().author)
        return pb.RenameNodeResponse()

    async def SetNodeAddress(self, request: pb.SetNodeAddressRequest, context: object) -> pb.SetNodeAddressResponse:
        name = parse_node_resource(request.name, field="name")
        await naming.set_address(self._core, name=name, address=request.address, caller=current_caller())
        return pb.SetNodeAddressResponse()

    async def ReaddressNode(self, request: pb.ReaddressNodeRequest, context: object) -> pb.ReaddressNodeResponse:
        await naming.readdress(self._core, address=request.address)
        return pb.ReaddressNodeResponse()

    async def PlanClusterRecovery(
        self, request: pb.PlanClusterRecoveryRequest, context: object
    ) -> pb.PlanClusterRecoveryResponse:
        plan = await recovering.plan_recovery(self._core)
        moment = timestamp_pb2.Timestamp()
        moment.FromMilliseconds(plan.last_change_ms)
        return pb.PlanClusterRecoveryResponse(
            cluster_name=plan.cluster_name,
            epoch=plan.epoch,
            last_index=plan.last_index,
            last_change_time=moment,
            lost_nodes=[node_resource(name) for name in plan.lost_nodes],
            obstacles=plan.obstacles,
        )

    async def RecoverCluster(self, request: pb.RecoverClusterRequest, context: object) -> pb.RecoverClusterResponse:
        found = await recovering.recover(
            self._core, confirm=request.confirm, force=request.force, author=current_caller().author
        )
        return pb.RecoverClusterResponse(
            epoch=found.done.epoch, last_index=found.done.last_index, archive_path=found.archive_path
        )

    async def RejoinCluster(self, request: pb.RejoinClusterRequest, context: object) -> pb.RejoinClusterResponse:
        return pb.RejoinClusterResponse(archive_path=await recovering.rejoin(self._core))

    async def GetClusterStatus(
        self, request: pb.GetClusterStatusRequest, context: object
    ) -> pb.GetClusterStatusResponse:
        return await self._status.status(current_caller())

    async def ListNodes(self, request: pb.ListNodesRequest, context: object) -> pb.ListNodesResponse:
        self._core.require_identity()
        view = await self._core.membership.refresh()
        nodes = await self._status.nodes(view, current_caller())
        nodes = [node for node in nodes if node.name > request.page_token]
        if request.page_size < 0:
            raise InvalidInput("a page has at least one entry", field="page_size")
        page = nodes[: request.page_size] if request.page_size else nodes
        return pb.ListNodesResponse(nodes=page, next_page_token=page[-1].name if len(page) < len(nodes) else "")

    async def GetClusterCertificate(
        self, request: pb.GetClusterCertificateRequest, context: object
    ) -> pb.GetClusterCertificateResponse:
        self._core.require_identity()
        return pb.GetClusterCertificateResponse(ca_certificate=self._core.paths.pki.ca.read_text())

    async def IssueClientCertificate(
        self, request: pb.IssueClientCertificateRequest, context: object
    ) -> pb.IssueClientCertificateResponse:
        self._core.require_identity()
        user = parse_user_field(request.user or ROOT_USER)
        ttl_s = request.ttl_seconds or DEFAULT_CERTIFICATE_TTL_S
        if not 0 < ttl_s <= MAX_CERTIFICATE_TTL_S:
            raise InvalidInput(f"a certificate lives 1 to {MAX_CERTIFICATE_TTL_S} seconds", field="ttl_seconds")
        ca = await authority(self._core.clusterfs)
        certificate = sign_user(
            request.certificate_signing_request.encode(),
            ca,
            user=user,
            ttl=datetime.timedelta(seconds=ttl_s),
            now=self._core.now(),
        )
        return pb.IssueClientCertificateResponse(
            certificate=certificate.decode(), ca_certificate=ca.certificate.decode()
        )

    def _local_node(self) -> pb.Node:
        return self._status.node(self._core.membership.view, self._core.require_identity().name)


def parse_user_field(text: str) -> str:
    name, at, realm = text.rpartition("@")
    if not (at and name and realm.isalnum()) or not text.isascii() or not text.isprintable() or len(text) > USER_MAX:
        raise InvalidInput(f"{text!r} is no user", field="user", remedy="write USER@REALM, as in root@pam")
    return text


def register(server: Any, core: Core) -> None:
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterService(core), server)
