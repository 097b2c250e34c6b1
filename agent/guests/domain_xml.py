"""A guest's config in libvirt's words. Pure: no file is looked at and no daemon asked.

Config keys and their defaults are Proxmox VE's (`man qm.conf`); the XML is libvirt's (https://libvirt.org/formatdomain.html).
What a key means that is not understood here is left out and named in `Domain.notes`, so that nobody believes it works.
A key whose omission would be unsafe (a VLAN tag: the guest would stand in the wrong network) is refused instead.

Nothing of a domain listens on the network: consoles and displays are unix sockets below /run/kvorum, which the agent serves.
"""

import re
import shlex
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lxml import etree  # type: ignore[import-untyped]

from agent.guests.domain_cpu import cpu
from agent.guests.domain_disks import disks
from agent.guests.domain_nics import nics
from agent.guests.driver import Guest
from agent.guests.elements import Element, element
from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_bool, parse_int, parse_properties
from kvorum.errors import ConfigError, Unsupported
from kvorum.ids import Vmid, parse_vmid
from kvorum.node import LOG, RUN

NAME_PREFIX = "kvorum-"
_NAMESPACE = uuid.UUID("6b766f72-756d-4b56-8d00-646f6d61696e")
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"

# Understood here or elsewhere, or of no meaning while a guest runs.
_KNOWN_WORDS = (
    "name cores sockets vcpus memory balloon ostype boot bootdisk scsihw vga agent args smbios1 machine bios cpu acpi "
    "kvm localtime tablet keyboard reboot onboot startup protection template tags description lock digest meta "
    "parent snaptime vmstate runningmachine runningcpu snapstate hotplug rng0"
)
_KNOWN = frozenset(_KNOWN_WORDS.split())
_KNOWN_NUMBERED = re.compile(r"(?:scsi|virtio|ide|sata|net|serial|ipconfig|unused)(?:0|[1-9][0-9]*)")
_VIDEO = {"std": "vga", "cirrus": "cirrus", "vmware": "vmvga", "qxl": "qxl", "virtio": "virtio"}
_KEYMAP = re.compile(r"[a-z]{2}(?:-[a-z]{2})?")
_SMBIOS = ("manufacturer", "product", "version", "serial", "sku", "family")


@dataclass(frozen=True, slots=True)
class Host:
    """What the XML needs to know of the node. Paths are the same on every node, so that a guest can move."""

    accel: Literal["kvm", "tcg"]
    # Keeps the uuids of two clusters' guests apart.
    cluster: str = "kvorum"
    emulator: Path = Path("/usr/bin/qemu-system-x86_64")
    console_dir: Path = LOG / "console"
    vnc_dir: Path = RUN / "vnc"
    serial_dir: Path = RUN / "serial"
    # Size of the translation cache of an emulated guest. QEMU's default of up to 1 GiB is too much for many small guests.
    tb_cache_mib: int = 32


@dataclass(frozen=True, slots=True)
class Domain:
    xml: str
    # Config keys and options that have no effect, each with the reason.
    notes: tuple[str, ...] = field(default=())


def domain_xml(guest: Guest, host: Host) -> str:
    """The XML for virDomainCreateXML. Raises ConfigError and Unsupported; see `describe` for what was left out."""
    return describe(guest, host).xml


def describe(guest: Guest, host: Host) -> Domain:
    """The XML and a note for each part of the config that has no effect."""
    config, notes = guest.config, _unknown(guest.config)
    if config.get("bios", "seabios") != "seabios":
        raise Unsupported(f"bios {config['bios']} is not supported yet", remedy="use 'bios: seabios'")
    machine = _machine(config)
    accel = "tcg" if not parse_bool(config.get("kvm", "1"), field="kvm") else host.accel
    root = element("domain", {"type": "kvm" if accel == "kvm" else "qemu"}, nsmap={"qemu": _QEMU})
    children: list[Element | None] = [
        element("name", text=domain_name(guest.vmid)),
        element("uuid", text=str(domain_uuid(guest.vmid, config, cluster=host.cluster))),
        element("title", text=_printable(config["name"], key="name")) if config.get("name") else None,
        element("memory", {"unit": "MiB"}, text=str(_memory_mib(config))),
        *_vcpus(config),
        *_firmware(config, machine),
        _features(config, accel=accel, tb_cache_mib=host.tb_cache_mib),
        cpu(config.get("cpu", ""), accel=accel, sockets=_count(config, "sockets"), cores=_count(config, "cores")),
        element("clock", {"offset": "localtime" if _is_localtime(config) else "utc"}),
        element("on_poweroff", text="destroy"),
        element("on_reboot", text="restart" if parse_bool(config.get("reboot", "1"), field="reboot") else "destroy"),
        element("on_crash", text="destroy"),
        _devices(guest, host, accel=accel, is_q35="q35" in machine, notes=notes),
        _arguments(config),
    ]
    root.extend([child for child in children if child is not None])
    return Domain(etree.tostring(root, pretty_print=True, encoding="unicode"), tuple(notes))


