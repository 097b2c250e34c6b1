"""StoreService over the network: the clusterfs of this node answers, once the caller may see or change the path.

Requests and answers pass as they are. The author and where the call came from go along, for the store's history.
"""

# ruff: noqa: N802 - the methods are named by the proto

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from agent.access.caller import Caller, CallerKind, current_caller
from agent.local_clusterfs import AUTHOR_KEY, SOURCE_KEY, WRITE_TIMEOUT_S, LocalClusterfs, explain
from agent.membership.core import Core
from kvorum.errors import PermissionDenied
from kvorum.v1 import store_pb2 as pb
from kvorum.v1 import store_pb2_grpc

MAX_TIMEOUT_S = 60.0


class StoreService(store_pb2_grpc.StoreServiceServicer):
    def __init__(self, clusterfs: LocalClusterfs) -> None:
        self._store = clusterfs.store

    async def GetEntry(self, request: pb.GetEntryRequest, context: Any) -> pb.GetEntryResponse:
        response: pb.GetEntryResponse = await forward(self._store.GetEntry, request, context, request.path)
        return response

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Any) -> pb.ListEntriesResponse:
        response: pb.ListEntriesResponse = await forward(self._store.ListEntries, request, context, request.path)
        if not may_read_private(current_caller()):
            visible = [entry for entry in response.entries if not is_private(entry.path)]
            del response.entries[:]
            response.entries.extend(visible)
        return response

    async def WriteEntry(self, request: pb.WriteEntryRequest, context: Any) -> pb.WriteEntryResponse:
        response: pb.WriteEntryResponse = await forward(self._store.WriteEntry, request, context, request.path)
        return response

    async def MoveEntry(self, request: pb.MoveEntryRequest, context: Any) -> pb.MoveEntryResponse:
        response: pb.MoveEntryResponse = await forward(
            self._store.MoveEntry, request, context, request.path, request.new_path
        )
        return response

    async def DeleteEntry(self, request: pb.DeleteEntryRequest, context: Any) -> pb.DeleteEntryResponse:
        response: pb.DeleteEntryResponse = await forward(self._store.DeleteEntry, request, context, request.path)
        return response

    async def WatchEntries(
        self, request: pb.WatchEntriesRequest, context: Any
    ) -> AsyncIterator[pb.WatchEntriesResponse]:
        caller = current_caller()
        check_path(caller, request.path)
        try:
            async for response in self._store.WatchEntries(request, metadata=_metadata(caller, context)):
                if may_read_private(caller) or not is_private(_path_of(response)):
                    yield response
        except grpc.aio.AioRpcError as error:
            raise explain(error) from error


def is_private(path: str) -> bool:
    """`priv/`, and `priv/` of a node, also of one that is archived: keys and secrets."""
    parts = [part for part in path.split("/") if part]
    return parts[:1] == ["priv"] or (parts[:1] in (["nodes"], ["nodes-archive"]) and parts[2:3] == ["priv"])


def may_read_private(caller: Caller) -> bool:
    return caller.is_root or caller.kind is CallerKind.node


def check_path(caller: Caller, *paths: str) -> None:
    """Raises PermissionDenied."""
    for path in paths:
        if is_private(path) and not may_read_private(caller):
            raise PermissionDenied(f"{caller.author} may not see {path}")


async def forward(method: Callable[..., Any], request: object, context: Any, *paths: str) -> Any:
    caller = current_caller()
    check_path(caller, *paths)
    remaining_s = context.time_remaining()
    timeout_s = WRITE_TIMEOUT_S if remaining_s is None else min(remaining_s, MAX_TIMEOUT_S)
    try:
        return await method(request, timeout=timeout_s, metadata=_metadata(caller, context))
    except grpc.aio.AioRpcError as error:
        raise explain(error) from error


def _metadata(caller: Caller, context: Any) -> tuple[tuple[str, str], ...]:
    source = "local" if caller.is_local else str(context.peer())
    if caller.via:
        source = f"{source} via {caller.via}"
    return ((AUTHOR_KEY, caller.author), (SOURCE_KEY, source))


def _path_of(response: pb.WatchEntriesResponse) -> str:
    match response.WhichOneof("change"):
        case "written":
            return response.written.path
        case "deleted":
            return response.deleted
        case "moved":
            return response.moved.entry.path
        case _:
            return ""


def register(server: Any, core: Core) -> None:
    store_pb2_grpc.add_StoreServiceServicer_to_server(StoreService(core.clusterfs), server)
