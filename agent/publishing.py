"""Tells the cluster every ten seconds how loaded this node, its guests and its storages are; nothing of it reaches a disk.

Reads /proc and asks drivers and storages, makes records of it (`agent.load`) and sets them as status of this node. What does not
answer is left out: a load that is not told gets old and vanishes, which says more than a wrong one.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent import load
from agent.guests.driver import STOPPED, GuestDriver, Observed
from agent.guests.traffic import UNKNOWN, Measures, Traffic
from agent.inventory import GuestFile, GuestKind, Inventory
from agent.load import CpuTimes, GuestLoad, NodeLoad, Pressure
from agent.storage.storages import PATH as STORAGE_CFG
from agent.storage.storages import Storages
from kvorum.config import GuestConfig, parse_properties
from kvorum.errors import ConfigError, KvorumError, NotFound
from kvorum.ids import NodeName, Vmid

log = logging.getLogger(__name__)

INTERVAL_S = 10.0
ANSWER_TIMEOUT_S = 5.0
PREFIX = "rrd/"
_MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Entry(Protocol):
    @property
    def content(self) -> bytes: ...


class Cluster(Protocol):
    """What is wanted of the store: a file, and to say something."""

    async def get(self, path: str) -> Entry: ...
    async def set_status(self, values: Mapping[str, bytes]) -> None: ...
    async def status_keys(self, prefix: str) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Work:
    """Processor time that a guest's process had taken, and when."""

    pid: int
    ticks: int
    at_s: float


class Publisher:
    def __init__(
        self, *, inventory: Inventory, drivers: Mapping[GuestKind, GuestDriver], cluster: Cluster, meter: "Meter"
    ) -> None:
        self._inventory = inventory
        self._drivers = drivers
        self._cluster = cluster
        self._meter = meter
        # None: what an earlier agent has said is not known yet.
        self._told: set[str] | None = None

    async def publish(self, node: NodeName, *, now_s: int) -> None:
        """Once. Raises KvorumError when the store does not answer."""
        records = {f"pve-node-9.0/{node}": load.node_record(await asyncio.to_thread(self._meter.node), now_s=now_s)}
        records |= await self._guests(node, now_s)
        records |= await self._storages(node, now_s)
        values = {PREFIX + key: record.encode() for key, record in records.items()}
        if self._told is None:
            self._told = set(await self._cluster.status_keys(PREFIX))
        gone = dict.fromkeys(self._told - values.keys(), b"")
        await self._cluster.set_status(values | gone)
        self._told = set(values)

    async def _guests(self, node: NodeName, now_s: int) -> dict[str, str]:
        records = {}
        files = await self._inventory.of_node(node)
        for kind in sorted({file.kind for file in files}):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    running = await self._drivers[kind].observe_all()
            except (KvorumError, TimeoutError) as error:
                log.debug("guests of kind %s do not answer: %s", kind, error)
                continue
            traffic = await self._traffic(kind)
            for file in (file for file in files if file.kind is kind):
                seen = running.get(file.vmid, STOPPED)
                guest = self._meter.guest(file, seen, traffic.get(file.vmid, UNKNOWN))
                if guest is not None:
                    records[f"pve-vm-9.0/{file.vmid}"] = load.guest_record(guest, now_s=now_s)
        return records

    async def _traffic(self, kind: GuestKind) -> Mapping[Vmid, Traffic]:
        """Nothing of a driver that does not count or does not answer: the rest is worth telling without it."""
        driver = self._drivers[kind]
        if not isinstance(driver, Measures):
            return {}
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await driver.traffic()
        except (KvorumError, TimeoutError, OSError) as error:
            log.debug("the traffic of guests of kind %s is not known: %s", kind, error)
            return {}

    async def _storages(self, node: NodeName, now_s: int) -> dict[str, str]:
        try:
            storages = Storages.parse((await self._cluster.get(STORAGE_CFG)).content, node)
        except (NotFound, ConfigError):
            return {}
        records = {}
        for name in storages.ids():
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    status = await storages.status(name)
            except (KvorumError, TimeoutError) as error:
                log.debug("storage %s does not answer: %s", name, error)
                continue
            record = load.storage_record(status.total_bytes, status.used_bytes, now_s=now_s)
            records[f"pve-storage-9.0/{node}/{name}"] = record
        return records