def domain_name(vmid: Vmid) -> str:
    """Also in QEMU's command line, as `guest=kvorum-100`, where the keeper looks for it."""
    return f"{NAME_PREFIX}{vmid}"


def vmid_of(name: str) -> Vmid | None:
    """The opposite; None for a domain that is not ours."""
    digits = name.removeprefix(NAME_PREFIX)
    return parse_vmid(digits) if name != digits and re.fullmatch(r"[1-9][0-9]{2,8}", digits) else None


def domain_uuid(vmid: Vmid, config: GuestConfig, *, cluster: str) -> uuid.UUID:
    """The guest's own (`smbios1: uuid=...`), or one that follows from cluster and guest id."""
    text = _smbios(config).get("uuid", "")
    if not text:
        return uuid.uuid5(_NAMESPACE, f"{cluster}/{vmid}")
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no UUID", field="smbios1") from None


def _unknown(config: GuestConfig) -> list[str]:
    keys = [key for key in config if key not in _KNOWN and not _KNOWN_NUMBERED.fullmatch(key)]
    return [f"{key}: not supported yet, ignored" for key in keys]


def _smbios(config: GuestConfig) -> dict[str, str]:
    return parse_properties(config.get("smbios1", ""), field="smbios1")


def _machine(config: GuestConfig) -> str:
    """`pc`, `q35`, `pc-i440fx-7.2`, `pc-q35-7.2+pve1`: the suffix is Proxmox VE's own and means nothing to QEMU."""
    name = parse_properties(config.get("machine", "pc"), default_key="type", field="machine").get("type", "pc")
    name = name.partition("+")[0]
    if not re.fullmatch(r"pc|q35|pc-i440fx-[0-9.]+|pc-q35-[0-9.]+", name):
        raise ConfigError(f"{name!r} is no machine type", field="machine", remedy="use pc or q35")
    return name


def _count(config: GuestConfig, key: str) -> int:
    return parse_int(config.get(key, "1"), field=key, minimum=1, maximum=512)


def _memory_mib(config: GuestConfig) -> int:
    text = parse_properties(config.get("memory", "512"), default_key="current", field="memory").get("current", "512")
    return parse_int(text, field="memory", minimum=1, maximum=4 * 1024 * 1024)


def _vcpus(config: GuestConfig) -> list[Element]:
    total = _count(config, "cores") * _count(config, "sockets")
    current = parse_int(config.get("vcpus", str(total)), field="vcpus", minimum=1, maximum=total)
    return [element("vcpu", {"current": str(current)} if current < total else {}, text=str(total))]


def _firmware(config: GuestConfig, machine: str) -> list[Element]:
    parts = {key: value for key, value in _smbios(config).items() if key in _SMBIOS}
    os_ = element("os", {}, element("type", {"arch": "x86_64", "machine": machine}, text="hvm"))
    if not parts:
        return [os_]
    os_.append(element("smbios", {"mode": "sysinfo"}))
    entries = [element("entry", {"name": key}, text=_smbios_value(config, value)) for key, value in parts.items()]
    return [element("sysinfo", {"type": "smbios"}, element("system", {}, *entries)), os_]


def _smbios_value(config: GuestConfig, value: str) -> str:
    if not parse_bool(_smbios(config).get("base64", "0"), field="smbios1"):
        return _printable(value, key="smbios1")
    import base64
    import binascii

    try:
        return _printable(base64.b64decode(value, validate=True).decode(), key="smbios1")
    except (binascii.Error, UnicodeDecodeError):
        raise ConfigError(f"{value!r} is no base64 text", field="smbios1") from None


def _features(config: GuestConfig, *, accel: str, tb_cache_mib: int) -> Element:
    features = element("features")
    if parse_bool(config.get("acpi", "1"), field="acpi"):
        features.append(element("acpi"))
    features.append(element("apic"))
    if accel == "tcg":
        features.append(element("tcg", {}, element("tb-cache", {"unit": "MiB"}, text=str(tb_cache_mib))))
    return features


def _is_localtime(config: GuestConfig) -> bool:
    """Windows keeps local time in the clock."""
    default = "1" if config.get("ostype", "other").startswith(("w2k", "wxp", "wvista", "win")) else "0"
    return parse_bool(config.get("localtime", default), field="localtime")


