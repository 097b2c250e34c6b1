"""A guest's life through the agents of a real cluster: made, started, heard, shut down, stopped, deleted, from any node."""

from collections.abc import Iterator

import pytest
from cluster.guest_lab import BUSYBOX, TEMPLATE, beat_after, client_of, cluster_lab, micro, state, until

import kvorum
from kvorum.errors import AlreadyExists, InvalidInput, KvorumError, NotFound, Refused, TaskFailed
from kvorum.v1 import guest_pb2
from lab.cluster import Lab

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster_lab("guest-life", 2) as lab:
        yield lab


@pytest.fixture
def client(lab: Lab) -> Iterator[kvorum.Client]:
    with client_of(lab.node("n1")) as client:
        yield client


def test_a_vm_lives_from_its_creation_to_its_end(lab: Lab, client: kvorum.Client) -> None:
    n1 = lab.node("n1")
    assert client.guests.next_id() == 100
    # From n1, for n2: the task runs there and is seen here.
    upid = client.guests.create(100, guest_pb2.GUEST_KIND_VM, micro("local"), node="n2")
    assert upid.startswith("UPID:n2:") and upid.endswith(":qmcreate:100:root@pam:")
    client.tasks.wait(upid)
    guest = client.guests.get(100)
    assert (guest.node, guest.display_name, guest.lock) == ("nodes/n2", "micro", "")
    assert guest.config["scsi0"] == "local:100/vm-100-disk-0.raw,size=1M"
    assert client.guests.next_id() == 101

    client.tasks.wait(client.guests.start(100))
    _, count = beat_after(client, 100, 0)
    running = client.guests.get(100)
    assert state(client, 100) == "running" and running.pid
    with pytest.raises(Refused, match="running"):
        client.tasks.wait(client.guests.delete(100))
    assert "TASK OK" in client.tasks.log(upid)

    # No daemon's restart touches the guest, or forgets it.
    n2 = lab.node("n2")
    n2.restart("agent")
    until(lambda: _answers(client), "n2's agent")
    again = client.guests.get(100)
    assert (again.state, again.pid) == (running.state, running.pid)
    beat_after(client, 100, count + 1)

    client.tasks.wait(client.guests.shutdown(100, timeout_s=60))
    assert state(client, 100) == "stopped"
    client.tasks.wait(client.guests.start(100))
    client.tasks.wait(client.guests.stop(100))
    client.tasks.wait(client.guests.delete(100))
    with pytest.raises(NotFound):
        client.guests.get(100)
    assert not list((n2.layout.disk / "var/lib/vz/images").glob("100/*"))
    assert "100" not in n1.run(["ls", "/etc/kvorum/nodes/n2/qemu-server"]).stdout


def test_a_container_lives_from_its_creation_to_its_end(lab: Lab, client: kvorum.Client) -> None:
    client.tasks.wait(
        client.guests.create(
            101,
            guest_pb2.GUEST_KIND_CONTAINER,
            {**BUSYBOX, "rootfs": "local:0.1"},
            node="n1",
            template=TEMPLATE,
            start=True,
        )
    )
    assert state(client, 101) == "running"
    until(lambda: client.guests.console_log(101), "the container's console")
    client.tasks.wait(client.guests.shutdown(101, timeout_s=60, force_stop=True))
    assert state(client, 101) == "stopped"
    client.tasks.wait(client.guests.delete(101))
    assert not list((lab.node("n1").layout.disk / "var/lib/vz/images").glob("101/*"))


def test_what_makes_no_guest_is_refused_and_leaves_nothing(lab: Lab, client: kvorum.Client) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.guests.create(103, guest_pb2.GUEST_KIND_VM, {"coers": "2"})
    assert caught.value.field == "coers"
    upid = client.guests.create(103, guest_pb2.GUEST_KIND_VM, {"scsi0": "local:0.01", "scsi1": "nowhere:1"})
    with pytest.raises(TaskFailed, match="nowhere"):
        client.tasks.wait(upid)
    with pytest.raises(NotFound):
        client.guests.get(103)
    assert not list((lab.node("n1").layout.disk / "var/lib/vz/images").glob("103/*"))
    client.tasks.wait(client.guests.create(103, guest_pb2.GUEST_KIND_VM, {"memory": "16"}, node="n1"))
    with pytest.raises(AlreadyExists):
        client.guests.create(103, guest_pb2.GUEST_KIND_VM, {"memory": "16"}, node="n2")
    client.tasks.wait(client.guests.delete(103))


def _answers(client: kvorum.Client) -> bool:
    try:
        return not client.guests.list().unreachable_nodes and state(client, 100) == "running"
    except KvorumError:
        return False
