"""Move a guest of this node to another one. This is the source's side; the target's is `arrivals`.

The rule that everything follows: a copy runs only where the config file is, and the file moves in one guarded write, after the
source's copy has ended and the target's has arrived whole and paused. Up to then every failure and every cancel leaves
the guest running here; from then on failures only go forward (`agent.migration.plan`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind, guest_path
from agent.migration.plan import MOVE_LIMIT_S, Look
from agent.tasks import TaskHandle
from kvorum.config import GuestConfig
from kvorum.errors import (
    AlreadyExists,
    CommandFailed,
    KvorumError,
    NoQuorum,
    NotFound,
    OutcomeUnknown,
    Refused,
    StaleVersion,
    Timeout,
    Unreachable,
)
from kvorum.ids import NodeName, Vmid, Volid

from .disks import Disk, used_disks
from .host import Host, Storages
from .migration_marks import arrived, is_arrived, locked, released
from .migration_plan import MigrationPlan, MigrationWish, Mode, plan_migration
from .migration_records import Departure, MigrationRecords
from .power import check_lease, start_now

log = logging.getLogger(__name__)

RETRY_S = 1.0
FINISH_LIMIT_S = 60.0
SHUTDOWN_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class DiskOffer:
    """A disk that the target is asked to make an empty volume for."""

    key: str
    volid: Volid
    format: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the target has made ready. `config` as it must read there."""

    migration_id: str
    address: str = ""
    memory_port: int = 0
    disk_port: int = 0
    config: str = ""


class TargetAgent(Protocol):
    """The other node's agent. Every method raises Unreachable when it does not answer."""

    async def prepare(
        self, vmid: Vmid, config: str, disks: Sequence[DiskOffer], domain_xml: str, *, kind: GuestKind
    ) -> Prepared: ...
    async def finish(self, migration_id: str) -> None:
        """Raises NotFound when nothing has arrived, Refused when it has but the config is not there."""

    async def abort(self, migration_id: str) -> None: ...
    async def start(self, vmid: Vmid) -> None:
        """Ask it to start the guest, and wait."""


class Mover(Protocol):
    """The live copying (agent.migration.live)."""

    async def domain_xml(self, vmid: Vmid) -> str: ...
    def connected(self, target: NodeName, prepared: Prepared) -> AbstractAsyncContextManager["Carrier"]:
        """Tunnel and disk relay to the target, while inside."""


class Carrier(Protocol):
    async def carry(
        self,
        file: GuestFile,
        copied: Sequence[str],
        shared: Sequence[str],
        paths: Mapping[str, Path],
        *,
        bandwidth_limit: int,
        progress: Callable[[float, str], None],
    ) -> None:
        """Disks are named by their config keys. Returns when the guest has arrived, paused; also when a cancel came too
        late. Raises after making sure that it goes on here, except Unreachable and Timeout, which leave that open."""


@dataclass(kw_only=True)
class MigrationDesk:
    """What moving needs besides what every operation needs."""

    host: Host
    records: MigrationRecords
    mover: Mover
    target: Callable[[NodeName], TargetAgent]
    # Of a VM that stands still here after a migration.
    resume: Callable[[Vmid], Awaitable[None]]
    # Departures that a task of this agent takes care of; the others are for `settle`.
    busy: set[str] = field(default_factory=set)
    retry_s: float = RETRY_S


async def migrate_guest(desk: MigrationDesk, handle: TaskHandle, wish: MigrationWish) -> None:
    host = desk.host
    async with host.queue.turn(wish.vmid, "migrate"):
        file = await host.own_unlocked(wish.vmid, handle)
        plan = plan_migration(file, (await host.observe(file)).state, wish, await host.storages())
        handle.progress(0.0, f"{plan.mode} migration to {wish.target}")
        file = await host.rewrite(file, locked(file.config), reason=f"migrate to {wish.target}")
        handle.undo(lambda: unlock(host, file))
        if plan.mode is Mode.live:
            await _move_live(desk, handle, file, plan, wish)
        else:
            await _move_stopped(desk, handle, file, plan, wish)


