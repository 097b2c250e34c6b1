"""The copying itself: one call to libvirt at the source, watched, cancellable, and settled when it fails.

libvirt moves memory and disks and hands over at the end; the guest arrives paused (VIR_MIGRATE_PAUSED), because it may only
run on once its config belongs to the target. What to do with a guest that has arrived is `plan`'s.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import libvirt
from lxml import etree  # type: ignore[import-untyped]

from agent.guests.domain_xml import domain_name
from agent.guests.libvirt_link import Connection, LibvirtLink
from agent.migration import relays, tunnel
from kvorum.errors import Cancelled, KvorumError, NotFound, Refused, Timeout, Unreachable
from kvorum.ids import NodeUid, Vmid

log = logging.getLogger(__name__)

MIB = 1024**2
POLL_S = 0.25
# A guest that takes longer than this to copy needs a limit chosen by a person.
LIMIT_S = 24 * 3600.0
# How long libvirt may take to give up after it was told to.
SETTLE_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Relayed:
    memory: Path
    disks: Path


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to; ports and sockets come from the target's preparation."""

    # The unix socket of `tunnel.listen`.
    tunnel: Path
    # The target's address on the cluster network, and the port that QEMU there will listen on.
    address: str
    memory_port: int
    # Whom the target's certificate must name: its node UUID.
    uid: NodeUid
    # The sockets of `relays.forward`; needed when disks are copied, and then used for memory too.
    relayed: Relayed | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be carried and how. `copied`: disks by their name in the domain (`sda`) whose contents travel."""

    copied: Sequence[str] = ()
    # Disks that stay where they are, on a storage that the administrator declared shared.
    shared: Sequence[str] = ()
    # Name in the domain -> path at the target, where it differs.
    paths: Mapping[str, Path] | None = None
    # Bytes a second, 0 for no limit. libvirt counts in MiB/s.
    bandwidth_limit: int = 0
    timeout_s: float = LIMIT_S


@dataclass(frozen=True, slots=True)
class Progress:
    """`fraction` of memory and disks, 0 to 1, never going back. `phase` is for people."""

    fraction: float
    phase: str
    # Carried so far.
    transferred_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a migration that has ended. `downtime_s` is None at the source, which is gone before it is known."""

    elapsed_s: float
    transferred_bytes: int
    downtime_s: float | None = None


