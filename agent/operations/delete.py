"""Remove a guest of this node: its volumes, its config file, its place in HA, its runtime leftovers."""

from agent.inventory import GuestFile
from agent.tasks import TaskHandle
from kvorum.config.properties import parse_bool
from kvorum.errors import KvorumError, NotFound, Refused
from kvorum.ids import Vmid

from .disks import owned_volumes
from .ha_resources import change, removed
from .host import Host


async def delete_guest(host: Host, handle: TaskHandle, vmid: Vmid, *, purge: bool = False) -> None:
    """Raises Refused while it runs, is protected, or is managed by HA and not purged."""
    async with host.queue.turn(vmid, "delete"):
        file = await host.own_unlocked(vmid, handle)
        await check_deletable(host, file, purge=purge)
        if purge:
            await change(host.store, removed(file.sid, missing_ok=True), reason=f"delete guest {vmid}")
        await _free_volumes(host, handle, file)
        # The file goes last: should we die before, the guest is still listed and can be deleted again.
        await host.store.delete(file.path, expected_version=file.version, reason="delete guest")
        handle.log(f"removed {file.path}")
        try:
            await host.drivers[file.kind].forget(vmid)
        except KvorumError as error:
            handle.log(f"leftovers of guest {vmid} stay: {error.message}")


async def check_deletable(host: Host, file: GuestFile, *, purge: bool) -> None:
    await host.require_stopped(file, "deleted")
    if parse_bool(file.config.get("protection", "0"), field="protection"):
        raise Refused(f"guest {file.vmid} is protected", remedy="set protection=0 first")
    if not purge and await host.is_ha_managed(file):
        raise Refused(
            f"guest {file.vmid} is managed by HA",
            remedy=f"run 'kvorum ha remove {file.sid}' first, or delete with --purge",
        )


async def _free_volumes(host: Host, handle: TaskHandle, file: GuestFile) -> None:
    storages = await host.storages()
    for volid in owned_volumes(file.config, file.kind, file.vmid):
        try:
            await storages.free(volid)
            handle.log(f"freed {volid}")
        except NotFound:
            handle.log(f"{volid} was gone already")
