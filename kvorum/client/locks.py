"""LockService for Python callers.

    with client.locks.hold("storage-nfs", reason="resize 100") as lock:
        client.store.write(path, content, fencing=lock)

A thread renews the session meanwhile. A holder that was cut off for longer than the session lives has lost the lock, whatever he
believes; writes that carry his `fencing` are refused then, and `lock.check()` raises.
"""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kvorum.errors import KvorumError, Locked, NotFound, OutcomeUnknown, Timeout, Unreachable
from kvorum.v1 import lock_pb2 as pb
from kvorum.v1.lock_pb2_grpc import LockServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection

DEFAULT_TTL_S = 30
ASK_S = 8.0
# Between two askings that were answered at once.
PAUSE_S = 0.5


class HeldLock:
    """`token` grows with each grant of the lock, to whomever."""

    def __init__(self, name: str, session: str, token: int) -> None:
        self.name = name
        self.session = session
        self.token = token
        self.is_lost = False

    def check(self) -> None:
        """Raises Locked when the lock has been lost."""
        if self.is_lost:
            raise Locked(f"the lock {self.name} was lost: its session was not renewed in time, or it was broken")


class LockApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stub = LockServiceStub(connection.channel)

    def list(self) -> Sequence[pb.Lock]:
        response: pb.ListLocksResponse = self._call(self._stub.ListLocks, pb.ListLocksRequest())
        return response.locks

    def break_(self, name: str, *, reason: str = "") -> None:
        """Takes the lock away from whoever has it. Raises NotFound."""
        self._call(self._stub.BreakLock, pb.BreakLockRequest(name=name, reason=reason))

    @contextmanager
    def hold(
        self, name: str, *, reason: str = "", ttl_s: int = DEFAULT_TTL_S, timeout_s: float | None = None
    ) -> Iterator[HeldLock]:
        """Holds the lock within the block. Waits for it for ever, or raises Locked after `timeout_s` (0: at once)."""
        session = str(uuid.uuid4())
        try:
            lock = HeldLock(name, session, self._acquire(name, session, reason, ttl_s, timeout_s))
            ended = threading.Event()
            renewer = threading.Thread(target=self._renew, args=(lock, ttl_s, ended), name="lock", daemon=True)
            renewer.start()
            try:
                yield lock
            finally:
                ended.set()
        finally:
            # A session that is over already has nothing left; one that cannot be ended now ends by itself.
            with suppress(KvorumError):
                self._call(self._stub.EndSession, pb.EndSessionRequest(session=session))

    def _acquire(self, name: str, session: str, reason: str, ttl_s: int, timeout_s: float | None) -> int:
        request = pb.AcquireLockRequest(
            name=name, session=session, ttl_seconds=ttl_s, no_wait=timeout_s == 0, reason=reason
        )
        end = time.monotonic() + timeout_s if timeout_s else None
        while True:
            asked_at = time.monotonic()
            left_s = ASK_S if end is None else min(ASK_S, max(0.5, end - asked_at))
            # Asking again is safe: the session names who asks.
            with suppress(OutcomeUnknown, Timeout, Unreachable):
                answer: pb.AcquireLockResponse = self._call(self._stub.AcquireLock, request, timeout_s=left_s)
                if answer.held:
                    return answer.token
            now = time.monotonic()
            if end is not None and now >= end:
                raise Locked(f"the lock {name} did not come free in time", remedy="see 'kvorum store locks'")
            if now - asked_at < PAUSE_S:
                time.sleep(PAUSE_S)

    def _renew(self, lock: HeldLock, ttl_s: int, ended: threading.Event) -> None:
        # Counted from before the asking: the holder must not believe longer than the others.
        renewed_at = time.monotonic()
        while not ended.wait(ttl_s / 3):
            asked_at = time.monotonic()
            try:
                self._call(self._stub.RenewSession, pb.RenewSessionRequest(session=lock.session), timeout_s=ttl_s / 3)
                renewed_at = asked_at
            except NotFound:
                lock.is_lost = True
                return
            except KvorumError:
                if time.monotonic() - renewed_at >= ttl_s:
                    lock.is_lost = True