class Meter:
    """Reads the kernel's counters and remembers the last ones, of which shares are made."""

    def __init__(self, *, proc: Path = Path("/proc"), net: Path = Path("/sys/class/net")) -> None:
        self._proc = proc
        self._net = net
        self._cpu: CpuTimes | None = None
        self._work: dict[int, Work] = {}

    def node(self) -> NodeLoad:
        before, self._cpu = self._cpu, load.parse_cpu(self._read("stat"))
        used, waited = (before and load.shares(before, self._cpu)) or (None, None)
        memory = load.parse_memory(self._read("meminfo"))
        received, sent = load.parse_network(self._read("net/dev"), self._interfaces())
        root = os.statvfs("/")
        return NodeLoad(
            uptime_s=int(float(self._read("uptime").split()[0])),
            load_average=float(self._read("loadavg").split()[0]),
            cpus=os.cpu_count() or 1,
            cpu=used,
            iowait=waited,
            memory_bytes=memory.get("MemTotal", 0),
            memory_available_bytes=memory.get("MemAvailable", 0),
            swap_bytes=memory.get("SwapTotal", 0),
            swap_free_bytes=memory.get("SwapFree", 0),
            root_bytes=root.f_blocks * root.f_frsize,
            # All that is not free counts as used, what the file system keeps back as well.
            root_used_bytes=(root.f_blocks - root.f_bfree) * root.f_frsize,
            received_bytes=received,
            sent_bytes=sent,
            cpu_pressure=self._pressure("cpu"),
            io_pressure=self._pressure("io"),
            memory_pressure=self._pressure("memory"),
        )

    def guest(self, file: GuestFile, seen: Observed, traffic: Traffic = UNKNOWN) -> GuestLoad | None:
        """None for a file that does not parse."""
        try:
            config = file.config
            cpus, memory = _size(config, file.kind)
        except (ConfigError, ValueError):
            return None
        # A container's process is only its first one.
        pid = seen.pid if file.kind is GuestKind.vm else None
        return GuestLoad(
            name=config.get("name") or config.get("hostname") or f"{file.kind.upper()}{file.vmid}",
            status=str(seen.state),
            is_template=config.get("template") == "1",
            cpus=cpus,
            memory_bytes=memory,
            uptime_s=int(seen.uptime_s),
            cpu=self._share(file.vmid, pid, cpus),
            memory_host_bytes=self._resident(pid),
            received_bytes=traffic.received_bytes,
            sent_bytes=traffic.sent_bytes,
            read_bytes=traffic.read_bytes,
            written_bytes=traffic.written_bytes,
        )

    def _share(self, vmid: int, pid: int | None, cpus: int) -> float | None:
        before = self._work.pop(vmid, None)
        try:
            # Fields 14 and 15 of stat(5), counted behind the command in parentheses, which may hold blanks.
            words = self._read(f"{pid}/stat").rpartition(")")[2].split() if pid else []
        except OSError:
            return None
        if pid is None or len(words) < 13:
            return None
        now = self._work[vmid] = Work(pid, int(words[11]) + int(words[12]), time.monotonic())
        if before is None or before.pid != pid or now.at_s <= before.at_s:
            return None
        return max(0.0, (now.ticks - before.ticks) / _TICKS / (now.at_s - before.at_s) / cpus)

    def _resident(self, pid: int | None) -> int | None:
        try:
            return int(self._read(f"{pid}/statm").split()[1]) * _PAGE_BYTES if pid else None
        except (OSError, IndexError):
            return None

    def _pressure(self, name: str) -> Pressure:
        try:
            return load.parse_pressure(self._read(f"pressure/{name}"))
        except OSError:
            # Not built in, or switched off.
            return Pressure()

    def _interfaces(self) -> list[str]:
        """Those of hardware: what bridges and guests pass on would count twice."""
        return (
            [entry.name for entry in self._net.iterdir() if (entry / "device").exists()] if self._net.exists() else []
        )

    def _read(self, name: str) -> str:
        return (self._proc / name).read_text()


def _size(config: GuestConfig, kind: GuestKind) -> tuple[int, int]:
    """Processors and bytes of memory that the guest may have. Raises ConfigError, ValueError."""
    cores = int(config.get("cores", "0"))
    if kind is GuestKind.container:
        return cores or os.cpu_count() or 1, int(config.get("memory", "512")) * _MIB
    memory = parse_properties(config.get("memory", "512"), default_key="current").get("current", "512")
    return max(1, cores) * max(1, int(config.get("sockets", "1"))), int(memory) * _MIB
