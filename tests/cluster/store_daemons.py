"""Real kvorum-clusterfs processes on loopback addresses, as the agent would run them: what tests of the store share."""

import asyncio
import datetime
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clusterfs.client import StoreClient
from kvorum import errors
from kvorum.node import Identity, Pki, save_identity
from kvorum.v1 import replica_pb2


class Ca:
    """Signs node certificates as the agent does."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, pki: Pki, identity: Identity) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.UniformResourceIdentifier(f"kvorum://node/{identity.uid}"),
            x509.DNSName(identity.name),
            x509.DNSName(identity.uid),
            x509.IPAddress(ip_address(identity.address)),
        ]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]), key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        pki.directory.mkdir(parents=True, exist_ok=True)
        pki.ca.write_bytes(self.certificate.public_bytes(pem))
        pki.certificate.write_bytes(certificate.public_bytes(pem))
        pki.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        pki.key.chmod(0o600)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


class Node:
    def __init__(self, directory: Path, ca: Ca, name: str, address: str) -> None:
        self.identity = Identity(uid=str(uuid.uuid4()), name=name, address=address, cluster_name="test")
        self.ca = ca
        self.directory = directory / name
        self.mount = self.directory / "mnt"
        self.take(self.identity)
        self.client = StoreClient(self.directory / "run/clusterfs.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def take(self, identity: Identity) -> None:
        self.identity = identity
        save_identity(identity, self.directory / "state/node.json")
        self.ca.issue(Pki(self.directory / "state/pki"), identity)

    @property
    def member(self) -> replica_pb2.Member:
        return replica_pb2.Member(uid=self.identity.uid, name=self.identity.name, address=self.identity.address)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self) -> None:
        # Should the test run itself be killed, its daemons end and unmount.
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "clusterfs.main", "--mount", str(self.mount)]
        command += ["--state-dir", str(self.directory / "state"), "--run-dir", str(self.directory / "run")]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)

    async def is_up(self) -> bool:
        return not (await self.client.status()).active

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(timeout=60)

    def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(timeout=20)

    def clean(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.kill()
        subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True, timeout=10)


async def eventually(check: Callable[[], Awaitable[bool]], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            with suppress(errors.KvorumError, OSError):
                if await check():
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    """n1, n2, n3 in one cluster, each mounted and caught up."""
    ca = Ca()
    net = f"127.{random.randint(64, 250)}.{random.randint(1, 250)}"
    made = [Node(tmp_path, ca, f"n{number}", f"{net}.{number}") for number in (1, 2, 3)]
    try:
        for node in made:
            node.start()
        for node in made:
            await eventually(node.is_up)
        await made[0].client.activate([made[0].member], "test")
        for number, node in enumerate(made[1:], start=2):
            await join(made[0], node, made[:number])
        yield made
    finally:
        for node in made:
            await node.client.close()
            node.clean()
            if node.log:
                print(f"--- {node.identity.name}\n{node.log}")


async def join(through: Node, node: Node, members: list[Node]) -> None:
    """As the agent does it: the joining replica listens for the leader while the cluster takes it in."""
    await node.client.activate([member.member for member in members], "test")
    await through.client.add_member(node.member, deadline_s=30.0)

    async def is_ready() -> bool:
        status = await node.client.status()
        return status.ready and status.quorate and any(member.uid == node.identity.uid for member in status.members)

    await eventually(is_ready)


async def read_eventually(node: Node, path: str, content: bytes) -> None:
    async def is_there() -> bool:
        return await asyncio.to_thread((node.mount / path).read_bytes) == content

    await eventually(is_there)


async def write(path: Path, content: bytes) -> None:
    await asyncio.to_thread(path.write_bytes, content)
