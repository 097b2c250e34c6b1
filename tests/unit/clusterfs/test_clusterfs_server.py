"""The services over their real socket, with the real mount, on a replica that lives in the test."""

import asyncio
import dataclasses
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from msgspec.structs import replace

from clusterfs import seed, snapshot
from clusterfs.client import StoreClient, SyncStoreClient
from clusterfs.commands import MemberPut
from clusterfs.daemon import Daemon, Places
from clusterfs.machine import StoreMachine
from clusterfs.raft import StorageDamaged
from clusterfs.replicas import make_replica
from clusterfs.server import Server
from clusterfs.services import store as store_service
from clusterfs.settings import Settings
from kvorum import errors
from kvorum.node import Identity, Pki, save_identity
from kvorum.v1 import replica_pb2, store_pb2

N1 = "11111111-1111-4111-8111-111111111111"
N2 = "22222222-2222-4222-8222-222222222222"
ME = replica_pb2.Member(uid=N1, name="n1", address="127.0.0.1")
OTHER = replica_pb2.Member(uid=N2, name="n2", address="127.0.0.2")


@dataclass
class Group:
    """What the fake replica of the running daemon was asked to do about its peers."""

    replica: Any
    allowed: list[str]
    joining: bool
    cannot_add: bool = False


@dataclass
class Node:
    places: Places
    socket: Path
    daemon: Daemon
    client: StoreClient
    groups: list[Group]

    async def activate(self) -> None:
        save_identity(Identity(uid=N1, name="n1", address="127.0.0.1", cluster_name="test"), self.places.identity)
        await self.client.activate([ME], "test")

    @property
    def group(self) -> Group:
        return self.groups[-1]


def replica_factory(fake: type[Any], groups: list[Group]) -> Any:
    class Grouped(fake):  # type: ignore[misc]
        def start(self) -> None:
            pass

        def stop(self) -> None:
            pass

        def allow_peer(self, uid: str, host: str) -> None:
            self.group.allowed.append(f"{uid}@{host}")

        def suggest(self, op: str, uid: str, host: str) -> None: ...

        def add_learner(self, uid: str, host: str, *, deadline_s: float) -> None:
            if self.group.cannot_add:
                raise errors.Unreachable(f"{host} does not answer")
            self.peers += (uid,)

        def remove_member(self, uid: str, *, deadline_s: float) -> None:
            self.peers = tuple(peer for peer in self.peers if peer != uid)

    def make(
        *,
        identity: Identity,
        members: Mapping[str, str],
        directory: Path,
        machine: StoreMachine,
        pki: Pki,
        joining: bool,
        epoch: int,
    ) -> Any:
        assert identity.uid in members
        replica = Grouped(machine, uid=identity.uid)
        replica.group = Group(replica, [], joining)
        groups.append(replica.group)
        return replica

    return make


@pytest.fixture
async def node(tmp_path: Path, replica: Any) -> AsyncIterator[Node]:
    places = Places(tmp_path / "state", tmp_path / "mnt")
    groups: list[Group] = []
    daemon = Daemon(places, make_replica=replica_factory(type(replica), groups))
    socket = tmp_path / "run/clusterfs.sock"
    server = Server(daemon, socket)
    daemon.lock()
    server.start()
    client = StoreClient(socket, author="tester@pam")
    yield Node(places, socket, daemon, client, groups)
    await client.close()
    await asyncio.to_thread(server.stop, grace_s=0.2)
    await asyncio.to_thread(daemon.stop)


async def test_a_node_in_no_cluster_says_so_and_what_to_do(node: Node) -> None:
    assert not (await node.client.status()).active
    for call in (node.client.get("x"), node.client.list_leases(), node.client.retire()):
        with pytest.raises(errors.Refused, match="in no cluster"):
            await call
    with pytest.raises(errors.Refused) as caught:
        await node.client.write("x", b"")
    assert "kvorum cluster init" in caught.value.remedy


async def test_activation_makes_a_cluster_of_one_that_survives_a_restart(node: Node) -> None:
    await node.activate()
    status = await node.client.status()
    assert (status.active, status.quorate, status.mounted, status.self_uid) == (True, True, True, N1)
    assert [(member.name, member.number) for member in status.members] == [("n1", 1)]
    assert (node.places.mount / "nodes/n1/qemu-server").is_dir()
    with pytest.raises(errors.Refused, match="active already"):
        await node.client.activate([ME], "again")
    await asyncio.to_thread(node.daemon.stop)
    assert not (await node.client.status()).active
    await asyncio.to_thread(node.daemon.resume)
    assert (await node.client.status()).active
    assert not node.group.joining


