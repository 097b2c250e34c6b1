"""Power cuts, frozen nodes, partitions, daemons that die: each does to a node what it says, and nothing to the others."""

import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from kvorum.errors import NotFound, Refused, Unreachable
from lab import relay
from lab.cluster import Lab
from lab.node import Node

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"power{secrets.token_hex(3)}") as one:
        one.up(3, join=False, images=False)
        yield one
    assert one.leftovers() == []


@pytest.fixture(autouse=True)
def all_well_again(lab: Lab) -> Iterator[None]:
    yield
    lab.heal()
    for node in lab.nodes:
        if not node.is_on:
            node.start()
        if node.is_frozen:
            node.thaw()


def reaches(sender: Node, receiver: Node) -> bool:
    """One of several frames: the first after a power cut may be lost to a stale neighbour entry."""
    done = sender.run(["busybox", "ping", "-c3", "-i0.2", "-W1", receiver.address], is_checked=False)
    return done.returncode == 0


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_power_cut_ends_everything_on_the_node_and_keeps_its_disk(lab: Lab) -> None:
    node = lab.node("n2")
    identity = node.run(["cat", "/etc/machine-id"]).stdout
    node.run(["tee", "/etc/changed", "/var/lib/kvorum/kept", "/run/lost"], stdin="x")
    orphan = node.popen(["setsid", "sleep", "1000"])
    node.kill()
    assert orphan.wait(timeout=10) != 0
    assert not node.is_on
    with pytest.raises(NotFound):
        node.run(["true"])
    assert not [one for one in lab.leftovers() if f"{node.layout.cgroup}" in one.what]
    node.start()
    assert node.run(["cat", "/etc/machine-id"]).stdout == identity
    assert node.run(["cat", "/etc/changed", "/var/lib/kvorum/kept"]).stdout == "xx"
    assert node.run(["test", "-e", "/run/lost"], is_checked=False).returncode == 1
    assert reaches(lab.node("n1"), node)


def test_a_node_has_one_power_switch_with_two_positions(lab: Lab) -> None:
    node = lab.node("n2")
    with pytest.raises(Refused):
        node.start()
    node.kill()
    node.kill()
    node.start()


def test_a_node_whose_init_died_by_itself_is_off_and_can_be_started(lab: Lab) -> None:
    node = lab.node("n2")
    from lab import processes

    noted = processes.recall(node.layout.record)
    assert noted is not None
    processes.kill(noted)
    assert not node.is_on
    node.start()
    assert reaches(node, lab.node("n1"))


def test_a_frozen_node_stands_still_and_goes_on_where_it_was(lab: Lab) -> None:
    node = lab.node("n3")
    script = "i=0; while :; do i=$((i+1)); echo $i > /run/beat; sleep 0.02; done"
    beating = node.popen(["sh", "-c", script])
    beat = node.path("/run/beat")

    def count() -> int:
        return int(beat.read_text().strip() or 0)

    wait_for(lambda: beat.exists() and count() > 0, "the first beat")
    node.freeze()
    seen = count()
    time.sleep(0.3)
    assert count() == seen
    assert lab.status()["nodes"][2]["state"] == "frozen"
    with pytest.raises(Unreachable):
        node.units()
    node.thaw()
    wait_for(lambda: count() > seen, "the next beat")
    node.kill()
    beating.wait(timeout=10)


def test_a_frozen_node_can_lose_its_power(lab: Lab) -> None:
    node = lab.node("n3")
    node.freeze()
    node.kill()
    assert not node.is_on
    node.start()
    assert not node.is_frozen


def test_a_node_cut_off_reaches_nobody_and_nobody_it(lab: Lab) -> None:
    n1, n2, n3 = lab.nodes
    lab.cut("n3")
    assert not reaches(n1, n3)
    assert not reaches(n3, n2)
    assert reaches(n1, n2)
    assert lab.status()["nodes"][2]["is_cut"]
    lab.heal("n3")
    assert reaches(n1, n3)


def test_a_pair_can_be_cut_and_a_power_cut_does_not_heal_it(lab: Lab) -> None:
    n1, n2, n3 = lab.nodes
    lab.cut("n1", "n3")
    n3.kill()
    n3.start()
    assert not reaches(n1, n3)
    assert reaches(n2, n3)
    lab.heal("n2")
    assert not reaches(n1, n3), "another node's healing"
    lab.heal("n1", "n3")
    assert reaches(n1, n3)


def test_healing_one_node_leaves_the_other_cut_off(lab: Lab) -> None:
    n1, n2, n3 = lab.nodes
    lab.cut("n2")
    lab.cut("n3")
    lab.heal("n3")
    assert reaches(n1, n3)
    assert not reaches(n1, n2)
    lab.heal()
    assert reaches(n1, n2)


def test_a_cut_one_way_loses_what_goes_that_way_only(lab: Lab) -> None:
    lab.cut_one_way("n1", "n2")
    isolated, cut = lab.switch.cuts()
    assert (isolated, cut) == (set(), {("p1", "p2")})


def test_a_published_port_leads_into_the_node_through_cuts_and_power_cuts(lab: Lab) -> None:
    node = lab.node("n1")
    server = [sys.executable, "-c", SERVER]
    first = node.popen(server)
    published = relay.publish(node.layout, 8005)
    assert relay.publish(node.layout, 8005) == published
    host, _, port = published.address.partition(":")
    assert host == "127.0.0.1"
    wait_for(lambda: talk(int(port)) == b"hello n1", "the server on the node")
    lab.cut("n1")
    assert talk(int(port)) == b"hello n1"
    node.kill()
    first.wait(timeout=10)
    assert talk(int(port)) == b""
    node.start()
    second = node.popen(server)
    wait_for(lambda: talk(int(port)) == b"hello n1", "the server on the node after its restart")
    relay.unpublish(node.layout, 8005)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)
    second.kill()
    second.wait(timeout=10)


# Bytes in, bytes out, until the other side has said all: shows half-closed connections too.
SERVER = """
import socket
listener = socket.create_server(("", 8005))
while True:
    connection, _ = listener.accept()
    with connection:
        while chunk := connection.recv(100):
            connection.sendall(chunk)
        connection.sendall(socket.gethostname().encode())
"""


def talk(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(b"hello ")
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(100), b""))
        except OSError:
            return b""


def test_a_daemon_that_dies_is_started_again_by_the_nodes_init(lab: Lab) -> None:
    node = lab.node("n1")
    node.wait_ready(["libvirtd"])
    before = node.unit("libvirtd")
    node.kill_unit("libvirtd")
    wait_for(lambda: node.unit("libvirtd")["starts"] > before["starts"], "the next start")
    node.wait_ready(["libvirtd"])
    assert "started" in node.log().read_text()


def test_restart_replaces_one_daemon_and_no_other(lab: Lab) -> None:
    node = lab.node("n1")
    node.wait_ready(["libvirtd"])
    pid, before = node.pid, node.unit("libvirtd")["pid"]
    node.restart("libvirtd")
    assert node.unit("libvirtd")["pid"] not in (0, before)
    assert node.pid == pid


def test_a_stopped_daemon_stays_down_until_it_is_started(lab: Lab) -> None:
    node = lab.node("n1")
    node.stop_unit("libvirtd")
    assert node.unit("libvirtd")["pid"] == 0
    node.start_unit("libvirtd")
    node.wait_ready(["libvirtd"])
