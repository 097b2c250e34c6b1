"""Virtual machines through libvirt and QEMU: single steps on this node's guests.

Domains are transient: the config in the store is the only description of a guest, and libvirt forgets it when it stops.
Whether a guest may start here (lease, generation, owner) was decided before; this module does not ask. That a guest has
stopped is believed when its process is gone from /proc, not when a daemon says so.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import libvirt

from agent.guests import processes
from agent.guests.domain_xml import Host, console_log, describe, domain_name, vmid_of
from agent.guests.driver import STOPPED, Guest, Observed, RunState
from agent.guests.libvirt_link import Connection, LibvirtLink, Lifecycle
from agent.guests.processes import Process
from agent.guests.traffic import Traffic, of_domain
from kvorum.errors import CommandFailed, KvorumError, NotFound, Refused, Timeout, Unreachable
from kvorum.ids import Vmid

log = logging.getLogger(__name__)

START_S = 120.0
# libvirt itself tries SIGTERM for 10 s before it kills.
STOP_S = 30.0
POLL_S = 0.1
# A guest that still boots does not hear the power button.
PRESS_AGAIN_S = 10.0
QUEUE_LIMIT = 1000
# QEMU writes consoles to files for as long as a guest prints.
LOG_LIMIT_BYTES = 8 * 1024**2
LOG_KEPT_BYTES = 1024**2
LOG_CHECK_S = 10.0

T = TypeVar("T")


class Change(StrEnum):
    """What happened to a guest; the state is what `observe` says afterwards."""

    started = "started"
    arrived = "arrived"
    paused = "paused"
    resumed = "resumed"
    stopped = "stopped"
    crashed = "crashed"
    migrated = "migrated"


class GuestEvent(NamedTuple):
    vmid: Vmid
    what: Change


# (event, detail) of a libvirt lifecycle event, None for any other detail.
_CHANGES: dict[tuple[int, int | None], Change] = {
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED): Change.arrived,
    (libvirt.VIR_DOMAIN_EVENT_STARTED, None): Change.started,
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, None): Change.paused,
    (libvirt.VIR_DOMAIN_EVENT_RESUMED, None): Change.resumed,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED): Change.migrated,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED): Change.crashed,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED): Change.crashed,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, None): Change.stopped,
}
_STATES: dict[int, RunState] = {
    libvirt.VIR_DOMAIN_RUNNING: RunState.running,
    libvirt.VIR_DOMAIN_BLOCKED: RunState.running,
    libvirt.VIR_DOMAIN_SHUTDOWN: RunState.running,
    libvirt.VIR_DOMAIN_PAUSED: RunState.paused,
    libvirt.VIR_DOMAIN_PMSUSPENDED: RunState.paused,
}


class KvmDriver:
    """A GuestDriver. `run` in a task of the agent delivers events; everything else works without it."""

    def __init__(self, host: Host, *, uri: str = "qemu:///system") -> None:
        self.host = host
        self.link = LibvirtLink(uri, on_lifecycle=self._on_lifecycle, on_connected=self._on_connected)
        self._queues: set[asyncio.Queue[GuestEvent]] = set()
        self._known: dict[Vmid, RunState] = {}
        self._resync = asyncio.Event()

    async def run(self) -> None:
        """Keeps the connection to libvirt, so that events arrive, and console logs short, until cancelled."""
        await self.prepare()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.link.run())
            tasks.create_task(self._compare_after_connecting())
            tasks.create_task(self._shorten_logs())

    async def prepare(self) -> None:
        """Directories that domains need on this node, also those of guests that arrive from another."""
        await asyncio.to_thread(self._make_directories)

    async def close(self) -> None:
        await self.link.close()

    async def start(self, guest: Guest) -> None:
        domain = describe(guest, self.host)
        for note in domain.notes:
            log.warning("guest %s: %s", guest.vmid, note)
        if guest.vmid in await self._processes():
            raise Refused(f"guest {guest.vmid} runs already", remedy="stop it first")
        for volume in guest.volumes:
            if not await asyncio.to_thread(volume.path.exists):
                raise NotFound(
                    f"guest {guest.vmid}: {volume.key}: there is no disk image {volume.path}",
                    remedy="see that its storage is mounted on this node, or remove the disk from the config",
                )
        await self.prepare()
        # No flags: the guest survives this connection (no AUTODESTROY) and runs at once (no PAUSED).
        try:
            await self.link.call(
                lambda connection: connection.createXML(domain.xml, 0),
                subject=f"guest {guest.vmid}",
                timeout_s=START_S,
                to_the_end=True,
                # Some that hang must not keep anybody from asking for a state.
                is_long=True,
            )
        except (Timeout, Unreachable, asyncio.CancelledError):
            # It may have come up all the same. Who is told that it did not may start it elsewhere.
            await asyncio.shield(self._leave_nothing(guest.vmid))
            raise
        log.info("guest %s: started (%s)", guest.vmid, self.host.accel)

    async def _leave_nothing(self, vmid: Vmid) -> None:
        try:
            await self.stop(vmid)
        except KvorumError as error:
            log.error("guest %s: what may be left of its start cannot be ended: %s", vmid, error)

    async def end_late_start(self, vmid: Vmid) -> None:
        """After an agent that died in `start`: returns when libvirt is through with that start, however long it takes. A guest
        that is up is left alone, since everybody sees it; what comes up only now is ended, since it may be looked for elsewhere.

        Raises while that is not certain; then ask again.
        """
        if vmid in await self._processes():
            return
        with contextlib.suppress(NotFound):
            # Only that libvirt does not know it is certain: one that it ends may be on its way up still.
            while True:
                await self.link.call(
                    lambda connection: connection.lookupByName(domain_name(vmid)).destroy(),
                    subject=f"guest {vmid}",
                    timeout_s=STOP_S,
                    to_the_end=True,
                    is_long=True,
                )
                log.warning("guest %s: ended what came up of a start by an earlier agent", vmid)
                await asyncio.sleep(POLL_S)
        process = (await self._processes()).get(vmid)
        if process is not None:
            await self._kill(vmid, process)

    async def shutdown(self, vmid: Vmid, *, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        observed = await self.observe(vmid)
        if observed.state is RunState.paused:
            raise Refused(f"guest {vmid} is paused and cannot power off", remedy="resume it first, or stop it")
        press = loop.time()
        while (await self._processes()).get(vmid) is not None:
            if loop.time() >= deadline:
                raise Timeout(f"guest {vmid} did not power off within {timeout_s:.0f} s", remedy="stop it")
            if loop.time() >= press:
                press = loop.time() + PRESS_AGAIN_S
                with contextlib.suppress(NotFound, Refused):
                    await self._domain(vmid, lambda domain: domain.shutdownFlags(0), timeout_s=timeout_s)
            await asyncio.sleep(POLL_S)
        await self._forgotten_by_libvirt(vmid)
        log.info("guest %s: shut down", vmid)

    async def stop(self, vmid: Vmid) -> None:
        try:
            await self._domain(vmid, lambda domain: domain.destroy(), timeout_s=STOP_S)
        except NotFound:
            pass
        except (Unreachable, Timeout, Refused, CommandFailed) as error:
            log.warning("guest %s: libvirt cannot stop it (%s), killing it", vmid, error)
        process = (await self._processes()).get(vmid)
        if process is not None:
            await self._kill(vmid, process)
        await self._forgotten_by_libvirt(vmid)

    async def pause(self, vmid: Vmid) -> None:
        """Its processors stand still. NotFound when it does not run."""
        await self._domain(vmid, lambda domain: domain.suspend())

    async def resume(self, vmid: Vmid) -> None:
        """Go on after `pause`, or after the arrival of a migration. No error when it runs already."""
        if (await self.observe(vmid)).state is not RunState.running:
            await self._domain(vmid, lambda domain: domain.resume())

    async def observe(self, vmid: Vmid) -> Observed:
        try:
            state = await self._domain(vmid, lambda domain: domain.state()[0], is_idempotent=True)
        except NotFound:
            state = libvirt.VIR_DOMAIN_SHUTOFF
        return _observed(state, (await self._processes()).get(vmid))

    async def observe_all(self) -> Mapping[Vmid, Observed]:
        states = await self.link.call(_states, subject="guests", is_idempotent=True)
        running = await self._processes()
        everything = {
            vmid: _observed(states.get(vmid, libvirt.VIR_DOMAIN_SHUTOFF), running.get(vmid))
            for vmid in sorted(states.keys() | running.keys())
        }
        return {vmid: seen for vmid, seen in everything.items() if seen.state is not RunState.stopped}

    async def traffic(self) -> Mapping[Vmid, Traffic]:
        """Of those that libvirt knows to run; a guest whose monitor does not answer at once is left out of it."""
        return await self.link.call(_traffic, subject="guests", is_idempotent=True)

    async def console_log(self, vmid: Vmid, *, tail_bytes: int) -> bytes:
        return await asyncio.to_thread(_tail, console_log(vmid, self.host), tail_bytes)

    async def forget(self, vmid: Vmid) -> None:
        if vmid in await self._processes():
            raise Refused(f"guest {vmid} still runs", remedy="stop it first")
        sockets = [self.host.serial_dir / f"{vmid}.serial{number}" for number in range(4)]
        for path in (console_log(vmid, self.host), self.host.vnc_dir / f"{vmid}.sock", *sockets):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def events(self) -> AsyncIterator[GuestEvent]:
        """What happens from now on, as long as `run` runs. After a break of the connection come the differences."""
        queue: asyncio.Queue[GuestEvent] = asyncio.Queue(QUEUE_LIMIT)
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)

    async def _domain(
        self, vmid: Vmid, step: Callable[[Any], T], *, timeout_s: float = 30.0, is_idempotent: bool = False
    ) -> T:
        def work(connection: Connection) -> T:
            return step(connection.lookupByName(domain_name(vmid)))

        return await self._call(vmid, work, timeout_s=timeout_s, is_idempotent=is_idempotent)

    async def _call(
        self, vmid: Vmid, work: Callable[[Connection], T], *, timeout_s: float = 30.0, is_idempotent: bool = False
    ) -> T:
        return await self.link.call(work, subject=f"guest {vmid}", timeout_s=timeout_s, is_idempotent=is_idempotent)

    async def _processes(self) -> Mapping[Vmid, Process]:
        return await asyncio.to_thread(processes.guest_processes)

    async def _kill(self, vmid: Vmid, process: Process) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_S
        await asyncio.to_thread(processes.kill, vmid, process.pid)
        while vmid in await self._processes():
            if loop.time() >= deadline:
                raise Timeout(
                    f"guest {vmid}: its process {process.pid} does not end",
                    remedy="it hangs in the kernel, mostly on storage that does not answer; the node must be reset",
                )
            await asyncio.sleep(POLL_S)

    async def _forgotten_by_libvirt(self, vmid: Vmid) -> None:
        """libvirt tidies up a moment after the process is gone; a start until then would be refused."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 5.0
        while loop.time() < deadline:
            try:
                await self._domain(vmid, lambda domain: domain.isActive(), is_idempotent=True)
            except KvorumError:
                # Not there any more; or nobody to ask, and the process is gone all the same.
                return
            await asyncio.sleep(POLL_S)

    def _make_directories(self) -> None:
        for directory in (self.host.console_dir, self.host.vnc_dir, self.host.serial_dir):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)

    def _on_connected(self) -> None:
        self._resync.set()

    def _on_lifecycle(self, event: Lifecycle) -> None:
        vmid = vmid_of(event.domain)
        change = _CHANGES.get((event.event, event.detail)) or _CHANGES.get((event.event, None))
        if vmid is None or change is None:
            return
        match change:
            case Change.stopped | Change.crashed | Change.migrated:
                self._known.pop(vmid, None)
            case Change.paused:
                self._known[vmid] = RunState.paused
            case Change.started | Change.arrived | Change.resumed:
                self._known[vmid] = RunState.running
        self._publish(GuestEvent(vmid, change))

    async def _compare_after_connecting(self) -> None:
        """Events of the time without a connection are lost; the states before and after tell most of them."""
        while True:
            await self._resync.wait()
            self._resync.clear()
            before = dict(self._known)
            try:
                now = {vmid: seen.state for vmid, seen in (await self.observe_all()).items()}
            except (KvorumError, OSError) as error:
                # The next connection sets the event again.
                log.warning("cannot compare guests after connecting: %s", error)
                continue
            for event in differences(before, now):
                self._publish(event)
            self._known = now

    async def _shorten_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_S)
            try:
                await asyncio.to_thread(shorten, self.host.console_dir)
            except OSError as error:
                log.warning("cannot shorten console logs: %s", error)

    def _publish(self, event: GuestEvent) -> None:
        log.info("guest %s: %s", event.vmid, event.what)
        for queue in self._queues:
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                log.error("an event of guest %s was dropped: its reader is stuck", event.vmid)


