"""Live migration between two real libvirtds, through the tunnel and QEMU's TLS. The boot id and the counter in the guest's
memory show that it is the same run; the test plays the orchestration's part."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster.kvm_lab import Failed, KvmNode, kvm_lab, micro_disk, until

from lab.cluster import Lab

pytestmark = pytest.mark.cluster

SHARED_DISK = Path("/srv/shared/images/100/vm-100-disk-0.raw")
LOCAL_DISK = Path("/var/lib/vz/images/100/vm-100-disk-0.raw")
MEMORY_PORT, RELAY_PORTS = 60000, [60001, 60002]


class Pair:
    def __init__(self, lab: Lab, source: KvmNode, target: KvmNode) -> None:
        self.lab = lab
        self.source = source
        self.target = target

    async def on_shared(self) -> None:
        micro_disk(self.lab.shared / "images/100/vm-100-disk-0.raw")
        await self.source.start(SHARED_DISK)

    async def on_local(self, *, filled_mib: int) -> None:
        """The guest on the source's own disk; the target has an empty file of the same size."""
        disk = micro_disk(local(self.source), filled_mib=filled_mib)
        local(self.target).parent.mkdir(parents=True)
        with local(self.target).open("wb") as stream:
            stream.truncate(disk.stat().st_size)
        await self.source.start(LOCAL_DISK)

    async def expect(self) -> None:
        address = self.target.node.address
        await self.target.call("expect", address=address, relay_ports=RELAY_PORTS, source=self.source.uid)

    def migrate(self, **wish: Any) -> tuple[int, "asyncio.Future[Any]"]:
        return self.source.send(
            "migrate",
            address=self.target.node.address,
            memory_port=MEMORY_PORT,
            relay_ports=RELAY_PORTS,
            **{"target": self.target.uid, **wish},
        )

    async def until_copying(self, migration: "asyncio.Future[Any]") -> None:
        async def look() -> bool:
            if migration.done():
                migration.result()
            return any("disks" in phase for _, phase in await self.source.call("progress"))

        await until(look)


def local(node: KvmNode) -> Path:
    return node.node.layout.disk / str(LOCAL_DISK).lstrip("/")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with kvm_lab(2) as (lab, nodes):
        yield Pair(lab, *nodes)


async def test_a_guest_on_shared_storage_moves_with_its_memory_and_waits_to_be_resumed(pair: Pair) -> None:
    await pair.on_shared()
    boot, count = await pair.source.beats_after(3)
    await pair.expect()
    await asyncio.wait_for(pair.migrate(shared=["sda"])[1], 60)

    # Nobody has said yet whose it is, so that it runs nowhere.
    assert await pair.source.state() == "stopped"
    assert await pair.target.state() == "paused"
    assert await pair.target.beats() == []
    before = (await pair.source.beats())[-1]

    await pair.target.call("resume")
    after = await pair.target.beats_after(count)
    assert after == (boot, before[1] + 1)
    assert "READY" not in await pair.target.call("console_log")
    elapsed_s, transferred_bytes, downtime_s = await pair.target.call("statistics")
    assert elapsed_s > 0 and transferred_bytes > 0 and downtime_s is not None
    assert [100, "arrived"] in await pair.target.call("events")
    assert [100, "migrated"] in await pair.source.call("events")


async def test_a_guest_on_a_local_disk_takes_it_along(pair: Pair) -> None:
    await pair.on_local(filled_mib=24)
    boot, count = await pair.source.beats_after(1)
    await pair.expect()
    _, migration = pair.migrate(copied=["sda"], bandwidth_limit=8 * 2**20)
    await pair.until_copying(migration)
    # Only the agent's relays listen; 7000 is this test's own.
    assert set(await pair.target.call("listening")) - {7000} == set(RELAY_PORTS)
    await asyncio.wait_for(migration, 60)

    await pair.target.call("resume")
    assert (await pair.target.beats_after(count))[0] == boot
    fractions = [fraction for fraction, _ in await pair.source.call("progress")]
    assert fractions == sorted(fractions) and fractions[0] < 1.0 and fractions[-1] == 1.0
    # Behind the sectors that the guest writes, the two files are alike.
    ends = [local(node).read_bytes()[2**20 :] for node in (pair.source, pair.target)]
    assert ends[0] == ends[1]


async def test_a_cancelled_migration_leaves_the_guest_at_the_source_and_nothing_at_the_target(pair: Pair) -> None:
    await pair.on_local(filled_mib=24)
    await pair.expect()
    request, migration = pair.migrate(copied=["sda"], bandwidth_limit=2**20)
    await pair.until_copying(migration)
    await pair.source.call("cancel", request=request)
    with pytest.raises(Failed, match="TASK_CANCELLED"):
        await asyncio.wait_for(migration, 60)
    await goes_on_at_the_source(pair)
    assert await pair.target.call("observe_all") == {}


async def test_when_the_target_dies_the_guest_goes_on_at_the_source(pair: Pair) -> None:
    await pair.on_local(filled_mib=24)
    await pair.expect()
    _, migration = pair.migrate(copied=["sda"], bandwidth_limit=2**20)
    await pair.until_copying(migration)
    await asyncio.to_thread(pair.target.node.kill)
    with pytest.raises(Failed):
        await asyncio.wait_for(migration, 60)
    await goes_on_at_the_source(pair)


async def test_when_the_cable_is_cut_the_guest_goes_on_at_the_source(pair: Pair) -> None:
    """No reset arrives, so that only libvirt's own questions through the tunnel notice."""
    await pair.on_local(filled_mib=24)
    await pair.expect()
    _, migration = pair.migrate(copied=["sda"], bandwidth_limit=2**20)
    await pair.until_copying(migration)
    pair.lab.cut(pair.target.node.name)
    with pytest.raises(Failed):
        await asyncio.wait_for(migration, 60)
    await goes_on_at_the_source(pair)


async def test_when_the_sources_libvirtd_dies_the_guest_goes_on_there(pair: Pair) -> None:
    await pair.on_local(filled_mib=24)
    await pair.expect()
    _, migration = pair.migrate(copied=["sda"], bandwidth_limit=2**20)
    await pair.until_copying(migration)
    await asyncio.to_thread(pair.source.node.kill_unit, "libvirtd", signal.SIGKILL)
    with pytest.raises(Failed):
        await asyncio.wait_for(migration, 60)
    await goes_on_at_the_source(pair)


async def test_a_target_that_is_another_node_gets_neither_memory_nor_disks(pair: Pair) -> None:
    """Its certificate is the cluster's, but not that node's."""
    await pair.on_shared()
    await pair.expect()
    stranger = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(Failed, match="certificate"):
        await asyncio.wait_for(pair.migrate(shared=["sda"], target=stranger)[1], 60)
    await goes_on_at_the_source(pair)


async def test_a_guest_on_storage_that_nobody_declared_shared_is_refused(pair: Pair) -> None:
    await pair.on_shared()
    await pair.expect()
    with pytest.raises(Failed, match=r"REFUSED.*[Uu]nsafe"):
        await asyncio.wait_for(pair.migrate()[1], 60)
    await goes_on_at_the_source(pair)


async def goes_on_at_the_source(pair: Pair) -> None:
    seen = await pair.source.beats()
    last = seen[-1][1] if seen else 0
    await pair.source.beats_after(last + 2)
    assert await pair.source.state() == "running"
    assert len({boot for boot, _ in await pair.source.beats()}) == 1
