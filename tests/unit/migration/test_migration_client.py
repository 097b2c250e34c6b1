"""What the source of a migration makes of silence at the other node's agent."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from agent.inventory import GuestKind
from agent.services.migration_client import RemoteTarget
from kvorum.errors import Unreachable
from kvorum.ids import NodeName, Vmid
from kvorum.v1 import migration_pb2


class Line:
    """A channel whose calls fail with these codes, one after the other, and then are answered."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self._codes = list(codes)
        self.calls: list[str] = []

    def unary_unary(self, path: str, **_: object) -> Callable[..., Any]:
        async def call(_request: object, *, timeout: float) -> migration_pb2.PrepareMigrationResponse:
            assert timeout > 0
            self.calls.append(path.rpartition("/")[2])
            if self._codes:
                raise grpc.aio.AioRpcError(
                    self._codes.pop(0), grpc.aio.Metadata(), grpc.aio.Metadata(), "recvmsg: reset"
                )
            return migration_pb2.PrepareMigrationResponse(migration_id="m1", address="10.0.0.2", memory_port=60000)

        return call

    def stream_stream(self, *_: object, **__: object) -> None:
        return None


async def prepare(line: Line) -> str:
    target = RemoteTarget(NodeName("n2"), lambda _: line)
    return (await target.prepare(Vmid(100), "", [], "<domain/>", kind=GuestKind.vm)).migration_id


async def test_the_first_call_on_a_connection_that_broke_unseen_is_made_again() -> None:
    line = Line(grpc.StatusCode.UNAVAILABLE)
    assert await prepare(line) == "m1"
    assert line.calls == ["PrepareMigration"] * 2


async def test_a_node_that_stays_silent_is_asked_twice_and_not_for_ever() -> None:
    line = Line(*[grpc.StatusCode.UNAVAILABLE] * 3)
    with pytest.raises(Unreachable, match="node n2 does not answer"):
        await prepare(line)
    assert len(line.calls) == 2


async def test_one_that_did_not_answer_in_time_is_not_asked_again() -> None:
    line = Line(grpc.StatusCode.DEADLINE_EXCEEDED)
    with pytest.raises(Unreachable):
        await prepare(line)
    assert len(line.calls) == 1