def differences(before: Mapping[Vmid, RunState], now: Mapping[Vmid, RunState]) -> list[GuestEvent]:
    """What must have happened between two looks, in the order of guest ids. Pure."""
    events = []
    for vmid in sorted(before.keys() | now.keys()):
        match before.get(vmid), now.get(vmid):
            case old, new if old is new:
                continue
            case _, None:
                events.append(GuestEvent(vmid, Change.stopped))
            case _, RunState.paused:
                events.append(GuestEvent(vmid, Change.paused))
            case None, _:
                events.append(GuestEvent(vmid, Change.started))
            case _:
                events.append(GuestEvent(vmid, Change.resumed))
    return events


def _states(connection: Connection) -> dict[Vmid, int]:
    found = {}
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        vmid = vmid_of(domain.name())
        if vmid is None:
            continue
        # Gone between the list and the question: not there.
        with contextlib.suppress(libvirt.libvirtError):
            found[vmid] = domain.state()[0]
    return found


def _traffic(connection: Connection) -> dict[Vmid, Traffic]:
    wanted = libvirt.VIR_DOMAIN_STATS_BLOCK | libvirt.VIR_DOMAIN_STATS_INTERFACE
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    answers = [(vmid_of(domain.name()), stats) for domain, stats in connection.getAllDomainStats(wanted, flags)]
    return {vmid: of_domain(stats) for vmid, stats in answers if vmid is not None}


def _observed(state: int, process: Process | None) -> Observed:
    """A process without a domain counts as running: nothing else may be believed of it."""
    if process is None:
        return STOPPED
    return Observed(_STATES.get(state, RunState.running), process.pid, process.uptime_s)


def shorten(directory: Path, *, limit_bytes: int = LOG_LIMIT_BYTES, kept_bytes: int = LOG_KEPT_BYTES) -> None:
    """Cut logs that are too long to their ends, in place: QEMU has them open, and appends to wherever the end is.

    What a guest prints at that very moment may be lost.
    """
    for path in directory.glob("*.log"):
        if path.stat().st_size <= limit_bytes:
            continue
        tail = _tail(path, kept_bytes)
        with path.open("ab") as stream:
            stream.truncate(0)
            stream.write(tail)


def _tail(path: Path, tail_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - tail_bytes))
            return stream.read(tail_bytes)
    except FileNotFoundError:
        return b""
