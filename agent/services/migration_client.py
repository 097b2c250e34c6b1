"""The other node's agent as the source of a migration sees it: its MigrationService, and the streams that libvirt talks through.

The steps and their order are in `agent.operations.migrate`; this carries them out.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import libvirt

from agent.guests.domain_disks import target_names
from agent.guests.domain_xml import domain_name
from agent.guests.libvirt_link import LibvirtLink
from agent.inventory import GuestFile, GuestKind
from agent.migration import live, relays, tunnel
from agent.migration.streams import ByteStream
from agent.operations.migrate import Carrier, DiskOffer, Prepared
from kvorum.errors import TaskFailed, Unreachable
from kvorum.ids import NodeName, NodeUid, Vmid, guest_resource
from kvorum.node import Pki
from kvorum.v1 import guest_pb2, guest_pb2_grpc, migration_pb2, migration_pb2_grpc, task_pb2, task_pb2_grpc

from .forwarding import unreachable

PREPARE_TIMEOUT_S = 120.0
FINISH_TIMEOUT_S = 30.0
ABORT_TIMEOUT_S = 60.0
START_TIMEOUT_S = 180
_HALF_CLOSE_S = 1.0
# A line in the task's log at most this often.
_PROGRESS_S = 1.0

Channel = Callable[[str], Any]


class RemoteTarget:
    """A TargetAgent over gRPC. Speaks as this node, not for the user: moving guests is between nodes."""

    def __init__(self, node: NodeName, channel: Channel) -> None:
        self._node = node
        self._channel = channel

    async def prepare(
        self, vmid: Vmid, config: str, disks: Sequence[DiskOffer], domain_xml: str, *, kind: GuestKind
    ) -> Prepared:
        copies = [
            migration_pb2.DiskCopy(key=offer.key, volid=offer.volid, format=offer.format, size_bytes=offer.size_bytes)
            for offer in disks
        ]
        request = migration_pb2.PrepareMigrationRequest(vmid=vmid, config=config, disks=copies, domain_xml=domain_xml)
        answer = await self._prepare(request)
        return Prepared(answer.migration_id, answer.address, answer.memory_port, answer.disk_port, answer.config)

    async def _prepare(self, request: Any) -> Any:
        """Twice, if nothing is heard the first time: on a connection that broke unseen, while the other node was dead or cut
        off, it is the first call that finds out. To prepare anew is safe, it makes way for what a first try has left."""
        try:
            return await self._call("PrepareMigration", request, timeout_s=PREPARE_TIMEOUT_S)
        except Unreachable as error:
            cause = error.__cause__
            if not isinstance(cause, grpc.aio.AioRpcError) or cause.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        return await self._call("PrepareMigration", request, timeout_s=PREPARE_TIMEOUT_S)

    async def finish(self, migration_id: str) -> None:
        request = migration_pb2.FinishMigrationRequest(migration_id=migration_id)
        await self._call("FinishMigration", request, timeout_s=FINISH_TIMEOUT_S)

    async def abort(self, migration_id: str) -> None:
        request = migration_pb2.AbortMigrationRequest(migration_id=migration_id)
        await self._call("AbortMigration", request, timeout_s=ABORT_TIMEOUT_S)

    async def start(self, vmid: Vmid) -> None:
        channel = self._channel(self._node)
        guests: Any = guest_pb2_grpc.GuestServiceStub(channel)
        tasks: Any = task_pb2_grpc.TaskServiceStub(channel)
        try:
            started = await guests.StartGuest(
                guest_pb2.StartGuestRequest(name=guest_resource(vmid)), timeout=FINISH_TIMEOUT_S
            )
            waited = await tasks.WaitTask(
                task_pb2.WaitTaskRequest(upid=started.task, timeout_seconds=START_TIMEOUT_S),
                timeout=START_TIMEOUT_S + 5,
            )
        except grpc.aio.AioRpcError as error:
            raise unreachable(error, self._node) from error
        if waited.task.state != task_pb2.TASK_STATE_OK:
            raise TaskFailed(f"guest {vmid} moved to {self._node} but does not start there: {waited.task.error}")

    async def _call(self, method: str, request: Any, *, timeout_s: float) -> Any:
        stub = migration_pb2_grpc.MigrationServiceStub(self._channel(self._node))
        try:
            return await getattr(stub, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise unreachable(error, self._node) from error


class TunnelStream:
    """One connection of libvirt's, carried by a TunnelMigration call."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> bytes:
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(error.details()) from error
        return b"" if answer is grpc.aio.EOF else answer.data

    async def write(self, data: bytes) -> None:
        try:
            await self._call.write(migration_pb2.TunnelMigrationRequest(data=data))
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise ConnectionError(str(error)) from error

    async def close(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, TimeoutError):
            await self._call.done_writing()
        self._call.cancel()


