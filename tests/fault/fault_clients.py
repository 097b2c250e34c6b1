"""Clients of all nodes, over the API and through the mount, and what each of their operations saw and when.

What a client is told decides what it may count on: an answer is done; "no quorum" means that nothing was sent; everything else is
unknown. The judgement over it is `linearizable`'s.
"""

import asyncio
import errno
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from fault_nodes import FaultNode
from linearizable import Fate, Operation

from clusterfs.client import StoreClient
from kvorum import errors

KEYS = [f"faults/k{number}" for number in range(8)]
DEADLINE_S = 5.0
# Acknowledged writes and answered reads of each client; it takes ten times that while all is well.
LEAST_PER_S = 0.2


def content(value: str, padding: int) -> bytes:
    return f"{value} {padding}\n".encode() + b"x" * padding


class Torn(AssertionError):
    """A reader got what nobody ever wrote."""


def value_in(data: bytes) -> str:
    head, _, rest = data.partition(b"\n")
    value, _, padding = head.partition(b" ")
    if not padding.isdigit() or rest != b"x" * int(padding):
        raise Torn(f"{len(data)} bytes beginning with {data[:40]!r}")
    return value.decode()


@dataclass
class Record:
    history: list[Operation] = field(default_factory=list)
    # Files that are written once, each by its name, and when it was acknowledged.
    kept: dict[str, float] = field(default_factory=dict)
    operations: Counter[str] = field(default_factory=Counter)
    # By client: its acknowledged writes, and its reads that were answered.
    written: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    acknowledged_at: list[float] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    def add(self, operation: Operation) -> None:
        self.history.append(operation)
        self.operations[operation.fate.name] += 1
        if operation.is_write and operation.fate is Fate.done:
            self.acknowledged_at.append(operation.end)
            self.written[operation.who] += 1
        elif not operation.is_write:
            self.read[operation.who] += 1

    def longest_gap_s(self, since: float, until: float) -> float:
        times = sorted([since, *self.acknowledged_at, until])
        return max(later - earlier for earlier, later in itertools.pairwise(times))


def idle_faults(record: Record, clients: Sequence[str], seconds: float) -> list[str]:
    """A history says something only if everybody took part in it, all the time."""
    least = max(1, int(seconds * LEAST_PER_S))
    found = [
        f"{name} has only {count[name]} {what}, of at least {least}"
        for count, what in ((record.written, "acknowledged writes"), (record.read, "answered reads"))
        for name in clients
        if count[name] < least
    ]
    if not record.kept:
        found.append("no file of its own was ever acknowledged")
    return found


class ApiClient:
    def __init__(self, name: str, node: FaultNode, record: Record, luck: random.Random) -> None:
        self.name, self._record, self._luck = name, record, luck
        self._client = StoreClient(node.directory / "run/clusterfs.sock")
        self._count = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            chance = self._luck.random()
            if chance < 0.45:
                await self.write(self._luck.choice(KEYS))
            elif chance < 0.85:
                await self.read(self._luck.choice(KEYS))
            else:
                await self.keep()
            await asyncio.sleep(self._luck.uniform(0, 0.06))

    async def close(self) -> None:
        await self._client.close()

    def _value(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"

    async def write(self, key: str) -> None:
        value = self._value()
        padding = self._luck.choice((0, 0, 0, 0, 0, 200, 200, 12_000))
        call = time.monotonic()
        fate = await self._write(key, content(value, padding))
        self._record.add(Operation(key, True, value, call, time.monotonic(), fate, self.name))

    async def keep(self) -> None:
        name = f"faults/kept/{self._value()}"
        call = time.monotonic()
        fate = await self._write(name, content(name, 0))
        if fate is Fate.done:
            self._record.kept[name] = time.monotonic()
        self._record.add(Operation(name, True, name, call, time.monotonic(), fate, self.name))

    async def _write(self, path: str, data: bytes) -> Fate:
        try:
            await self._client.write(path, data, deadline_s=DEADLINE_S)
        except errors.NoQuorum as error:
            # A full disk is one too, and may be found when the entry is on its way already.
            return Fate.failed if type(error) is errors.NoQuorum else Fate.unknown
        except (errors.KvorumError, OSError):
            return Fate.unknown
        return Fate.done

    async def read(self, key: str) -> bool:
        call = time.monotonic()
        value: str | None = None
        try:
            value = value_in(await self._client.read(key, linearizable=True, deadline_s=DEADLINE_S))
        except errors.NotFound:
            pass
        except (errors.KvorumError, OSError):
            self._record.operations["no answer"] += 1
            return False
        except Torn as error:
            self._record.torn.append(f"{self.name} reads {key}: {error}")
            return True
        self._record.add(Operation(key, False, value, call, time.monotonic(), who=self.name))
        return True


class MountClient:
    """Writes as an editor does. What it reads is this node's, which may be old, but never torn."""

    def __init__(self, name: str, node: FaultNode, record: Record, luck: random.Random) -> None:
        self.name, self._node, self._record, self._luck = name, node, record, luck
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._count = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            key = self._luck.choice(KEYS)
            work = self._write if self._luck.random() < 0.6 else self._read
            await asyncio.get_running_loop().run_in_executor(self._threads, work, key)
            await asyncio.sleep(self._luck.uniform(0.01, 0.12))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _write(self, key: str) -> None:
        self._count += 1
        value, call = f"{self.name}-{self._count}", time.monotonic()
        try:
            # Not a path that could be made while nothing is mounted there.
            with (self._node.mount / key).open("r+b", buffering=0) as file:
                file.truncate(0)
                file.write(content(value, self._luck.choice((0, 0, 3000))))
        except OSError as error:
            fate = Fate.failed if error.errno == errno.EACCES else Fate.unknown
            if error.errno == errno.ENOENT:
                return
        else:
            fate = Fate.done
        self._record.add(Operation(key, True, value, call, time.monotonic(), fate, self.name))

    def _read(self, key: str) -> None:
        try:
            with suppress(OSError):
                value_in((self._node.mount / key).read_bytes())
                self._record.operations["mount read"] += 1
                self._record.read[self.name] += 1
        except Torn as error:
            self._record.torn.append(f"{self.name} reads {key}: {error}")
