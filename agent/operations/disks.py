"""Which volumes a guest's config names, and which of them are its own. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.inventory import GuestKind
from kvorum.config import GuestConfig, parse_properties, render_properties
from kvorum.config.guest import CONTAINER_VOLUME_KEY, UNUSED_KEY, VM_DISK_KEY
from kvorum.config.sizes import NewVolume, parse_new_volume, parse_size
from kvorum.errors import ConfigError, InvalidInput
from kvorum.ids import Vmid, Volid, parse_volid

_NO_VOLUME = frozenset(("none", "cdrom", ""))


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk line. `volume` is a volid, an absolute path, or a wish for a new volume (`local:4`)."""

    key: str
    volume: str
    properties: Mapping[str, str]

    @property
    def is_cdrom(self) -> bool:
        return self.properties.get("media") == "cdrom"

    @property
    def is_path(self) -> bool:
        return self.volume.startswith("/")

    @property
    def is_empty(self) -> bool:
        return self.volume in _NO_VOLUME

    @property
    def volid(self) -> Volid | None:
        return None if self.is_path or self.is_empty else Volid(self.volume)

    @property
    def wish(self) -> NewVolume | None:
        return None if self.is_cdrom else parse_new_volume(self.volume, field=self.key)

    def render(self, **changes: str | None) -> str:
        """The value of the line, with properties changed (None takes one away)."""
        merged = {**self.properties, **{name.replace("_", "-"): value for name, value in changes.items()}}
        kept = {name: value for name, value in merged.items() if value is not None}
        return render_properties({self.default_key: self.volume, **kept}, default_key=self.default_key)

    @property
    def default_key(self) -> str:
        return default_key(self.key)

    def at(self, volume: str) -> "Disk":
        return replace(self, volume=volume)


def default_key(key: str) -> str:
    """What Proxmox VE calls the part without a name: `file` in VMs, `volume` in containers."""
    return "volume" if CONTAINER_VOLUME_KEY.fullmatch(key) else "file"


def is_disk_key(key: str, kind: GuestKind) -> bool:
    pattern = VM_DISK_KEY if kind is GuestKind.vm else CONTAINER_VOLUME_KEY
    return bool(pattern.fullmatch(key) or UNUSED_KEY.fullmatch(key))


def parse_disk(key: str, value: str) -> Disk:
    """Raises ConfigError."""
    name = default_key(key)
    properties = parse_properties(value, default_key=name, field=key)
    if name not in properties:
        raise ConfigError(f"{key} names no volume", field=key, remedy=f"write {key}=STORAGE:SIZE or {key}=VOLUME")
    volume = properties.pop(name)
    return Disk(key, volume, properties)


def disks_of(config: GuestConfig, kind: GuestKind) -> tuple[Disk, ...]:
    """Every disk line of the guest's present config, in its order."""
    return tuple(parse_disk(key, value) for key, value in config.items() if is_disk_key(key, kind))


def used_disks(config: GuestConfig, kind: GuestKind) -> tuple[Disk, ...]:
    """Those that the guest sees: neither empty drives nor unused volumes."""
    return tuple(disk for disk in disks_of(config, kind) if not disk.is_empty and not UNUSED_KEY.fullmatch(disk.key))


def owned_volumes(config: GuestConfig, kind: GuestKind, vmid: Vmid) -> tuple[Volid, ...]:
    """What is freed with the guest: its own volumes, used and unused, those of its snapshots included; no ISO images and
    no volumes that carry another guest's number."""
    blocks: list[Mapping[str, str]] = [config, *config.sections]
    found: dict[Volid, None] = {}
    for block in blocks:
        for key, value in block.items():
            if not is_disk_key(key, kind):
                continue
            disk = parse_disk(key, value)
            if disk.volid is not None and not disk.is_cdrom and is_owned(disk.volid, vmid):
                found[disk.volid] = None
    return tuple(found)


def is_owned(volid: Volid, vmid: Vmid) -> bool:
    """By the name, as Proxmox VE tells: `100/vm-100-disk-0.qcow2`, `subvol-100-disk-0`."""
    try:
        _, name = parse_volid(volid)
    except InvalidInput:
        return False
    return re.fullmatch(rf"(?:{vmid}/)?(?:vm|subvol|base)-{vmid}-[^/]+", name) is not None


def size_of(disk: Disk) -> int | None:
    """Bytes by the `size` property, when it has one."""
    text = disk.properties.get("size")
    return parse_size(text, field=disk.key) if text else None