async def migrate(
    link: LibvirtLink,
    vmid: Vmid,
    destination: Destination,
    wish: Wish,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Statistics:
    """Returns when the guest has arrived, paused, and the source's process has ended.

    Raises what went wrong after making sure that the guest goes on here as before. Cancelling the task does the same,
    unless it comes too late: then this returns as if nothing had been said, and the migration must be finished.
    Unreachable and Timeout leave open what has become of the guest: look at both sides (`plan.settle`).
    """
    xml, was_running, memory_bytes = await link.call(
        lambda c: _look(c, vmid), subject=f"guest {vmid}", is_idempotent=True
    )
    flags, parameters = _flags(xml, wish), _parameters(xml, destination, wish)
    uri = tunnel.destination_uri(destination.tunnel)
    loop = asyncio.get_running_loop()
    started = loop.time()
    watcher = _Watcher(link, vmid, memory_bytes, on_progress)
    copying = asyncio.ensure_future(
        link.call(
            lambda c: _lookup(c, vmid).migrateToURI3(uri, parameters, flags),
            subject=f"guest {vmid}: migration",
            timeout_s=wish.timeout_s + SETTLE_S,
            is_long=True,
        )
    )
    watching = asyncio.ensure_future(watcher.run())
    try:
        await _until_done(link, vmid, copying, timeout_s=wish.timeout_s)
    except (KvorumError, asyncio.CancelledError) as error:
        log.warning("guest %s: migration to %s failed: %s", vmid, destination.address, error or "cancelled")
        await _to_the_end(restore(link, vmid, was_running=was_running))
        raise
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    on_progress(Progress(1.0, "arrived", watcher.last.transferred_bytes))
    return Statistics(loop.time() - started, watcher.last.transferred_bytes)


async def restore(link: LibvirtLink, vmid: Vmid, *, was_running: bool) -> None:
    """After a failure: the guest runs here again if it did before. Only while its config is still this node's.

    libvirt resumes it by itself; it does not when its own state was lost on the way. Safe, because the copy at the
    target stays paused until somebody who owns the config there resumes it. Raises what prevents it.
    """
    if not was_running:
        return

    def resume(connection: Connection) -> bool:
        domain = _lookup(connection, vmid)
        if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
            return False
        domain.resume()
        return True

    try:
        if await link.call(resume, subject=f"guest {vmid}", is_idempotent=True):
            log.warning("guest %s: was left paused by a failed migration, resumed", vmid)
    except NotFound as error:
        raise Unreachable(
            f"guest {vmid}: the migration failed and the guest is not here any more",
            remedy="look whether it has arrived, paused, at the target",
        ) from error


async def abort(link: LibvirtLink, vmid: Vmid) -> bool:
    """End the running migration of a guest; False when there is none (any more)."""
    try:
        await link.call(lambda c: _lookup(c, vmid).abortJob(), subject=f"guest {vmid}", is_idempotent=True)
    except (NotFound, Refused):
        return False
    return True


async def statistics(link: LibvirtLink, vmid: Vmid) -> Statistics:
    """At the target, of the migration by which the guest arrived. Zeros when libvirt kept none."""

    def ask(connection: Connection) -> dict[str, Any]:
        found: dict[str, Any] = _lookup(connection, vmid).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        return found

    stats = await link.call(ask, subject=f"guest {vmid}", is_idempotent=True)
    downtime = stats.get("downtime")
    return Statistics(
        stats.get("time_elapsed", 0) / 1000,
        stats.get("data_processed", 0),
        None if downtime is None else downtime / 1000,
    )


def progress_of(stats: Mapping[str, Any], before: Progress, *, memory_bytes: int = 0) -> Progress:
    """What libvirt's job statistics mean. Pure; `before` keeps the fraction from going back when memory is dirtied.

    Disks are copied first, and libvirt does not count memory until then: `memory_bytes` is what will follow.
    """
    memory, memory_left = stats.get("memory_total", 0), stats.get("memory_remaining", 0)
    disk, disk_left = stats.get("disk_total", 0), stats.get("disk_remaining", 0)
    if memory + disk <= 0:
        return before
    ahead = 0 if memory else memory_bytes
    total, left = memory + disk + ahead, memory_left + disk_left + ahead
    carried = stats.get("memory_processed", 0) + stats.get("disk_processed", 0)
    # Not 1 before libvirt says that it is done.
    fraction = max(before.fraction, min(0.99, 1 - left / total))
    parts = [f"disks {(disk - disk_left) // MIB} of {disk // MIB} MiB"] if disk else []
    if memory:
        parts.append(f"memory {(memory - memory_left) // MIB} of {memory // MIB} MiB")
    iteration = stats.get("memory_iteration", 0)
    if iteration > 1:
        parts.append(f"round {iteration}")
    return Progress(fraction, ", ".join(parts), max(before.transferred_bytes, carried))


class _Watcher:
    def __init__(
        self, link: LibvirtLink, vmid: Vmid, memory_bytes: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self._link = link
        self._vmid = vmid
        self._memory_bytes = memory_bytes
        self._on_progress = on_progress
        self.last = Progress(0.0, "starting")

    async def run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            # Errors of the question are none of the migration; its own call will tell.
            with contextlib.suppress(KvorumError):
                stats = await self._link.call(self._ask, subject=f"guest {self._vmid}", is_idempotent=True)
                seen = progress_of(stats, self.last, memory_bytes=self._memory_bytes)
                if seen != self.last:
                    self.last = seen
                    self._on_progress(seen)

    def _ask(self, connection: Connection) -> dict[str, Any]:
        found: dict[str, Any] = _lookup(connection, self._vmid).jobStats()
        return found


async def _until_done(link: LibvirtLink, vmid: Vmid, copying: "asyncio.Future[Any]", *, timeout_s: float) -> None:
    """Waits; on cancellation or at the deadline tells libvirt to stop and waits for what it makes of that."""
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(copying)
            return
    except TimeoutError:
        reason = Cancelled(
            f"guest {vmid}: migration took longer than {timeout_s:.0f} s",
            remedy="raise the limit of time or of bandwidth, or shut the guest down and move it then",
        )
    except asyncio.CancelledError:
        if await _to_the_end(_stopped(link, vmid, copying)):
            raise
        log.warning("guest %s: cancelled too late, it has arrived", vmid)
        task = asyncio.current_task()
        assert task is not None
        while task.cancelling():
            task.uncancel()
        return
    if await _to_the_end(_stopped(link, vmid, copying)):
        raise reason


async def _stopped(link: LibvirtLink, vmid: Vmid, copying: "asyncio.Future[Any]") -> bool:
    """True when the migration did not happen, False when the guest has arrived all the same.

    Raises Unreachable and Timeout when nobody can tell.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    while not copying.done():
        if loop.time() >= deadline:
            raise Timeout(f"guest {vmid}: libvirt does not end its migration", remedy="look at both nodes")
        # An abort is not heard before libvirt has begun the job, nor after it has decided.
        with contextlib.suppress(KvorumError):
            await abort(link, vmid)
        await asyncio.wait({copying}, timeout=POLL_S)
    error = copying.exception()
    if isinstance(error, Unreachable | Timeout) or (error is not None and not isinstance(error, KvorumError)):
        raise error
    return error is not None


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work`, which is bounded, whatever cancellations come: left halfway, a guest could be in two places."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()


def _lookup(connection: Connection, vmid: Vmid) -> Any:
    return connection.lookupByName(domain_name(vmid))


def _look(connection: Connection, vmid: Vmid) -> tuple[str, bool, int]:
    """The domain as it would be sent, whether it runs, and the bytes of its memory."""
    domain = _lookup(connection, vmid)
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
    return xml, domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING, domain.maxMemory() * 1024


def _flags(xml: str, wish: Wish) -> int:
    flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PAUSED
    flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    # Encrypted either way: by QEMU, or by the relays.
    flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK if wish.copied else libvirt.VIR_MIGRATE_TLS
    if is_safe_on_shared(xml, wish.shared):
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    return int(flags)


def _parameters(xml: str, destination: Destination, wish: Wish) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if wish.copied:
        assert destination.relayed is not None, "disks are copied through relays only"
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = relays.uri(destination.relayed.memory)
        parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = relays.uri(destination.relayed.disks)
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(wish.copied)
    else:
        host = f"[{destination.address}]" if ":" in destination.address else destination.address
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = f"tcp://{host}:{destination.memory_port}"
        parameters[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] = destination.uid
    if wish.bandwidth_limit:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = math.ceil(wish.bandwidth_limit / MIB)
    if wish.paths:
        parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = with_paths(xml, wish.paths)
    return parameters


def is_safe_on_shared(xml: str, shared: Sequence[str]) -> bool:
    """Whether libvirt's check for shared storage may be skipped: it knows network file systems only, not a directory that
    the administrator declared shared. True when such disks exist and none goes through the host's page cache. Pure."""
    found = [disk for disk in _disks(xml) if disk.find("target").get("dev") in shared and disk.find("readonly") is None]
    caches = [driver.get("cache", "") for disk in found for driver in disk.findall("driver")]
    return bool(found) and all(cache in ("none", "directsync") for cache in caches)


def with_paths(xml: str, paths: Mapping[str, Path]) -> str:
    """The domain with other files for these disks. Pure."""
    root = _parse(xml)
    for disk in root.findall("./devices/disk"):
        name = disk.find("target").get("dev")
        if name in paths:
            disk.find("source").set("file", str(paths[name]))
            # Left as they are, libvirt would insist on the source's chain of backing files.
            for backing in disk.findall("backingStore"):
                disk.remove(backing)
    return str(etree.tostring(root, encoding="unicode"))


def _disks(xml: str) -> list[Any]:
    return list(_parse(xml).findall("./devices/disk"))


def _parse(xml: str) -> Any:
    return etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