def _devices(guest: Guest, host: Host, *, accel: str, is_q35: bool, notes: list[str]) -> Element:
    config = guest.config
    order = boot_order(config)
    video = _video(guest, host)
    has_tablet = parse_bool(config.get("tablet", "1" if accel == "kvm" and video else "0"), field="tablet")
    devices = element("devices", {}, element("emulator", text=str(host.emulator)))
    devices.extend(disks(guest, is_q35=is_q35, order=order, notes=notes))
    devices.extend(nics(config, order=order, notes=notes))
    # An emulated USB controller polls: a tenth of a core under TCG for a pointer that few need.
    devices.append(element("controller", {"type": "usb", "model": "piix3-uhci" if has_tablet else "none"}))
    if has_tablet:
        devices.append(element("input", {"type": "tablet", "bus": "usb"}))
    devices.extend(_serials(guest, host))
    if _has_agent(config):
        target = element("target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
        devices.append(element("channel", {"type": "unix"}, target))
    devices.extend(video)
    devices.append(element("memballoon", {"model": "none" if config.get("balloon") == "0" else "virtio"}))
    devices.extend(_random(config))
    return devices


def _random(config: GuestConfig) -> list[Element]:
    if "rng0" not in config:
        return []
    source = parse_properties(config["rng0"], default_key="source", field="rng0").get("source", "/dev/urandom")
    if source not in ("/dev/urandom", "/dev/random", "/dev/hwrng"):
        raise ConfigError(f"{source!r} is no source of randomness", field="rng0", remedy="use /dev/urandom")
    backend = element("backend", {"model": "random"}, text=source)
    return [element("rng", {"model": "virtio"}, backend)]


def boot_order(config: GuestConfig) -> list[str]:
    """Config keys in the order they are tried: `order=scsi0;net0`, or the old `cdn` letters with `bootdisk`."""
    properties = parse_properties(config.get("boot", ""), default_key="legacy", field="boot")
    if "order" in properties:
        return [key for key in re.split(r"[;, ]+", properties["order"]) if key]
    hard = [key for key in config if re.fullmatch(r"(?:ide|scsi|virtio|sata)[0-9]+", key)]
    cdroms = [key for key in hard if "media=cdrom" in config[key]]
    hard = [config["bootdisk"]] if config.get("bootdisk") else [key for key in hard if key not in cdroms]
    # Of several disks only the first, as in Proxmox VE. Network only when asked for: its ROM costs memory and time.
    candidates = {"c": hard[:1], "d": cdroms, "n": [key for key in config if re.fullmatch(r"net[0-9]+", key)]}
    return [key for letter in properties.get("legacy", "cd") for key in candidates.get(letter, [])]


def _serials(guest: Guest, host: Host) -> list[Element]:
    """`serial0: socket` as a unix socket; what the guest prints on the first one is also kept in a file."""
    found = []
    for number, value in guest.config.numbered("serial").items():
        if number > 3:
            raise ConfigError(f"serial{number}: a guest has serial0 to serial3", field=f"serial{number}")
        if value == "socket":
            path = host.serial_dir / f"{guest.vmid}.serial{number}"
            serial = element("serial", {"type": "unix"}, element("source", {"mode": "bind", "path": str(path)}))
        elif re.fullmatch(r"/dev/[A-Za-z0-9/_.-]+", value):
            serial = element("serial", {"type": "dev"}, element("source", {"path": value}))
        else:
            raise ConfigError(f"{value!r} is no serial port", field=f"serial{number}", remedy="write 'socket'")
        if number == 0:
            serial.append(element("log", {"file": str(console_log(guest.vmid, host)), "append": "on"}))
        serial.append(element("target", {"port": str(number)}))
        found.append(serial)
    return found


def console_log(vmid: Vmid, host: Host) -> Path:
    return host.console_dir / f"{vmid}.log"


def _has_agent(config: GuestConfig) -> bool:
    enabled = parse_properties(config.get("agent", "0"), default_key="enabled", field="agent").get("enabled", "0")
    return parse_bool(enabled, field="agent")


def _video(guest: Guest, host: Host) -> list[Element]:
    """VNC on a unix socket, so that nothing that reaches the node's address gets to QEMU's own parser."""
    kind = parse_properties(guest.config.get("vga", "std"), default_key="type", field="vga").get("type", "std")
    if kind == "none" or re.fullmatch(r"serial[0-3]", kind):
        return []
    kind = "qxl" if re.fullmatch(r"qxl[2-4]", kind) else kind
    if kind not in _VIDEO:
        raise ConfigError(f"{kind!r} is no display", field="vga", remedy=f"use one of {', '.join(_VIDEO)}, none")
    path = str(host.vnc_dir / f"{guest.vmid}.sock")
    graphics = element("graphics", {"type": "vnc"}, element("listen", {"type": "socket", "socket": path}))
    keyboard = guest.config.get("keyboard", "")
    if keyboard:
        if not _KEYMAP.fullmatch(keyboard):
            raise ConfigError(f"{keyboard!r} is no keyboard layout", field="keyboard")
        graphics.set("keymap", keyboard)
    return [graphics, element("video", {}, element("model", {"type": _VIDEO[kind]}))]


def _arguments(config: GuestConfig) -> Element | None:
    """`args` go to QEMU as they are, split like a shell does but without its expansions."""
    try:
        words = shlex.split(config.get("args", ""))
    except ValueError as error:
        raise ConfigError(f"cannot split the arguments: {error}", field="args", remedy="close each quote") from None
    if not words:
        return None
    line: Any = etree.Element(f"{{{_QEMU}}}commandline")
    for word in words:
        line.append(etree.Element(f"{{{_QEMU}}}arg", {"value": _printable(word, key="args")}))
    return line


def _printable(text: str, *, key: str) -> str:
    """XML has no way to write control characters; lxml would raise a ValueError that names nothing."""
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff\ud800-\udfff]", text):
        raise ConfigError("holds a control character", field=key)
    return text
