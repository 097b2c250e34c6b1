"""Disk keys (`scsi0`, `virtio1`, `ide2`, `sata3`) in libvirt's words. Pure.

Where a disk is attached follows from its key alone, never from what other disks there are, so that adding one does not
move another inside the guest.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.guests.driver import Guest, Volume
from agent.guests.elements import Element, element
from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_bool, parse_int, parse_properties
from kvorum.errors import ConfigError, Unsupported

_KEY = re.compile(r"(scsi|virtio|ide|sata)(0|[1-9][0-9]?)")
_COUNT = {"scsi": 31, "virtio": 16, "ide": 4, "sata": 6}
_SCSI_MODELS = {
    "lsi": "lsilogic",
    "megasas": "lsisas1078",
    "pvscsi": "vmpvscsi",
    "virtio-scsi-pci": "virtio-scsi",
    "virtio-scsi-single": "virtio-scsi",
}
_CACHES = ("none", "writethrough", "writeback", "unsafe", "directsync")
# Option, libvirt's element, factor: Proxmox VE writes MiB/s.
_LIMITS = (
    ("mbps", "total_bytes_sec", 1024**2),
    ("mbps_rd", "read_bytes_sec", 1024**2),
    ("mbps_wr", "write_bytes_sec", 1024**2),
    ("iops", "total_iops_sec", 1),
    ("iops_rd", "read_iops_sec", 1),
    ("iops_wr", "write_iops_sec", 1),
)
_OPTIONS = {
    "file",
    "media",
    "cache",
    "discard",
    "detect_zeroes",
    "ro",
    "serial",
    "size",
    "format",
    "backup",
    "replicate",
}
_OPTIONS |= {"shared", "snapshot", "aio", "ssd", *(option for option, _, _ in _LIMITS)}


@dataclass(frozen=True, slots=True)
class Slot:
    """A disk's key taken apart, and its place: target name, bus and address as libvirt counts them."""

    key: str
    bus: str
    target: str
    address: dict[str, str]
    # Index and model of the SCSI controller it hangs on, None on other buses.
    scsi: tuple[int, str] | None = None


def slots(config: GuestConfig, *, is_q35: bool) -> list[Slot]:
    """The disks of a config, in file order. Raises ConfigError for a number that the bus does not have."""
    found = []
    for key in config:
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        kind, number = match[1], int(match[2])
        if number >= _COUNT[kind]:
            raise ConfigError(f"{key}: {kind} goes up to {kind}{_COUNT[kind] - 1}", field=key)
        found.append(_slot(key, kind, number, hardware=config.get("scsihw", "lsi"), is_q35=is_q35))
    return found


def target_names(config: GuestConfig) -> dict[str, str]:
    """Config key -> name of the disk in the domain (`scsi0` -> `sda`), as block jobs and migration want it."""
    return {slot.key: slot.target for slot in slots(config, is_q35="q35" in config.get("machine", ""))}


def disks(guest: Guest, *, is_q35: bool, order: Sequence[str], notes: list[str]) -> list[Element]:
    """Disks and the SCSI controllers they need."""
    volumes = {volume.key: volume for volume in guest.volumes}
    found, controllers = [], {}
    for slot in slots(guest.config, is_q35=is_q35):
        disk = _disk(slot, guest.config[slot.key], volumes.get(slot.key), notes)
        if slot.key in order:
            disk.append(element("boot", {"order": str(order.index(slot.key) + 1)}))
        found.append(disk)
        if slot.scsi is not None:
            index, model = slot.scsi
            controllers[index] = element("controller", {"type": "scsi", "index": str(index), "model": model})
    return [*found, *(controllers[index] for index in sorted(controllers))]


