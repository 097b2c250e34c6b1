"""A program elsewhere: the example client, health and reflection by credentials, JSON, and daemons that restart under a guest."""

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster.guest_lab import BUSYBOX, SHARED_TEMPLATE, beat_after, beats, client_of, micro, state, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvorum.client.connection import ANY_NODE
from kvorum.client.credentials import Credentials
from kvorum.errors import KvorumError
from kvorum.v1 import guest_pb2
from lab.cluster import Lab
from lab.node import Node

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "docs/examples/client.py"
PROGRAM = Path(sys.executable).parent / "kvorum"
SERVICES = {f"kvorum.v1.{name}Service" for name in ("Cluster", "Store", "Guest", "Task", "Ha")}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A micro VM on n1 and a container on n2, both stopped."""
    with Lab(f"q{secrets.token_hex(3)}") as one:
        one.up(2)
        with client_of(one.node("n1")) as client:
            client.tasks.wait(client.guests.create(100, guest_pb2.GUEST_KIND_VM, micro("local"), node="n1"))
            box = {**BUSYBOX, "rootfs": "local:0.1"}
            client.tasks.wait(
                client.guests.create(101, guest_pb2.GUEST_KIND_CONTAINER, box, node="n2", template=SHARED_TEMPLATE)
            )
        yield one
    assert one.leftovers() == []


@pytest.fixture(scope="module")
def address(lab: Lab) -> str:
    """Of n1's agent, on the machine's loopback; made by the command that people use."""
    words = [str(PROGRAM), "lab", "--name", lab.layout.name, "publish", "n1", "8005"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    host, _, port = done.stdout.strip().rpartition(":")
    assert host == "127.0.0.1" and port.isdigit()
    return done.stdout.strip()


@pytest.fixture(scope="module")
def credentials(lab: Lab, address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made on the node, carried out by hand."""
    n1 = lab.node("n1")
    n1.run(["kvorum", "cluster", "credentials", "--out", "/root/admin.json", "--address", address])
    inside = n1.path("/root/admin.json")
    assert inside.stat().st_mode & 0o777 == 0o600
    outside = tmp_path_factory.mktemp("credentials") / "admin.json"
    outside.write_bytes(inside.read_bytes())
    return outside


def example(credentials: Path) -> str:
    words = [sys.executable, str(EXAMPLE), "--credentials", str(credentials)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_lists_nodes_and_guests_and_starts_one_that_is_stopped(lab: Lab, credentials: Path) -> None:
    with client_of(lab.node("n1")) as client:
        for vmid in (100, 101):
            assert state(client, vmid) == "stopped"
        said = example(credentials)
        assert f"cluster {lab.layout.name}: quorate, leader nodes/" in said
        for node in lab.nodes:
            assert f"nodes/{node.name}  {node.address}" in said
        assert "guests/100  micro        stopped  on nodes/n1" in said
        assert "guests/101  box          stopped  on nodes/n2" in said
        assert said.endswith("guests/100 runs\n")
        assert (state(client, 100), state(client, 101)) == ("running", "stopped")

        # The next stopped one is on the node that was not called.
        assert example(credentials).endswith("guests/101 runs\n")
        assert state(client, 101) == "running"
        said = example(credentials)
        assert "guests/100  micro        running  on nodes/n1" in said
        assert said.endswith("no guest is stopped: nothing to start\n")


def test_the_example_says_what_is_wrong_with_its_credentials(tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLE), "--credentials", str(tmp_path / "none.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no credentials file")
    assert "kvorum cluster credentials" in done.stderr


def test_health_and_reflection_answer_who_has_credentials(credentials: Path) -> None:
    with contextlib.closing(channel_of(Credentials.load(credentials))) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="kvorum.v1.GuestService"),
        ]
        listed, described = reflection.ServerReflectionInfo(iter(asked), timeout=20)
        assert {service.name for service in listed.list_services_response.service} >= SERVICES
        assert described.file_descriptor_response.file_descriptor_proto


def channel_of(credentials: Credentials) -> grpc.Channel:
    """As any gRPC client would make it, without our library."""
    tls = grpc.ssl_channel_credentials(
        credentials.ca.encode(), credentials.key.encode(), credentials.certificate.encode()
    )
    return grpc.secure_channel(credentials.addresses[0], tls, options=[("grpc.ssl_target_name_override", ANY_NODE)])


def test_the_answers_for_programs_are_json(lab: Lab, credentials: Path) -> None:
    def ask(*words: str) -> Any:
        command = [str(PROGRAM), "--credentials", str(credentials), *words, "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    names = {f"nodes/{node.name}" for node in lab.nodes}
    status = ask("cluster", "status")
    assert status["quorate"] is True
    assert {node["name"] for node in status["nodes"]} == names
    assert {node["name"] for node in ask("node", "list")} == names
    assert {guest["vmid"] for guest in ask("guest", "list")["guests"]} == {100, 101}
    assert {guest["vmid"] for guest in ask("vm", "list")["guests"]} == {100}
    assert {guest["vmid"] for guest in ask("ct", "list")["guests"]} == {101}
    assert ask("vm", "status", "100")["display_name"] == "micro"
    assert {"qmcreate", "vzcreate"} <= {task["type"] for task in ask("task", "list")}
    assert "storage.cfg" in {entry["path"] for entry in ask("store", "list")}
    assert {node["name"] for node in ask("ha", "status")["nodes"]} == names


@pytest.mark.parametrize("where", ["n1", "n2"])
def test_no_restart_of_a_daemon_touches_a_guest(lab: Lab, where: str) -> None:
    """On n1 a VM, on n2 a container."""
    node = lab.node(where)
    vmid = 100 if where == "n1" else 101
    with client_of(node) as client:
        if state(client, vmid) == "stopped":
            client.tasks.wait(client.guests.start(vmid))
        before = client.guests.get(vmid)
        boot, _ = beat_after(client, vmid, 0)
    assert before.pid
    restarted = []
    for unit in [found["unit"] for found in node.units() if found["state"] != "missing"]:
        node.restart(unit)
        node.wait_ready([unit])
        after = until(lambda: look(node, vmid), f"{unit} of {where} is back")
        assert (after.pid, after.state) == (before.pid, guest_pb2.GUEST_STATE_RUNNING), unit
        restarted.append(unit)
    assert {"libvirtd", "kvorum-clusterfs", "kvorum-agent", "kvorum-keeper"} <= set(restarted)
    with client_of(node) as client:
        beat_after(client, vmid, beats(client, vmid)[-1][1])
        assert {of for of, _ in beats(client, vmid)} == {boot}, "it was never rebooted"


def look(node: Node, vmid: int) -> guest_pb2.Guest | None:
    """The guest, once the node knows again how it is."""
    try:
        with client_of(node) as client:
            found = client.guests.get(vmid)
    except KvorumError:
        return None
    return found if found.state != guest_pb2.GUEST_STATE_UNKNOWN else None
