"""Closed loops over gRPC: one caller, or many that are outstanding at once. The same loops for us and for the peer."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from bench import etcd
from bench.nodes import OPTIONS, Node
from bench.rows import Burst
from bench.run import Broken
from kvorum.v1 import store_pb2, store_pb2_grpc

# Names that are written in turn.
NAMES = 1000
DEADLINE_S = 20.0
# At the start of a burst a connection may still be made.
WARM_UP = 5


def one(call: Callable[[int], object], seconds: float) -> Burst:
    """One caller, which calls again when the answer is there."""
    for number in range(WARM_UP):
        call(number)
    latencies = []
    begin = time.perf_counter()
    number = 0
    while (start := time.perf_counter()) < begin + seconds:
        call(number)
        latencies.append(time.perf_counter() - start)
        number += 1
    return Burst(tuple(latencies), time.perf_counter() - begin)


async def many(call: Callable[[int], Awaitable[object]], outstanding: int, seconds: float) -> Burst:
    for number in range(WARM_UP):
        await call(number)
    latencies = []
    begin = time.perf_counter()

    async def work(number: int) -> None:
        while (start := time.perf_counter()) < begin + seconds:
            await call(number)
            latencies.append(time.perf_counter() - start)
            number += outstanding

    async with asyncio.TaskGroup() as group:
        for first in range(outstanding):
            group.create_task(work(first))
    return Burst(tuple(latencies), time.perf_counter() - begin)


@dataclass(slots=True)
class Watched:
    """What callers that go on and on have met: by caller the begin and end of each call, in `time.monotonic()`; errors."""

    calls: list[list[tuple[float, float]]]
    errors: list[str] = field(default_factory=list)

    def waits_s(self, since: float, until: float) -> list[float]:
        """How long each call took that was under way in that time. A call that has not ended yet is waited for."""
        give_up = time.monotonic() + DEADLINE_S
        for calls in self.calls:
            while not (calls and calls[-1][1] >= until) and time.monotonic() < give_up:
                time.sleep(0.01)
        return [end - begin for calls in self.calls for begin, end in list(calls) if end >= since and begin <= until]


@contextlib.contextmanager
def watched(calls: Sequence[Callable[[int], object]], *, pause_s: float = 0.0) -> Iterator[Watched]:
    """A thread for each, which calls again when the answer is there (after a pause), until the block ends."""
    found, stopping = Watched([[] for _ in calls]), threading.Event()

    def work(call: Callable[[int], object], ended: list[tuple[float, float]]) -> None:
        number = 0
        while not stopping.wait(pause_s):
            begin = time.monotonic()
            try:
                call(number)
            except grpc.RpcError as error:
                found.errors.append(str(error))
            ended.append((begin, time.monotonic()))
            number += 1

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in zip(calls, found.calls, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stopping.set()
        for thread in threads:
            thread.join(DEADLINE_S + 5.0)


def our_writer(node: Node, content: bytes) -> Callable[[int], object]:
    write, name = node.store.WriteEntry, node.identity.name
    return lambda number: write(
        store_pb2.WriteEntryRequest(path=f"bench/{name}-{number % NAMES}", content=content), timeout=DEADLINE_S
    )


def etcd_writer(server: etcd.Server, content: bytes) -> Callable[[int], object]:
    return lambda number: server.put(
        etcd.put(b"bench/%s-%d" % (server.name.encode(), number % NAMES), content), timeout=DEADLINE_S
    )


def _ours_request(number: int, content: bytes) -> store_pb2.WriteEntryRequest:
    return store_pb2.WriteEntryRequest(path=f"bench/{number % NAMES}", content=content)


def our_writes(node: Node, content: bytes, seconds: float) -> Burst:
    write = node.store.WriteEntry
    return one(lambda number: write(_ours_request(number, content), timeout=DEADLINE_S), seconds)


def our_reads(node: Node, seconds: float, *, linearizable: bool) -> Burst:
    request = store_pb2.GetEntryRequest(path="bench/1", linearizable=linearizable)
    read = node.store.GetEntry
    if not read(request, timeout=DEADLINE_S).entry.content:
        raise Broken("what was written cannot be read")
    return one(lambda _number: read(request, timeout=DEADLINE_S), seconds)


def our_many(node: Node, content: bytes, outstanding: int, seconds: float) -> Burst:
    async def run(socket: Path) -> Burst:
        async with grpc.aio.insecure_channel(f"unix:{socket}", options=OPTIONS) as channel:
            stub: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(channel)

            async def call(number: int) -> object:
                return await stub.WriteEntry(_ours_request(number, content), timeout=DEADLINE_S)

            return await many(call, outstanding, seconds)

    return asyncio.run(run(node.socket))


def our_many_inside(node: Node, size: int, outstanding: int, seconds: float) -> Burst:
    """By threads of the daemon's process itself (`bench.hosted`)."""
    answer = node.load(outstanding=outstanding, size=size, seconds=seconds)
    return Burst(tuple(answer["latencies_s"]), answer["duration_s"])


def _etcd_request(number: int, content: bytes) -> bytes:
    return etcd.put(b"bench/%d" % (number % NAMES), content)


def etcd_writes(server: etcd.Server, content: bytes, seconds: float) -> Burst:
    return one(lambda number: server.put(_etcd_request(number, content), timeout=DEADLINE_S), seconds)


def etcd_reads(server: etcd.Server, seconds: float, *, linearizable: bool) -> Burst:
    request = etcd.get(b"bench/1", serializable=not linearizable)
    if len(server.range(request, timeout=DEADLINE_S)) < 200:
        raise Broken("what was written to etcd cannot be read")
    return one(lambda _number: server.range(request, timeout=DEADLINE_S), seconds)


def etcd_many(server: etcd.Server, content: bytes, outstanding: int, seconds: float) -> Burst:
    async def run() -> Burst:
        async with grpc.aio.insecure_channel(server.target, options=OPTIONS) as channel:
            write: Callable[..., Awaitable[bytes]] = channel.unary_unary(etcd.PUT)

            async def call(number: int) -> object:
                return await write(_etcd_request(number, content), timeout=DEADLINE_S)

            return await many(call, outstanding, seconds)

    return asyncio.run(run())
