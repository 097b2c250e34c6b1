"""Performs what the local resource manager decides: starts and stops through this node's agent, and ends leftovers itself.

Each action runs to its end in a task of its own and says how it went; nothing is retried here. A start counts as ended only
when the agent runs no start of that guest any more: "it failed" sends the guest to another node, where a late start of ours
must not meet it.
"""

import asyncio
import logging
import signal
from pathlib import Path

import grpc

from kvorum.errors import KvorumError, Timeout
from kvorum.ids import guest_resource, node_resource, parse_sid
from kvorum.node import AGENT_SOCKET
from kvorum.rpc import from_rpc_error
from kvorum.v1 import guest_pb2, task_pb2
from kvorum.v1.guest_pb2_grpc import GuestServiceStub
from kvorum.v1.task_pb2_grpc import TaskServiceStub

from . import lrm
from .keeper.processes import Guarded, Guests, scan, send
from .lease_state import ORDER_KEY

log = logging.getLogger(__name__)

# What the agent takes as proof, on its local socket, that HA itself asks.
CALLER = (("kvorum-caller", "ha"),)
CALL_S = 10.0
START_S = 120.0
# For a hard end, after what a graceful one was given.
STOP_S = 60.0
MIGRATE_POLL_S = 600.0
KILL_S = 10.0
SETTLE_POLL_S = 0.5
# A start that one waits for so long is complained about, once.
HANG_S = 120.0
# Tasks that may bring a guest to run on this node, and the kind of sid that theirs has.
START_TASKS = {"qmstart": "vm", "vzstart": "ct"}
# Far more than may run at a time; what is left out of the list would count as ended.
PAGE_SIZE = 1000


class Hands:
    def __init__(self, node: str, socket: Path = AGENT_SOCKET) -> None:
        self._node = node
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
        self._guests = GuestServiceStub(self._channel)
        self._tasks = TaskServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def perform(self, action: lrm.Action) -> lrm.Done:
        """Never raises but when cancelled."""
        cause = ""
        try:
            match action:
                case lrm.Start():
                    await self._start(action.sid, action.incarnation)
                case lrm.Stop():
                    await self._stop(action.sid, action.timeout_s)
                case lrm.Migrate():
                    await self._migrate(action.sid, action.target)
                case lrm.KillLeftover():
                    await _kill(action.sid)
        except KvorumError as error:
            cause = error.message
            log.warning("%s: %s failed: %s", action.sid, type(action).__name__.lower(), cause)
        except grpc.aio.AioRpcError as error:
            cause = from_rpc_error(error).message
            log.warning("%s: %s failed: %s", action.sid, type(action).__name__.lower(), cause)
        return lrm.Done(action.sid, action.uid, isinstance(action, lrm.Start | lrm.Migrate), cause)

    async def starting(self) -> frozenset[str]:
        """Sids that the agent starts at the moment, whoever asked it to. It may take as long as the agent is away."""
        request = task_pb2.ListTasksRequest(node=node_resource(self._node), running_only=True, page_size=PAGE_SIZE)
        while True:
            try:
                answer = await self._tasks.ListTasks(request, timeout=CALL_S, metadata=CALLER)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(SETTLE_POLL_S)
                continue
            return frozenset(
                f"{START_TASKS[task.type]}:{task.subject}" for task in answer.tasks if task.type in START_TASKS
            )

    async def settle(self, sid: str) -> None:
        """Until the agent has answered that it starts nothing of `sid` any more, however long that takes."""
        clock = asyncio.get_running_loop().time
        since, is_told = clock(), False
        while sid in await self.starting():
            if not is_told and clock() - since >= HANG_S:
                is_told = True
                log.error(
                    "%s: its start has not ended for %g s, and HA leaves it alone until it has: free its storage, or switch "
                    "this node off, then it starts elsewhere",
                    sid,
                    HANG_S,
                )
            await asyncio.sleep(SETTLE_POLL_S)

    async def _start(self, sid: str, incarnation: int) -> None:
        request = guest_pb2.StartGuestRequest(name=guest_resource(parse_sid(sid)[1]))
        order = (*CALLER, (ORDER_KEY, str(incarnation)))
        try:
            answer = await self._guests.StartGuest(request, timeout=CALL_S, metadata=order)
            try:
                await self._wait(answer.task, START_S)
            except grpc.aio.AioRpcError:
                await self._tasks.CancelTask(
                    task_pb2.CancelTaskRequest(upid=answer.task), timeout=CALL_S, metadata=CALLER
                )
                raise
        except grpc.aio.AioRpcError:
            await self.settle(sid)
            raise

    async def _stop(self, sid: str, timeout_s: int) -> None:
        name = guest_resource(parse_sid(sid)[1])
        if not timeout_s:
            stopped = await self._guests.StopGuest(
                guest_pb2.StopGuestRequest(name=name), timeout=CALL_S, metadata=CALLER
            )
            await self._wait(stopped.task, STOP_S)
            return
        request = guest_pb2.ShutdownGuestRequest(name=name, timeout_seconds=timeout_s, force_stop=True)
        answer = await self._guests.ShutdownGuest(request, timeout=CALL_S, metadata=CALLER)
        await self._wait(answer.task, timeout_s + STOP_S)

    async def _migrate(self, sid: str, target: str) -> None:
        """Local disks go along, as in Proxmox VE. However long it takes: the agent ends what does not get on."""
        vmid = parse_sid(sid)[1]
        request = guest_pb2.MigrateGuestRequest(
            name=guest_resource(vmid), target_node=node_resource(target), with_local_disks=True
        )
        answer = await self._guests.MigrateGuest(request, timeout=CALL_S, metadata=CALLER)
        while True:
            try:
                await self._wait(answer.task, MIGRATE_POLL_S)
                return
            except grpc.aio.AioRpcError:
                # The agent went away, or takes its time; a task that it does not know any more answers that it is over.
                await asyncio.sleep(SETTLE_POLL_S)
                if not await self._is_running(answer.task, vmid):
                    raise

    async def _is_running(self, upid: str, vmid: int) -> bool:
        request = task_pb2.ListTasksRequest(node=node_resource(self._node), vmid=vmid, running_only=True)
        try:
            answer = await self._tasks.ListTasks(request, timeout=CALL_S, metadata=CALLER)
        except grpc.aio.AioRpcError:
            return True  # nobody knows; asked again
        return any(task.upid == upid for task in answer.tasks)

    async def _wait(self, upid: str, timeout_s: float) -> None:
        request = task_pb2.WaitTaskRequest(upid=upid, timeout_seconds=int(timeout_s))
        answer = await self._tasks.WaitTask(request, timeout=timeout_s + CALL_S, metadata=CALLER)
        if answer.task.state != task_pb2.TASK_STATE_OK:
            raise KvorumError(answer.task.error or "its task was interrupted")


async def _kill(sid: str) -> None:
    """Ends what runs of a guest that is not ours any more, and verifies it. Raises Timeout."""
    guests = Guests()
    guests.guard([Guarded(sid)])
    deadline = asyncio.get_running_loop().time() + KILL_S
    while guests.is_any_left():
        if asyncio.get_running_loop().time() > deadline:
            raise Timeout(f"{', '.join(guests.left())} could not be ended within {KILL_S:g} s")
        send(scan([Guarded(sid)]), signal.SIGKILL)
        await asyncio.sleep(0.05)
