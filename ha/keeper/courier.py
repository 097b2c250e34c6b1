"""Carries the guard's questions to the store and the answers back, in a process of its own.

gRPC brings threads, allocations and an interpreter lock that is held now and then; nothing of that may be where guests are
guarded. If this process hangs or dies the guard loses answers, no more: it ends it, and the nursery, a copy of the keeper's
process that has nothing else to do, brings forth another one. All of them end with the guard.
"""

import ctypes
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from kvorum.errors import KvorumError, NotFound
from kvorum.node import load_identity

from . import wire

log = logging.getLogger("kvorum-keeper")

IDENTITY_POLL_S = 1.0
RESPAWN_S = 0.2
# Below the guard's: a renewal that is late for want of a processor costs guests, too.
PRIORITY = 5
_PR_SET_PDEATHSIG = 1


def raise_nursery(uid: str, store: Path, *, ours_alone: int | None = None) -> socket.socket:
    """Forks the nursery and, in it, couriers; returns the guard's end. Only from a process without threads.

    `ours_alone`: a handle that ends with the guard, such as its lock: whoever comes after it need not wait for the others.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    guard = os.getpid()
    if os.fork() != 0:
        theirs.close()
        ours.setblocking(False)
        return ours
    try:
        ours.close()
        if ours_alone is not None:
            os.close(ours_alone)
        _die_with(guard)
        _raise_couriers(uid, store, theirs)
    finally:
        os._exit(1)


def _raise_couriers(uid: str, store: Path, theirs: socket.socket) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nursery = os.getpid()
    while True:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _die_with(nursery)
                Courier(uid, store, theirs).run()
                status = 0
            except (BrokenPipeError, ConnectionResetError):
                status = 0
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        if ended == 0:
            return  # nobody is at the other end
        time.sleep(RESPAWN_S)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Courier:
    def __init__(self, uid: str, store: Path, theirs: socket.socket) -> None:
        import grpc

        from kvorum.v1.replica_pb2_grpc import ReplicaServiceStub

        self._uid = uid
        self._socket = theirs
        # A channel that lost its server must try again within a call's deadline, not after gRPC's minutes.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self._stub = ReplicaServiceStub(grpc.insecure_channel(f"unix:{store}", options=options))

    def run(self) -> None:
        """Until the guard is gone."""
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
        self._socket.send(wire.encode(wire.Answer(0, wire.HELLO, os.getpid())))
        threading.Thread(target=self._watch_identity, name="identity", daemon=True).start()
        while datagram := self._socket.recv(wire.MAX_BYTES):
            with suppress(msgspec.DecodeError):
                self._socket.send(wire.encode(self._carry(wire.decode_ask(datagram))))

    def _carry(self, ask: wire.Ask) -> wire.Answer:
        import grpc

        from kvorum.rpc import from_rpc_error

        try:
            value, next_in_ms = self._call(ask)
            return wire.Answer(ask.number, wire.DONE, value, next_in_ms=next_in_ms)
        except grpc.RpcError as error:
            reason = from_rpc_error(error)
            if reason.reason == "FENCED" and ask.kind != wire.ACQUIRE:
                return wire.Answer(ask.number, wire.REFUSED)
            return wire.Answer(ask.number, wire.FAILED, cause=f"{reason.reason.lower()}: {reason.message}"[:500])

    def _call(self, ask: wire.Ask) -> tuple[int, int]:
        """What the answer counts, and the store's hint for the next one."""
        from kvorum.v1 import replica_pb2 as pb

        terms = pb.LeaseTerms(pause_after_ms=ask.pause_ms, takeover_after_ms=ask.takeover_ms)
        match ask.kind:
            case wire.ACQUIRE:
                acquire = pb.AcquireLeaseRequest(uid=self._uid, terms=terms)
                return int(self._stub.AcquireLease(acquire, timeout=ask.deadline_s).incarnation), 0
            case wire.RENEW:
                renew = pb.RenewLeaseRequest(
                    uid=self._uid,
                    incarnation=ask.incarnation,
                    terms=terms,
                    sent_ms=ask.sent_ms,
                    interval_ms=ask.interval_ms,
                )
                response = self._stub.RenewLease(renew, timeout=ask.deadline_s)
                return int(response.renewal), int(response.next_in_ms)
            case _:
                rest = pb.RestLeaseRequest(uid=self._uid, incarnation=ask.incarnation)
                self._stub.RestLease(rest, timeout=ask.deadline_s)
                return 0, 0

    def _watch_identity(self) -> None:
        """It lies on a disk, which may hang. One that cannot be read is no reason to give up guests: only none, or another."""
        while True:
            try:
                is_member = load_identity().uid == self._uid
            except NotFound:
                is_member = False
            except KvorumError:
                is_member = True
            if not is_member:
                with suppress(OSError):
                    self._socket.send(wire.encode(wire.Answer(0, wire.LEFT)))
            time.sleep(IDENTITY_POLL_S)
