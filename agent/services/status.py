"""StatusService over the network: what nodes tell each other, as the clusterfs of this node has heard it. Reading only.

Every node has the whole, so no call is passed on. Status is set, and the cluster log written, on the node's own clusterfs
socket; the policy lets nobody do it here.
"""

# ruff: noqa: N802 - the methods are named by the proto

from collections.abc import AsyncIterator
from typing import Any

import grpc

from agent.local_clusterfs import READ_TIMEOUT_S, LocalClusterfs, explain
from agent.membership.core import Core
from kvorum.errors import PermissionDenied
from kvorum.v1 import status_pb2 as pb
from kvorum.v1 import status_pb2_grpc


class StatusService(status_pb2_grpc.StatusServiceServicer):
    def __init__(self, clusterfs: LocalClusterfs) -> None:
        self._clusterfs = clusterfs
        self._status = clusterfs.status

    async def SetStatus(self, _request: pb.SetStatusRequest, _context: Any) -> pb.SetStatusResponse:
        raise PermissionDenied("status is set on the node that it is about")

    async def LogMessage(self, _request: pb.LogMessageRequest, _context: Any) -> pb.LogMessageResponse:
        raise PermissionDenied("the cluster log is written on the node that speaks")

    async def GetStatus(self, request: pb.GetStatusRequest, _context: Any) -> pb.GetStatusResponse:
        answer: pb.GetStatusResponse = await self._ask(self._status.GetStatus, request)
        return answer

    async def ListStatus(self, request: pb.ListStatusRequest, _context: Any) -> pb.ListStatusResponse:
        answer: pb.ListStatusResponse = await self._ask(self._status.ListStatus, request)
        return answer

    async def ListLog(self, request: pb.ListLogRequest, _context: Any) -> pb.ListLogResponse:
        answer: pb.ListLogResponse = await self._ask(self._status.ListLog, request)
        return answer

    async def WatchStatus(self, request: pb.WatchStatusRequest, _context: Any) -> AsyncIterator[pb.WatchStatusResponse]:
        try:
            async for response in self._status.WatchStatus(request):
                yield response
        except grpc.aio.AioRpcError as error:
            raise explain(error) from error

    async def _ask(self, method: Any, request: object) -> Any:
        return await self._clusterfs.ask(method, request, timeout_s=READ_TIMEOUT_S)


def register(server: Any, core: Core) -> None:
    status_pb2_grpc.add_StatusServiceServicer_to_server(StatusService(core.clusterfs), server)
