"""History and locks on three real daemons: the same everywhere, across restarts, and who dies lets go. Needs root and FUSE."""

import asyncio
import os
import uuid
from collections.abc import Callable
from typing import TypeVar

import pytest
from cluster.store_daemons import Node, eventually, nodes, read_eventually, write

from kvorum import errors
from kvorum.client import Client, connect
from kvorum.client.locks import HeldLock
from kvorum.v1 import lock_pb2
from kvorum.v1.lock_pb2_grpc import LockServiceStub

__all__ = ["nodes"]

Answer = TypeVar("Answer")


async def ask(node: Node, question: Callable[[Client], Answer]) -> Answer:
    def call() -> Answer:
        with connect(f"unix:{node.directory / 'run/clusterfs.sock'}") as client:
            return question(client)

    return await asyncio.to_thread(call)


async def acquire(node: Node, session: str, *, ttl_s: int) -> lock_pb2.AcquireLockResponse:
    """As a client does that dies then: nobody renews."""

    def call(client: Client) -> lock_pb2.AcquireLockResponse:
        request = lock_pb2.AcquireLockRequest(name="x", session=session, ttl_seconds=ttl_s)
        answer: lock_pb2.AcquireLockResponse = LockServiceStub(client._connection.channel).AcquireLock(
            request, timeout=15
        )
        return answer

    return await ask(node, call)


async def test_all_nodes_remember_the_same_and_bring_it_back(nodes: list[Node]) -> None:
    one, two, three = nodes
    for number in range(3):
        await write(one.mount / "f", b"%d\n" % number)
    await write(one.mount / "f", b"2\n")
    await asyncio.to_thread(os.unlink, one.mount / "f")
    last = await one.client.write("g", b"x", author="ann@pam", reason="why")
    await read_eventually(three, "g", b"x")
    for node in nodes:
        node.kill()
    for node in nodes:
        node.start()
    for node in nodes:
        await read_eventually(node, "g", b"x")
    found = [await ask(node, lambda client: list(client.history.changes("f", with_content=True))) for node in nodes]
    assert found[0] == found[1] == found[2]
    assert [change.content for change in found[0] if not change.gone and change.content] == [b"2\n", b"1\n", b"0\n"]
    assert found[0][0].gone
    assert {(change.author, change.source) for change in found[0]} == {("root@pam", "mount")}
    (change,) = await ask(two, lambda client: list(client.history.changes("g")))
    assert (change.index, change.author, change.reason) == (last.version, "ann@pam", "why")

    async def restored() -> bool:
        return bool(await ask(two, lambda client: len(client.history.restore("f")) or client.store.get("f").version))

    await eventually(restored)
    await read_eventually(one, "f", b"2\n")
    # The version of the log that knows this is written as soon as all three have said that they know it.
    await one.client.write("d/a", b"old", parents=True)
    then = (await one.client.write("d/b", b"old")).version
    for name in "ab":
        await one.client.write(f"d/{name}", b"new")
    restored_at: set[int] = set()

    async def restored_whole() -> bool:
        entries = await ask(two, lambda client: client.history.restore("d", then))
        restored_at.update(entry.version for entry in entries)
        return len(entries) == 2

    await eventually(restored_whole)
    assert len(restored_at) == 1
    await read_eventually(three, "d/b", b"old")
    assert await ask(three, lambda client: client.history.forget("d/a")) == 1
    await asyncio.to_thread((one.mount / "g").write_bytes, b"after")
    await read_eventually(three, "g", b"after")
    await read_eventually(two, "g", b"after")
    found = [await ask(node, lambda client: list(client.history.changes("d", with_content=True))) for node in nodes]
    assert found[0] == found[1] == found[2]
    assert b"new" not in {change.content for change in found[0] if change.path == "d/a"}


async def test_a_watch_misses_nothing_while_its_daemon_is_killed(nodes: list[Node]) -> None:
    one, two, _three = nodes
    index = (await two.client.list()).applied_index
    await one.client.write("a", b"1")
    two.kill()
    await one.client.write("b", b"1")
    await one.client.move("a", "c")
    await one.client.delete("b")
    two.start()
    await read_eventually(two, "c", b"1")
    seen: list[str | None] = []
    async with asyncio.timeout(20):
        async for answer in two.client.watch(from_index=index):
            seen.append(answer.WhichOneof("change"))
            if answer.deleted == "b":
                break
    assert [kind for kind in seen if kind != "bookmark"] == ["written", "written", "moved", "deleted"]


async def test_a_lock_goes_to_the_next_when_its_holder_is_silent_and_the_leader_dead(nodes: list[Node]) -> None:
    dead, waiting = str(uuid.uuid4()), str(uuid.uuid4())
    held = await acquire(nodes[1], dead, ttl_s=15)
    assert held.held
    assert not (await acquire(nodes[2], waiting, ttl_s=9)).held
    with pytest.raises(FileExistsError):
        await asyncio.to_thread((nodes[0].mount / "priv/lock/x").mkdir)
    leader_uid = (await nodes[0].client.status()).leader_uid
    leader = next(node for node in nodes if node.identity.uid == leader_uid)
    leader.kill()
    left = next(node for node in nodes if node is not leader)

    async def has_gone_on() -> bool:
        return (await acquire(left, waiting, ttl_s=9)).token > held.token

    await eventually(has_gone_on, seconds=40)

    def write_late(client: Client) -> None:
        client.store.write("late", b"", fencing=HeldLock("x", dead, held.token))

    with pytest.raises(errors.Fenced):
        await ask(left, write_late)
    (lock,) = await ask(left, lambda client: list(client.locks.list()))
    assert lock.holder.token > held.token
    assert not lock.waiters
