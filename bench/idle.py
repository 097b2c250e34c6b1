"""Three daemons with nothing to do: processor time, bytes to disk, memory; then memory with 10,000 files of 2 KiB.

A minute is watched and extrapolated to an hour. Only the store's daemons run, as on nodes without HA guests.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence

import grpc.aio

from bench import etcd, load, nodes
from bench.rows import Row
from bench.run import Run
from kvorum.v1 import store_pb2, store_pb2_grpc

WATCHED_S = 60.0
SETTLE_S = 5.0
CPU_BAR_PERCENT, DISK_BAR_MB = 1.0, 1.0
FILES, SIZE = 10_000, 2048
EMPTY_BAR_MB, FILLED_BAR_MB = 70.0, 100.0


def rows(run: Run) -> Iterator[Row]:
    with (
        nodes.cluster(run.directory / "idle") as cluster,
        etcd.cluster(run.directory / "idle-etcd") as peer,
    ):
        time.sleep(SETTLE_S)
        run.say(f"idle: watching for {WATCHED_S:g} s")
        our_pids, peer_pids = [node.pid for node in cluster.nodes], [server.pid for server in peer.servers]
        before, peer_before = _used(our_pids), _used(peer_pids)
        begin = time.monotonic()
        time.sleep(WATCHED_S)
        took = time.monotonic() - begin
        yield from _idle(_rates(before, _used(our_pids), took), _rates(peer_before, _used(peer_pids), took), took)
        empty, peer_empty = _resident(our_pids), _resident(peer_pids)
        yield Row(
            group="idle",
            name="resident memory, empty: worst node",
            ours=f"{empty:.0f} MB",
            peer=f"etcd {peer_empty:.0f} MB; pmxcfs 12 + corosync 90",
            ratio=peer_empty / empty,
            bar=f"<= {EMPTY_BAR_MB:.0f} MB",
            is_met=empty <= EMPTY_BAR_MB,
            figures={"ours_mb": empty, "etcd_mb": peer_empty},
        )
        run.say(f"idle: memory with {FILES:,} files of {SIZE} bytes")
        asyncio.run(_fill(cluster.leader()))
        time.sleep(SETTLE_S)
        filled = _resident(our_pids)
        yield Row(
            group="idle",
            name="resident memory, 10,000 files of 2 KiB: worst node",
            ours=f"{filled:.0f} MB",
            peer="pmxcfs 40 to 63 + corosync 90 (published)",
            bar=f"<= {FILLED_BAR_MB:.0f} MB",
            is_met=filled <= FILLED_BAR_MB,
            figures={"ours_mb": filled},
        )


def _idle(ours: tuple[float, float], theirs: tuple[float, float], took: float) -> Iterator[Row]:
    (cpu, disk), (peer_cpu, peer_disk) = ours, theirs
    yield Row(
        group="idle",
        name=f"idle CPU over {took:.0f} s: worst node",
        ours=f"{cpu:.2f} %",
        peer=f"etcd {peer_cpu:.2f} %",
        ratio=peer_cpu / cpu if cpu else None,
        bar=f"<= {CPU_BAR_PERCENT:g} %",
        is_met=cpu <= CPU_BAR_PERCENT,
        figures={"ours_percent": cpu, "peer_percent": peer_cpu, "watched_s": took},
    )
    yield Row(
        group="idle",
        name=f"idle disk writes, extrapolated from {took:.0f} s: worst node",
        ours=f"{disk:.2f} MB/h",
        peer=f"etcd {peer_disk:.2f} MB/h",
        bar=f"< {DISK_BAR_MB:g} MB/h",
        is_met=disk < DISK_BAR_MB,
        figures={"ours_mb_per_h": disk, "peer_mb_per_h": peer_disk, "watched_s": took},
    )


Used = list[tuple[float, int]]


def _used(pids: Sequence[int]) -> Used:
    return [(nodes.cpu_s(pid), nodes.written_bytes(pid)) for pid in pids]


def _rates(before: Used, after: Used, took: float) -> tuple[float, float]:
    """Percent of one processor and MB an hour, of the node that uses most of each."""
    cpu = max(end[0] - begin[0] for begin, end in zip(before, after, strict=True)) / took * 100
    disk = max(end[1] - begin[1] for begin, end in zip(before, after, strict=True)) / took * 3600 / 1e6
    return cpu, disk


def _resident(pids: Sequence[int]) -> float:
    return max(nodes.resident_mb(pid) for pid in pids)


async def _fill(node: nodes.Node) -> None:
    content = os.urandom(SIZE)
    async with grpc.aio.insecure_channel(f"unix:{node.socket}", options=nodes.OPTIONS) as channel:
        stub: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(channel)
        numbers = iter(range(FILES))

        async def work() -> None:
            for number in numbers:
                request = store_pb2.WriteEntryRequest(
                    path=f"fill/{number // 1000}/{number}", content=content, parents=True
                )
                await stub.WriteEntry(request, timeout=load.DEADLINE_S)

        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(work())
