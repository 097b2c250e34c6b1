"""What nodes tell each other, through the agent: it asks its own clusterfs and lets nobody set anything."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.access.caller import LOCAL_ROOT, Caller, CallerKind
from agent.access.policy import check
from agent.local_clusterfs import LocalClusterfs
from agent.services.status import StatusService
from kvorum import errors
from kvorum.rpc import to_status
from kvorum.v1 import status_pb2 as pb
from kvorum.v1 import status_pb2_grpc


class FakeStatus(status_pb2_grpc.StatusServiceServicer):
    async def ListStatus(self, request: pb.ListStatusRequest, _context: Any) -> pb.ListStatusResponse:
        return pb.ListStatusResponse(nodes=[pb.NodeStatus(node=request.node)])

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        await context.abort_with_status(to_status(errors.NotFound(f"no {request.key}")))

    async def ListLog(self, request: pb.ListLogRequest, _context: Any) -> pb.ListLogResponse:
        return pb.ListLogResponse(lines=[pb.LogLine(message="m")] * request.limit)

    async def WatchStatus(self, request: pb.WatchStatusRequest, _context: Any) -> AsyncIterator[pb.WatchStatusResponse]:
        yield pb.WatchStatusResponse(current=True)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[StatusService]:
    socket = tmp_path / "clusterfs.sock"
    server = grpc.aio.server()
    status_pb2_grpc.add_StatusServiceServicer_to_server(FakeStatus(), server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    clusterfs = LocalClusterfs(socket)
    yield StatusService(clusterfs)
    await clusterfs.close()
    await server.stop(0)


async def test_questions_are_answered_by_the_nodes_own_clusterfs(service: StatusService) -> None:
    listed = await service.ListStatus(pb.ListStatusRequest(node="n2"), None)
    assert listed.nodes[0].node == "n2"
    assert len((await service.ListLog(pb.ListLogRequest(limit=2), None)).lines) == 2
    watched = [answer async for answer in service.WatchStatus(pb.WatchStatusRequest(), None)]
    assert [answer.current for answer in watched] == [True]
    with pytest.raises(errors.NotFound, match="no k"):
        await service.GetStatus(pb.GetStatusRequest(key="k"), None)


@pytest.mark.parametrize("method", ["SetStatus", "LogMessage"])
@pytest.mark.parametrize("caller", [LOCAL_ROOT, Caller(CallerKind.user, "root@pam"), Caller(CallerKind.node, "n2")])
def test_nobody_sets_a_nodes_status_through_the_agent(method: str, caller: Caller) -> None:
    with pytest.raises(errors.PermissionDenied):
        check(caller, f"/kvorum.v1.StatusService/{method}")
