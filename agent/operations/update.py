"""Change a guest's settings. What runs is not touched: new settings count from the next start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind
from agent.tasks import TaskHandle
from kvorum.config import GuestConfig
from kvorum.config.guest import UNUSED_KEY
from kvorum.errors import InvalidInput, Refused, StaleVersion
from kvorum.ids import Vmid, Volid

from .disks import is_disk_key, is_owned, parse_disk
from .host import Host
from .schema import check_config, check_key
from .volumes import Wish, make_volumes, plan_volumes

# A caller waits for the answer, unlike for a task.
QUEUE_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """`config` with everything but the volumes still to be made; `freed` are those whose `unused` line is deleted."""

    config: GuestConfig
    wishes: tuple[Wish, ...]
    freed: tuple[Volid, ...]


def plan_update(file: GuestFile, settings: Mapping[str, str], delete_keys: Sequence[str]) -> UpdatePlan:
    """Pure. A disk line that goes away leaves its own volume as `unusedN`, as in Proxmox VE; deleting that frees it."""
    check_config(settings, file.kind)
    for key in delete_keys:
        check_key(key, file.kind)
        if key in settings:
            raise InvalidInput(f"{key} cannot be set and deleted at once", field=key)
    wishes = plan_volumes(settings, file.kind)
    wished = {wish.disk.key for wish in wishes}
    config, freed = file.config, []
    for key in delete_keys:
        old = config.get(key)
        config = config.without(key)
        if old is None or not is_disk_key(key, file.kind):
            continue
        if UNUSED_KEY.fullmatch(key):
            freed += [volid for volid in (parse_disk(key, old).volid,) if volid and is_owned(volid, file.vmid)]
        else:
            config = _kept_as_unused(config, key, old, file.vmid)
    for key, value in settings.items():
        if key == "description":
            config = config.with_description(value)
            continue
        old = config.get(key)
        if old is not None and is_disk_key(key, file.kind) and _volume(key, old) != _volume(key, value):
            config = _kept_as_unused(config.without(key), key, old, file.vmid)
        if key not in wished:
            config = config.set(key, value)
    return UpdatePlan(config, wishes, tuple(freed))


async def update_guest(
    host: Host,
    handle: TaskHandle,
    vmid: Vmid,
    settings: Mapping[str, str],
    delete_keys: Sequence[str],
    *,
    expected_version: int = 0,
) -> GuestFile:
    """The guest as it is then. Raises StaleVersion when somebody changed it since the caller looked."""
    async with host.queue.turn(vmid, "update", timeout_s=QUEUE_TIMEOUT_S):
        file = await host.own_unlocked(vmid)
        if expected_version and file.version != expected_version:
            raise StaleVersion(
                f"guest {vmid} has changed: version {file.version}, expected {expected_version}", remedy="read it again"
            )
        plan = plan_update(file, settings, delete_keys)
        storages = await host.storages()
        if plan.freed and (await host.observe(file)).state is not RunState.stopped:
            raise Refused("the guest may still use that volume", remedy="stop it, then delete the unused volume")
        config = plan.config
        for key, value in (await make_volumes(handle, storages, vmid, file.kind, plan.wishes)).items():
            config = config.set(key, value)
        written = await host.rewrite(file, config, reason="update guest")
        handle.commit()
        for volid in plan.freed:
            await storages.free(volid)
        return written


def _volume(key: str, value: str) -> str:
    return parse_disk(key, value).volume


def _kept_as_unused(config: GuestConfig, key: str, value: str, vmid: Vmid) -> GuestConfig:
    volid = parse_disk(key, value).volid
    if volid is None or not is_owned(volid, vmid):
        return config
    if any(is_disk_key(other, GuestKind.vm) and _volume(other, text) == volid for other, text in config.items()):
        return config
    taken = set(config.numbered("unused"))
    number = next(number for number in range(256) if number not in taken)
    return config.set(f"unused{number}", volid)
