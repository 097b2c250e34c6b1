"""Closed loops over gRPC: one caller, or many that are outstanding at once. The same loops for us and for the peer."""

import asyncio
import time
from collections.abc import Awaitable, Callable
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
