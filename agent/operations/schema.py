"""Which keys a guest's config may be given over the API, and what their values may be. Pure.

Files edited by hand may hold anything (unknown keys are kept); what comes over the API is checked, so that a misspelt key is
an error and not a setting without effect. Keys are Proxmox VE's.
"""

import re
from collections.abc import Callable, Mapping

from agent.inventory import GuestKind
from kvorum.config import parse_properties
from kvorum.config.properties import parse_bool, parse_int
from kvorum.errors import ConfigError, InvalidInput

from .disks import is_disk_key, parse_disk

_DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?")

Check = Callable[[str, str], None]


def _text(key: str, value: str) -> None:
    """Anything that a line can hold."""


def _flag(key: str, value: str) -> None:
    parse_bool(value, field=key)


def _number(minimum: int, maximum: int) -> Check:
    def check(key: str, value: str) -> None:
        parse_int(value, field=key, minimum=minimum, maximum=maximum)

    return check


def _memory(minimum: int) -> Check:
    """MiB, alone or as `current=512`."""

    def check(key: str, value: str) -> None:
        current = parse_properties(value, default_key="current", field=key).get("current", "")
        parse_int(current, field=key, minimum=minimum, maximum=16 * 1024 * 1024)

    return check


def _name(key: str, value: str) -> None:
    if not _DNS_NAME.fullmatch(value):
        raise ConfigError(f"{value!r} is no host name", field=key, remedy="use letters, digits, hyphens and dots")


def _properties(key: str, value: str) -> None:
    parse_properties(value, default_key="model", field=key)


def _disk(key: str, value: str) -> None:
    parse_disk(key, value)


_COMMON: dict[str, Check] = {
    "cores": _number(1, 8192),
    "cpulimit": _text,
    "cpuunits": _number(1, 500_000),
    "description": _text,
    "hookscript": _text,
    "onboot": _flag,
    "protection": _flag,
    "startup": _text,
    "tags": _text,
    "template": _flag,
    r"net[0-9]+": _properties,
    r"unused[0-9]+": _disk,
}
_VM: dict[str, Check] = {
    **_COMMON,
    "acpi": _flag,
    "affinity": _text,
    "agent": _text,
    "arch": _text,
    "args": _text,
    "audio0": _text,
    "autostart": _flag,
    "balloon": _number(0, 16 * 1024 * 1024),
    "bios": _text,
    "boot": _text,
    "bootdisk": _text,
    "cicustom": _text,
    "cipassword": _text,
    "citype": _text,
    "ciuser": _text,
    "cpu": _text,
    "freeze": _flag,
    "hotplug": _text,
    "hugepages": _text,
    r"hostpci[0-9]+": _text,
    r"ipconfig[0-9]+": _text,
    "ivshmem": _text,
    "keephugepages": _flag,
    "keyboard": _text,
    "kvm": _flag,
    "localtime": _flag,
    "machine": _text,
    "memory": _memory(1),
    "migrate_downtime": _text,
    "migrate_speed": _number(0, 1_000_000_000),
    "name": _name,
    "nameserver": _text,
    "numa": _flag,
    r"numa[0-9]+": _text,
    "ostype": _text,
    r"parallel[0-9]+": _text,
    "reboot": _flag,
    "rng0": _text,
    "scsihw": _text,
    "searchdomain": _text,
    r"serial[0-3]": _text,
    "shares": _number(0, 50_000),
    "smbios1": _text,
    "smp": _number(1, 8192),
    "sockets": _number(1, 64),
    "spice_enhancements": _text,
    "sshkeys": _text,
    "startdate": _text,
    "tablet": _flag,
    "tdf": _flag,
    r"usb[0-9]+": _text,
    "vcpus": _number(1, 8192),
    "vga": _text,
    r"virtiofs[0-9]+": _text,
    "vmgenid": _text,
    "vmstatestorage": _text,
    "watchdog": _text,
}
_CONTAINER: dict[str, Check] = {
    **_COMMON,
    "arch": _text,
    "cmode": _text,
    "console": _flag,
    "debug": _flag,
    "entrypoint": _text,
    "env": _text,
    r"dev[0-9]+": _text,
    "features": _text,
    "hostname": _name,
    "memory": _memory(1),
    "nameserver": _text,
    "ostype": _text,
    "searchdomain": _text,
    "swap": _number(0, 16 * 1024 * 1024),
    "timezone": _text,
    "tty": _number(0, 6),
    "unprivileged": _flag,
}


def in_order(settings: Mapping[str, str]) -> dict[str, str]:
    """By name and number, scsi2 before scsi10: what comes over the wire has no order, and volumes are numbered in ours."""

    def place(key: str) -> tuple[str, int]:
        name = key.rstrip("0123456789")
        return name, int(key[len(name) :] or -1)

    return {key: settings[key] for key in sorted(settings, key=place)}


def check_config(config: Mapping[str, str], kind: GuestKind) -> None:
    """Raises InvalidInput or ConfigError that names the first wrong key."""
    for key, value in config.items():
        check_key(key, kind)
        if "\n" in value or "\0" in value:
            if key != "description":
                raise InvalidInput(f"{key} must be one line", field=key)
        elif not value:
            raise InvalidInput(f"{key} has no value", field=key, remedy="to remove a key, delete it")
        check = _disk if is_disk_key(key, kind) else _check_of(key, kind)
        assert check is not None
        check(key, value)


def check_key(key: str, kind: GuestKind) -> None:
    """Raises InvalidInput for a key that this kind of guest does not have, and for those that are not for people."""
    if key in ("lock", "digest", "parent", "snaptime", "vmstate", "pending"):
        raise InvalidInput(f"{key} is set by Kvorum itself", field=key)
    if not is_disk_key(key, kind) and _check_of(key, kind) is None:
        word = "VM" if kind is GuestKind.vm else "container"
        raise InvalidInput(
            f"a {word} has no setting {key!r}", field=key, remedy="see the list of settings in the manual"
        )


def _check_of(key: str, kind: GuestKind) -> Check | None:
    table = _VM if kind is GuestKind.vm else _CONTAINER
    if key in table:
        return table[key]
    return next((check for pattern, check in table.items() if "[" in pattern and re.fullmatch(pattern, key)), None)