async def unlock(host: Host, file: GuestFile) -> None:
    """Take our lock off again; the file as it is now, wherever others have left it. Not when it has moved away."""
    try:
        found = await host.inventory.at(file.path, linearizable=True)
    except NotFound:
        return
    if released(found.config) != found.config:
        await host.change(found, released, reason="migration ended")


async def _move_live(
    desk: MigrationDesk, handle: TaskHandle, file: GuestFile, plan: MigrationPlan, wish: MigrationWish
) -> None:
    target = desk.target(wish.target)
    storages = await desk.host.storages()
    offers = [await _offer(disk, storages) for disk in plan.copied]
    handle.progress(0.0, f"prepare {wish.target}")
    xml = await desk.mover.domain_xml(file.vmid)
    prepared = await target.prepare(file.vmid, file.text, offers, xml, kind=file.kind)
    departure = Departure(
        migration_id=prepared.migration_id,
        vmid=file.vmid,
        kind=file.kind,
        target=wish.target,
        copied=[offer.volid for offer in offers],
    )
    desk.busy.add(departure.migration_id)
    try:
        handle.undo(lambda: call_off(desk, target, departure))
        desk.records.save(departure)
        ports = ", ".join(str(port) for port in (prepared.memory_port, prepared.disk_port) if port)
        handle.log(f"{wish.target} waits at {prepared.address}, port {ports}")
        async with desk.mover.connected(wish.target, prepared) as carrier:
            await _carry(desk, carrier, handle, file, plan=plan, wish=wish, prepared=prepared, departure=departure)
        await hand_over(desk, handle, file, departure, target)
        await finish_at(desk, handle, departure, target)
        await tidy_up(desk, departure, log_line=handle.log)
    finally:
        desk.busy.discard(departure.migration_id)
    handle.progress(1.0, f"guest {file.vmid} runs on {wish.target}")


async def _offer(disk: Disk, storages: Storages) -> DiskOffer:
    assert disk.volid is not None
    return DiskOffer(disk.key, disk.volid, storages.format(disk.volid), await storages.size(disk.volid))


async def _carry(
    desk: MigrationDesk,
    carrier: Carrier,
    handle: TaskHandle,
    file: GuestFile,
    *,
    plan: MigrationPlan,
    wish: MigrationWish,
    prepared: Prepared,
    departure: Departure,
) -> None:
    """Returns when the guest has arrived and the task can no longer be cancelled; raises when it stays here."""
    storages = await desk.host.storages()
    there = {disk.key: disk for disk in used_disks(GuestConfig.parse(prepared.config), file.kind)}
    paths = {
        disk.key: storages.path(volid)
        for disk in plan.copied
        if (volid := there[disk.key].volid) is not None and volid != disk.volid
    }
    try:
        await carrier.carry(
            file,
            [disk.key for disk in plan.copied],
            [disk.key for disk in plan.shared],
            paths,
            bandwidth_limit=wish.bandwidth_limit,
            # The rest is for the config and the resume.
            progress=lambda fraction, phase: handle.progress(fraction * 0.95, phase),
        )
    except (Unreachable, Timeout) as error:
        match await _fate(desk, file, desk.target(wish.target), departure):
            case Fate.stays:
                raise
            case Fate.ended:
                raise CommandFailed(f"guest {file.vmid} ended during the migration: {error.message}") from error
            case Fate.unknown:
                handle.commit()
                raise OutcomeUnknown(
                    f"nobody knows yet where guest {file.vmid} is: {error.message}",
                    remedy="nothing: both nodes look after it and it goes on as soon as they hear each other",
                ) from error
            case Fate.arrived:
                handle.log(f"arrived, although: {error.message}")
    # No await may stand between the arrival and this line: a cancel that comes now comes too late.
    handle.commit()


