"""LockService over the network: the clusterfs of this node answers."""

# ruff: noqa: N802 - the methods are named by the proto

from typing import Any

from agent.local_clusterfs import LocalClusterfs
from agent.membership.core import Core
from agent.services.store import forward
from kvorum.v1 import lock_pb2 as pb
from kvorum.v1 import lock_pb2_grpc


class LockService(lock_pb2_grpc.LockServiceServicer):
    def __init__(self, clusterfs: LocalClusterfs) -> None:
        self._locks = clusterfs.locks

    async def AcquireLock(self, request: pb.AcquireLockRequest, context: Any) -> pb.AcquireLockResponse:
        response: pb.AcquireLockResponse = await forward(self._locks.AcquireLock, request, context)
        return response

    async def RenewSession(self, request: pb.RenewSessionRequest, context: Any) -> pb.RenewSessionResponse:
        response: pb.RenewSessionResponse = await forward(self._locks.RenewSession, request, context)
        return response

    async def ReleaseLock(self, request: pb.ReleaseLockRequest, context: Any) -> pb.ReleaseLockResponse:
        response: pb.ReleaseLockResponse = await forward(self._locks.ReleaseLock, request, context)
        return response

    async def EndSession(self, request: pb.EndSessionRequest, context: Any) -> pb.EndSessionResponse:
        response: pb.EndSessionResponse = await forward(self._locks.EndSession, request, context)
        return response

    async def BreakLock(self, request: pb.BreakLockRequest, context: Any) -> pb.BreakLockResponse:
        response: pb.BreakLockResponse = await forward(self._locks.BreakLock, request, context)
        return response

    async def ListLocks(self, request: pb.ListLocksRequest, context: Any) -> pb.ListLocksResponse:
        response: pb.ListLocksResponse = await forward(self._locks.ListLocks, request, context)
        return response


def register(server: Any, core: Core) -> None:
    lock_pb2_grpc.add_LockServiceServicer_to_server(LockService(core.clusterfs), server)
