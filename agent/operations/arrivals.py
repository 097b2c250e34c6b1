"""Guests that come to this node. This is the target's side of a migration; the source's is `migrate`.

What arrives is paused, and is resumed only when a majority says that its config file is in our directory. Until then it
can do no harm, and goes as soon as the source has given up (its lock is gone) or somebody else has the guest.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind
from agent.migration.plan import Look
from agent.migration.ports import Ports, read_listening
from kvorum.config import GuestConfig
from kvorum.errors import AlreadyExists, Fenced, KvorumError, NoQuorum, NotFound, Refused, Timeout, Unreachable
from kvorum.ids import NodeName, Vmid, Volid, parse_volid

from .disks import used_disks
from .host import Host, Storages
from .migrate import DiskOffer, Prepared
from .migration_marks import is_arrived
from .migration_plan import moved_in
from .migration_records import Arrival, MigrationRecords
from .power import check_lease

log = logging.getLogger(__name__)

LEASE_WAIT_S = 15.0
ABORT_QUEUE_S = 45.0
_LEASE_POLL_S = 0.2


@dataclass(kw_only=True)
class ArrivalDesk:
    """`serve_relays(arrival)`: the relays by which memory and disks come when disks come, open while inside."""

    host: Host
    records: MigrationRecords
    address: Callable[[], str]
    serve_relays: Callable[[Arrival], AbstractAsyncContextManager[None]]
    prepare_driver: Callable[[], Awaitable[None]]
    resume: Callable[[Vmid], Awaitable[None]]
    # False while a paused copy is still being filled.
    is_whole: Callable[[Vmid], Awaitable[bool]]
    listening: Callable[[], frozenset[int]] = read_listening
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    ports: Ports = field(default_factory=Ports)
    # What is open for a migration, by its id.
    open: dict[str, AsyncExitStack] = field(default_factory=dict)
    # Tunnels by migration: while one is there, bytes may flow.
    tunnels: dict[str, int] = field(default_factory=dict)

    def hold_ports(self, owner: str, count: int) -> tuple[int, ...]:
        self.ports, hold = self.ports.hold(owner, count, now=self.monotonic(), taken=self.listening())
        return hold.ports

    def renew_ports(self) -> None:
        for owner in self.open:
            with contextlib.suppress(NotFound):
                self.ports = self.ports.renew(owner, now=self.monotonic())


@dataclass(frozen=True, slots=True)
class Announced:
    """A guest that wants to come. Not `is_live`: only the check is wanted, nothing will be sent."""

    vmid: Vmid
    kind: GuestKind
    source: NodeName
    config: str
    disks: tuple[DiskOffer, ...] = ()
    is_live: bool = True


async def prepare(desk: ArrivalDesk, guest: Announced) -> Prepared:
    """Check that the guest can run here and make room for it. Raises what is missing."""
    host = desk.host
    async with host.queue.turn(guest.vmid, f"arrive from {guest.source}", timeout_s=10):
        file = await host.inventory.find(guest.vmid)
        if file.node != guest.source:
            raise Refused(f"guest {guest.vmid} belongs to {file.node}, not to {guest.source}")
        await _make_way(desk, guest.vmid)
        config = GuestConfig.parse(guest.config, file.path)
        storages = await host.storages()
        await _check_shared(config, guest.kind, storages, copied={offer.key for offer in guest.disks})
        if not guest.is_live:
            return Prepared(migration_id="")
        if (await host.drivers[guest.kind].observe(guest.vmid)).state is not RunState.stopped:
            raise Refused(
                f"something that is called guest {guest.vmid} runs on {host.node()} already",
                remedy="stop it there first",
            )
        return await _make_room(desk, file, config, guest.disks, storages)


async def _make_room(
    desk: ArrivalDesk, file: GuestFile, config: GuestConfig, disks: Sequence[DiskOffer], storages: Storages
) -> Prepared:
    migration_id = str(uuid.uuid4())
    ports = desk.hold_ports(migration_id, 2 if disks else 1)
    arrival = Arrival(
        migration_id=migration_id,
        vmid=file.vmid,
        kind=file.kind,
        source=file.node,
        memory_port=ports[0],
        disk_port=ports[1] if disks else 0,
        started_s=desk.wall(),
    )
    desk.open[migration_id] = AsyncExitStack()
    try:
        desk.records.save(arrival)
        for offer in disks:
            volid = await _allocate_like(storages, file.vmid, offer)
            arrival = msgspec.structs.replace(arrival, renamed={**arrival.renamed, offer.volid: volid})
            desk.records.save(arrival)
        await desk.prepare_driver()
        if disks:
            await desk.open[migration_id].enter_async_context(desk.serve_relays(arrival))
    except BaseException:
        await asyncio.shield(discard(desk, arrival))
        raise
    renamed = _renamed(arrival)
    there = moved_in(config, file.kind, renamed)
    return Prepared(migration_id, desk.address(), arrival.memory_port, arrival.disk_port, there.render())


async def _allocate_like(storages: Storages, vmid: Vmid, offer: DiskOffer) -> Volid:
    """On the storage of the same name, under the same name if that is free."""
    storage, name = parse_volid(offer.volid)
    try:
        return await storages.allocate(storage, vmid, offer.size_bytes, offer.format, name=name)
    except AlreadyExists:
        return await storages.allocate(storage, vmid, offer.size_bytes, offer.format)


async def _check_shared(config: GuestConfig, kind: GuestKind, storages: Storages, *, copied: set[str]) -> None:
    for disk in used_disks(config, kind):
        if disk.key in copied:
            continue
        path = Path(disk.volume) if disk.volid is None else storages.path(disk.volid)
        if not await asyncio.to_thread(path.exists):
            raise NotFound(
                f"{disk.key}: {disk.volume} is not there on the target", remedy="see that its storage is mounted there"
            )


async def _make_way(desk: ArrivalDesk, vmid: Vmid) -> None:
    """What an earlier attempt left here goes first."""
    for arrival in desk.records.arrivals():
        if arrival.vmid == vmid:
            await abort_in_turn(desk, arrival.migration_id)


async def finish(desk: ArrivalDesk, migration_id: str) -> None:
    """Resume what has arrived, if the majority says that it is ours. Idempotent.

    Raises NotFound when nothing has arrived or the guest has run elsewhere since, Refused when it has arrived but the config is
    elsewhere, Fenced when HA forbids it.
    """
    arrival = desk.records.arrival(migration_id)
    if arrival is None:
        raise NotFound(f"there is no migration {migration_id} here")
    async with desk.host.queue.turn(Vmid(arrival.vmid), "finish a migration"):
        await finish_in_turn(desk, arrival)


async def finish_in_turn(desk: ArrivalDesk, arrival: Arrival) -> None:
    """For a caller that has the guest's turn."""
    host, vmid, kind = desk.host, Vmid(arrival.vmid), GuestKind(arrival.kind)
    if arrival.is_finished:
        return
    look = await look_here(desk, arrival)
    if look is Look.gone:
        raise NotFound(f"guest {vmid} has not arrived")
    file = await host.inventory.find_current(vmid)
    if file.node != host.node():
        raise Refused(f"guest {vmid} has arrived, but belongs to {file.node}")
    if not is_guest(arrival, file):
        raise NotFound(f"guest {vmid} came to {host.node()} by another way; the copy of this migration is of the past")
    if arrival.generation != file.generation:
        # Before the mark goes: from here on we know our copy by the generation under which we took it.
        arrival = msgspec.structs.replace(arrival, generation=file.generation)
        desk.records.save(arrival)
    renamed = _renamed(arrival)
    if moved_in(file.config, kind, renamed) != file.config:
        file = await host.change(file, lambda config: moved_in(config, kind, renamed), reason="migration ended")
        if file.generation != arrival.generation:
            raise Refused(f"guest {vmid} was on another node meanwhile")
    if look is Look.paused:
        await _wait_for_lease(host, file)
        await desk.resume(vmid)
        log.info("guest %s: runs here now, came from %s (generation %s)", vmid, arrival.source, file.generation)
    await release(desk, arrival)
    desk.records.save(msgspec.structs.replace(arrival, is_finished=True))


