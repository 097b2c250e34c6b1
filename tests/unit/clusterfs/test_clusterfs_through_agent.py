"""From the client through the agent to clusterfs and back: callers are named, errors keep their details, secrets stay in."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import grpc
import pytest

from agent.access.caller import LOCAL_ROOT, Caller, CallerKind, serve_as
from agent.local_clusterfs import LocalClusterfs
from agent.server import Services, listen_locally
from agent.services import history, lock, settings, store
from clusterfs.commands import Move, Write
from clusterfs.machine import StoreMachine
from clusterfs.proposer import Proposer
from clusterfs.services.history import HistoryService
from clusterfs.services.lock import LockService
from clusterfs.services.settings import SettingsService
from clusterfs.services.store import StoreService
from kvorum.client import Client, connect
from kvorum.errors import Fenced, HistoryGone, Locked, PermissionDenied
from kvorum.v1 import history_pb2, history_pb2_grpc, lock_pb2_grpc, settings_pb2_grpc, store_pb2_grpc

Answer = TypeVar("Answer")
Ask = Callable[[Callable[[Client], Answer]], Any]


@pytest.fixture
def clusterfs_socket(machine: StoreMachine, proposer: Proposer, tmp_path: Path) -> Iterator[Path]:
    daemon: Any = SimpleNamespace(running=SimpleNamespace(machine=machine, proposer=proposer))
    server = grpc.server(ThreadPoolExecutor(8))
    history_pb2_grpc.add_HistoryServiceServicer_to_server(HistoryService(daemon), server)
    lock_pb2_grpc.add_LockServiceServicer_to_server(LockService(daemon), server)
    settings_pb2_grpc.add_SettingsServiceServicer_to_server(SettingsService(daemon), server)
    store_pb2_grpc.add_StoreServiceServicer_to_server(StoreService(daemon), server)
    server.add_insecure_port(f"unix:{tmp_path}/clusterfs.sock")
    server.start()
    yield tmp_path / "clusterfs.sock"
    server.stop(0).wait(5)


@pytest.fixture
async def ask(clusterfs_socket: Path, tmp_path: Path) -> AsyncIterator[Ask[Any]]:
    core: Any = SimpleNamespace(clusterfs=LocalClusterfs(clusterfs_socket))
    services = Services()
    for module in (store, history, lock, settings):
        module.register(services, core)

    async def identify(_context: Any) -> Caller:
        return LOCAL_ROOT

    listener = await listen_locally(tmp_path / "agent.sock", services, identify=identify, explain=lambda error: error)

    def call(question: Callable[[Client], Answer]) -> Any:
        def in_thread() -> Answer:
            with connect(f"unix:{tmp_path}/agent.sock") as client:
                return question(client)

        return asyncio.to_thread(in_thread)

    yield call
    await listener.close(0)
    await core.clusterfs.close()


async def test_history_and_limits_come_through(ask: Ask[Any], machine: StoreMachine) -> None:
    await ask(lambda client: client.store.write("a", b"1", reason="first"))
    await ask(lambda client: client.store.write("a", b"2"))
    (second, first) = await ask(lambda client: list(client.history.changes("a")))
    assert (first.author, first.source, first.reason, second.reason) == ("root@pam", "local", "first", "")
    assert (await ask(lambda client: client.history.version("a", first.index))).content == b"1"
    assert [line.text for line in await ask(lambda client: client.history.blame("a"))] == [b"2"]
    await ask(lambda client: client.history.restore("a", first.index))
    assert (await ask(lambda client: client.store.get("a"))).content == b"1"
    assert (await ask(lambda client: client.settings.update(history_changes=1))).history_changes == 1
    with pytest.raises(HistoryGone) as caught:
        await ask(lambda client: client.history.version("a", first.index))
    assert caught.value.oldest_index > first.index
    machine.restore(machine.view.index, machine.snapshot()())
    with pytest.raises(HistoryGone) as watched:
        await ask(lambda client: list(client.store.watch(from_index=1)))
    assert watched.value.oldest_index == caught.value.oldest_index


async def test_locks_come_through(ask: Ask[Any]) -> None:
    def story(client: Client) -> None:
        with client.locks.hold("x", reason="one") as held:
            assert client.locks.list()[0].holder.author == "root@pam"
            client.store.write("f", b"1", fencing=held)
            with pytest.raises(Locked), client.locks.hold("x", timeout_s=0):
                pass
            client.locks.break_("x")
            with pytest.raises(Fenced):
                client.store.write("f", b"2", fencing=held)

    await ask(story)


async def test_what_was_private_once_is_not_shown_to_everybody(clusterfs_socket: Path, proposer: Proposer) -> None:
    secret = proposer.execute(Write("priv/key", b"secret", parents=True)).index
    proposer.execute(Move("priv/key", "key"))
    clusterfs = LocalClusterfs(clusterfs_socket)
    service = history.HistoryService(clusterfs)
    context: Any = SimpleNamespace(time_remaining=lambda: 5.0, peer=lambda: "ipv4:10.0.0.9:1")
    serve_as(Caller(CallerKind.user, "alice@pve"))
    assert not (await service.ListChanges(history_pb2.ListChangesRequest(path="key"), context)).changes
    with pytest.raises(PermissionDenied):
        await service.GetVersion(history_pb2.GetVersionRequest(path="key", index=secret), context)
    with pytest.raises(PermissionDenied):
        await service.BlameEntry(history_pb2.BlameEntryRequest(path="priv/key"), context)
    serve_as(LOCAL_ROOT)
    assert len((await service.ListChanges(history_pb2.ListChangesRequest(path="key"), context)).changes) == 2
    await clusterfs.close()
