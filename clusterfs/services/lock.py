"""LockService: locks with owner, line, lease and token. The rules are `clusterfs.locks`; here is only the waiting."""

# ruff: noqa: N802 - methods are named as in the proto

import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from clusterfs import rules
from clusterfs.commands import LockAcquire, LockBreak, LockRelease, SessionEnd, SessionRenew
from clusterfs.daemon import Daemon
from clusterfs.locks import MIN_TTL_S, Claim, Lock, Session
from clusterfs.machine import Compacted
from clusterfs.running import Running
from clusterfs.services.calls import answering, author, deadline
from clusterfs.tree import Directory, lookup
from kvorum.errors import Unreachable
from kvorum.v1 import lock_pb2 as pb
from kvorum.v1 import lock_pb2_grpc

DEFAULT_TTL_S = 30
LONGEST_WAIT_S = 10.0
WAKE_INTERVAL_S = 1.0
# Of the threads that answer calls; who comes when they are taken is told at once to ask again.
MAX_WAITING = 16


class LockService(lock_pb2_grpc.LockServiceServicer):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    @answering
    def AcquireLock(self, request: pb.AcquireLockRequest, context: grpc.ServicerContext) -> pb.AcquireLockResponse:
        running = self._daemon.running
        ttl_s = request.ttl_seconds or DEFAULT_TTL_S
        left_s = deadline(context)
        end = time.monotonic() + min(left_s * 0.9, LONGEST_WAIT_S, max(1.0, ttl_s / 3))
        op = LockAcquire(request.name, request.session, ttl_s, wait=not request.no_wait)
        done = running.proposer.execute(op, author(context, request.reason), deadline_s=left_s)
        token = done.number
        if not token and self._waiting.acquire(blocking=False):
            try:
                token = _wait(running, request.name, request.session, end, context)
            finally:
                self._waiting.release()
        return pb.AcquireLockResponse(held=token != 0, token=token)

    @answering
    def RenewSession(self, request: pb.RenewSessionRequest, context: grpc.ServicerContext) -> pb.RenewSessionResponse:
        op = SessionRenew(request.session)
        self._daemon.running.proposer.execute(op, author(context), deadline_s=deadline(context))
        return pb.RenewSessionResponse()

    @answering
    def ReleaseLock(self, request: pb.ReleaseLockRequest, context: grpc.ServicerContext) -> pb.ReleaseLockResponse:
        op = LockRelease(request.name, request.session)
        self._daemon.running.proposer.execute(op, author(context), deadline_s=deadline(context))
        return pb.ReleaseLockResponse()

    @answering
    def EndSession(self, request: pb.EndSessionRequest, context: grpc.ServicerContext) -> pb.EndSessionResponse:
        op = SessionEnd(request.session)
        self._daemon.running.proposer.execute(op, author(context), deadline_s=deadline(context))
        return pb.EndSessionResponse()

    @answering
    def BreakLock(self, request: pb.BreakLockRequest, context: grpc.ServicerContext) -> pb.BreakLockResponse:
        op = LockBreak(request.name)
        self._daemon.running.proposer.execute(op, author(context, request.reason), deadline_s=deadline(context))
        return pb.BreakLockResponse()

    @answering
    def ListLocks(self, _request: pb.ListLocksRequest, _context: grpc.ServicerContext) -> pb.ListLocksResponse:
        state = self._daemon.running.machine.state
        directory = lookup(state.root, rules.LOCKS)
        entries = directory.entries if isinstance(directory, Directory) else {}
        return pb.ListLocksResponse(
            locks=[
                _lock(name, node, state.locks.held.get(name, Lock()), state.locks.sessions)
                for name, node in sorted(entries.items())
                if isinstance(node, Directory)
            ]
        )


def _wait(running: Running, name: str, session: str, end: float, context: grpc.ServicerContext) -> int:
    """The token, once the lock has come to this session; 0 when it has not by `end`, or the session is over."""
    machine = running.machine
    while context.is_active():
        view = machine.view
        lock = view.state.locks.held.get(name)
        if lock is not None and lock.holder is not None and lock.holder.session == session:
            return lock.holder.token
        left_s = end - time.monotonic()
        if left_s <= 0 or session not in view.state.locks.sessions:
            return 0
        if machine.is_closed:
            raise Unreachable("the replica has been stopped")
        # A snapshot may have come in between; what counts is the state, not what led to it.
        with suppress(Compacted):
            machine.events_after(view.index, timeout_s=min(left_s, WAKE_INTERVAL_S))
    return 0


def _lock(name: str, node: Directory, lock: Lock, sessions: Mapping[str, Session]) -> pb.Lock:
    message = pb.Lock(
        name=name,
        node_uid=node.owner,
        since=Timestamp(seconds=node.mtime),
        waiters=[_claim(c, sessions) for c in lock.waiters],
    )
    if lock.holder is not None:
        message.holder.CopyFrom(_claim(lock.holder, sessions))
        message.since.CopyFrom(message.holder.since)
    return message


def _claim(claim: Claim, sessions: Mapping[str, Session]) -> pb.Lock.Claim:
    session = sessions.get(claim.session)
    return pb.Lock.Claim(
        author=claim.author,
        source=claim.source,
        node_uid=claim.node,
        reason=claim.reason,
        since=Timestamp(seconds=claim.since_ms // 1000, nanos=claim.since_ms % 1000 * 1_000_000),
        ttl_seconds=session.ttl_s if session is not None else MIN_TTL_S,
        token=claim.token,
    )
