"""A world of nodes in one process: real agents with real TLS on loopback addresses, over clusterfs made of a dictionary."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from agent.assembly import Agent
from agent.context import Paths
from kvorum import errors
from kvorum.node import Pki
from kvorum.rpc import from_rpc_error, to_status
from kvorum.v1 import replica_pb2, replica_pb2_grpc, store_pb2, store_pb2_grpc
from kvorum.v1.cluster_pb2_grpc import ClusterServiceStub
from kvorum.v1.store_pb2_grpc import StoreServiceStub


class FakeStore:
    """What the replicas of one cluster share."""

    def __init__(self) -> None:
        self.index = 0
        self.entries: dict[str, store_pb2.Entry] = {}
        self.members: dict[str, replica_pb2.Member] = {}
        self.running: set[str] = set()
        self.quorate = True
        self.changed = asyncio.Condition()
        self.log: list[tuple[int, str]] = []
        self.authors: dict[str, str] = {}

    def require_quorum(self) -> None:
        if not self.quorate:
            raise errors.NoQuorum(missing=[uid for uid in self.members if uid not in self.running])

    async def note(self, path: str) -> None:
        async with self.changed:
            self.index += 1
            self.log.append((self.index, path))
            self.changed.notify_all()


class FakeClusterfs(store_pb2_grpc.StoreServiceServicer, replica_pb2_grpc.ReplicaServiceServicer):
    """The clusterfs of one node. `fail`: method name to the error that its next call ends with."""

    def __init__(self, world: "FakeWorld", path: Path) -> None:
        self.world = world
        self.path = path
        self.store: FakeStore | None = None
        self.uid = ""
        self.fail: dict[str, errors.KvorumError] = {}
        self.comes_up = True
        self.server: Any = None

    async def start(self) -> None:
        self.server = grpc.aio.server(interceptors=[_Errors(self)])
        store_pb2_grpc.add_StoreServiceServicer_to_server(self, self.server)
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(self, self.server)
        self.server.add_insecure_port(f"unix:{self.path}")
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(0)

    def need(self) -> FakeStore:
        if self.store is None:
            raise errors.Refused("no replica runs here")
        return self.store

    # Replica

    async def ActivateReplica(self, request: Any, context: Any) -> Any:
        own = {member.uid for member in request.members}
        self.uid = self.world.identity_of(self)
        assert self.uid in own
        if len(request.members) == 1:
            self.store = FakeStore()
            self.store.members[self.uid] = request.members[0]
            self.world.stores.append(self.store)
        else:
            self.store = next(store for store in self.world.stores if set(store.members) & own)
        if self.comes_up:
            self.store.running.add(self.uid)
        return replica_pb2.ActivateReplicaResponse()

    async def RetireReplica(self, request: Any, context: Any) -> Any:
        self.need().running.discard(self.uid)
        self.store, self.uid = None, ""
        return replica_pb2.RetireReplicaResponse(archive_path="/archive")

    async def GetReplicaStatus(self, request: Any, context: Any) -> Any:
        if self.store is None:
            return replica_pb2.GetReplicaStatusResponse()
        members = []
        for member in self.store.members.values():
            copy = replica_pb2.Member()
            copy.CopyFrom(member)
            copy.connected = member.uid in self.store.running
            copy.voter = True
            members.append(copy)
        return replica_pb2.GetReplicaStatusResponse(
            active=True,
            quorate=self.store.quorate,
            leader_uid=next(iter(self.store.members), ""),
            term=1,
            applied_index=self.store.index,
            members=members,
            self_uid=self.uid,
            ready=self.uid in self.store.members,
            mounted=True,
        )

    async def AddMember(self, request: Any, context: Any) -> Any:
        store = self.need()
        store.require_quorum()
        while request.member.uid not in store.running:
            await asyncio.sleep(0.02)
        store.members[request.member.uid] = request.member
        return replica_pb2.AddMemberResponse(member=request.member)

    async def RemoveMember(self, request: Any, context: Any) -> Any:
        store = self.need()
        store.require_quorum()
        if request.uid not in store.members:
            raise errors.NotFound("no such member")
        del store.members[request.uid]
        return replica_pb2.RemoveMemberResponse()

    # Store

    async def GetEntry(self, request: Any, context: Any) -> Any:
        store = self.need()
        if request.path not in store.entries:
            raise errors.NotFound(f"{request.path} is not there")
        return store_pb2.GetEntryResponse(entry=store.entries[request.path], applied_index=store.index)

    async def ListEntries(self, request: Any, context: Any) -> Any:
        store = self.need()
        below = {path: entry for path, entry in store.entries.items() if path.startswith(f"{request.path}/")}
        if request.path and not below:
            raise errors.NotFound(f"{request.path} is not there")
        return store_pb2.ListEntriesResponse(entries=[below[path] for path in sorted(below)])

    async def WriteEntry(self, request: Any, context: Any) -> Any:
        store = self.need()
        store.require_quorum()
        there = store.entries.get(request.path)
        if request.precondition.absent and there is not None:
            raise errors.AlreadyExists(f"{request.path} is there")
        await store.note(request.path)
        entry = store_pb2.Entry(path=request.path, content=request.content, version=store.index)
        store.entries[request.path] = entry
        store.authors[request.path] = dict(context.invocation_metadata()).get("kvorum-author", "")
        return store_pb2.WriteEntryResponse(entry=entry)

    async def DeleteEntry(self, request: Any, context: Any) -> Any:
        store = self.need()
        store.require_quorum()
        doomed = [path for path in store.entries if path == request.path or path.startswith(f"{request.path}/")]
        if not doomed:
            raise errors.NotFound(f"{request.path} is not there")
        if request.expected_version and store.entries[request.path].version != request.expected_version:
            raise errors.StaleVersion(f"{request.path} has changed")
        for path in doomed:
            del store.entries[path]
        await store.note(request.path)
        return store_pb2.DeleteEntryResponse()

    async def WatchEntries(self, request: Any, context: Any) -> Any:
        store = self.need()
        seen = store.index
        yield store_pb2.WatchEntriesResponse(index=seen, bookmark=True)
        while True:
            async with store.changed:
                while store.index <= seen:
                    await store.changed.wait()
            for index, path in [item for item in store.log if item[0] > seen]:
                seen = index
                if path.startswith(request.path):
                    yield store_pb2.WatchEntriesResponse(index=index, deleted=path)


class _Errors(grpc.aio.ServerInterceptor):
    def __init__(self, node: FakeClusterfs) -> None:
        self.node = node

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.response_streaming:
            return handler
        name = details.method.rpartition("/")[2]

        async def answer(request: Any, context: Any) -> Any:
            try:
                if name in self.node.fail:
                    raise self.node.fail.pop(name)
                return await handler.unary_unary(request, context)
            except errors.KvorumError as error:
                await context.abort_with_status(to_status(error))

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class FakeNode:
    """An agent with its clusterfs. `call` speaks over the local socket, as root does."""

    def __init__(self, world: "FakeWorld", number: int) -> None:
        self.world = world
        self.name = f"n{number}"
        self.address = f"127.0.0.{10 + number}"
        self.directory = world.directory / self.name
        self.directory.mkdir()
        self.paths = Paths(
            identity=self.directory / "node.json",
            pki=Pki(self.directory / "pki"),
            socket=self.directory / "agent.sock",
            clusterfs_socket=self.directory / "clusterfs.sock",
            tasks=self.directory / "tasks",
            keeper=self.directory / "keeper",
            mount=self.directory / "mount",
            log=self.directory / "log",
        )
        self.clusterfs = FakeClusterfs(world, self.paths.clusterfs_socket)
        self.agent = self._make_agent()
        self.channel = grpc.aio.insecure_channel(f"unix:{self.paths.socket}")
        self.cluster = ClusterServiceStub(self.channel)
        self.files = StoreServiceStub(self.channel)

    def _make_agent(self) -> Agent:
        return Agent(paths=self.paths, port=self.world.port, name=lambda: self.name)

    async def start(self) -> None:
        await self.clusterfs.start()
        await self.agent.start()

    async def restart_agent(self) -> None:
        await self.agent.stop()
        self.agent = self._make_agent()
        await self.agent.start()

    async def stop(self) -> None:
        await self.channel.close()
        await self.agent.stop()
        await self.clusterfs.stop()

    @property
    def store(self) -> FakeStore:
        assert self.clusterfs.store is not None
        return self.clusterfs.store

    @property
    def target(self) -> str:
        return f"{self.address}:{self.world.port}"

    def is_untouched(self) -> bool:
        """As before it ever tried to be in a cluster."""
        return (
            self.agent.identity is None
            and self.clusterfs.store is None
            and not self.paths.identity.exists()
            and not [path for path in self.paths.pki.directory.rglob("*") if not path.is_dir()]
            and not self.is_listening()
        )

    def is_listening(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address, self.world.port), timeout=1):
            return True
        return False


class FakeWorld:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stores: list[FakeStore] = []
        self.nodes: list[FakeNode] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    async def node(self) -> FakeNode:
        node = FakeNode(self, len(self.nodes) + 1)
        self.nodes.append(node)
        await node.start()
        return node

    def identity_of(self, clusterfs: FakeClusterfs) -> str:
        from kvorum.node import load_identity

        node = next(node for node in self.nodes if node.clusterfs is clusterfs)
        return load_identity(node.paths.identity).uid


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[FakeWorld]:
    made = FakeWorld(tmp_path)
    try:
        yield made
    finally:
        for node in made.nodes:
            await node.stop()


@pytest.fixture
def raises() -> Any:
    """`with raises(errors.Refused, "words"):` around a call of a stub: the error that a client of Kvorum sees."""

    @contextlib.contextmanager
    def check(kind: type[errors.KvorumError], words: str = "") -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            seen = from_rpc_error(error)
            assert type(seen) is kind, f"{type(seen).__name__}: {seen}"
            assert words in str(seen), str(seen)
        else:
            raise AssertionError(f"no {kind.__name__}")

    return check
