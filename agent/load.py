"""The load of a node, of its guests and of its storages as records of Proxmox VE 9.0, which tools read from `.rrd`.

Pure: texts of /proc and values in, lines out. What nobody measured is `U`. The order of the columns is the format: the first
of a node's (two) and of a guest's (four) are live only, the time follows, then what is drawn as graphs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

UNKNOWN = "U"
_PRESSURE = re.compile(r"^(some|full) avg10=([0-9.]+)", re.MULTILINE)
_KIB = 1024


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Ticks since the boot, of all processors together."""

    total: int
    idle: int
    iowait: int


@dataclass(frozen=True, slots=True)
class Pressure:
    """Percent of the last ten seconds in which some, or all, had to wait. None: the kernel does not say."""

    some: float | None = None
    full: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    uptime_s: int
    load_average: float
    cpus: int
    # Shares of one since the last look; None at the first.
    cpu: float | None = None
    iowait: float | None = None
    memory_bytes: int
    memory_available_bytes: int
    swap_bytes: int
    swap_free_bytes: int
    root_bytes: int
    root_used_bytes: int
    received_bytes: int
    sent_bytes: int
    arc_bytes: int | None = None
    cpu_pressure: Pressure = field(default_factory=Pressure)
    io_pressure: Pressure = field(default_factory=Pressure)
    memory_pressure: Pressure = field(default_factory=Pressure)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLoad:
    """`memory_host_bytes`: what the guest's process takes of the host."""

    name: str
    status: str
    is_template: bool
    cpus: int
    memory_bytes: int
    uptime_s: int = 0
    cpu: float | None = None
    memory_host_bytes: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


def node_record(load: NodeLoad, *, now_s: int) -> str:
    # The second column is the level of a subscription, which there is none of.
    live = (load.uptime_s, "")
    archived = (
        load.load_average,
        load.cpus,
        load.cpu,
        load.iowait,
        load.memory_bytes,
        load.memory_bytes - load.memory_available_bytes,
        load.swap_bytes,
        load.swap_bytes - load.swap_free_bytes,
        load.root_bytes,
        load.root_used_bytes,
        load.received_bytes,
        load.sent_bytes,
        load.memory_available_bytes,
        load.arc_bytes,
        load.cpu_pressure.some,
        load.io_pressure.some,
        load.io_pressure.full,
        load.memory_pressure.some,
        load.memory_pressure.full,
    )
    return _record((*live, now_s, *archived))


def guest_record(load: GuestLoad, *, now_s: int) -> str:
    live = (load.uptime_s, re.sub(r"[:\s]", "_", load.name), load.status, int(load.is_template))
    # How full its disks are and its pressures are not measured.
    archived = (
        load.cpus,
        load.cpu,
        load.memory_bytes,
        load.memory_host_bytes,
        None,
        None,
        load.received_bytes,
        load.sent_bytes,
        load.read_bytes,
        load.written_bytes,
        load.memory_host_bytes,
        *[None] * 6,
    )
    return _record((*live, now_s, *archived))


def storage_record(total_bytes: int, used_bytes: int, *, now_s: int) -> str:
    return _record((now_s, total_bytes, used_bytes))


def parse_cpu(stat: str) -> CpuTimes:
    """Of /proc/stat. Time of guests is part of the time of users already."""
    numbers = [int(word) for word in stat.partition("\n")[0].split()[1:9]]
    return CpuTimes(sum(numbers), numbers[3], numbers[4])


def shares(before: CpuTimes, now: CpuTimes) -> tuple[float, float] | None:
    """The parts of the time that were used, and waited for disks; None when there was no time between."""
    passed = now.total - before.total
    if passed <= 0:
        return None
    waited = max(0, now.iowait - before.iowait)
    used = passed - (now.idle - before.idle) - waited
    return min(1.0, max(0.0, used / passed)), min(1.0, waited / passed)


def parse_memory(meminfo: str) -> dict[str, int]:
    """Of /proc/meminfo, in bytes by name."""
    found = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (_KIB if words[-1] == "kB" else 1)
    return found


def parse_network(dev: str, interfaces: Sequence[str]) -> tuple[int, int]:
    """Of /proc/net/dev: bytes received and sent by these."""
    received = sent = 0
    for line in dev.splitlines():
        name, _, rest = line.partition(":")
        if name.strip() in interfaces:
            words = rest.split()
            received += int(words[0])
            sent += int(words[8])
    return received, sent


def parse_pressure(text: str) -> Pressure:
    """Of a file in /proc/pressure."""
    found = {match[1]: float(match[2]) for match in _PRESSURE.finditer(text)}
    return Pressure(found.get("some"), found.get("full"))


def _record(columns: Sequence[float | str | None]) -> str:
    return ":".join(_column(column) for column in columns)


def _column(value: float | str | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else str(value)