def is_guest(arrival: Arrival, file: GuestFile) -> bool:
    """Whether the copy that has arrived is the guest, whose file is ours: nobody has run it since the copy was taken. Pure."""
    return is_arrived(file.config, arrival.migration_id) or arrival.generation == file.generation


async def _wait_for_lease(host: Host, file: GuestFile) -> None:
    """The keeper may need a moment until it guards the guest here; until then it stays paused."""
    deadline = asyncio.get_running_loop().time() + LEASE_WAIT_S
    while True:
        try:
            await check_lease(host, file)
            return
        except Fenced:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(_LEASE_POLL_S)


async def abort(desk: ArrivalDesk, migration_id: str) -> None:
    """End what has arrived and take back what was prepared. Idempotent. Raises Refused when the guest is ours by now."""
    arrival = desk.records.arrival(migration_id)
    if arrival is None:
        return
    async with desk.host.queue.turn(Vmid(arrival.vmid), "abort a migration", timeout_s=ABORT_QUEUE_S):
        await abort_in_turn(desk, migration_id)


async def abort_in_turn(desk: ArrivalDesk, migration_id: str) -> None:
    """For a caller that has the guest's turn."""
    arrival = desk.records.arrival(migration_id)
    if arrival is None:
        return
    if arrival.is_finished:
        if (await desk.host.inventory.find(Vmid(arrival.vmid))).node == desk.host.node():
            raise Refused(f"guest {arrival.vmid} is here to stay")
        desk.records.remove(arrival)
        return
    try:
        if (await desk.host.inventory.find_current(Vmid(arrival.vmid))).node == desk.host.node():
            raise Refused(f"guest {arrival.vmid} belongs to this node now")
    except NotFound:
        pass  # deleted meanwhile: then nobody needs the copy
    except (NoQuorum, Unreachable, Timeout):
        # The source gives up before it moves the config, and only it could have moved it.
        log.info("migration %s: given up without asking the majority", migration_id)
    await discard(desk, arrival)


