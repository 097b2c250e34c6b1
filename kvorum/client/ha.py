"""HaService for Python callers."""

from typing import TYPE_CHECKING

from kvorum.v1 import ha_pb2 as pb
from kvorum.v1.ha_pb2_grpc import HaServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection


class HaApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stub = HaServiceStub(connection.channel)

    def resources(self) -> list[pb.HaResource]:
        response: pb.ListHaResourcesResponse = self._call(self._stub.ListHaResources, pb.ListHaResourcesRequest())
        return list(response.resources)

    def add(
        self, sid: str, *, state: pb.HaRequestState.ValueType = pb.HA_REQUEST_STATE_STARTED, comment: str = ""
    ) -> pb.HaResource:
        resource = pb.HaResource(sid=sid, request_state=state, comment=comment)
        response: pb.AddHaResourceResponse = self._call(
            self._stub.AddHaResource, pb.AddHaResourceRequest(resource=resource)
        )
        return response.resource

    def set_state(self, sid: str, state: pb.HaRequestState.ValueType) -> pb.HaResource:
        resource = pb.HaResource(sid=sid, request_state=state)
        response: pb.UpdateHaResourceResponse = self._call(
            self._stub.UpdateHaResource, pb.UpdateHaResourceRequest(resource=resource)
        )
        return response.resource

    def remove(self, sid: str) -> None:
        self._call(self._stub.RemoveHaResource, pb.RemoveHaResourceRequest(sid=sid))

    def status(self) -> pb.GetHaStatusResponse:
        response: pb.GetHaStatusResponse = self._call(self._stub.GetHaStatus, pb.GetHaStatusRequest())
        return response