async def test_activation_that_cannot_be_leaves_nothing(node: Node) -> None:
    with pytest.raises(errors.NotFound):
        await node.client.activate([ME], "no identity yet")
    save_identity(Identity(uid=N1, name="n1", address="127.0.0.1", cluster_name="test"), node.places.identity)
    for members in ([], [OTHER], [replica_pb2.Member(uid="?", name="n1", address="x")]):
        with pytest.raises(errors.InvalidInput):
            await node.client.activate(members, "test")
    assert seed.load(node.places.clusterfs) is None
    await node.client.activate([OTHER, ME], "test")
    assert node.group.joining


async def test_only_one_daemon_works_on_a_state(node: Node) -> None:
    with pytest.raises(errors.Refused, match="another"):
        Daemon(node.places, make_replica=replica_factory(object, [])).lock()


async def test_the_socket_is_roots_only(node: Node) -> None:
    assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600


async def test_entries_over_the_api(node: Node) -> None:
    await node.activate()
    client = node.client
    made = await client.write("storage.cfg", b"dir: local\n", absent=True, reason="first")
    assert (made.path, made.kind, made.size_bytes) == ("storage.cfg", store_pb2.ENTRY_KIND_FILE, 11)
    assert await client.read("storage.cfg", linearizable=True) == b"dir: local\n"
    changed = await client.write("storage.cfg", b"", expected_version=made.version)
    moved = await client.move("storage.cfg", "ha.cfg", expected_version=changed.version)
    assert moved.placement == moved.version > changed.version
    directory = await client.write("a/b/c", directory=True, parents=True)
    assert directory.kind == store_pb2.ENTRY_KIND_DIRECTORY
    await client.write("a/b/c", directory=True)
    await client.delete("a", recursive=True)
    with pytest.raises(errors.NotFound):
        await client.get("a/b")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.get("none"), errors.NotFound),
        (lambda c: c.get("f/x"), errors.Refused),
        (lambda c: c.get("a//b"), errors.InvalidInput),
        (lambda c: c.list("f"), errors.Refused),
        (lambda c: c.write("f", b"", absent=True), errors.AlreadyExists),
        (lambda c: c.write("f", b"", expected_version=999), errors.StaleVersion),
        (lambda c: c.write("f", b"x" * ((1 << 20) + 1)), errors.QuotaExceeded),
        (lambda c: c.write("no/f", b""), errors.NotFound),
        (lambda c: c.write(".version", b""), errors.PermissionDenied),
        (lambda c: c.write("f", directory=True, expected_version=1), errors.InvalidInput),
        (lambda c: c.move("f", "nodes"), errors.AlreadyExists),
        (lambda c: c.delete("nodes"), errors.Refused),
        (lambda c: c.remove_member(N2), errors.NotFound),
        (lambda c: c.remove_member(N1), errors.Refused),
        (lambda c: c.renew_lease(N1, 5), errors.Fenced),
    ],
)
async def test_refusals_arrive_as_the_errors_they_are(node: Node, call: Any, error: type[errors.KvorumError]) -> None:
    await node.activate()
    await node.client.write("f", b"")
    with pytest.raises(error):
        await call(node.client)


async def test_without_quorum_the_error_names_the_missing_and_reads_go_on(node: Node) -> None:
    await node.activate()
    await node.client.add_member(OTHER)
    node.group.replica.is_quorate = False
    with pytest.raises(errors.NoQuorum) as caught:
        await node.client.write("f", b"")
    assert caught.value.missing == ["n2"]
    assert "2 of 2" in caught.value.remedy
    with pytest.raises(errors.NoQuorum) as caught:
        await node.client.get("nodes", linearizable=True)
    assert caught.value.missing == ["n2"]
    assert len(await node.client.list()) == 2
    status = await node.client.status()
    assert not status.quorate
    assert [(member.name, member.connected) for member in status.members] == [("n1", True), ("n2", False)]


