"""Start, shut down and stop a guest of this node.

A guest starts only where the majority says it belongs, and under HA only while the node's lease is live and the keeper
guards it: then a node that is cut off ends its guests before anybody else may start them.
"""

import asyncio

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind
from agent.tasks import TaskHandle, UndoStep
from ha import lease_state
from kvorum.errors import Fenced, Refused, Timeout
from kvorum.ids import Vmid

from .host import Host, resolve

SHUTDOWN_TIMEOUT_S = 60.0
# A start that hangs in the hypervisor can be neither ended nor called failed; after so long its task says what helps.
HANG_S = 120.0
# The step that an agent performs whose predecessor died in a start: `end_late_start`.
END_LATE_START = "end-late-start"


async def start_guest(
    host: Host, handle: TaskHandle, vmid: Vmid, *, by_ha: bool = False, lease: int | None = None
) -> None:
    """HA may ask twice: a guest that runs is what it wants. Raises Refused, Locked, Fenced, NoQuorum.

    `lease`: the incarnation under which HA gave the order. An order that arrives in a later life of the node may have been
    overtaken by a recovery elsewhere, whose move of the config file we may not have seen yet.
    """
    async with host.queue.turn(vmid, "start"):
        file = await host.own_unlocked(vmid, handle)
        observed = await host.observe(file)
        if observed.state is RunState.running and by_ha:
            handle.log("runs already")
            return
        await start_now(host, handle, file, lease=lease)


async def start_now(host: Host, handle: TaskHandle, file: GuestFile, *, lease: int | None = None) -> None:
    """For a caller that has the guest's turn and has just read `file` from the majority."""
    observed = await host.observe(file)
    if observed.state is not RunState.stopped:
        raise Refused(f"guest {file.vmid} is {observed.state} already")
    # What runs from its disks from now on is newer than any copy that still waits somewhere.
    file = await host.without_mark(file)
    storages = await host.storages()
    guest = resolve(file, storages)
    # Last, so that as little time as possible passes between the look at the lease and the start.
    incarnation = await check_lease(host, file, incarnation=lease)
    if file.kind is GuestKind.vm:
        # libvirt goes on with it when this agent dies. While it lives, the driver itself sees to the end of it.
        handle.undo(_nothing, UndoStep(kind=END_LATE_START, arguments={"vmid": str(file.vmid)}))
    handle.progress(-1.0, "start")
    hangs = (
        f"the hypervisor has not ended the start for {HANG_S:g} s; free the guest's storage, or switch this node off"
    )
    notice = asyncio.get_running_loop().call_later(HANG_S, handle.progress, -1.0, hangs)
    try:
        await host.drivers[file.kind].start(guest)
    finally:
        notice.cancel()
    if incarnation is not None:
        await _confirm(host, file, incarnation)
    handle.log(f"guest {file.vmid} runs (generation {file.generation})")


async def _nothing() -> None:
    pass


async def check_lease(host: Host, file: GuestFile, *, incarnation: int | None = None) -> int | None:
    """The lease's incarnation; None when HA does not manage the guest. Raises Fenced when this node may not run it now."""
    if not await host.is_ha_managed(file):
        return None
    lease = host.lease()
    lease_state.may_start(lease, host.boottime(), file.sid, incarnation=incarnation)
    return lease.incarnation


async def _confirm(host: Host, file: GuestFile, incarnation: int) -> None:
    """A start may take so long that the lease ran out meanwhile and the guest was recovered elsewhere: then it ends here."""
    try:
        lease_state.may_start(host.lease(), host.boottime(), file.sid, incarnation=incarnation)
    except Fenced:
        await host.drivers[file.kind].stop(file.vmid)
        raise


async def shutdown_guest(
    host: Host, handle: TaskHandle, vmid: Vmid, *, timeout_s: float = SHUTDOWN_TIMEOUT_S, force_stop: bool = False
) -> None:
    """Raises Timeout when the guest still runs after `timeout_s` and is not to be forced."""
    async with host.queue.turn(vmid, "shutdown"):
        file = await host.own_unlocked(vmid, handle)
        driver = host.drivers[file.kind]
        handle.progress(-1.0, "shutdown")
        try:
            await driver.shutdown(vmid, timeout_s=timeout_s)
        except Timeout:
            if not force_stop:
                raise
            handle.log(f"still runs after {timeout_s:g} s")
            handle.progress(-1.0, "stop")
            await driver.stop(vmid)
        handle.log(f"guest {vmid} is stopped")


async def stop_guest(host: Host, handle: TaskHandle, vmid: Vmid) -> None:
    """Works without a quorum: what runs here may always be ended here."""
    async with host.queue.turn(vmid, "stop"):
        file = await host.inventory.find(vmid)
        if file.node != host.node():
            raise Refused(f"guest {vmid} has moved to {file.node} meanwhile", remedy="try again")
        handle.progress(-1.0, "stop")
        await host.drivers[file.kind].stop(vmid)
        handle.log(f"guest {vmid} is stopped")
