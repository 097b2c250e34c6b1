"""HistoryService over the network: the clusterfs of this node answers, once the caller may see or change the path.

A file may have had a private name before it got the one that is asked for, so answers are looked at as well.
"""

# ruff: noqa: N802 - the methods are named by the proto

from typing import Any

from agent.access.caller import current_caller
from agent.local_clusterfs import LocalClusterfs
from agent.membership.core import Core
from agent.services.store import check_path, forward, is_private, may_read_private
from kvorum.v1 import history_pb2 as pb
from kvorum.v1 import history_pb2_grpc


class HistoryService(history_pb2_grpc.HistoryServiceServicer):
    def __init__(self, clusterfs: LocalClusterfs) -> None:
        self._history = clusterfs.history

    async def ListChanges(self, request: pb.ListChangesRequest, context: Any) -> pb.ListChangesResponse:
        response: pb.ListChangesResponse = await forward(self._history.ListChanges, request, context, request.path)
        if not may_read_private(current_caller()):
            visible = [change for change in response.changes if not _is_private(change)]
            del response.changes[:]
            response.changes.extend(visible)
        return response

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        response: pb.GetVersionResponse = await forward(self._history.GetVersion, request, context, request.path)
        check_path(current_caller(), response.version.path)
        return response

    async def BlameEntry(self, request: pb.BlameEntryRequest, context: Any) -> pb.BlameEntryResponse:
        response: pb.BlameEntryResponse = await forward(self._history.BlameEntry, request, context, request.path)
        return response

    async def RestoreEntry(self, request: pb.RestoreEntryRequest, context: Any) -> pb.RestoreEntryResponse:
        response: pb.RestoreEntryResponse = await forward(self._history.RestoreEntry, request, context, request.path)
        return response

    async def ForgetVersions(self, request: pb.ForgetVersionsRequest, context: Any) -> pb.ForgetVersionsResponse:
        response: pb.ForgetVersionsResponse = await forward(
            self._history.ForgetVersions, request, context, request.path
        )
        return response


def _is_private(change: pb.Change) -> bool:
    return is_private(change.path) or is_private(change.other_path)


def register(server: Any, core: Core) -> None:
    history_pb2_grpc.add_HistoryServiceServicer_to_server(HistoryService(core.clusterfs), server)
