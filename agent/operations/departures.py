"""Migrations that left this node and that no task looks after any more, because an agent died or the store had no quorum.

Looks at source, target and store and does what `agent.migration.plan.settle` names; asked again until nothing is left.
"""

import logging

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind
from agent.migration.plan import Evidence, Look, Owner, Step, settle
from kvorum.errors import KvorumError, NotFound
from kvorum.ids import NodeName, Vmid

from .migrate import MigrationDesk, TargetAgent, call_off, go_on_here, hand_over, look_at, tidy_up, unlock
from .migration_marks import is_arrived
from .migration_records import Departure

log = logging.getLogger(__name__)

_LOOKS = {RunState.running: Look.running, RunState.paused: Look.paused, RunState.stopped: Look.gone}


async def settle_departures(desk: MigrationDesk) -> None:
    """One round. What cannot be settled now stays for the next."""
    for departure in desk.records.departures():
        if departure.migration_id in desk.busy:
            continue
        vmid = Vmid(departure.vmid)
        try:
            async with desk.host.queue.turn(vmid, "settle a migration", timeout_s=1):
                await _settle(desk, departure)
        except KvorumError as error:
            log.info("migration %s of guest %s is not settled yet: %s", departure.migration_id, vmid, error.message)


async def _settle(desk: MigrationDesk, departure: Departure) -> None:
    target = desk.target(NodeName(departure.target))
    owner, file = await _owner(desk, departure)
    if owner is Owner.unknown:
        return
    driver = desk.host.drivers[GuestKind(departure.kind)]
    here = _LOOKS[(await driver.observe(Vmid(departure.vmid))).state]
    there = await look_at(target, departure.migration_id)
    is_end_known = departure.has_ended or (file is not None and is_arrived(file.config, departure.migration_id))
    steps = settle(Evidence(here, there, owner, is_end_known=is_end_known))
    log.info("migration %s of guest %s: %s", departure.migration_id, departure.vmid, ", ".join(steps))
    for step in steps:
        await _perform(desk, departure, step, target, place=(owner, file))


async def _owner(desk: MigrationDesk, departure: Departure) -> tuple[Owner, GuestFile | None]:
    try:
        file = await desk.host.inventory.find_current(Vmid(departure.vmid))
    except NotFound:
        return Owner.other, None
    except KvorumError:
        return Owner.unknown, None
    if file.node == desk.host.node():
        return Owner.source, file
    return (Owner.target if file.node == departure.target else Owner.other), file


async def _perform(
    desk: MigrationDesk, departure: Departure, step: Step, target: TargetAgent, *, place: tuple[Owner, GuestFile | None]
) -> None:
    owner, file = place
    vmid, kind = Vmid(departure.vmid), GuestKind(departure.kind)
    match step:
        case Step.move_config:
            assert file is not None
            await hand_over(desk, None, file, departure, target)
        case Step.resume_target:
            await target.finish(departure.migration_id)
        case Step.stop_target:
            await target.abort(departure.migration_id)
        case Step.stop_source:
            await desk.host.drivers[kind].stop(vmid)
        case Step.resume_source:
            await go_on_here(desk, vmid, kind)
        case Step.start_source | Step.start_target:
            # It may have powered itself off; people and HA know whether it shall run, we do not.
            log.warning("guest %s ended during its migration", vmid)
        case Step.done:
            await _close(desk, departure, target, owner, file)
        case _:
            return


async def _close(
    desk: MigrationDesk, departure: Departure, target: TargetAgent, owner: Owner, file: GuestFile | None
) -> None:
    if owner is Owner.source and file is not None and file.node == desk.host.node():
        current = await desk.host.inventory.find_current(file.vmid)
        if current.node == desk.host.node():
            await call_off(desk, target, departure)
            await unlock(desk.host, current)
            return
    if await look_at(target, departure.migration_id) is Look.running:
        await tidy_up(desk, departure, log_line=lambda line: log.info("migration %s: %s", departure.migration_id, line))
        return
    # Whose disks are whole is for a person to say: nothing is freed.
    if departure.copied:
        log.warning("migration %s: volumes stay on %s: %s", departure.migration_id, desk.host.node(), departure.copied)
    desk.records.remove(departure)
