"""liblxc's configuration file for one container, made of a Proxmox VE style config and the facts of this host.

Pure: `lxc_config(guest, host)` takes values and returns the file's text. Finding the facts, writing the file and starting
anything is `agent.guests.lxc`'s work. The file is written whole at every start, and by us rather than through the binding's
`set_config_item`, which rejects every value that liblxc normalises (`dir:/x`, `SIGUSR1`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.guests.driver import Guest, Volume
from agent.guests.lxc_network import interfaces, network_lines
from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_bool, parse_int, parse_properties, split_list
from kvorum.errors import ConfigError, Unsupported
from kvorum.ids import Vmid

MARKER = "# Written by Kvorum at each start of the container: change the guest's config instead."
CPU_PERIOD_US = 100_000
CONSOLE_LOG_BYTES = 1024**2
DEFAULT_MEMORY_MIB = 512
DEFAULT_SWAP_MIB = 512

_MIB = 1024**2
_ARCHITECTURES = {"amd64": "x86_64", "i386": "i686", "arm64": "aarch64", "armhf": "arm", "riscv64": "riscv64"}
# Their init is busybox, which shuts down on SIGUSR1 and ignores liblxc's SIGPWR.
_BUSYBOX_OSTYPES = frozenset(("busybox", "alpine"))
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*")
_PATH = re.compile(r"/[A-Za-z0-9/._+@=-]*")


@dataclass(frozen=True, slots=True)
class IdMap:
    """The host's user and group ids that stand for 0, 1, ... inside of an unprivileged container."""

    first: int = 100_000
    count: int = 65_536


@dataclass(frozen=True, slots=True)
class Host:
    """What this host offers, read by the driver."""

    # Controllers by the cgroup version that they are mounted with.
    v1_controllers: frozenset[str]
    v2_controllers: frozenset[str] = frozenset()
    # The kernel counts swap per cgroup (v1 only, where it is an option).
    counts_swap: bool = True
    has_apparmor: bool = False
    # CPUs that containers may be given.
    cpus: tuple[int, ...] = (0,)
    id_map: IdMap = IdMap()
    lxc_path: Path = Path("/var/lib/lxc")
    console_directory: Path = Path("/var/log/kvorum/console")
    include_directory: Path = Path("/usr/share/lxc/config")


def lxc_config(guest: Guest, host: Host, *, init: str = "") -> str:
    """The text of `/var/lib/lxc/<vmid>/config`. `init` is where the root file system's /sbin/init points to.

    Raises ConfigError that names the key for what cannot be right, Unsupported for what this version does not do.
    """
    config = guest.config
    lines = [
        MARKER,
        f"lxc.include = {host.include_directory}/common.conf",
        *_privileges(config, host),
        f"lxc.uts.name = {hostname(guest.vmid, config)}",
        f"lxc.arch = {_architecture(config)}",
        *_root(guest, host),
        *_images(guest, host),
        *_mount_points(guest, host),
        *_terminals(guest, host),
        *_halt(config, init),
        *_cgroup_directories(guest.vmid),
        *_memory(config, host),
        *_cpu(guest, host),
    ]
    for interface in interfaces(guest.vmid, config):
        lines += network_lines(interface)
    if not config.numbered("net"):
        lines.append("lxc.net.0.type = empty")
    # Written by an administrator for liblxc itself, so they have the last word.
    lines += [f"{key} = {value}" for key, value in config.pairs() if key.startswith("lxc.")]
    return "\n".join(lines) + "\n"


def container_cgroup(vmid: Vmid) -> str:
    """Everything of the container is below this; others (the keeper of leases) find its processes by it."""
    return f"kvorum-ct-{vmid}"


def monitor_cgroup(vmid: Vmid) -> str:
    """Where liblxc's own process for this container lives. No prefix of container_cgroup: it is no part of the guest."""
    return f"kvorum-lxc-{vmid}"


def monitor_end_cgroup(vmid: Vmid) -> str:
    """Where the monitor goes when it removes the others, for its last moment."""
    return f"kvorum-lxc-{vmid}-end"


def is_unprivileged(config: GuestConfig) -> bool:
    return _flag(config, "unprivileged")


def hostname(vmid: Vmid, config: GuestConfig) -> str:
    name = config.get("hostname") or f"CT{vmid}"
    if not _HOSTNAME.fullmatch(name) or len(name) > 64:
        raise ConfigError(f"{name!r} is no host name", field="hostname", remedy="use letters, digits, dots and hyphens")
    return name


def halt_signal(config: GuestConfig, init: str) -> str:
    """What shuts the container's init down; empty for init systems where liblxc's own choice is right."""
    is_busybox = init.rsplit("/", 1)[-1] == "busybox" or (not init and config.get("ostype") in _BUSYBOX_OSTYPES)
    return "SIGUSR1" if is_busybox else ""


