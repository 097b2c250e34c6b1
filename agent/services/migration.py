"""MigrationService: what the source's agent asks of the target's. For nodes only; see docs/internals/migration.md."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from agent.access.caller import current_caller
from agent.context import AgentContext
from agent.inventory import GuestKind
from agent.migration.tunnel import to_libvirt
from agent.operations import arrivals
from agent.operations.arrivals import Announced
from agent.operations.migrate import DiskOffer
from kvorum.errors import NotFound, PermissionDenied
from kvorum.ids import NodeName, Volid, parse_vmid
from kvorum.v1 import migration_pb2 as pb
from kvorum.v1 import migration_pb2_grpc

from .guest_room import room_of

FIRST_MESSAGE_S = 10.0


def register(server: Any, context: AgentContext) -> None:
    room = room_of(context)
    migration_pb2_grpc.add_MigrationServiceServicer_to_server(MigrationService(room.arrivals), server)
    room.look_after()


class MigrationService(migration_pb2_grpc.MigrationServiceServicer):
    def __init__(self, desk: arrivals.ArrivalDesk) -> None:
        self._desk = desk

    async def PrepareMigration(  # noqa: N802
        self, request: pb.PrepareMigrationRequest, context: Any
    ) -> pb.PrepareMigrationResponse:
        vmid = parse_vmid(request.vmid)
        file = await self._desk.host.inventory.find(vmid)
        offers = tuple(DiskOffer(disk.key, Volid(disk.volid), disk.format, disk.size_bytes) for disk in request.disks)
        guest = Announced(
            vmid,
            file.kind,
            _source(),
            request.config,
            offers,
            is_live=file.kind is GuestKind.vm and bool(request.domain_xml),
        )
        made = await arrivals.prepare(self._desk, guest)
        return pb.PrepareMigrationResponse(
            migration_id=made.migration_id,
            address=made.address,
            memory_port=made.memory_port,
            disk_port=made.disk_port,
            config=made.config,
        )

    # Writes to the context instead of yielding, because both directions end when either does.
    async def TunnelMigration(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        stream = _ServedStream(request_iterator.__aiter__(), context)
        async with asyncio.timeout(FIRST_MESSAGE_S):
            first = await stream.first()
        arrival = self._desk.records.arrival(first.migration_id)
        # Whoever may open this commands our hypervisor: only the node that we prepared for, and only meanwhile.
        if arrival is None or arrival.is_finished or arrival.source != _source():
            raise NotFound(f"no migration {first.migration_id} is prepared here")
        with self._counted(first.migration_id):
            await to_libvirt(stream)

    async def FinishMigration(  # noqa: N802
        self, request: pb.FinishMigrationRequest, context: Any
    ) -> pb.FinishMigrationResponse:
        self._require_source(request.migration_id)
        await arrivals.finish(self._desk, request.migration_id)
        return pb.FinishMigrationResponse()

    async def AbortMigration(self, request: pb.AbortMigrationRequest, context: Any) -> pb.AbortMigrationResponse:  # noqa: N802
        self._require_source(request.migration_id)
        await arrivals.abort(self._desk, request.migration_id)
        return pb.AbortMigrationResponse()

    def _require_source(self, migration_id: str) -> None:
        arrival = self._desk.records.arrival(migration_id)
        if arrival is not None and arrival.source != _source():
            raise PermissionDenied(f"migration {migration_id} is between {arrival.source} and this node")

    @contextlib.contextmanager
    def _counted(self, migration_id: str) -> Iterator[None]:
        tunnels = self._desk.tunnels
        tunnels[migration_id] = tunnels.get(migration_id, 0) + 1
        try:
            yield
        finally:
            tunnels[migration_id] -= 1
            if not tunnels[migration_id]:
                del tunnels[migration_id]


def _source() -> NodeName:
    """The node that calls."""
    caller = current_caller()
    return NodeName(caller.via or caller.name)


class _ServedStream:
    """The target's end of a tunnel as a ByteStream."""

    def __init__(self, requests: AsyncIterator[pb.TunnelMigrationRequest], context: Any) -> None:
        self._requests = requests
        self._context = context
        self._head = b""

    async def first(self) -> pb.TunnelMigrationRequest:
        try:
            request = await anext(self._requests)
        except StopAsyncIteration:
            raise NotFound("the tunnel ended before it said which migration it is for") from None
        self._head = request.data
        return request

    async def read(self) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        try:
            return (await anext(self._requests)).data
        except StopAsyncIteration:
            return b""

    async def write(self, data: bytes) -> None:
        await self._context.write(pb.TunnelMigrationResponse(data=data))

    async def close(self) -> None:
        """The call ends when its handler returns."""
