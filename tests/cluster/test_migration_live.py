"""Moving guests between the nodes of a real cluster: the same boot id and a counter that goes on show that it is the same run."""

import time
from collections.abc import Iterator

import pytest
from cluster.guest_lab import (
    BUSYBOX,
    SHARED_TEMPLATE,
    beat_after,
    client_of,
    cluster_lab,
    micro,
    migration_ports,
    state,
    until,
)

import kvorum
from kvorum.errors import Cancelled, KvorumError, Refused, TaskFailed
from kvorum.v1 import guest_pb2
from lab.cluster import Lab

pytestmark = pytest.mark.cluster

MIB = 2**20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster_lab("migration-live", 3) as lab:
        yield lab


@pytest.fixture
def client(lab: Lab) -> Iterator[kvorum.Client]:
    with client_of(lab.node("n1")) as client:
        yield client


def make(client: kvorum.Client, vmid: int, storage: str) -> None:
    client.tasks.wait(client.guests.create(vmid, guest_pb2.GUEST_KIND_VM, micro(storage), node="n1", start=True))


def fill(lab: Lab, vmid: int) -> None:
    """Give the copy of a local disk something to do: 24 MiB more, beside the guest's own disk."""
    image = lab.node("n1").layout.disk / f"var/lib/vz/images/{vmid}/vm-{vmid}-disk-1.raw"
    with image.open("r+b") as stream:
        stream.write(b"\x5a\xa5" * (12 * MIB))


def node_of(client: kvorum.Client, vmid: int) -> str:
    return client.guests.get(vmid).node.removeprefix("nodes/")


def test_a_running_vm_moves_on_shared_storage_and_back(lab: Lab, client: kvorum.Client) -> None:
    make(client, 100, "shared")
    boot, count = beat_after(client, 100, 1)
    upid = client.guests.migrate(100, "n2")
    ports: set[int] = set()
    while not client.tasks.get(upid).end_time.seconds:
        ports |= migration_ports(lab.node("n2"))
    client.tasks.wait(upid)
    assert ports, "no port of the range was in use"
    assert (node_of(client, 100), state(client, 100)) == ("n2", "running")
    moved_boot, moved_count = beat_after(client, 100, count)
    assert moved_boot == boot
    assert "lock" not in client.guests.get(100).config
    assert "kvorum-100" not in lab.node("n1").run(["virsh", "list", "--all", "--name"]).stdout
    # Asked of n1, done by n2.
    client.tasks.wait(client.guests.migrate(100, "n1"))
    assert node_of(client, 100) == "n1"
    assert beat_after(client, 100, moved_count)[0] == boot
    assert not migration_ports(lab.node("n2")) and not migration_ports(lab.node("n1"))


def test_a_running_vm_takes_its_local_disks_along(lab: Lab, client: kvorum.Client) -> None:
    make(client, 102, "local")
    boot, count = beat_after(client, 102, 1)
    with pytest.raises(Refused) as caught:
        client.guests.migrate(102, "n2")
    assert "--with-local-disks" in caught.value.remedy
    client.tasks.wait(client.guests.migrate(102, "n2", with_local_disks=True))
    assert node_of(client, 102) == "n2"
    assert beat_after(client, 102, count)[0] == boot
    images = [lab.node(name).layout.disk / "var/lib/vz/images" for name in ("n1", "n2")]
    assert [sorted(path.name for path in directory.glob("102/*")) for directory in images] == [
        [],
        ["vm-102-disk-0.raw"],
    ]


def test_a_cancelled_and_a_broken_migration_leave_the_guest_where_it_was(lab: Lab, client: kvorum.Client) -> None:
    client.tasks.wait(
        client.guests.create(104, guest_pb2.GUEST_KIND_VM, micro("local", scsi1="local:0.0235,format=raw"), node="n1")
    )
    fill(lab, 104)
    client.tasks.wait(client.guests.start(104))
    boot, count = beat_after(client, 104, 1)

    upid = client.guests.migrate(104, "n3", with_local_disks=True, bandwidth_limit=MIB)
    until(lambda: client.tasks.get(upid).progress > 0.02, "progress")
    assert client.guests.get(104).lock == "migrate"
    client.tasks.cancel(upid)
    with pytest.raises(Cancelled):
        client.tasks.wait(upid)
    assert (node_of(client, 104), client.guests.get(104).lock) == ("n1", "")
    boot_after, count = beat_after(client, 104, count)
    assert boot_after == boot
    assert not list((lab.node("n3").layout.disk / "var/lib/vz/images").glob("104/*"))

    upid = client.guests.migrate(104, "n3", with_local_disks=True, bandwidth_limit=MIB)
    until(lambda: client.tasks.get(upid).progress > 0.02, "progress")
    lab.node("n3").kill()
    with pytest.raises(TaskFailed):
        client.tasks.wait(upid)
    assert (node_of(client, 104), state(client, 104), client.guests.get(104).lock) == ("n1", "running", "")
    assert beat_after(client, 104, count + 1)[0] == boot
    lab.node("n3").start()
    left = lab.node("n3").layout.disk / "var/lib/vz/images"
    until(lambda: not list(left.glob("104/*")), "the returned target to clean up")


def test_a_container_moves_by_restart(lab: Lab, client: kvorum.Client) -> None:
    settings = {**BUSYBOX, "rootfs": "shared:0.1"}
    client.tasks.wait(
        client.guests.create(
            105, guest_pb2.GUEST_KIND_CONTAINER, settings, node="n1", template=SHARED_TEMPLATE, start=True
        )
    )
    with pytest.raises(Refused, match="cannot move live"):
        client.guests.migrate(105, "n2")
    client.tasks.wait(client.guests.migrate(105, "n2", restart=True), timeout_s=150)
    assert (node_of(client, 105), state(client, 105)) == ("n2", "running")


def test_an_agent_that_dies_midway_leaves_the_guest_running_and_unlocked(lab: Lab, client: kvorum.Client) -> None:
    boot, count = beat_after(client, 104, 0)
    upid = client.guests.migrate(104, "n2", with_local_disks=True, bandwidth_limit=MIB)
    until(lambda: client.tasks.get(upid).progress > 0.02, "progress")
    lab.node("n1").kill_unit("agent")
    until(lambda: _is_unlocked(client, 104), "the lock to go")
    assert (node_of(client, 104), state(client, 104)) == ("n1", "running")
    assert beat_after(client, 104, count + 1)[0] == boot
    left = lab.node("n2").layout.disk / "var/lib/vz/images"
    until(lambda: not list(left.glob("104/*")), "the target to clean up")
    with pytest.raises(TaskFailed, match="ended while the task ran"):
        client.tasks.wait(upid)


def _is_unlocked(client: kvorum.Client, vmid: int) -> bool:
    try:
        return not client.guests.get(vmid).lock
    except KvorumError:
        time.sleep(0.1)
        return False
