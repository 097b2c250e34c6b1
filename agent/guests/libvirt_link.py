"""One connection to this node's libvirtd for asyncio: calls in threads with a deadline, events in the loop, and a new
connection when the daemon was restarted.

libvirt's library blocks, and tells of events in a thread of its own; both stay behind this module. What the calls are
for is not known here. No guest is touched by a connection that breaks: QEMU does not depend on libvirtd.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import libvirt

from agent.guests.libvirt_errors import translate
from kvorum.errors import Timeout, Unreachable

log = logging.getLogger(__name__)

SYSTEM = "qemu:///system"
# A frozen daemon is noticed after this: seconds between probes, probes without an answer.
KEEPALIVE = (5, 3)
CONNECT_S = 5.0
# A restart of the daemon is waited for this long after the connection was lost; then callers are told at once.
RESTART_S = 5.0
RETRY_S = 0.25

# libvirt-python comes without types.
Connection: TypeAlias = Any
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """virDomainEventType and its detail, as numbers (https://libvirt.org/html/libvirt-libvirt-domain.html)."""

    domain: str
    event: int
    detail: int


class LibvirtLink:
    """Connects when first used. `run` keeps it connected, which is only needed for events.

    Callbacks are called in the loop: `on_lifecycle` for each event of any domain, `on_connected` after each connection,
    when events may have been missed.
    """

    def __init__(
        self,
        uri: str = SYSTEM,
        *,
        on_lifecycle: Callable[[Lifecycle], None] = lambda event: None,
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        self.uri = uri
        self.on_lifecycle = on_lifecycle
        self.on_connected = on_connected
        self._short = ThreadPoolExecutor(max_workers=12, thread_name_prefix="libvirt")
        # Migrations last, and starts may hang; they must not keep anybody from asking for a state.
        self._long = ThreadPoolExecutor(max_workers=51, thread_name_prefix="libvirt-long")
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._lost = asyncio.Event()
        self._lost_at = time.monotonic()

    async def call(
        self,
        work: Callable[[Connection], T],
        *,
        subject: str,
        timeout_s: float = 30.0,
        is_idempotent: bool = False,
        is_long: bool = False,
        to_the_end: bool = False,
    ) -> T:
        """`work(connection)` in a thread. `to_the_end`: nothing is raised, not even at the deadline or when cancelled, before
        libvirt is through with it: for work whose late effect would do harm.

        Raises what libvirt said as a KvorumError, Unreachable when the daemon is not there or went away meanwhile (then
        the work may be done or not, unless `is_idempotent`: then it is tried once more), Timeout at the deadline (the
        work goes on in its thread).
        """
        for attempt in (1, 2):
            connection = await self._connected()
            try:
                return await self._in_thread(
                    partial(work, connection),
                    timeout_s=timeout_s,
                    subject=subject,
                    is_long=is_long,
                    to_the_end=to_the_end,
                )
            except libvirt.libvirtError as error:
                if await self._is_alive(connection):
                    raise _translated(error, subject) from error
                self._drop(connection)
                if attempt == 2 or not is_idempotent:
                    raise Unreachable(
                        f"{subject}: the connection to libvirt broke",
                        remedy="start libvirtd on this node; look at the guest's state before trying again",
                        details={"libvirt": str(error)},
                    ) from error
        raise AssertionError("unreachable")

    async def run(self) -> None:
        """Keeps the link connected until cancelled."""
        is_told = False
        while True:
            try:
                await self._connected()
            except (Unreachable, Timeout) as error:
                if not is_told:
                    log.warning("%s; trying on", error)
                is_told = True
                await asyncio.sleep(RETRY_S)
                continue
            is_told = False
            await self._lost.wait()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.to_thread(_close, connection)
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)

    async def _connected(self) -> Connection:
        """The connection, made now if need be. Raises Unreachable."""
        async with self._connecting:
            if self._connection is not None:
                return self._connection
            loop = asyncio.get_running_loop()
            while True:
                try:
                    connection = await self._in_thread(
                        lambda: self._open(loop), timeout_s=CONNECT_S, subject="libvirt", is_long=False
                    )
                    break
                except libvirt.libvirtError as error:
                    if time.monotonic() > self._lost_at + RESTART_S:
                        raise Unreachable(
                            "libvirt does not answer on this node",
                            remedy="start libvirtd",
                            details={"libvirt": str(error)},
                        ) from error
                await asyncio.sleep(RETRY_S)
            self._connection = connection
            self._lost.clear()
        log.info("libvirt: connected to %s", self.uri)
        self.on_connected()
        return connection

    def _open(self, loop: asyncio.AbstractEventLoop) -> Connection:
        _EVENTS.start()
        connection = libvirt.open(self.uri)

        def lifecycle(_: Any, domain: Any, event: int, detail: int, __: Any) -> None:
            _post(loop, self.on_lifecycle, Lifecycle(domain.name(), event, detail))

        def closed(_: Any, reason: int, __: Any) -> None:
            log.warning("libvirt: connection closed (reason %s)", reason)
            _post(loop, self._drop, connection)

        connection.setKeepAlive(*KEEPALIVE)
        connection.registerCloseCallback(closed, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None)
        return connection

    def _drop(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._lost_at = time.monotonic()
            self._lost.set()

    async def _is_alive(self, connection: Connection) -> bool:
        def ask() -> bool:
            try:
                return bool(connection.isAlive())
            except libvirt.libvirtError:
                return False

        return await self._in_thread(ask, timeout_s=CONNECT_S, subject="libvirt", is_long=False)

    async def _in_thread(
        self, work: Callable[[], T], *, timeout_s: float, subject: str, is_long: bool, to_the_end: bool = False
    ) -> T:
        pool = self._long if is_long else self._short
        future = asyncio.get_running_loop().run_in_executor(pool, work)
        # Shielded: a thread cannot be cancelled, and its error must not be reported as never retrieved.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Not wait_for: before Python 3.12 it may swallow a cancel that comes together with the result.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(future)
        except TimeoutError:
            raise Timeout(f"{subject}: libvirt did not answer within {timeout_s:.0f} s") from None
        finally:
            while to_the_end and not future.done():
                # Whoever cancels again does not get it sooner.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])


def _translated(error: Any, subject: str) -> Exception:
    return translate(error.get_error_code() or 0, error.get_error_message() or str(error), subject=subject)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    """Into the loop from libvirt's thread; the loop may be closed already when the process ends."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)


def _close(connection: Connection) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


class _EventThread:
    """libvirt's event loop, which is one for the whole process, in a thread that ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Once, and before the first connection, which would otherwise never get an event."""
        with self._lock:
            if self._thread is not None:
                return
            # Errors arrive as exceptions; the default handler would print each to stderr as well.
            libvirt.registerErrorHandler(lambda context, error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            self._thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                log.error("libvirt: event loop: %s", error)


_EVENTS = _EventThread()