async def discard(desk: ArrivalDesk, arrival: Arrival) -> None:
    """Everything of it goes; the caller knows that the guest is not ours."""
    vmid = Vmid(arrival.vmid)
    driver = desk.host.drivers[GuestKind(arrival.kind)]
    await release(desk, arrival)
    if (await driver.observe(vmid)).state is not RunState.stopped:
        await driver.stop(vmid)
    storages = await desk.host.storages()
    for volid in arrival.renamed.values():
        with contextlib.suppress(NotFound):
            await storages.free(Volid(volid))
    with contextlib.suppress(KvorumError):
        await driver.forget(vmid)
    desk.records.remove(arrival)
    log.info("migration %s of guest %s: nothing is left of it here", arrival.migration_id, vmid)


async def release(desk: ArrivalDesk, arrival: Arrival) -> None:
    """Ports and sockets."""
    stack = desk.open.pop(arrival.migration_id, None)
    if stack is not None:
        await stack.aclose()
    desk.ports = desk.ports.release(arrival.migration_id)


async def look_here(desk: ArrivalDesk, arrival: Arrival) -> Look:
    """A copy that is still being filled counts as gone: it is not whole and dies with its tunnel."""
    observed = await desk.host.drivers[GuestKind(arrival.kind)].observe(Vmid(arrival.vmid))
    match observed.state:
        case RunState.stopped:
            return Look.gone
        case RunState.running:
            return Look.running
        case _:
            return Look.paused if await desk.is_whole(Vmid(arrival.vmid)) else Look.gone


def _renamed(arrival: Arrival) -> dict[Volid, Volid]:
    return {Volid(old): Volid(new) for old, new in arrival.renamed.items()}
