"""GuestService for Python callers. What takes long returns a task's UPID: pass it to `Client.tasks`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvorum.ids import guest_resource, node_resource
from kvorum.v1 import guest_pb2 as pb
from kvorum.v1.guest_pb2_grpc import GuestServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection


class GuestApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stub = GuestServiceStub(connection.channel)

    def list(
        self, *, node: str = "", kind: pb.GuestKind.ValueType = pb.GUEST_KIND_UNSPECIFIED
    ) -> pb.ListGuestsResponse:
        """All guests; `unreachable_nodes` names the nodes that could not be asked."""
        request = pb.ListGuestsRequest(node=node_resource(node) if node else "", kind=kind)
        response: pb.ListGuestsResponse = self._call(self._stub.ListGuests, request)
        return response

    def get(self, vmid: int) -> pb.Guest:
        response: pb.GetGuestResponse = self._call(self._stub.GetGuest, pb.GetGuestRequest(name=guest_resource(vmid)))
        return response.guest

    def next_id(self) -> int:
        response: pb.GetNextGuestIdResponse = self._call(self._stub.GetNextGuestId, pb.GetNextGuestIdRequest())
        return response.vmid

    def create(
        self,
        vmid: int,
        kind: pb.GuestKind.ValueType,
        config: Mapping[str, str],
        *,
        node: str = "",
        template: str = "",
        start: bool = False,
    ) -> str:
        request = pb.CreateGuestRequest(
            vmid=vmid,
            kind=kind,
            node=node_resource(node) if node else "",
            config=dict(config),
            template=template,
            start=start,
        )
        response: pb.CreateGuestResponse = self._call(self._stub.CreateGuest, request)
        return response.task

    def update(
        self, vmid: int, config: Mapping[str, str], *, delete_keys: Sequence[str] = (), expected_version: int = 0
    ) -> pb.Guest:
        request = pb.UpdateGuestRequest(
            name=guest_resource(vmid),
            config=dict(config),
            delete_keys=list(delete_keys),
            expected_version=expected_version,
        )
        response: pb.UpdateGuestResponse = self._call(self._stub.UpdateGuest, request)
        return response.guest

    def delete(self, vmid: int, *, purge: bool = False) -> str:
        request = pb.DeleteGuestRequest(name=guest_resource(vmid), purge=purge)
        response: pb.DeleteGuestResponse = self._call(self._stub.DeleteGuest, request)
        return response.task

    def start(self, vmid: int) -> str:
        response: pb.StartGuestResponse = self._call(
            self._stub.StartGuest, pb.StartGuestRequest(name=guest_resource(vmid))
        )
        return response.task

    def shutdown(self, vmid: int, *, timeout_s: int = 0, force_stop: bool = False) -> str:
        request = pb.ShutdownGuestRequest(name=guest_resource(vmid), timeout_seconds=timeout_s, force_stop=force_stop)
        response: pb.ShutdownGuestResponse = self._call(self._stub.ShutdownGuest, request)
        return response.task

    def stop(self, vmid: int) -> str:
        response: pb.StopGuestResponse = self._call(
            self._stub.StopGuest, pb.StopGuestRequest(name=guest_resource(vmid))
        )
        return response.task

    def migrate(
        self,
        vmid: int,
        target_node: str,
        *,
        with_local_disks: bool = False,
        bandwidth_limit: int = 0,
        restart: bool = False,
    ) -> str:
        """`bandwidth_limit` in bytes per second, 0 for none. `restart` moves a running container by stop and start."""
        request = pb.MigrateGuestRequest(
            name=guest_resource(vmid),
            target_node=node_resource(target_node),
            with_local_disks=with_local_disks,
            bandwidth_limit=bandwidth_limit,
            restart=restart,
        )
        response: pb.MigrateGuestResponse = self._call(self._stub.MigrateGuest, request)
        return response.task

    def console_log(self, vmid: int, *, tail_bytes: int = 0) -> bytes:
        request = pb.GetGuestConsoleLogRequest(name=guest_resource(vmid), tail_bytes=tail_bytes)
        response: pb.GetGuestConsoleLogResponse = self._call(self._stub.GetGuestConsoleLog, request)
        return response.content
