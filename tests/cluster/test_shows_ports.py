"""What a stranger on the network finds at a node: the documented ports, and behind each a TLS handshake before anything else."""

import contextlib
import datetime
import json
import os
import secrets
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cluster.guest_lab import (
    BUSYBOX,
    PATIENCE_S,
    SHARED_TEMPLATE,
    beat_after,
    client_of,
    micro,
    migration_ports,
    state,
    until,
)
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

import kvorum
from agent.access.certificates import ANY_NODE, key_to_pem, make_authority, make_request, new_key, sign_node, sign_user
from clusterfs.raft.credentials import PROTOCOL as RAFT_PROTOCOL
from kvorum.client.credentials import Credentials
from kvorum.errors import Unreachable
from kvorum.node import AGENT_PORT, IDENTITY_FILE, MIGRATION_PORTS, RAFT_PORT, Pki, load_identity
from kvorum.v1 import guest_pb2
from lab.cluster import Lab
from lab.node import Node
from lab.relay import connect_inside, publish

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

DOCUMENTED = {AGENT_PORT, RAFT_PORT}
# Connects to every port there is; whatever does not refuse at once is open, or dropped, which nobody should do here.
SCAN = """
import errno, json, socket, sys
found = {}
for port in range(1, 65536):
    with socket.socket() as one:
        one.settimeout(5)
        try:
            answer = one.connect_ex((sys.argv[1], port))
        except TimeoutError:
            answer = errno.ETIMEDOUT
        if answer != errno.ECONNREFUSED:
            found[port] = answer
print(json.dumps(found))
"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PLAIN = {
    "HTTP2": PREFACE,
    "HTTP1": b"GET /api2/json/version HTTP/1.1\r\nHost: n1\r\n\r\n",
    "random": os.urandom(4096),
    "a record that is no handshake": b"\x16\x03\x01\xff\xff" + os.urandom(4096),
    "zeroes": b"\x00\x00\x00\x10" + bytes(1024),
    "SSH": b"SSH-2.0-x\r\n" * 100,
}
ALERT = 21
MIB = 2**20
LISTENING = "0A"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """On n1 a VM with a display and a container run."""
    with Lab(f"q{secrets.token_hex(3)}") as one:
        one.up(2)
        with client_of(one.node("n1")) as client:
            vm = micro("local", vga="std", net0="virtio,bridge=vmbr0")
            client.tasks.wait(client.guests.create(100, guest_pb2.GUEST_KIND_VM, vm, node="n1", start=True))
            box = {**BUSYBOX, "rootfs": "local:0.1"}
            client.tasks.wait(
                client.guests.create(
                    101, guest_pb2.GUEST_KIND_CONTAINER, box, node="n1", template=SHARED_TEMPLATE, start=True
                )
            )
            assert (state(client, 100), state(client, 101)) == ("running", "running")
        yield one
    assert one.leftovers() == []


@pytest.fixture(scope="module")
def credentials(lab: Lab) -> Credentials:
    """Of a user of the cluster."""
    node = lab.node("n1")
    node.run(["kvorum", "cluster", "credentials", "--out", "/root/admin.json"])
    return Credentials.load(node.path("/root/admin.json"))


def test_a_scan_from_another_node_finds_the_documented_ports_only(lab: Lab) -> None:
    n1, n2 = lab.nodes
    with client_of(n1) as client:
        assert client.guests.get(100).config["vga"] == "std"
    assert n1.path("/run/kvorum/vnc/100.sock").is_socket(), "the VM has a display"
    for scanner, scanned in ((n2, n1), (n1, n2)):
        found = json.loads(scanner.run(["python3", "-c", SCAN, scanned.address], timeout_s=120).stdout)
        assert found == {str(port): 0 for port in DOCUMENTED}, scanned.name


def test_nothing_listens_on_a_node_but_the_documented_ports(lab: Lab) -> None:
    """The node's own view: loopback and all addresses, and UDP, which no scan finds surely."""
    for node in lab.nodes:
        for table in ("tcp", "tcp6"):
            listening = {port for port, state in sockets(node, table) if state == LISTENING}
            assert listening <= DOCUMENTED, (node.name, table)
        for table in ("udp", "udp6", "udplite", "udplite6", "raw", "raw6"):
            assert sockets(node, table) == [], (node.name, table)