def _slot(key: str, kind: str, number: int, *, hardware: str, is_q35: bool) -> Slot:
    match kind:
        case "virtio":
            return Slot(key, "virtio", f"vd{_letters(number)}", {})
        case "ide" if not is_q35:
            return Slot(key, "ide", f"hd{_letters(number)}", _drive(0, number // 2, number % 2))
        case "ide":
            # q35 has no IDE: the keys stand for the six ports of its own AHCI controller.
            return Slot(key, "sata", f"sd{_letters(40 + number)}", _drive(0, 0, number))
        case "sata":
            return Slot(key, "sata", f"sd{_letters(31 + number)}", _drive(1 if is_q35 else 0, 0, number))
    if hardware not in _SCSI_MODELS:
        raise ConfigError(f"{hardware!r} is no SCSI controller", field="scsihw", remedy="use virtio-scsi-single")
    # As in Proxmox VE: the old LSI chip has seven disks on each controller, "single" means one.
    per_controller = {"lsi": 7, "virtio-scsi-single": 1}.get(hardware, 31)
    index, unit = divmod(number, per_controller)
    return Slot(key, "scsi", f"sd{_letters(number)}", _drive(index, 0, unit), (index, _SCSI_MODELS[hardware]))


def _drive(controller: int, bus: int, unit: int) -> dict[str, str]:
    return {"type": "drive", "controller": str(controller), "bus": str(bus), "target": "0", "unit": str(unit)}


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    text = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def _disk(slot: Slot, value: str, volume: Volume | None, notes: list[str]) -> Element:
    options = parse_properties(value, default_key="file", field=slot.key)
    is_cdrom = options.get("media") == "cdrom"
    is_empty = options.get("file", "none") == "none"
    if is_cdrom and slot.bus == "virtio":
        raise ConfigError(f"{slot.key}: a virtio disk cannot be a CD drive", field=slot.key, remedy="use ide or scsi")
    if is_empty and not is_cdrom:
        raise ConfigError(f"{slot.key}: names no volume", field=slot.key)
    if options.get("file") == "cdrom":
        raise Unsupported(f"{slot.key}: the node's own CD drive cannot be passed on", remedy="use an ISO image")
    if volume is None and not is_empty:
        raise ConfigError(f"{slot.key}: {options['file']} is no volume of this guest", field=slot.key)
    notes += [f"{slot.key}: option {name} not supported yet, ignored" for name in options if name not in _OPTIONS]
    disk = element("disk", {"type": "file", "device": "cdrom" if is_cdrom else "disk"})
    disk.append(element("driver", _driver(slot, options, volume)))
    if volume is not None and not is_empty:
        disk.append(element("source", {"file": str(volume.path)}))
    disk.append(_target(slot, options, is_cdrom=is_cdrom))
    disk.extend(_limits(slot, options))
    if is_cdrom or (volume is not None and volume.read_only) or parse_bool(options.get("ro", "0"), field=slot.key):
        disk.append(element("readonly"))
    if "serial" in options:
        disk.append(element("serial", text=options["serial"]))
    if slot.address:
        disk.append(element("address", slot.address))
    return disk


def _driver(slot: Slot, options: dict[str, str], volume: Volume | None) -> dict[str, str]:
    """Without the host's page cache by default: what the guest was told is written must be seen by another node."""
    cache = options.get("cache", "none")
    if cache not in _CACHES:
        raise ConfigError(f"{slot.key}: {cache!r} is no cache mode", field=slot.key)
    kind = volume.format if volume is not None else "raw"
    if kind not in ("raw", "qcow2", "vmdk"):
        raise Unsupported(f"{slot.key}: a {kind} volume cannot be a disk")
    driver = {"name": "qemu", "type": kind, "cache": cache}
    if options.get("discard") == "on":
        driver["discard"] = "unmap"
    if parse_bool(options.get("detect_zeroes", "0"), field=slot.key):
        driver["detect_zeroes"] = "unmap" if options.get("discard") == "on" else "on"
    if "aio" in options:
        if options["aio"] not in ("native", "threads", "io_uring"):
            raise ConfigError(f"{slot.key}: {options['aio']!r} is no aio mode", field=slot.key)
        driver["io"] = options["aio"]
    return driver


def _target(slot: Slot, options: dict[str, str], *, is_cdrom: bool) -> Element:
    target = element("target", {"dev": slot.target, "bus": slot.bus})
    if parse_bool(options.get("ssd", "0"), field=slot.key) and slot.bus != "virtio" and not is_cdrom:
        target.set("rotation_rate", "1")
    return target


def _limits(slot: Slot, options: dict[str, str]) -> list[Element]:
    limits = []
    for option, name, factor in _LIMITS:
        if option not in options:
            continue
        try:
            amount = round(float(options[option]) * factor)
        except (ValueError, OverflowError):
            raise ConfigError(f"{slot.key}: {option} wants a number", field=slot.key) from None
        parse_int(str(amount), field=slot.key, minimum=0)
        limits.append(element(name, text=str(amount)))
    return [element("iotune", {}, *limits)] if limits else []