class Fate(StrEnum):
    stays = "stays"
    arrived = "arrived"
    # Neither here nor there: it powered off or crashed on the way.
    ended = "ended"
    unknown = "unknown"


async def _fate(desk: MigrationDesk, file: GuestFile, target: TargetAgent, departure: Departure) -> Fate:
    """After a failure that does not say what has become of the guest: look at both sides."""
    try:
        if (await desk.host.observe(file)).state is not RunState.stopped:
            return Fate.stays
    except KvorumError:
        return Fate.unknown
    desk.records.save(msgspec.structs.replace(departure, has_ended=True))
    match await look_at(target, departure.migration_id):
        case Look.paused | Look.running:
            return Fate.arrived
        case Look.gone:
            return Fate.ended
        case _:
            return Fate.unknown


async def look_at(target: TargetAgent, migration_id: str) -> Look:
    """Ask the target about its copy by asking it to finish, which it does only if the config is there already."""
    try:
        await target.finish(migration_id)
        return Look.running
    except NotFound:
        return Look.gone
    except Refused:
        return Look.paused
    except KvorumError:
        return Look.unknown


async def call_off(desk: MigrationDesk, target: TargetAgent, departure: Departure) -> None:
    """Undo before the arrival: the target's leftovers go, the guest goes on here.

    A target that does not answer keeps a copy that cannot run; it goes when its agent sees that our lock is gone.
    """
    try:
        await target.abort(departure.migration_id)
    except KvorumError as error:
        log.warning("migration %s: the target cannot be told to give up: %s", departure.migration_id, error.message)
    await go_on_here(desk, Vmid(departure.vmid), GuestKind(departure.kind))
    desk.records.remove(departure)


async def go_on_here(desk: MigrationDesk, vmid: Vmid, kind: GuestKind) -> None:
    """A guest that a failed migration left standing still runs again, if it is ours and HA lets it. Raises what forbids it."""
    if (await desk.host.drivers[kind].observe(vmid)).state is RunState.paused:
        file = await desk.host.without_mark(await desk.host.own(vmid))
        await check_lease(desk.host, file)
        await desk.resume(vmid)


async def hand_over(
    desk: MigrationDesk, handle: TaskHandle | None, file: GuestFile, departure: Departure, target: TargetAgent
) -> None:
    """The switch-over: the config file becomes the target's. Raises Refused when somebody else took the guest."""
    if handle is not None:
        handle.progress(0.96, f"move {file.path} to {departure.target}")
    try:
        await move_config(desk, file, NodeName(departure.target), migration_id=departure.migration_id)
    except Refused:
        # Somebody else has the guest: our copy, should there be one, and the target's must both go.
        await desk.host.drivers[file.kind].stop(file.vmid)
        with contextlib.suppress(KvorumError):
            await target.abort(departure.migration_id)
        desk.records.remove(departure)
        raise
    except BaseException:
        desk.records.save(msgspec.structs.replace(departure, has_ended=True))
        raise
    desk.records.save(msgspec.structs.replace(departure, has_left=True))