def sockets(node: Node, table: str) -> list[tuple[int, str]]:
    """(local port, state) of each socket in the node's network namespace."""
    path = node.path(f"/proc/1/net/{table}")
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [(int(line.split()[1].rpartition(":")[2], 16), line.split()[3]) for line in lines]


@pytest.mark.parametrize("port", sorted(DOCUMENTED))
@pytest.mark.parametrize("said", PLAIN.values(), ids=PLAIN.keys())
def test_plain_bytes_get_no_answer_but_an_alert_of_tls(lab: Lab, port: int, said: bytes) -> None:
    received = answer_to_plain(lab, port, said)
    assert is_alerts_only(received), received


def answer_to_plain(lab: Lab, port: int, said: bytes) -> bytes:
    with dial(lab, port) as connection:
        with contextlib.suppress(OSError):  # it may be through with us before we are
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
        return drain(connection)


def is_alerts_only(received: bytes) -> bool:
    while received:
        kind, _, length = struct.unpack_from("!BHH", received)
        if kind != ALERT:
            return False
        received = received[5 + length :]
    return True


@pytest.mark.parametrize("port", sorted(DOCUMENTED))
def test_without_a_certificate_of_the_cluster_no_byte_is_answered(
    lab: Lab, port: int, tmp_path: Path, credentials: Credentials
) -> None:
    assert talk(lab, port, context()) == b"", "without a certificate"
    for name, holder in foreign(lab).items():
        assert talk(lab, port, context(holder, tmp_path)) == b"", name
    older = context(credentials, tmp_path)
    older.minimum_version = older.maximum_version = ssl.TLSVersion.TLSv1_2
    assert talk(lab, port, older) == b"", "TLS 1.2"


def test_with_a_certificate_of_the_cluster_the_agent_answers(
    lab: Lab, tmp_path: Path, credentials: Credentials
) -> None:
    """The other side of the tests above: it is the certificate that makes the difference."""
    settings = talk(lab, AGENT_PORT, context(credentials, tmp_path), is_done=lambda said: len(said) >= 9)
    assert settings[3] == 4, "an HTTP/2 SETTINGS frame"


def test_a_user_of_the_cluster_is_no_member_of_its_consensus(
    lab: Lab, tmp_path: Path, credentials: Credentials
) -> None:
    assert talk(lab, RAFT_PORT, context(credentials, tmp_path)) == b""


def test_the_ports_of_a_migration_speak_tls_first_and_close_behind_it(
    lab: Lab, tmp_path: Path, credentials: Credentials
) -> None:
    """A VM comes to n1 with its disks, slowly; strangers knock meanwhile and do not disturb it."""
    n1, n2 = lab.nodes
    with client_of(n2) as client:
        vm = micro("local", scsi1="local:0.0235,format=raw")
        client.tasks.wait(client.guests.create(102, guest_pb2.GUEST_KIND_VM, vm, node="n2"))
        with (n2.layout.disk / "var/lib/vz/images/102/vm-102-disk-1.raw").open("r+b") as image:
            image.write(b"\x5a\xa5" * (12 * MIB))  # something to copy
        client.tasks.wait(client.guests.start(102))
        boot, count = beat_after(client, 102, 0)
        upid = client.guests.migrate(102, "n1", with_local_disks=True, bandwidth_limit=4 * MIB)
        until(lambda: client.tasks.get(upid).progress > 0.02, "the disks on their way")
        ports = migration_ports(n1)
        assert ports, "no port of the range is in use"
        for port in ports:
            for said in PLAIN.values():
                assert is_alerts_only(answer_to_plain(lab, port, said)), port
            strangers = {**foreign(lab), "a user of the cluster": credentials}
            for tls in (context(), *(context(holder, tmp_path) for holder in strangers.values())):
                assert talk(lab, port, tls) == b"", port
        assert not client.tasks.get(upid).end_time.seconds, "it was over before all had knocked"
        client.tasks.wait(upid)
        assert client.guests.get(102).node == "nodes/n1"
        assert beat_after(client, 102, count)[0] == boot
    assert not migration_ports(n1)