async def test_long_lists_come_in_pages_and_sorted(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.activate()
    for name in ("d", "d-e", "d/f", "d/g", "d.h"):
        await node.client.write(name, directory=True)
    monkeypatch.setattr(store_service, "PAGE_ENTRIES", 2)
    listing = await node.client.list(recursive=True)
    paths = [entry.path for entry in listing]
    assert paths == sorted(paths)
    assert {"d", "d-e", "d/f", "d/g", "d.h", "nodes/n1/priv"} <= set(paths)
    assert [entry.path for entry in await node.client.list("d")] == ["d/f", "d/g"]


async def test_a_watch_misses_nothing_and_starts_with_a_bookmark(node: Node) -> None:
    await node.activate()
    start = (await node.client.list()).applied_index
    seen: list[tuple[str | None, str]] = []

    async def watch() -> None:
        async for answer in node.client.watch("nodes/n1", from_index=start, with_content=True):
            kind = answer.WhichOneof("change")
            path = {"written": answer.written.path, "deleted": answer.deleted, "moved": answer.moved.entry.path}
            seen.append((kind, path.get(kind or "", "")))
            if kind == "deleted":
                return

    await node.client.write("nodes/n1/lxc/100.conf", b"before the watch")
    async with asyncio.timeout(20):
        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            await node.client.write("elsewhere", b"")
            await node.client.move("nodes/n1/lxc/100.conf", "nodes/n1/lxc/101.conf")
            await node.client.move("nodes/n1/lxc/101.conf", "nodes/101.conf")
    assert seen == [
        ("bookmark", ""),
        ("written", "nodes/n1/lxc/100.conf"),
        ("moved", "nodes/n1/lxc/101.conf"),
        ("deleted", "nodes/n1/lxc/101.conf"),
    ]


async def test_a_watch_of_forgotten_changes_is_told_so(node: Node) -> None:
    await node.activate()
    machine = node.daemon.running.machine
    await node.client.write("a", b"")
    bounds = Settings(history_changes=0)
    state = replace(machine.state, history=machine.state.history.trimmed(bounds, 0))
    machine.restore(machine.view.index + 10, snapshot.encode(state))
    with pytest.raises(errors.HistoryGone) as caught:
        async for _answer in node.client.watch(from_index=1):
            pass
    assert caught.value.oldest_index == state.history.since > 1


async def test_a_watch_goes_on_after_a_restart(node: Node) -> None:
    await node.activate()
    start = (await node.client.list()).applied_index
    await node.client.write("a", b"1")
    await node.client.write("d/b", b"", parents=True)
    await node.client.move("a", "c")
    await node.client.delete("d", recursive=True)
    machine = node.daemon.running.machine
    machine.restore(machine.view.index, machine.snapshot()())
    seen = []
    async with asyncio.timeout(20):
        async for answer in node.client.watch(from_index=start):
            seen.append((answer.index - start, answer.WhichOneof("change")))
            if answer.deleted:
                break
    assert seen == [
        (0, "bookmark"),
        (1, "written"),
        (2, "written"),
        (2, "written"),
        (3, "moved"),
        (4, "deleted"),
    ]


async def test_watches_cannot_starve_writes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.activate()
    watches = [node.client.watch() for _number in range(store_service.MAX_WATCHES)]
    async with asyncio.timeout(60):
        for watch in watches:
            assert (await anext(watch)).bookmark
        with pytest.raises(errors.QuotaExceeded):
            await anext(node.client.watch())
        assert (await node.client.write("f", b"x")).version
        for watch in watches:
            await watch.aclose()  # type: ignore[attr-defined]


async def test_members_come_and_go_and_a_failed_join_is_undone(node: Node) -> None:
    await node.activate()
    node.group.cannot_add = True
    with pytest.raises(errors.Unreachable):
        await node.client.add_member(OTHER)
    assert [member.name for member in (await node.client.status()).members] == ["n1"]
    assert not (node.places.mount / "nodes/n2").exists()
    node.group.cannot_add = False
    with pytest.raises(errors.AlreadyExists, match="was removed"):
        await node.client.add_member(OTHER)
    anew = replica_pb2.Member(uid=N2.replace("2", "4"), name="n2", address="127.0.0.2")
    added = await node.client.add_member(anew)
    assert (added.name, added.number) == ("n2", 3)
    assert f"{anew.uid}@127.0.0.2" in node.group.allowed
    with pytest.raises(errors.AlreadyExists):
        await node.client.add_member(replica_pb2.Member(uid=N2.replace("2", "3"), name="n2", address="127.0.0.3"))
    await node.client.remove_member(anew.uid)
    assert not (node.places.mount / "nodes/n2").exists()
    assert node.group.replica.peers == ()


async def test_the_members_are_remembered_for_the_next_start(node: Node) -> None:
    await node.activate()
    await node.client.add_member(OTHER)
    async with asyncio.timeout(10):
        while True:
            remembered = seed.load(node.places.clusterfs)
            assert remembered is not None
            if [member.name for member in remembered.members] == ["n1", "n2"]:
                break
            await asyncio.sleep(0.05)


async def test_leases_over_the_api(node: Node) -> None:
    await node.activate()
    assert await node.client.acquire_lease(N1) == 1
    assert await node.client.renew_lease(N1, 1) == 1
    listed = await node.client.list_leases()
    assert (listed.leader, listed.quorate, listed.leases[0].renewal) == (True, True, 1)
    assert 0 <= listed.leases[0].age_seconds < 5
    with pytest.raises(errors.StaleVersion):
        await node.client.fence_lease(N1, 1, 0)
    await node.client.fence_lease(N1, 1, 1)
    with pytest.raises(errors.Fenced):
        await node.client.renew_lease(N1, 1)


async def test_retiring_puts_the_data_aside_and_the_node_can_start_anew(node: Node) -> None:
    await node.activate()
    await node.client.write("f", b"x")
    archive = Path(await node.client.retire())
    assert (archive / seed.FILE).exists()
    assert list(node.places.mount.iterdir()) == []
    assert not (await node.client.status()).active
    await node.client.activate([ME], "test")
    assert (await node.client.status()).active


async def test_what_was_unmounted_by_hand_is_mounted_again(node: Node) -> None:
    await node.activate()
    process = await asyncio.create_subprocess_exec("umount", "-l", str(node.places.mount))
    assert await asyncio.wait_for(process.wait(), 10) == 0
    async with asyncio.timeout(10):
        while not (node.places.mount / ".members").exists():
            await asyncio.sleep(0.05)


async def test_health_and_the_synchronous_client(node: Node) -> None:
    await node.activate()
    async with grpc.aio.insecure_channel(f"unix:{node.socket}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="kvorum.v1.StoreService"), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    client = SyncStoreClient(node.socket)
    assert await asyncio.to_thread(client.acquire_lease, N1) == 1
    assert await asyncio.to_thread(client.renew_lease, N1, 1) == 1
    with pytest.raises(errors.Fenced):
        await asyncio.to_thread(client.renew_lease, N1, 2)
    client.close()


async def test_a_daemon_that_does_not_run_is_unreachable_and_the_client_finds_it_when_it_does(
    tmp_path: Path, replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusterfs import client as client_module

    socket = tmp_path / "clusterfs.sock"
    client = StoreClient(socket)
    monkeypatch.setattr(client_module, "PATIENCE_S", 0.2)
    with pytest.raises(errors.Unreachable, match="does not answer"):
        await client.status()
    server = Server(Daemon(Places(tmp_path, tmp_path / "mnt"), make_replica=replica_factory(type(replica), [])), socket)
    server.start()
    monkeypatch.setattr(client_module, "PATIENCE_S", 5.0)
    assert not (await client.status()).active
    await client.close()
    await asyncio.to_thread(server.stop, grace_s=0.2)


async def test_a_plan_knows_names_that_are_applied_while_it_is_made(node: Node) -> None:
    await node.activate()
    group = node.group
    group.replica.peers = (N2,)

    def applied_meanwhile() -> list[bytes]:
        node.daemon.running.proposer.execute(MemberPut(N2, "n2", "127.0.0.2"))
        return []

    group.replica.unapplied = applied_meanwhile
    assert node.daemon.plan_recovery().lost == ("n2",)


async def test_a_crash_in_the_middle_of_a_rejoin_leaves_a_node_that_rejoins(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.activate()
    await node.client.add_member(OTHER, deadline_s=20)
    running = node.daemon.running
    status = dataclasses.replace(running.replica.status(), superseded_by=1 << 32 | 7)
    monkeypatch.setattr(running.replica, "status", lambda: status)

    def crash() -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(node.daemon, "_finish_rejoin", crash)
        with pytest.raises(OSError, match="power"):
            await asyncio.to_thread(node.daemon.rejoin)
    again = Daemon(node.places, make_replica=node.daemon._make_replica)
    await asyncio.to_thread(again.resume)
    try:
        assert (again.running.seed.joining, again.running.seed.epoch) == (True, 1 << 32 | 7)
        assert len(list(node.places.state.glob("clusterfs-retired-*"))) == 1
    finally:
        await asyncio.to_thread(again.stop)


def test_a_member_whose_log_is_gone_does_not_found_a_cluster_anew(tmp_path: Path) -> None:
    """With an empty log and a vote it could elect a leader that lacks what was acknowledged."""
    identity = Identity(uid=N1, name="n1", address="127.0.0.1", cluster_name="test")
    made: dict[str, Any] = {"directory": tmp_path / "raft", "machine": StoreMachine(), "pki": Pki(tmp_path / "pki")}
    for members, epoch in (({N1: "127.0.0.1", N2: "127.0.0.2"}, 0), ({N1: "127.0.0.1"}, 1 << 32 | 7)):
        with pytest.raises(StorageDamaged, match="is gone") as caught:
            make_replica(identity=identity, members=members, joining=False, epoch=epoch, **made)
        assert "join again" in caught.value.remedy
        make_replica(identity=identity, members=members, joining=True, epoch=epoch, **made)
    make_replica(identity=identity, members={N1: "127.0.0.1"}, joining=False, epoch=0, **made)
