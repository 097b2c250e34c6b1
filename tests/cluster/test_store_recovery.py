"""Real daemons whose majority is lost for good: one goes on, the others come back as they were and must not be able to harm it.

Also what a witness is: a vote without a mount.
"""

import asyncio
import json
import os
from pathlib import Path

import msgspec
import pytest
from cluster.store_daemons import Node, eventually, nodes, read_eventually, write

from kvorum import epochs, errors
from kvorum.v1 import replica_pb2

__all__ = ["nodes"]


async def is_superseded(node: Node) -> bool:
    return epochs.number((await node.client.status()).superseded_by) == 1


async def voters(node: Node) -> set[str]:
    return {member.name for member in (await node.client.status()).members if member.voter}


async def test_one_of_three_goes_on_and_an_old_majority_that_returns_cannot_overwrite_it(nodes: list[Node]) -> None:
    one, two, three = nodes
    await write(one.mount / "storage.cfg", b"together\n")
    for node in (two, three):
        await read_eventually(node, "storage.cfg", b"together\n")
    with pytest.raises(errors.InvalidInput, match="confirmed"):
        await one.client.recover("wrong")
    with pytest.raises(errors.Refused, match="quorum"):
        await one.client.recover("test")
    # The two go on for a moment without the one, and then die: what they wrote is lost to it.
    one.kill()
    await write(two.mount / "datacenter.cfg", b"unknown to n1\n")
    two.kill()
    three.kill()
    one.start()

    async def has_no_quorum() -> bool:
        status = await one.client.status()
        return status.active and not status.quorate

    await eventually(has_no_quorum)
    plan = await one.client.plan_recovery()
    assert (list(plan.lost_nodes), list(plan.obstacles), epochs.text(plan.epoch)) == (["n2", "n3"], [], "1")
    done = await one.client.recover("test")
    epoch = epochs.text(done.done.epoch)
    assert epoch.startswith("1-")
    assert (Path(done.archive_path) / "raft").is_dir()
    record = json.loads((one.directory / "state/recoveries.jsonl").read_text())
    assert (record["epoch"], record["lost"]) == (epoch, ["n2", "n3"])
    await write(one.mount / "storage.cfg", b"alone\n")
    assert json.loads(await asyncio.to_thread((one.mount / f"priv/recoveries/{epoch}.json").read_bytes))["node"] == "n1"
    # Both come back, a majority of the three that once were.
    two.start()
    three.start()
    for node in (two, three):
        await eventually(lambda n=node: is_superseded(n))
        assert not (await node.client.status()).quorate
        with pytest.raises((errors.NoQuorum, errors.OutcomeUnknown)):
            await node.client.write("storage.cfg", b"old majority\n", deadline_s=3.0)
    assert (await one.client.read("storage.cfg")) == b"alone\n"
    assert (await one.client.status()).quorate
    with pytest.raises(errors.Refused, match="rejoin"):
        await two.client.recover("test")
    for node in (two, three):
        archive = Path(await node.client.rejoin())
        assert (archive / "raft").is_dir()
    for node in (two, three):
        await read_eventually(node, "storage.cfg", b"alone\n")
        assert not await asyncio.to_thread((node.mount / "datacenter.cfg").exists)

    async def all_vote() -> bool:
        return await voters(one) == {"n1", "n2", "n3"}

    await eventually(all_vote)
    # The quorum is of three again, without the one that had recovered.
    one.kill()
    await eventually(lambda: _writes(two, b"without n1\n"))
    await read_eventually(three, "storage.cfg", b"without n1\n")
    assert {(await node.client.status()).epoch for node in (two, three)} == {done.done.epoch}


async def test_two_recovered_halves_never_mix_and_one_stops_with_a_remedy(nodes: list[Node]) -> None:
    one, two, three = nodes
    await write(one.mount / "storage.cfg", b"together\n")
    for node in (two, three):
        await read_eventually(node, "storage.cfg", b"together\n")
    for node in nodes:
        node.kill()
    # One after the other, so that neither knows of the other; then they meet.
    epochs_of: dict[str, int] = {}
    for node in (one, two):
        node.start()
        await eventually(lambda n=node: _is_alone(n))
        epochs_of[node.identity.name] = (await node.client.recover("test")).done.epoch
        await write(node.mount / "storage.cfg", node.identity.name.encode())
        node.kill()
    assert {epochs.number(epoch) for epoch in epochs_of.values()} == {1}
    one.start()
    two.start()
    loser, winner = sorted((one, two), key=lambda node: epochs_of[node.identity.name])
    await eventually(lambda: is_superseded(loser))
    failure = (await loser.client.status()).failure
    assert "recovered twice" in failure
    assert "kvorum cluster rejoin" in failure
    await eventually(lambda: _writes(winner, b"goes on\n"))
    assert await loser.client.read("storage.cfg") == loser.identity.name.encode()
    await loser.client.rejoin()
    await read_eventually(loser, "storage.cfg", b"goes on\n")


async def _is_alone(node: Node) -> bool:
    status = await node.client.status()
    return status.active and not status.quorate and not (await node.client.plan_recovery()).obstacles


async def _writes(node: Node, content: bytes) -> bool:
    try:
        await node.client.write("storage.cfg", content, deadline_s=3.0)
    except errors.KvorumError:
        return False
    return True


async def test_a_witness_makes_a_quorum_with_one_of_two_and_mounts_nothing(nodes: list[Node]) -> None:
    one, two, three = nodes
    await one.client.remove_member(three.identity.uid)
    await three.client.retire()
    three.take(msgspec.structs.replace(three.identity, uid=nodes_uid(3), name="w1", witness=True))
    await three.client.activate([member.member for member in nodes], "test")
    member = replica_pb2.Member(uid=three.identity.uid, name="w1", address=three.identity.address, witness=True)
    added = await one.client.add_member(member, deadline_s=30.0)
    assert (added.witness, added.voter) == (True, True)
    status = await three.client.status()
    assert not status.mounted
    assert await asyncio.to_thread(os.listdir, three.mount) == []
    assert not await asyncio.to_thread((one.mount / "nodes/w1").exists)
    print(f"resident: witness {resident_mib(three):.0f} MiB, node {resident_mib(two):.0f} MiB")

    async def is_led_by_a_node() -> bool:
        found = await two.client.status()
        return found.quorate and found.leader_uid not in ("", three.identity.uid)

    one.kill()
    await eventually(is_led_by_a_node)
    await eventually(lambda: _writes(two, b"two and a witness\n"))


def nodes_uid(number: int) -> str:
    return f"{number}0000000-0000-4000-8000-00000000000{number}"


def resident_mib(node: Node) -> float:
    assert node.process is not None
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
