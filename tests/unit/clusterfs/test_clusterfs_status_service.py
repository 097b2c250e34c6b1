"""Status and the cluster log over a real socket, from a gossip that hears one other node."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from clusterfs import volatile
from clusterfs.client import StoreClient
from clusterfs.daemon import Daemon
from clusterfs.gossip import Gossip
from clusterfs.membership import Member
from clusterfs.services import status as service
from clusterfs.volatile import Delta
from kvorum import errors
from kvorum.node import Identity
from kvorum.v1 import status_pb2_grpc

N1 = "11111111-1111-4111-8111-111111111111"
N2 = "22222222-2222-4222-8222-222222222222"


@dataclass
class Node:
    gossip: Gossip
    client: StoreClient

    def hear(self, known: int, items: list[tuple[str, int, bytes | None]], *, base: int = 0) -> None:
        self.gossip.receive(N2, volatile.encode(Delta(N2, 7, base, known, items)))
        self.gossip.step()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    gossip = Gossip(uid=N1, name="n1", send=lambda _payload, _uid: None)
    identity = Identity(uid=N1, name="n1", address="127.0.0.1", cluster_name="c")
    members = [Member(N1, "n1", "127.0.0.1", 1), Member(N2, "n2", "127.0.0.2", 2)]
    running = SimpleNamespace(gossip=gossip, identity=identity, members=lambda: members)
    server = grpc.server(ThreadPoolExecutor(max_workers=service.MAX_STATUS_WATCHES + 4))
    daemon = cast(Daemon, SimpleNamespace(running=running))
    status_pb2_grpc.add_StatusServiceServicer_to_server(service.StatusService(daemon), server)
    socket = tmp_path / "clusterfs.sock"
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    client = StoreClient(socket)
    yield Node(gossip, client)
    gossip.stop()
    await client.close()
    await asyncio.to_thread(server.stop(0.2).wait, 5)


async def test_what_is_set_here_or_told_by_others_can_be_read(node: Node) -> None:
    await node.client.set_status({"tasklist": b"[]", "b": b"2"})
    node.hear(2, [("load", 1, b"0.5"), ("tasklist", 2, b"[1]")])
    assert await node.client.get_status("tasklist") == b"[]"
    assert await node.client.get_status("tasklist", node="n2") == b"[1]"
    listed = await node.client.list_status(with_values=True)
    assert [(one.node, one.uid, [(v.key, v.value) for v in one.values]) for one in listed.nodes] == [
        ("n1", N1, [("b", b"2"), ("tasklist", b"[]")]),
        ("n2", N2, [("load", b"0.5"), ("tasklist", b"[1]")]),
    ]
    assert listed.nodes[0].age_seconds == 0.0
    assert not listed.truncated
    bare = await node.client.list_status(node="n2", prefix="lo")
    assert [(v.key, v.value, v.size_bytes) for v in bare.nodes[0].values] == [("load", b"", 3)]
    await node.client.set_status({"b": b""})
    with pytest.raises(errors.NotFound):
        await node.client.get_status("b")


async def test_an_answer_has_a_limit_and_says_that_it_was_cut(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "ANSWER_BYTES", 10)
    await node.client.set_status({"a": b"123456", "b": b"123456", "c": b"1234"})
    listed = await node.client.list_status(with_values=True)
    assert [v.value for v in listed.nodes[0].values] == [b"123456", b"", b"1234"]
    assert listed.truncated
    assert not (await node.client.list_status()).truncated


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.get_status("none"), errors.NotFound),
        (lambda c: c.get_status("k", node="n9"), errors.NotFound),
        (lambda c: c.list_status(node="n2"), errors.NotFound),
        (lambda c: c.set_status({"k": b"x" * 40_000}), errors.QuotaExceeded),
        (lambda c: c.set_status({"": b"x"}), errors.InvalidInput),
        (lambda c: c.log_message(""), errors.InvalidInput),
        (lambda c: c.log_message("m", priority=8), errors.InvalidInput),
    ],
)
async def test_refusals_arrive_as_the_errors_they_are(node: Node, call: Any, error: type[errors.KvorumError]) -> None:
    with pytest.raises(error):
        await call(node.client)


async def test_a_watch_shows_what_there_is_and_then_what_changes(node: Node) -> None:
    await node.client.set_status({"a": b"1", "other": b"x"})
    watch = node.client.watch_status(prefix="a")
    async with asyncio.timeout(20):
        first = await anext(watch)
        assert (first.set.node, first.set.value.key, first.set.value.value) == ("n1", "a", b"1")
        assert (await anext(watch)).current
        await node.client.set_status({"other": b"y", "ab": b"2"})
        assert (await anext(watch)).set.value.key == "ab"
        node.hear(1, [("a", 1, b"3")])
        assert (await anext(watch)).set.node == "n2"
        node.hear(2, [("a", 2, None)], base=1)
        gone = await anext(watch)
        assert (gone.deleted.node, gone.deleted.key) == ("n2", "a")
        await watch.aclose()  # type: ignore[attr-defined]


async def test_a_watch_that_came_too_late_is_reset(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterfs.gossip._RECENT", 1)
    watch = node.client.watch_status(node="n1")
    async with asyncio.timeout(20):
        assert (await anext(watch)).current
        await node.client.set_status({"a": b"1", "b": b"2", "c": b"3"})
        assert (await anext(watch)).reset
        assert [(await anext(watch)).set.value.key for _ in range(3)] == ["a", "b", "c"]
        assert (await anext(watch)).current
        await watch.aclose()  # type: ignore[attr-defined]


async def test_watches_are_limited(node: Node) -> None:
    watches = [node.client.watch_status() for _ in range(service.MAX_STATUS_WATCHES)]
    async with asyncio.timeout(60):
        for watch in watches:
            assert (await anext(watch)).current
        with pytest.raises(errors.QuotaExceeded):
            await anext(node.client.watch_status())
        await node.client.set_status({"still": b"served"})
        for watch in watches:
            await watch.aclose()  # type: ignore[attr-defined]


async def test_the_cluster_log_over_the_api(node: Node) -> None:
    await node.client.log_message("one\n", priority=4, tag="backup", user="ann@pve")
    await node.client.log_message("two")
    newest, oldest = await node.client.list_log()
    assert (newest.message, newest.priority, newest.tag, newest.user, newest.node) == (
        "two",
        6,
        "cluster",
        "root",
        "n1",
    )
    assert (oldest.message, oldest.priority, oldest.uid) == ("one#010", 4, 1)
    assert [line.message for line in await node.client.list_log(user="ann@pve")] == ["one#010"]
    assert len(await node.client.list_log(limit=1)) == 1