def test_the_port_on_which_qemu_takes_memory_speaks_tls_first(lab: Lab) -> None:
    """On shared storage QEMU listens itself, too briefly to look for it: a stranger knocks all the time."""
    n2 = lab.node("n2")
    answers: list[bytes] = []
    is_over = threading.Event()

    def knock() -> None:
        while not is_over.is_set():
            with contextlib.suppress(ConnectionError):
                answers.append(answer_to_plain(lab, MIGRATION_PORTS[0], PREFACE))

    with client_of(n2) as client:
        client.tasks.wait(client.guests.create(103, guest_pb2.GUEST_KIND_VM, micro("shared"), node="n2", start=True))
        boot, count = beat_after(client, 103, 0)
        stranger = threading.Thread(target=knock)
        stranger.start()
        try:
            client.tasks.wait(client.guests.migrate(103, "n1"))
        finally:
            is_over.set()
            stranger.join()
        assert client.guests.get(103).node == "nodes/n1"
        assert beat_after(client, 103, count)[0] == boot
    assert answers, "nobody answered the door"
    assert all(is_alerts_only(answer) for answer in answers)


def test_a_member_is_answered_where_a_user_is_not(lab: Lab) -> None:
    """Stands in for n2's config store, which would keep its own connection instead."""
    n2 = lab.node("n2")
    pki = Pki()
    n2.stop_unit("clusterfs")
    try:
        member = context()
        member.load_cert_chain(n2.path(pki.certificate), n2.path(pki.key))
        assert talk(lab, RAFT_PORT, member, said=b"", is_done=lambda said: len(said) >= 4) == bytes(4), "a hello"
    finally:
        n2.start_unit("clusterfs")


def test_over_grpc_a_certificate_of_another_authority_is_unreachable(lab: Lab, credentials: Credentials) -> None:
    address = publish(lab.node("n1").layout, AGENT_PORT).address
    with kvorum.connect(address, credentials=credentials) as client:
        assert len(client.cluster.nodes()) == 2
    for holder in foreign(lab).values():
        claimed = Credentials(ca=credentials.ca, certificate=holder.certificate, key=holder.key)
        with kvorum.connect(address, credentials=claimed) as client, pytest.raises(Unreachable):
            client.cluster.nodes()
    # Without any: the caller knows whom it trusts, and shows nothing.
    bare = grpc.ssl_channel_credentials(root_certificates=credentials.ca.encode())
    options = [("grpc.ssl_target_name_override", ANY_NODE)]
    with grpc.secure_channel(address, bare, options=options) as channel, pytest.raises(grpc.RpcError) as caught:
        HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def dial(lab: Lab, port: int) -> socket.socket:
    """From n2 to n1."""
    n1, n2 = lab.nodes
    return connect_inside(n2.pid, n1.address, port, timeout_s=PATIENCE_S)


def drain(connection: socket.socket, is_done: Callable[[bytes], bool] = lambda _: False) -> bytes:
    """All that comes until the other side is through with us, however it says so. Raises TimeoutError when it waits."""
    received = b""
    try:
        while not is_done(received) and (chunk := connection.recv(4096)):
            received += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    return received


def talk(
    lab: Lab,
    port: int,
    tls: ssl.SSLContext,
    *,
    said: bytes = PREFACE,
    is_done: Callable[[bytes], bool] = lambda _: False,
) -> bytes:
    """What comes back inside TLS."""
    with dial(lab, port) as plain:
        try:
            connection = tls.wrap_socket(plain)
        except (ConnectionError, ssl.SSLError):
            return b""
        with connection:
            try:
                connection.sendall(said)
            except (ConnectionError, ssl.SSLError):
                return b""
            return drain(connection, is_done)


def context(holder: Credentials | None = None, directory: Path | None = None) -> ssl.SSLContext:
    """A client that takes any server and shows the certificate of `holder`, if any."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    tls.set_alpn_protocols(["h2", RAFT_PROTOCOL])
    if holder is not None:
        assert directory is not None
        file = directory / "holder.pem"
        file.write_text(holder.certificate + holder.key)
        tls.load_cert_chain(file)
    return tls


def foreign(lab: Lab) -> dict[str, Credentials]:
    """Certificates that say all the right things, by an authority that has the cluster's name and not its key."""
    now = datetime.datetime.now(datetime.UTC)
    n2 = lab.node("n2")
    identity = load_identity(n2.path(IDENTITY_FILE))
    authority = make_authority(identity.cluster_name, now=now)
    key = new_key()
    request = make_request(key, "x")
    user = sign_user(request, authority, user="root@pam", ttl=datetime.timedelta(days=1), now=now)
    node = sign_node(request, authority, uid=identity.uid, name="n2", address=n2.address, now=now)
    return {
        kind: Credentials(
            ca=authority.certificate.decode(), certificate=certificate.decode(), key=key_to_pem(key).decode()
        )
        for kind, certificate in (("user", user), ("node", node))
    }
