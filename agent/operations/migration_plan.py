"""What moving a guest means for this guest at this moment: how, and which disks must be copied. Pure.

Refusals are found here, before anything has been touched. The order of the steps and what is safe when is
`agent.migration.plan`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind
from kvorum.config import GuestConfig
from kvorum.errors import InvalidInput, Refused
from kvorum.ids import NodeName, Vmid, Volid

from .disks import Disk, is_disk_key, parse_disk, used_disks
from .host import Storages
from .migration_marks import released


class Mode(StrEnum):
    # A running VM keeps running.
    live = "live"
    # A running container is shut down, moved and started.
    restart = "restart"
    # Nothing runs: only the config moves.
    offline = "offline"


@dataclass(frozen=True, slots=True)
class MigrationWish:
    """`bandwidth_limit` in bytes per second, 0 for none."""

    vmid: Vmid
    target: NodeName
    with_local_disks: bool = False
    bandwidth_limit: int = 0
    restart: bool = False


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    mode: Mode
    # Disks whose contents travel, and those that both nodes see.
    copied: tuple[Disk, ...] = ()
    shared: tuple[Disk, ...] = ()


def plan_migration(file: GuestFile, state: RunState, wish: MigrationWish, storages: Storages) -> MigrationPlan:
    """Raises Refused or InvalidInput with what to do instead."""
    if wish.target == file.node:
        raise InvalidInput(f"guest {file.vmid} is on {file.node} already", field="target_node")
    if state is RunState.paused:
        raise Refused(f"guest {file.vmid} is paused", remedy="resume it first")
    mode = _mode(file, state, wish)
    copied, shared = [], []
    for disk in used_disks(file.config, file.kind):
        if disk.volid is not None and storages.is_shared(disk.volid):
            shared.append(disk)
        else:
            copied.append(disk)
    _check_copied(file, mode, copied, wish)
    return MigrationPlan(mode, tuple(copied), tuple(shared))


def _mode(file: GuestFile, state: RunState, wish: MigrationWish) -> Mode:
    if state is RunState.stopped:
        return Mode.offline
    if file.kind is GuestKind.vm:
        return Mode.live
    if not wish.restart:
        raise Refused(
            f"container {file.vmid} runs and cannot move live",
            remedy="migrate it with --restart, or shut it down first",
        )
    return Mode.restart


def _check_copied(file: GuestFile, mode: Mode, copied: list[Disk], wish: MigrationWish) -> None:
    if not copied:
        return
    names = ", ".join(f"{disk.key} ({disk.volume})" for disk in copied)
    if file.kind is GuestKind.container:
        raise Refused(
            f"container {file.vmid} has volumes on local storage, which are not copied yet: {names}",
            remedy="move them to shared storage, or restore a backup of it on the target",
        )
    if mode is Mode.offline:
        raise Refused(
            f"guest {file.vmid} is stopped, and disks on local storage are copied from running guests only: {names}",
            remedy="start it and migrate it with --with-local-disks",
        )
    for disk in copied:
        if disk.is_cdrom or disk.volid is None:
            raise Refused(f"{disk.key} ({disk.volume}) is there on {file.node} only", remedy=f"remove {disk.key} first")
    if file.config.snapshots:
        raise Refused(f"guest {file.vmid} has snapshots, which are not copied yet", remedy="delete its snapshots first")
    if not wish.with_local_disks:
        raise Refused(f"{names}: only {file.node} has that", remedy="migrate with --with-local-disks to copy it")


def with_volids(config: GuestConfig, kind: GuestKind, renamed: Mapping[Volid, Volid]) -> GuestConfig:
    """The config with other volumes in the place of these; everything else on the lines stays."""
    for key, value in config.items():
        if not is_disk_key(key, kind):
            continue
        disk = parse_disk(key, value)
        volid = disk.volid
        if volid is not None and renamed.get(volid, volid) != volid:
            config = config.set(key, disk.at(renamed[volid]).render())
    return config


def moved_in(config: GuestConfig, kind: GuestKind, renamed: Mapping[Volid, Volid]) -> GuestConfig:
    """As the file reads when the migration has ended."""
    return released(with_volids(config, kind, renamed))
