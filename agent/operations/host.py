"""What an operation may use on this node (store, drivers, storages, queue), and the checks that all of them begin with.

Holds no state of guests. Which guest is ours is asked of the store each time, what runs is asked of the driver each time.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.guests.driver import Guest, GuestDriver, Observed, RunState, Volume
from agent.inventory import GuestFile, GuestKind, Inventory, StoredEntry
from agent.tasks import TaskHandle
from ha import lease_state
from kvorum.config import GuestConfig
from kvorum.errors import Locked, Refused, StaleVersion
from kvorum.ids import NodeName, Vmid, Volid

from .disks import used_disks
from .files import FileStore
from .ha_resources import IGNORED, HaResources
from .migration_marks import ARRIVED, LOCK, released
from .queue import GuestQueue

log = logging.getLogger(__name__)


class OperationStore(FileStore, Protocol):
    """The part of the store's client that operations write with."""

    async def move(self, path: str, new_path: str, *, expected_version: int = 0, reason: str = "") -> StoredEntry: ...
    async def delete(self, path: str, *, expected_version: int = 0, reason: str = "") -> None: ...


class Storages(Protocol):
    """The part of agent.storage that operations use."""

    def path(self, volid: Volid) -> Path: ...
    def format(self, volid: Volid) -> str: ...
    def is_shared(self, volid: Volid) -> bool: ...
    async def size(self, volid: Volid) -> int: ...
    async def allocate(
        self,
        storage: str,
        vmid: Vmid,
        size_bytes: int,
        image_format: str,
        /,
        *,
        kind: str = "images",
        name: str | None = None,
    ) -> Volid: ...
    async def free(self, volid: Volid) -> None: ...


@dataclass(kw_only=True)
class Host:
    node: Callable[[], NodeName]
    store: OperationStore
    inventory: Inventory
    drivers: Mapping[GuestKind, GuestDriver]
    storages: Callable[[], Awaitable[Storages]]
    lease: Callable[[], lease_state.LeaseState] = lease_state.read
    boottime: Callable[[], float] = lease_state.boottime
    queue: GuestQueue = field(default_factory=GuestQueue)
    # True when a migration away or to here is known to be under way: its lock is not stale then.
    is_migrating: Callable[[Vmid], bool] = lambda vmid: False

    async def own(self, vmid: Vmid) -> GuestFile:
        """The guest as the majority has it, which must be ours. Raises NotFound, NoQuorum, Refused."""
        file = await self.inventory.find_current(vmid)
        if file.node != self.node():
            raise Refused(f"guest {vmid} has moved to {file.node} meanwhile", remedy="try again")
        return file

    async def own_unlocked(self, vmid: Vmid, handle: TaskHandle | None = None) -> GuestFile:
        """The same, and nothing else works on it. A lock left by a migration that nobody runs any more is removed.

        Raises Locked when the config says that something holds the guest.
        """
        file = await self.own(vmid)
        lock = file.config.get("lock")
        if lock in (None, LOCK) and not self.is_migrating(vmid):
            if lock is not None and handle is not None:
                handle.log("removing the lock of a migration that runs no more")
            return await self.without_migration(file)
        if lock is None:
            return file
        raise Locked(
            f"guest {vmid} is locked ({lock})",
            remedy="wait for the task that holds it; a lock that nobody holds goes away with 'delete lock' in its file",
        )

    async def without_migration(self, file: GuestFile) -> GuestFile:
        """The file without what a migration that is over has left in it. Raises StaleVersion."""
        config = released(file.config)
        if config == file.config:
            return file
        return await self.rewrite(file, config, reason="its migration is over")

    async def without_mark(self, file: GuestFile) -> GuestFile:
        """The file as it says that no waiting copy is the guest. Raises StaleVersion."""
        config = file.config.without(ARRIVED)
        return file if config == file.config else await self.rewrite(file, config, reason="it runs anew")

    async def rewrite(self, file: GuestFile, config: GuestConfig, *, reason: str) -> GuestFile:
        """Replace the config file, unless somebody else did meanwhile. Raises StaleVersion."""
        content = config.render().encode()
        entry = await self.store.write(file.path, content, expected_version=file.version, reason=reason)
        return GuestFile(file.vmid, file.kind, file.node, content.decode(), entry.version, entry.placement)

    async def change(self, file: GuestFile, edit: Callable[[GuestConfig], GuestConfig], *, reason: str) -> GuestFile:
        """Rewrite by `edit`, again on the new content when somebody else was faster. Raises NotFound when it moved away."""
        for _ in range(5):
            try:
                return await self.rewrite(file, edit(file.config), reason=reason)
            except StaleVersion:
                file = await self.inventory.at(file.path, linearizable=True)
        raise StaleVersion(f"{file.path} changes faster than it can be written", remedy="try again")

    async def observe(self, file: GuestFile) -> Observed:
        return await self.drivers[file.kind].observe(file.vmid)

    async def require_stopped(self, file: GuestFile, verb: str) -> None:
        """Raises Refused when the guest runs or is paused."""
        observed = await self.observe(file)
        if observed.state is not RunState.stopped:
            raise Refused(f"guest {file.vmid} is {observed.state} and cannot be {verb}", remedy="stop it first")

    async def ha_resources(self) -> HaResources:
        return await HaResources.load(self.store)

    async def is_ha_managed(self, file: GuestFile) -> bool:
        """A resource that HA shall ignore is not."""
        return (await self.ha_resources()).states.get(file.sid, IGNORED) != IGNORED


def resolve(file: GuestFile, storages: Storages) -> Guest:
    """What the driver starts: the config with its volumes as files of this node. Raises NotFound for an unknown storage."""
    volumes = []
    for disk in used_disks(file.config, file.kind):
        is_read_only = disk.is_cdrom or disk.properties.get("ro") == "1"
        if disk.volid is None:
            path = Path(disk.volume)
            volumes.append(Volume(disk.key, path, _format_of(path), read_only=is_read_only))
        else:
            volumes.append(
                Volume(
                    disk.key,
                    storages.path(disk.volid),
                    disk.properties.get("format") or storages.format(disk.volid),
                    read_only=is_read_only,
                    is_shared=storages.is_shared(disk.volid),
                )
            )
    return Guest(file.vmid, file.config, tuple(volumes), file.node, file.generation)


def _format_of(path: Path) -> str:
    return "qcow2" if path.suffix == ".qcow2" else "raw"
