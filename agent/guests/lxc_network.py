"""A container's network interfaces: `net0: name=eth0,bridge=vmbr0,ip=10.0.0.5/24,...` checked, and told to liblxc. Pure.

Each is a veth pair whose host end hangs on a bridge. Whether the bridge exists is for whoever starts the container.
"""

import hashlib
import re
from dataclasses import dataclass

from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_bool, parse_int, parse_properties
from kvorum.errors import ConfigError, Unsupported
from kvorum.ids import Vmid

_INTERFACE = re.compile(r"[a-zA-Z0-9_.:-]{1,15}")
_MAC = re.compile(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}")
_ADDRESS = re.compile(r"[0-9a-fA-F.:]+(/[0-9]{1,3})?")
# Of Linux: IFNAMSIZ without the final NUL.
_INTERFACE_NAME_MAX = 15


@dataclass(frozen=True, slots=True)
class Interface:
    """`net0: name=eth0,bridge=vmbr0,...`, checked."""

    index: int
    name: str
    bridge: str
    hwaddr: str
    host_name: str
    # CIDR; empty when the container configures itself (dhcp, manual, auto).
    ipv4: str = ""
    gateway4: str = ""
    ipv6: str = ""
    gateway6: str = ""
    mtu: int = 0
    is_down: bool = False
    uses_dhcp: bool = False


def interfaces(vmid: Vmid, config: GuestConfig) -> list[Interface]:
    """The container's network interfaces in the order of their numbers."""
    return [_interface(vmid, index, value) for index, value in config.numbered("net").items()]


def _interface(vmid: Vmid, index: int, value: str) -> Interface:
    key = f"net{index}"
    properties = parse_properties(value, field=key)
    if properties.get("type", "veth") != "veth":
        raise Unsupported(f"{key}: type {properties['type']} is not supported", remedy="use type=veth")
    bridge = properties.get("bridge", "")
    host_name = f"veth{vmid}i{index}"
    if len(host_name) > _INTERFACE_NAME_MAX:
        raise ConfigError(
            f"{key}: {host_name} is too long for an interface name", field=key, remedy="use a lower number"
        )
    _check(_INTERFACE, bridge, key, "bridge", "write bridge=vmbr0")
    ip, ip6 = properties.get("ip", "manual"), properties.get("ip6", "manual")
    interface = Interface(
        index=index,
        name=_check(_INTERFACE, properties.get("name", f"eth{index}"), key, "name", "write name=eth0"),
        bridge=bridge,
        hwaddr=_check(_MAC, properties.get("hwaddr") or _mac(vmid, index), key, "hwaddr", "write BC:24:11:00:00:01"),
        host_name=host_name,
        ipv4=""
        if ip in {"manual", "dhcp"}
        else _check(_ADDRESS, ip, key, "ip", "write ip=10.0.0.5/24, dhcp or manual"),
        ipv6="" if ip6 in {"manual", "dhcp", "auto"} else _check(_ADDRESS, ip6, key, "ip6", "write ip6=fd00::5/64"),
        gateway4=properties.get("gw", ""),
        gateway6=properties.get("gw6", ""),
        mtu=parse_int(properties.get("mtu", "0"), field=key, minimum=0, maximum=65_535),
        is_down=parse_bool(properties.get("link_down", "0"), field=key),
        uses_dhcp=ip == "dhcp",
    )
    for gateway in filter(None, (interface.gateway4, interface.gateway6)):
        _check(_ADDRESS, gateway, key, "gw", "write an address as in 10.0.0.1")
    return interface


def network_lines(interface: Interface) -> list[str]:
    """Lines of liblxc's configuration file."""
    prefix = f"lxc.net.{interface.index}"
    lines = [
        f"{prefix}.type = veth",
        f"{prefix}.link = {interface.bridge}",
        f"{prefix}.veth.pair = {interface.host_name}",
        f"{prefix}.name = {interface.name}",
        f"{prefix}.hwaddr = {interface.hwaddr.lower()}",
    ]
    if interface.mtu:
        lines.append(f"{prefix}.mtu = {interface.mtu}")
    if interface.ipv4:
        lines.append(f"{prefix}.ipv4.address = {interface.ipv4}")
    if interface.ipv6:
        lines.append(f"{prefix}.ipv6.address = {interface.ipv6}")
    if not interface.is_down:
        # liblxc sets a gateway only on an interface that is up.
        if interface.ipv4 and interface.gateway4:
            lines.append(f"{prefix}.ipv4.gateway = {interface.gateway4}")
        if interface.ipv6 and interface.gateway6:
            lines.append(f"{prefix}.ipv6.gateway = {interface.gateway6}")
        lines.append(f"{prefix}.flags = up")
    return lines


def _mac(vmid: Vmid, index: int) -> str:
    """The same address at every start for a config that names none, in the prefix that Proxmox VE uses."""
    digest = hashlib.sha256(f"kvorum {vmid} net{index}".encode()).digest()
    return "BC:24:11:" + ":".join(f"{byte:02X}" for byte in digest[:3])


def _check(pattern: re.Pattern[str], value: str, key: str, name: str, remedy: str) -> str:
    if not pattern.fullmatch(value):
        raise ConfigError(f"{key}: {name}={value!r} cannot be right", field=key, remedy=remedy)
    return value
