"""What becomes of guests that have come here, or half come, when nobody finishes or aborts them: a source that died, an agent
that was restarted, a cluster without a quorum. Asked again and again until nothing is left to decide.
"""

import logging
from enum import StrEnum

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind
from agent.migration.plan import Look, Owner
from kvorum.errors import KvorumError, NotFound
from kvorum.ids import Vmid

from .arrivals import ArrivalDesk, discard, finish_in_turn, is_guest, look_here, release
from .migrate import unlock
from .migration_marks import is_locked
from .migration_records import Arrival

log = logging.getLogger(__name__)

# A prepared migration of which nothing has come by then never will.
PREPARED_LIMIT_S = 60.0
# A source that asks late whether its guest arrived still gets its answer.
REMEMBER_S = 24 * 3600.0


class Verdict(StrEnum):
    wait = "wait"
    # It is ours: resume it.
    finish = "finish"
    # It is not ours and will not be.
    discard = "discard"
    # The guest is ours and has ended: what was made for it stays, since its disks may be the whole ones.
    keep = "keep"
    # The guest is ours, but the paused copy is not the guest: it has run elsewhere since. The copy goes, the volumes stay.
    drop = "drop"


def decide(owner: Owner, look: Look, *, is_guest: bool, is_locked: bool, has_tunnel: bool, age_s: float) -> Verdict:
    """Pure. `owner` as a majority sees it; `is_guest` as `arrivals.is_guest` says. Never `finish` but for the owner of the guest
    that the copy is, never `discard` what is the owner's."""
    match owner:
        case Owner.unknown:
            return Verdict.wait
        case Owner.target if look is Look.paused and not is_guest:
            return Verdict.drop
        case Owner.target:
            # What runs and did not come with this migration was started here since.
            return Verdict.finish if is_guest and look is not Look.gone else Verdict.keep
        case Owner.other:
            return Verdict.discard
        case Owner.source if not is_locked:
            # The source has given up and could not tell us.
            return Verdict.discard
        case Owner.source if look is Look.gone and not has_tunnel and age_s > PREPARED_LIMIT_S:
            return Verdict.discard
        case _:
            # It may be the only whole copy: the source moves the config, or takes its lock away, or is fenced.
            return Verdict.wait


async def settle_arrivals(desk: ArrivalDesk) -> None:
    """One round. What cannot be decided now stays for the next."""
    desk.renew_ports()
    for arrival in desk.records.arrivals():
        age_s = desk.wall() - arrival.started_s
        if arrival.is_finished:
            if age_s > REMEMBER_S:
                desk.records.remove(arrival)
            continue
        vmid = Vmid(arrival.vmid)
        if desk.host.queue.holder(vmid) is not None:
            continue
        try:
            async with desk.host.queue.turn(vmid, "settle a migration", timeout_s=1):
                await _settle(desk, arrival, age_s)
        except KvorumError as error:
            log.info("arrival of guest %s is not settled yet: %s", vmid, error.message)


async def _settle(desk: ArrivalDesk, arrival: Arrival, age_s: float) -> None:
    if desk.records.arrival(arrival.migration_id) != arrival:
        return  # settled or changed while we waited for the turn
    owner, file = await _owner(desk, arrival)
    look = await look_here(desk, arrival)
    verdict = decide(
        owner,
        look,
        is_guest=file is not None and is_guest(arrival, file),
        is_locked=file is not None and is_locked(file.config),
        has_tunnel=bool(desk.tunnels.get(arrival.migration_id)),
        age_s=age_s,
    )
    if verdict is not Verdict.wait:
        log.info("guest %s from %s (%s here, owner: %s): %s", arrival.vmid, arrival.source, look, owner, verdict)
    match verdict:
        case Verdict.finish:
            await finish_in_turn(desk, arrival)
        case Verdict.discard:
            await discard(desk, arrival)
        case Verdict.keep | Verdict.drop:
            if verdict is Verdict.drop:
                await desk.host.drivers[GuestKind(arrival.kind)].stop(Vmid(arrival.vmid))
            await release(desk, arrival)
            if arrival.renamed:
                log.warning(
                    "guest %s ended; volumes made for it stay: %s", arrival.vmid, list(arrival.renamed.values())
                )
            desk.records.remove(arrival)
            if file is not None and not desk.host.is_migrating(file.vmid):
                await unlock(desk.host, file)
        case Verdict.wait:
            return


async def _owner(desk: ArrivalDesk, arrival: Arrival) -> tuple[Owner, GuestFile | None]:
    try:
        file = await desk.host.inventory.find_current(Vmid(arrival.vmid))
    except NotFound:
        return Owner.other, None
    except KvorumError:
        return Owner.unknown, None
    if file.node == desk.host.node():
        return Owner.target, file
    return (Owner.source if file.node == arrival.source else Owner.other), file


async def sweep_strays(desk: ArrivalDesk) -> None:
    """Once, when an agent starts: paused VMs of which no record tells. Raises NoQuorum while nobody can know whose they are.

    Not ours: destroyed. Ours with a migration's lock: resumed. Ours otherwise: a person or the keeper paused it.
    """
    host = desk.host
    observed = await host.drivers[GuestKind.vm].observe_all()
    known = {arrival.vmid for arrival in desk.records.arrivals() if not arrival.is_finished}
    leaving = {departure.vmid for departure in desk.records.departures()}
    for vmid, seen in observed.items():
        if seen.state is not RunState.paused or vmid in known or vmid in leaving:
            continue
        async with host.queue.turn(vmid, "look after a paused guest"):
            try:
                file = await host.inventory.find_current(vmid)
            except NotFound:
                file = None
            if file is None or file.node != host.node():
                log.warning(
                    "guest %s is paused here but belongs to %s: destroyed", vmid, file.node if file else "nobody"
                )
                await host.drivers[GuestKind.vm].stop(vmid)
            elif is_locked(file.config) and not await host.is_ha_managed(file):
                log.warning("guest %s was left paused by a migration: resumed", vmid)
                await desk.resume(vmid)
    for file in await host.inventory.all():
        if file.node == host.node() and _has_stale_lock(file) and not host.is_migrating(file.vmid):
            log.warning("guest %s: the lock of a migration that nobody runs is removed", file.vmid)
            await unlock(host, file)


def _has_stale_lock(file: GuestFile) -> bool:
    try:
        return is_locked(file.config)
    except KvorumError:
        return False
