"""GuestService: any node answers for any guest. Ours are read from the store and the drivers, work on them becomes a task;
for those of others the owner's agent is asked. What is done to guests is in `agent.operations`; this only translates.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from agent.access.caller import CallerKind, current_caller
from agent.context import AgentContext
from agent.guests.driver import STOPPED, Observed
from agent.inventory import GuestFile, GuestKind, next_free
from agent.operations import ha_resources
from agent.operations.create import create_guest, plan_create
from agent.operations.delete import check_deletable, delete_guest
from agent.operations.migrate import migrate_guest
from agent.operations.power import SHUTDOWN_TIMEOUT_S, shutdown_guest, start_guest, stop_guest
from agent.operations.schema import in_order
from agent.operations.update import update_guest
from agent.tasks import TaskHandle, undoing
from ha.lease_state import ORDER_KEY
from kvorum.errors import AlreadyExists, InvalidInput, KvorumError, NotFound, Refused
from kvorum.ids import NodeName, Vmid, node_resource, parse_guest_resource, parse_node_resource, parse_vmid
from kvorum.v1 import guest_pb2 as pb
from kvorum.v1 import guest_pb2_grpc

from .forwarding import Forwarding
from .guest_messages import KINDS, UNKNOWN_STATE, to_message
from .guest_room import GuestRoom, room_of

CONSOLE_DEFAULT_BYTES = 64 * 1024
CONSOLE_MAX_BYTES = 1024 * 1024
MAX_SHUTDOWN_S = 24 * 3600
OBSERVE_TIMEOUT_S = 10.0

Stub = guest_pb2_grpc.GuestServiceStub
Work = Callable[[TaskHandle], Awaitable[None]]


def register(server: Any, context: AgentContext) -> None:
    guest_pb2_grpc.add_GuestServiceServicer_to_server(GuestService(context, room_of(context)), server)


class GuestService(guest_pb2_grpc.GuestServiceServicer):
    def __init__(self, context: AgentContext, room: GuestRoom) -> None:
        self._tasks = context.tasks
        self._room = room
        self._host = room.host
        self._inventory = room.host.inventory
        self._forwarding = Forwarding(context)

    async def GetGuest(self, request: pb.GetGuestRequest, context: Any) -> pb.GetGuestResponse:  # noqa: N802
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            self._forwarding.require_first_hop(f"guest {file.vmid}")
            try:
                answer: pb.GetGuestResponse = await self._forwarding.call(
                    file.node, Stub, "GetGuest", request, timeout_s=5
                )
                return answer
            except KvorumError as error:
                if error.reason != "UNREACHABLE":
                    raise
                return pb.GetGuestResponse(guest=await self._message(file, None))
        return pb.GetGuestResponse(guest=await self._message(file, await self._observe(file)))

    async def ListGuests(self, request: pb.ListGuestsRequest, context: Any) -> pb.ListGuestsResponse:  # noqa: N802
        wanted = parse_node_resource(request.node) if request.node else None
        files = [
            file
            for file in await self._inventory.all()
            if wanted in (None, file.node) and (not request.kind or KINDS[file.kind] == request.kind)
        ]
        here = self._forwarding.node
        states, silent = await self._states_elsewhere(sorted({file.node for file in files if file.node != here}))
        states |= await self._states_here(files)
        managed = (await self._host.ha_resources()).states
        guests = [
            to_message(
                file,
                states.get(file.vmid, None),
                is_ha_managed=managed.get(file.sid, ha_resources.IGNORED) != ha_resources.IGNORED,
            )
            for file in files
        ]
        after = parse_vmid(request.page_token, field="page_token") if request.page_token else 0
        guests = [guest for guest in guests if guest.vmid > after]
        page = guests[: request.page_size] if request.page_size > 0 else guests
        more = len(page) < len(guests)
        return pb.ListGuestsResponse(
            guests=page,
            next_page_token=str(page[-1].vmid) if more and page else "",
            unreachable_nodes=[node_resource(node) for node in silent],
        )

    async def CreateGuest(self, request: pb.CreateGuestRequest, context: Any) -> pb.CreateGuestResponse:  # noqa: N802
        node = parse_node_resource(request.node) if request.node else self._forwarding.node
        if not self._forwarding.is_here(node):
            self._forwarding.require_first_hop(f"node {node}")
            answer: pb.CreateGuestResponse = await self._forwarding.call(node, Stub, "CreateGuest", request)
            return answer
        self._forwarding.require_guests_here()
        vmid = parse_vmid(request.vmid)
        kind = next((kind for kind, value in KINDS.items() if value == request.kind), None)
        if kind is None:
            raise InvalidInput("say whether it is a VM or a container", field="kind")
        plan = plan_create(vmid, kind, in_order(request.config), template=request.template, rng=random.SystemRandom())
        try:
            taken = await self._inventory.find(vmid)
        except NotFound:
            pass
        else:
            raise AlreadyExists(f"guest id {vmid} is taken by a guest on {taken.node}", remedy="take the next free one")

        async def work(handle: TaskHandle) -> None:
            await create_guest(self._host, handle, plan, start=request.start)

        return pb.CreateGuestResponse(task=self._start_task(kind, "create", vmid, work))

    async def UpdateGuest(self, request: pb.UpdateGuestRequest, context: Any) -> pb.UpdateGuestResponse:  # noqa: N802
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            answer: pb.UpdateGuestResponse = await self._pass_on(file, "UpdateGuest", request)
            return answer
        async with undoing() as handle:
            written = await update_guest(
                self._host,
                handle,
                file.vmid,
                in_order(request.config),
                list(request.delete_keys),
                expected_version=request.expected_version,
            )
        return pb.UpdateGuestResponse(guest=await self._message(written, await self._observe(written)))

    async def DeleteGuest(self, request: pb.DeleteGuestRequest, context: Any) -> pb.DeleteGuestResponse:  # noqa: N802
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            answer: pb.DeleteGuestResponse = await self._pass_on(file, "DeleteGuest", request)
            return answer
        # Said at once rather than in a task's log; checked again when it has its turn.
        await check_deletable(self._host, file, purge=request.purge)

        async def work(handle: TaskHandle) -> None:
            await delete_guest(self._host, handle, file.vmid, purge=request.purge)

        return pb.DeleteGuestResponse(task=self._start_task(file.kind, "destroy", file.vmid, work))

    async def StartGuest(self, request: pb.StartGuestRequest, context: Any) -> pb.StartGuestResponse:  # noqa: N802
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            answer: pb.StartGuestResponse = await self._pass_on(file, "StartGuest", request)
            return answer
        if task := await self._ask_ha(file, ha_resources.STARTED):
            return pb.StartGuestResponse(task=task)
        by_ha = _is_ha()
        lease = _lease_of_order(context) if by_ha else None

        async def work(handle: TaskHandle) -> None:
            await start_guest(self._host, handle, file.vmid, by_ha=by_ha, lease=lease)

        return pb.StartGuestResponse(task=self._start_task(file.kind, "start", file.vmid, work))

    async def ShutdownGuest(  # noqa: N802
        self, request: pb.ShutdownGuestRequest, context: Any
    ) -> pb.ShutdownGuestResponse:
        timeout_s = request.timeout_seconds or int(SHUTDOWN_TIMEOUT_S)
        if not 0 < timeout_s <= MAX_SHUTDOWN_S:
            raise InvalidInput(f"cannot wait {timeout_s} s", field="timeout_seconds", remedy=f"1 to {MAX_SHUTDOWN_S}")
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            answer: pb.ShutdownGuestResponse = await self._pass_on(file, "ShutdownGuest", request)
            return answer
        if task := await self._ask_ha(file, ha_resources.STOPPED):
            return pb.ShutdownGuestResponse(task=task)

        async def work(handle: TaskHandle) -> None:
            await shutdown_guest(self._host, handle, file.vmid, timeout_s=timeout_s, force_stop=request.force_stop)

        return pb.ShutdownGuestResponse(task=self._start_task(file.kind, "shutdown", file.vmid, work))

    async def StopGuest(self, request: pb.StopGuestRequest, context: Any) -> pb.StopGuestResponse:  # noqa: N802
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            answer: pb.StopGuestResponse = await self._pass_on(file, "StopGuest", request)
            return answer
        if task := await self._ask_ha(file, ha_resources.STOPPED):
            return pb.StopGuestResponse(task=task)
        self._overrule_shutdown(file)

        async def work(handle: TaskHandle) -> None:
            await stop_guest(self._host, handle, file.vmid)

        return pb.StopGuestResponse(task=self._start_task(file.kind, "stop", file.vmid, work))

    async def MigrateGuest(self, request: pb.MigrateGuestRequest, context: Any) -> pb.MigrateGuestResponse:  # noqa: N802
        target = parse_node_resource(request.target_node, field="target_node")
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            answer: pb.MigrateGuestResponse = await self._pass_on(file, "MigrateGuest", request)
            return answer
        wish = await self._room.migration_wish(
            file,
            target,
            with_local_disks=request.with_local_disks,
            bandwidth_limit=request.bandwidth_limit,
            restart=request.restart,
        )

        async def work(handle: TaskHandle) -> None:
            await migrate_guest(self._room.migration_desk, handle, wish)

        return pb.MigrateGuestResponse(task=self._start_task(file.kind, "migrate", file.vmid, work))

    async def GetGuestConsoleLog(  # noqa: N802
        self, request: pb.GetGuestConsoleLogRequest, context: Any
    ) -> pb.GetGuestConsoleLogResponse:
        file = await self._find(request.name)
        if not self._forwarding.is_here(file.node):
            answer: pb.GetGuestConsoleLogResponse = await self._pass_on(file, "GetGuestConsoleLog", request)
            return answer
        tail_bytes = min(request.tail_bytes or CONSOLE_DEFAULT_BYTES, CONSOLE_MAX_BYTES)
        content = await self._host.drivers[file.kind].console_log(file.vmid, tail_bytes=tail_bytes)
        return pb.GetGuestConsoleLogResponse(content=content)

    async def GetNextGuestId(  # noqa: N802
        self, request: pb.GetNextGuestIdRequest, context: Any
    ) -> pb.GetNextGuestIdResponse:
        return pb.GetNextGuestIdResponse(vmid=next_free({file.vmid for file in await self._inventory.all()}))

    async def _find(self, name: str) -> GuestFile:
        return await self._inventory.find(parse_guest_resource(name))

    async def _pass_on(self, file: GuestFile, method: str, request: Any) -> Any:
        if _is_ha():
            # HA works on its own node: a stop meant for what ran here must not reach the guest where it has moved to.
            raise Refused(f"guest {file.vmid} belongs to {file.node}")
        self._forwarding.require_first_hop(f"guest {file.vmid}")
        return await self._forwarding.call(file.node, Stub, method, request)

    def _start_task(self, kind: GuestKind, verb: str, vmid: Vmid, work: Work) -> str:
        task_type = "qmigrate" if (kind, verb) == (GuestKind.vm, "migrate") else f"{kind.task_prefix}{verb}"
        return self._tasks.start(task_type, str(vmid), task_user(), work)

    async def _ask_ha(self, file: GuestFile, state: str) -> str:
        """For a person's wish about a guest that HA manages: a task that asks HA for it. Empty when HA has no say."""
        if _is_ha() or not await self._host.is_ha_managed(file):
            return ""

        async def work(handle: TaskHandle) -> None:
            edit = ha_resources.updated(file.sid, state=state)
            await ha_resources.change(self._host.store, edit, reason=f"asked for {state}")
            handle.log(f"HA is asked to keep {file.sid} {state}")

        verb = "hastart" if state == ha_resources.STARTED else "hastop"
        return self._tasks.start(verb, str(file.vmid), task_user(), work)

    def _overrule_shutdown(self, file: GuestFile) -> None:
        """Who pulls the plug does not want to wait for a guest that ignores its power button."""
        for record in self._tasks.running(str(file.vmid)):
            if record.id.type == f"{file.kind.task_prefix}shutdown":
                self._tasks.cancel(record.upid)

    async def _message(self, file: GuestFile, observed: Observed | None) -> pb.Guest:
        return to_message(file, observed, is_ha_managed=await self._host.is_ha_managed(file))

    async def _observe(self, file: GuestFile) -> Observed | None:
        """None when the driver cannot tell."""
        try:
            async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                return await self._host.observe(file)
        except (KvorumError, TimeoutError):
            return None

    async def _states_here(self, files: list[GuestFile]) -> dict[Vmid, Observed | pb.Guest | None]:
        here = [file for file in files if self._forwarding.is_here(file.node)]
        found: dict[Vmid, Observed | pb.Guest | None] = {}
        for kind in {file.kind for file in here}:
            try:
                async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                    running = await self._host.drivers[kind].observe_all()
            except (KvorumError, TimeoutError):
                continue
            found |= {file.vmid: running.get(file.vmid, STOPPED) for file in here if file.kind is kind}
        return found

    async def _states_elsewhere(
        self, nodes: list[NodeName]
    ) -> tuple[dict[Vmid, Observed | pb.Guest | None], list[str]]:
        if current_caller().via:
            return {}, list(nodes)
        answers, silent = await self._forwarding.ask_all(
            nodes, Stub, "ListGuests", lambda node: pb.ListGuestsRequest(node=node_resource(node))
        )
        found: dict[Vmid, Observed | pb.Guest | None] = {}
        for answer in answers.values():
            found |= {Vmid(guest.vmid): guest for guest in answer.guests if guest.state != UNKNOWN_STATE}
        return found, silent


def task_user() -> str:
    """Who a task's UPID names: a user as `name@realm`. HA and nodes act as root@pam, as in Proxmox VE."""
    caller = current_caller()
    return caller.name if caller.kind is CallerKind.user else "root@pam"


def _lease_of_order(context: Any) -> int | None:
    """Under which incarnation of this node's lease HA gave the order."""
    for key, value in context.invocation_metadata() or ():
        if key == ORDER_KEY:
            return int(value)
    return None


def _is_ha() -> bool:
    return current_caller().kind is CallerKind.ha