class LibvirtMover:
    """A Mover: live migration through this node's libvirtd."""

    def __init__(
        self, link: LibvirtLink, channel: Channel, uid_of: Callable[[NodeName], Awaitable[NodeUid]], pki: Pki
    ) -> None:
        self._link = link
        self._channel = channel
        self._uid_of = uid_of
        self._pki = pki

    async def domain_xml(self, vmid: Vmid) -> str:
        def look(connection: Any) -> str:
            xml: str = connection.lookupByName(domain_name(vmid)).XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            return xml

        return await self._link.call(look, subject=f"guest {vmid}", is_idempotent=True)

    async def is_whole(self, vmid: Vmid) -> bool:
        """Of a paused guest: whether it is more than the half of a migration. libvirt gives the pause of what is still
        being filled another reason than that of what has arrived."""

        def look(connection: Any) -> int:
            reason: int = connection.lookupByName(domain_name(vmid)).state()[1]
            return reason

        reason = await self._link.call(look, subject=f"guest {vmid}", is_idempotent=True)
        return reason not in (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)

    @contextlib.asynccontextmanager
    async def connected(self, target: NodeName, prepared: Prepared) -> AsyncIterator[Carrier]:
        uid = await self._uid_of(target)
        stub: Any = migration_pb2_grpc.MigrationServiceStub(self._channel(target))

        async def connect() -> ByteStream:
            call = stub.TunnelMigration()
            await call.write(migration_pb2.TunnelMigrationRequest(migration_id=prepared.migration_id))
            return TunnelStream(call)

        async with contextlib.AsyncExitStack() as stack:
            path = tunnel.socket_path(prepared.migration_id)
            await stack.enter_async_context(tunnel.listen(path, connect))
            relayed = None
            if prepared.disk_port:
                relayed = live.Relayed(
                    *[
                        await stack.enter_async_context(self._relayed(prepared, kind, port, uid))
                        for kind, port in (
                            (relays.Kind.memory, prepared.memory_port),
                            (relays.Kind.disks, prepared.disk_port),
                        )
                    ]
                )
            destination = live.Destination(path, prepared.address, prepared.memory_port, uid, relayed)
            yield LibvirtCarrier(self._link, destination)

    @contextlib.asynccontextmanager
    async def _relayed(self, prepared: Prepared, kind: relays.Kind, port: int, target: NodeUid) -> AsyncIterator[Path]:
        path = relays.socket_path(prepared.migration_id, kind)
        async with relays.forward(path, address=prepared.address, port=port, target=target, pki=self._pki):
            yield path


class LibvirtCarrier:
    def __init__(self, link: LibvirtLink, destination: live.Destination) -> None:
        self._link = link
        self._destination = destination

    async def carry(
        self,
        file: GuestFile,
        copied: Sequence[str],
        shared: Sequence[str],
        paths: Mapping[str, Path],
        *,
        bandwidth_limit: int,
        progress: Callable[[float, str], None],
    ) -> None:
        names = target_names(file.config)
        last_s = 0.0

        def report(now: live.Progress) -> None:
            nonlocal last_s
            if now.fraction >= 1 or time.monotonic() - last_s >= _PROGRESS_S:
                last_s = time.monotonic()
                progress(now.fraction, now.phase)

        wish = live.Wish(
            copied=[names[key] for key in copied],
            shared=[names[key] for key in shared],
            paths={names[key]: path for key, path in paths.items()},
            bandwidth_limit=bandwidth_limit,
        )
        await live.migrate(self._link, file.vmid, self._destination, wish, on_progress=report)
