"""Network keys (`net0: virtio=BC:24:11:..,bridge=vmbr0`) in libvirt's words. Pure."""

import re
from collections.abc import Sequence

from agent.guests.elements import Element, element
from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_bool, parse_int, parse_properties
from kvorum.errors import ConfigError, Unsupported

MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3", "ne2k_pci", "pcnet", "i82551", "i82557b", "i82559er")
_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_BRIDGE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_OPTIONS = {"model", "macaddr", "bridge", "link_down", "mtu", "queues", "rate", "firewall", "tag", "trunks", *MODELS}
# Longest-lived part of a Proxmox VE installation's addresses: its OUI.
MAC_PREFIX = "BC:24:11"


def model_and_mac(value: str, *, key: str) -> tuple[str, str]:
    """`virtio=MAC,...`, `virtio,...` (no address yet: empty) or `model=virtio,macaddr=MAC`. Raises ConfigError."""
    options = parse_properties(value, default_key="model", field=key)
    named = [model for model in MODELS if model in options]
    model = named[0] if named else options.get("model", "")
    mac = options[model] if named else options.get("macaddr", "")
    if model not in MODELS or len(named) > 1:
        raise ConfigError(f"{key}: no known network card", field=key, remedy="write virtio,bridge=vmbr0")
    if mac and (not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1):
        raise ConfigError(f"{key}: {mac!r} is no address for a network card", field=key)
    return model, mac


def nics(config: GuestConfig, *, order: Sequence[str], notes: list[str]) -> list[Element]:
    return [_nic(f"net{number}", value, order=order, notes=notes) for number, value in config.numbered("net").items()]


def _nic(key: str, value: str, *, order: Sequence[str], notes: list[str]) -> Element:
    if int(key.removeprefix("net")) > 31:
        raise ConfigError(f"{key}: a guest has net0 to net31", field=key)
    options = parse_properties(value, default_key="model", field=key)
    model, mac = model_and_mac(value, key=key)
    for unsafe in ("tag", "trunks"):
        if unsafe in options:
            raise Unsupported(
                f"{key}: VLANs ({unsafe}={options[unsafe]}) are not supported yet", remedy="use a bridge of that VLAN"
            )
    if parse_bool(options.get("firewall", "0"), field=key):
        notes.append(f"{key}: firewall=1 not supported yet, the guest is not filtered")
    notes += [f"{key}: option {name} not supported yet, ignored" for name in options if name not in _OPTIONS]
    bridge = options.get("bridge", "")
    if bridge and not _BRIDGE.fullmatch(bridge):
        raise ConfigError(f"{key}: {bridge!r} is no bridge", field=key)
    nic = element("interface", {"type": "bridge" if bridge else "user"})
    if mac:
        nic.append(element("mac", {"address": mac.lower()}))
    if bridge:
        nic.append(element("source", {"bridge": bridge}))
    nic.append(element("model", {"type": model}))
    nic.extend(_tuning(key, options))
    # Its boot ROM only where it is booted from.
    if key in order:
        nic.append(element("boot", {"order": str(order.index(key) + 1)}))
    else:
        nic.append(element("rom", {"enabled": "no"}))
    return nic


def _tuning(key: str, options: dict[str, str]) -> list[Element]:
    found = []
    if "queues" in options:
        queues = parse_int(options["queues"], field=key, minimum=0, maximum=64)
        if queues > 1:
            found.append(element("driver", {"name": "vhost", "queues": str(queues)}))
    if "rate" in options:
        try:
            # Proxmox VE's unit is MB/s, libvirt's KiB/s.
            average = str(round(float(options["rate"]) * 1024))
        except (ValueError, OverflowError):
            raise ConfigError(f"{key}: rate wants a number", field=key) from None
        inbound, outbound = (element(way, {"average": average}) for way in ("inbound", "outbound"))
        found.append(element("bandwidth", {}, inbound, outbound))
    if parse_bool(options.get("link_down", "0"), field=key):
        found.append(element("link", {"state": "down"}))
    if "mtu" in options and options["mtu"] != "1":
        found.append(element("mtu", {"size": str(parse_int(options["mtu"], field=key, minimum=576, maximum=65520))}))
    return found
