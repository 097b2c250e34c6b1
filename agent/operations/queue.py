"""One thing at a time on a guest: operations on it wait for their turn, first come, first served, and not for ever.

Only within this agent: across nodes the owner does the work, and the owner is one. A lock in the guest's config file (`lock:
migrate`) tells others; this queue is what really orders.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kvorum.errors import Locked
from kvorum.ids import Vmid

QUEUE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the turn: what it does, and since when (monotonic seconds)."""

    what: str
    since_s: float


class GuestQueue:
    def __init__(self) -> None:
        self._locks: dict[Vmid, asyncio.Lock] = {}
        self._holders: dict[Vmid, Holder] = {}
        self._waiting: dict[Vmid, int] = {}

    def holder(self, vmid: Vmid) -> Holder | None:
        return self._holders.get(vmid)

    @asynccontextmanager
    async def turn(self, vmid: Vmid, what: str, *, timeout_s: float = QUEUE_TIMEOUT_S) -> AsyncIterator[None]:
        """Wait for the turn. Raises Locked, naming the holder, when it does not come within `timeout_s`."""
        lock = self._locks.setdefault(vmid, asyncio.Lock())
        self._waiting[vmid] = self._waiting.get(vmid, 0) + 1
        try:
            try:
                # Not wait_for, which swallows a cancel that comes together with the turn (until Python 3.12).
                async with asyncio.timeout(timeout_s):
                    await lock.acquire()
            except TimeoutError:
                raise self._locked(vmid, what) from None
            self._holders[vmid] = Holder(what, time.monotonic())
            try:
                yield
            finally:
                del self._holders[vmid]
                lock.release()
        finally:
            self._waiting[vmid] -= 1
            if not self._waiting[vmid]:
                del self._waiting[vmid], self._locks[vmid]

    def _locked(self, vmid: Vmid, what: str) -> Locked:
        holder = self._holders.get(vmid)
        doing = f"{holder.what} for {time.monotonic() - holder.since_s:.0f} s" if holder else "something else"
        return Locked(
            f"guest {vmid} is busy with {doing}; {what} has not got its turn",
            remedy=f"wait, or look for the task with 'kvorum task list --vmid {vmid}' and cancel it",
        )
