"""Renewals of three nodes' leases at three real daemons: begun at different moments, they meet in one group of the log."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from cluster.store_daemons import Node, nodes

from clusterfs.raft import records, segments
from clusterfs.raft.files import LocalFiles
from ha.keeper.core import next_after_s
from ha.leases import FAST
from kvorum.v1 import replica_pb2 as pb
from kvorum.v1 import replica_pb2_grpc

__all__ = ["nodes"]

PERIOD_S = FAST.renew_period_s
TERMS = pb.LeaseTerms(pause_after_ms=3500, takeover_after_ms=9509)


class Holder:
    """Renews as a keeper does; `follows` the hints of the answers, or not."""

    def __init__(self, node: Node) -> None:
        self.uid = node.identity.uid
        self.channel = grpc.aio.insecure_channel(f"unix:{node.directory / 'run/clusterfs.sock'}")
        self.stub: replica_pb2_grpc.ReplicaServiceAsyncStub = replica_pb2_grpc.ReplicaServiceStub(self.channel)
        self.follows = False

    async def run(self, begin_s: float) -> None:
        await asyncio.sleep(begin_s)
        acquired = await self.stub.AcquireLease(pb.AcquireLeaseRequest(uid=self.uid, terms=TERMS), timeout=5)
        clock = asyncio.get_running_loop().time
        while True:
            sent_at = clock()
            renew = pb.RenewLeaseRequest(
                uid=self.uid,
                incarnation=acquired.incarnation,
                terms=TERMS,
                sent_ms=int(sent_at * 1000),
                interval_ms=int(PERIOD_S * 1000) if self.follows else 0,
            )
            answer = await self.stub.RenewLease(renew, timeout=5)
            assert self.follows or answer.next_in_ms == 0
            assert answer.next_in_ms <= PERIOD_S * 1000
            next_at = sent_at + next_after_s(answer.next_in_ms / 1000, PERIOD_S)
            await asyncio.sleep(max(0.0, next_at - clock()))


@pytest.fixture
async def holders(nodes: list[Node]) -> AsyncIterator[list[Holder]]:
    """A third of a period apart."""
    made = [Holder(node) for node in nodes]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.run(number * PERIOD_S / 3)) for number, one in enumerate(made)]
        await asyncio.sleep(PERIOD_S)
        yield made
        for task in tasks:
            task.cancel()
    for one in made:
        await one.channel.close()


def log_end(node: Node) -> tuple[int, int]:
    """How many groups the log has seen, and how many entries."""
    *_, last = segments.read(LocalFiles(node.directory / "state/clusterfs/raft"))
    entries = [record for record, _ in last.scan.records if record.kind is records.Kind.entry]
    return last.scan.batch, records.place(entries[-1].body).index


async def seen(node: Node, entries: int) -> tuple[int, int]:
    """Groups and entries that came while there came so many entries at least."""
    groups_before, entries_before = log_end(node)
    while (now := log_end(node))[1] < entries_before + entries:
        await asyncio.sleep(0.2)
    return now[0] - groups_before, now[1] - entries_before


async def test_renewals_that_began_apart_meet_in_one_group_of_the_log(nodes: list[Node], holders: list[Holder]) -> None:
    async with asyncio.timeout(90):
        apart, renewals = await seen(nodes[0], 12)
        assert apart >= 0.8 * renewals, "without hints each is a group of its own"
        for one in holders:
            one.follows = True
        await seen(nodes[0], 12)
        for node in nodes:
            groups, renewals = await seen(node, 15)
            # Three in each; where a crowded machine makes one late, it is back in the next round.
            assert groups <= renewals / 2, f"{node.identity.name}: {renewals} renewals in {groups} groups"