async def move_config(
    desk: MigrationDesk, file: GuestFile, target: NodeName, *, migration_id: str = "", limit_s: float = MOVE_LIMIT_S
) -> None:
    """One guarded write, tried again while nobody can know whether it happened. Idempotent. With `migration_id`, the mark of the
    copy that is the guest comes first: whoever moves the file after that, the target knows its copy by it.

    Raises Refused when the file is neither ours nor the target's any more, or was elsewhere meanwhile, so that the guest may
    have run there; NoQuorum and its like after `limit_s`.
    """
    host, generation = desk.host, file.generation
    deadline = asyncio.get_running_loop().time() + limit_s
    while True:
        try:
            if migration_id and not is_arrived(file.config, migration_id):
                file = await host.rewrite(file, arrived(file.config, migration_id), reason=f"arrived at {target}")
            await host.store.move(
                file.path, guest_path(target, file.kind, file.vmid), expected_version=file.version, reason="migrate"
            )
            return
        except (StaleVersion, NotFound, AlreadyExists):
            problem: KvorumError | None = None
        except (NoQuorum, OutcomeUnknown, Unreachable, Timeout) as error:
            problem = error
        if problem is None:
            try:
                found = await host.inventory.find_current(file.vmid)
            except NotFound:
                raise Refused(f"the config file of guest {file.vmid} was deleted during the migration") from None
            except (NoQuorum, OutcomeUnknown, Unreachable, Timeout) as error:
                problem = error
            else:
                if found.node == target:
                    return
                if found.node != file.node:
                    raise Refused(f"guest {file.vmid} was taken over by {found.node} during the migration")
                if found.generation != generation:
                    raise Refused(f"guest {file.vmid} was on another node during the migration, and is back")
                file = found
                continue
        if asyncio.get_running_loop().time() > deadline:
            raise problem
        await asyncio.sleep(desk.retry_s)


async def finish_at(desk: MigrationDesk, handle: TaskHandle, departure: Departure, target: TargetAgent) -> None:
    """Tell the target that the guest is its own. It notices by itself too, so that losing it here loses no guest."""
    handle.progress(0.98, f"resume on {departure.target}")
    deadline = asyncio.get_running_loop().time() + FINISH_LIMIT_S
    while True:
        try:
            await target.finish(departure.migration_id)
            return
        except (Unreachable, Timeout, NoQuorum):
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(desk.retry_s)


async def tidy_up(desk: MigrationDesk, departure: Departure, *, log_line: Callable[[str], None]) -> None:
    """The guest runs at the target: what it left here goes. A failure costs disk space, nothing else."""
    vmid, kind = Vmid(departure.vmid), GuestKind(departure.kind)
    driver = desk.host.drivers[kind]
    try:
        if (await driver.observe(vmid)).state is not RunState.stopped:
            await driver.stop(vmid)
        storages = await desk.host.storages()
        for volid in departure.copied:
            await storages.free(Volid(volid))
            log_line(f"freed {volid} on {desk.host.node()}")
        await driver.forget(vmid)
    except KvorumError as error:
        log_line(f"leftovers of guest {vmid} stay on {desk.host.node()}: {error.message}")
    desk.records.remove(departure)


async def _move_stopped(
    desk: MigrationDesk, handle: TaskHandle, file: GuestFile, plan: MigrationPlan, wish: MigrationWish
) -> None:
    target, host = desk.target(wish.target), desk.host
    # Only checks, since nothing is copied.
    await target.prepare(file.vmid, file.text, [], "", kind=file.kind)
    is_managed = await host.is_ha_managed(file)
    if plan.mode is Mode.restart:
        handle.undo(lambda: _start_again(host, handle, file.vmid))
        handle.progress(0.2, "shutdown")
        await host.drivers[file.kind].shutdown(file.vmid, timeout_s=SHUTDOWN_TIMEOUT_S)
    handle.progress(0.6, f"move {file.path} to {wish.target}")
    await move_config(desk, file, wish.target)
    handle.commit()
    moved = await host.inventory.find_current(file.vmid)
    await unlock(host, moved)
    await host.drivers[file.kind].forget(file.vmid)
    if plan.mode is Mode.restart and not is_managed:
        handle.progress(0.8, f"start on {wish.target}")
        await target.start(file.vmid)
    handle.progress(1.0, f"guest {file.vmid} belongs to {wish.target}")


async def _start_again(host: Host, handle: TaskHandle, vmid: Vmid) -> None:
    """After a move that did not happen: up again here, if the majority agrees that the guest is ours."""
    file = await host.own(vmid)
    if (await host.observe(file)).state is RunState.stopped:
        await start_now(host, handle, file)