def mount_target(key: str, properties: Mapping[str, str]) -> str:
    """The path of a mount point inside of the container, without the first slash. Raises ConfigError."""
    target = properties.get("mp", "")
    parts = target.strip("/").split("/")
    if not target.startswith("/") or "" in parts or "." in parts or ".." in parts:
        raise ConfigError(
            f"{key}: mp={target!r} is no path inside of the container", field=key, remedy="write mp=/data"
        )
    return "/".join(parts)


def _privileges(config: GuestConfig, host: Host) -> list[str]:
    lines = []
    if is_unprivileged(config):
        lines += [
            f"lxc.include = {host.include_directory}/userns.conf",
            f"lxc.idmap = u 0 {host.id_map.first} {host.id_map.count}",
            f"lxc.idmap = g 0 {host.id_map.first} {host.id_map.count}",
        ]
    features = parse_properties(config.get("features", ""), field="features")
    if parse_bool(features.get("nesting", "0"), field="features"):
        lines.append(f"lxc.include = {host.include_directory}/nesting.conf")
    if not host.has_apparmor:
        lines.append("lxc.apparmor.profile = unconfined")
    return lines


def _architecture(config: GuestConfig) -> str:
    name = config.get("arch") or "amd64"
    if name not in _ARCHITECTURES:
        raise ConfigError(
            f"{name!r} is no architecture", field="arch", remedy=f"use one of {', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[name]


def _root(guest: Guest, host: Host) -> list[str]:
    root = next((volume for volume in guest.volumes if volume.key == "rootfs"), None)
    if root is None:
        raise ConfigError(
            f"container {guest.vmid} has no root file system", field="rootfs", remedy="add a rootfs volume"
        )
    match root.format:
        case "subvol":
            return [
                f"lxc.rootfs.path = dir:{_plain_path(root)}",
                *(["lxc.rootfs.options = ro"] if root.read_only else []),
            ]
        case "raw":
            return [f"lxc.rootfs.path = dir:{mounted_at(guest.vmid, root, host)}"]
        case _:
            raise Unsupported(f"a container cannot have a {root.format} volume as rootfs", remedy="use subvol or raw")


def _images(guest: Guest, host: Host) -> list[str]:
    """Images are mounted in the mount namespace of the container's monitor, and so are gone with it, however it ends.

    Not liblxc's own `loop:`: it asks for the loop device when the container's limits already forbid it.
    """
    images = [volume for volume in guest.volumes if is_image(guest.config, volume)]
    if not images:
        return []
    # With version 0 liblxc would append arguments of its own. It runs each line by `sh -c exec ...`: one plain command.
    lines = ["lxc.monitor.unshare = 1", "lxc.hook.version = 1"]
    for volume in images:
        target = mounted_at(guest.vmid, volume, host)
        options = "loop,ro" if _is_read_only(guest.config, volume) else "loop"
        lines.append(f"lxc.hook.pre-start = mount -t ext4 -o {options} {_plain_path(volume)} {target}")
        if is_unprivileged(guest.config) and volume.key != "rootfs" and "ro" not in options:
            # A new file system belongs to the host's root, whom the container does not know.
            first = host.id_map.first
            lines.append(f"lxc.hook.pre-start = chown --from=0:0 {first}:{first} {target}")
    return lines


def _mount_points(guest: Guest, host: Host) -> list[str]:
    volumes = {volume.key: volume for volume in guest.volumes}
    lines = []
    for index, value in guest.config.numbered("mp").items():
        key = f"mp{index}"
        if key not in volumes:
            raise ConfigError(f"{key} has no volume", field=key)
        volume = volumes[key]
        path = mounted_at(guest.vmid, volume, host) if is_image(guest.config, volume) else volume.path
        if volume.format not in {"subvol", "raw"}:
            raise Unsupported(f"{key}: a container cannot have a {volume.format} volume", remedy="use subvol or raw")
        target = mount_target(key, parse_properties(value, default_key="volume", field=key))
        options = "bind,create=dir" + (",ro" if _is_read_only(guest.config, volume) else "")
        lines.append(f"lxc.mount.entry = {_escaped(str(path))} {_escaped(target)} none {options} 0 0")
    return lines


def is_image(config: GuestConfig, volume: Volume) -> bool:
    """A file with a file system in it; not a path of the host (`mp0: /srv/data,mp=/data`), whatever that is called."""
    return volume.format == "raw" and not config.get(volume.key, "").startswith("/")


def mounted_at(vmid: Vmid, volume: Volume, host: Host) -> Path:
    """Where an image is mounted for the container, out of sight of the host."""
    return host.lxc_path / str(vmid) / volume.key


def _is_read_only(config: GuestConfig, volume: Volume) -> bool:
    properties = parse_properties(config.get(volume.key, ""), default_key="volume", field=volume.key)
    return volume.read_only or parse_bool(properties.get("ro", "0"), field=volume.key)


def _terminals(guest: Guest, host: Host) -> list[str]:
    count = parse_int(guest.config.get("tty", "2"), field="tty", minimum=0, maximum=6)
    return [
        f"lxc.tty.max = {count}",
        f"lxc.console.logfile = {host.console_directory}/{guest.vmid}.log",
        f"lxc.console.size = {CONSOLE_LOG_BYTES}",
        "lxc.console.rotate = 1",
        "lxc.environment = TERM=linux",
    ]


def _halt(config: GuestConfig, init: str) -> list[str]:
    signal = halt_signal(config, init)
    return [f"lxc.signal.halt = {signal}"] if signal else []


def _cgroup_directories(vmid: Vmid) -> list[str]:
    # `inner` keeps the limits out of the container's reach: its root sees only what is below them.
    return [
        "lxc.cgroup.relative = 0",
        f"lxc.cgroup.dir.monitor = {monitor_cgroup(vmid)}",
        f"lxc.cgroup.dir.monitor.pivot = {monitor_end_cgroup(vmid)}",
        f"lxc.cgroup.dir.container = {container_cgroup(vmid)}",
        "lxc.cgroup.dir.container.inner = ns",
    ]


def _memory(config: GuestConfig, host: Host) -> list[str]:
    memory = parse_int(config.get("memory", str(DEFAULT_MEMORY_MIB)), field="memory", minimum=16) * _MIB
    swap = parse_int(config.get("swap", str(DEFAULT_SWAP_MIB)), field="swap", minimum=0) * _MIB
    if "memory" in host.v1_controllers:
        lines = [f"lxc.cgroup.memory.limit_in_bytes = {memory}"]
        # v1 limits the sum, and refuses a sum below the memory limit: hence this order.
        return [*lines, f"lxc.cgroup.memory.memsw.limit_in_bytes = {memory + swap}"] if host.counts_swap else lines
    if "memory" in host.v2_controllers:
        return [f"lxc.cgroup2.memory.max = {memory}", f"lxc.cgroup2.memory.swap.max = {swap}"]
    return []


def _cpu(guest: Guest, host: Host) -> list[str]:
    config = guest.config
    lines = []
    cores = parse_int(config.get("cores", "0"), field="cores", minimum=0, maximum=8192)
    if chosen := _cpus(cores, guest.vmid, host.cpus):
        if "cpuset" in host.v1_controllers:
            lines.append(f"lxc.cgroup.cpuset.cpus = {chosen}")
        elif "cpuset" in host.v2_controllers:
            lines.append(f"lxc.cgroup2.cpuset.cpus = {chosen}")
    quota = _quota_us(config.get("cpulimit", "0"))
    units = config.get("cpuunits")
    if "cpu" in host.v1_controllers:
        if units is not None:
            shares = min(max(parse_int(units, field="cpuunits", minimum=0), 2), 262_144)
            lines.append(f"lxc.cgroup.cpu.shares = {shares}")
        if quota:
            lines += [f"lxc.cgroup.cpu.cfs_period_us = {CPU_PERIOD_US}", f"lxc.cgroup.cpu.cfs_quota_us = {quota}"]
    elif "cpu" in host.v2_controllers:
        if units is not None:
            weight = min(max(parse_int(units, field="cpuunits", minimum=0), 1), 10_000)
            lines.append(f"lxc.cgroup2.cpu.weight = {weight}")
        if quota:
            lines.append(f"lxc.cgroup2.cpu.max = {quota} {CPU_PERIOD_US}")
    return lines


def _cpus(cores: int, vmid: Vmid, cpus: Sequence[int]) -> str:
    """So many of the host's CPUs, a different choice for neighbouring vmids; empty when all may be used."""
    if not cores or cores >= len(cpus):
        return ""
    return ",".join(str(cpu) for cpu in sorted(cpus[(vmid + offset) % len(cpus)] for offset in range(cores)))


def _quota_us(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})?", text):
        raise ConfigError(f"{text!r} is no number of CPUs", field="cpulimit", remedy="write a number as in 0.5 or 2")
    quota = round(float(text) * CPU_PERIOD_US)
    return max(quota, 1000) if quota else 0


def _plain_path(volume: Volume) -> str:
    """liblxc splits some values at colons and gives others to a shell: nothing that needs quoting may be in a path."""
    path = str(volume.path)
    if not _PATH.fullmatch(path):
        raise ConfigError(
            f"{volume.key}: the path {path!r} has characters that liblxc cannot take",
            field=volume.key,
            remedy="use letters, digits and ./_+@=- in the storage's path",
        )
    return path


def _escaped(path: str) -> str:
    """As in fstab(5)."""
    if "\n" in path:
        raise ConfigError(f"{path!r} cannot be mounted", field="mp")
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def _flag(config: GuestConfig, key: str) -> bool:
    return parse_bool(config.get(key, "0"), field=key)


def nameservers(config: GuestConfig) -> list[str]:
    return split_list(config.get("nameserver", ""))
