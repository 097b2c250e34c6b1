"""ClusterService for Python callers."""

from typing import TYPE_CHECKING

from kvorum.ids import node_resource
from kvorum.v1 import cluster_pb2 as pb
from kvorum.v1.cluster_pb2_grpc import ClusterServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection

# Forming, joining and leaving wait for other nodes and for disks.
MEMBERSHIP_TIMEOUT_S = 120.0


class ClusterApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stub = ClusterServiceStub(connection.channel)

    def init(self, cluster_name: str, *, address: str = "") -> pb.Node:
        request = pb.BootstrapClusterRequest(cluster_name=cluster_name, address=address)
        response: pb.BootstrapClusterResponse = self._call(
            self._stub.BootstrapCluster, request, timeout_s=MEMBERSHIP_TIMEOUT_S
        )
        return response.node

    def create_join_token(self, *, ttl_s: int = 0) -> pb.CreateJoinTokenResponse:
        response: pb.CreateJoinTokenResponse = self._call(
            self._stub.CreateJoinToken, pb.CreateJoinTokenRequest(ttl_seconds=ttl_s)
        )
        return response

    def join(
        self, address: str, token: str, *, local_address: str = "", node_name: str = "", witness: bool = False
    ) -> pb.Node:
        request = pb.JoinClusterRequest(
            address=address, token=token, local_address=local_address, node_name=node_name, witness=witness
        )
        response: pb.JoinClusterResponse = self._call(self._stub.JoinCluster, request, timeout_s=MEMBERSHIP_TIMEOUT_S)
        return response.node

    def leave(self, *, force: bool = False) -> None:
        self._call(self._stub.LeaveCluster, pb.LeaveClusterRequest(force=force), timeout_s=MEMBERSHIP_TIMEOUT_S)

    def remove_node(self, node: str, *, force: bool = False) -> None:
        request = pb.RemoveNodeRequest(name=node_resource(node), force=force)
        self._call(self._stub.RemoveNode, request, timeout_s=MEMBERSHIP_TIMEOUT_S)

    def rename_node(self, node: str, new_name: str) -> None:
        self._call(self._stub.RenameNode, pb.RenameNodeRequest(name=node_resource(node), new_name=new_name))

    def set_node_address(self, node: str, address: str) -> None:
        request = pb.SetNodeAddressRequest(name=node_resource(node), address=address)
        self._call(self._stub.SetNodeAddress, request, timeout_s=MEMBERSHIP_TIMEOUT_S)

    def readdress(self, address: str) -> None:
        self._call(self._stub.ReaddressNode, pb.ReaddressNodeRequest(address=address), timeout_s=MEMBERSHIP_TIMEOUT_S)

    def plan_recovery(self) -> pb.PlanClusterRecoveryResponse:
        response: pb.PlanClusterRecoveryResponse = self._call(
            self._stub.PlanClusterRecovery, pb.PlanClusterRecoveryRequest()
        )
        return response

    def recover(self, *, confirm: str, force: bool = False) -> pb.RecoverClusterResponse:
        request = pb.RecoverClusterRequest(confirm=confirm, force=force)
        response: pb.RecoverClusterResponse = self._call(
            self._stub.RecoverCluster, request, timeout_s=MEMBERSHIP_TIMEOUT_S
        )
        return response

    def rejoin(self) -> pb.RejoinClusterResponse:
        response: pb.RejoinClusterResponse = self._call(
            self._stub.RejoinCluster, pb.RejoinClusterRequest(), timeout_s=MEMBERSHIP_TIMEOUT_S
        )
        return response

    def status(self) -> pb.GetClusterStatusResponse:
        response: pb.GetClusterStatusResponse = self._call(self._stub.GetClusterStatus, pb.GetClusterStatusRequest())
        return response

    def nodes(self) -> list[pb.Node]:
        response: pb.ListNodesResponse = self._call(self._stub.ListNodes, pb.ListNodesRequest())
        return list(response.nodes)

    def issue_client_certificate(
        self, certificate_signing_request: str, *, user: str = "", ttl_s: int = 0
    ) -> pb.IssueClientCertificateResponse:
        request = pb.IssueClientCertificateRequest(
            certificate_signing_request=certificate_signing_request, user=user, ttl_seconds=ttl_s
        )
        response: pb.IssueClientCertificateResponse = self._call(self._stub.IssueClientCertificate, request)
        return response
