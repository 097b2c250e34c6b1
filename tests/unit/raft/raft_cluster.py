"""Replicas on the loopback with certificates of their own CA: what the raft tests and the measurement share."""

import datetime
import ipaddress
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clusterfs.raft import Address, Options, Replica, Status, TlsFiles

FAST = Options(election_timeout_min_s=0.4, election_timeout_max_s=0.8, heartbeat_s=0.08, tick_s=0.03)


class Authority:
    """A CA that issues certificates into a directory."""

    def __init__(self, directory: Path, name: str = "test") -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        self.path = directory / "ca.pem"
        self.path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, uri: str, *, ca: Path | None = None) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri[-36:])])
        names = [x509.UniformResourceIdentifier(uri), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            self._builder(name, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        stem = self._directory / uuid.uuid4().hex
        certificate, secret = stem.with_suffix(".pem"), stem.with_suffix(".key")
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return TlsFiles(ca or self.path, certificate, secret)

    def node(self, uid: str) -> TlsFiles:
        return self.issue(f"kvorum://node/{uid}")

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_encipherment=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class ListMachine:
    """Remembers what was applied, in order, as text; answers with its position. `bad` raises, as a faulty machine would."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.indices: list[int] = []
        self.changed = threading.Condition()

    def apply(self, index: int, entry: bytes) -> object:
        assert not self.indices or index > self.indices[-1]
        if entry.startswith(b"bad"):
            raise ValueError("a faulty machine")
        with self.changed:
            self.entries.append(entry.decode())
            self.indices.append(index)
            self.changed.notify_all()
        return len(self.entries)

    def settled(self) -> None:
        """Nobody watches."""

    def snapshot(self) -> Callable[[], Iterable[bytes]]:
        entries = list(self.entries)
        return lambda: [json.dumps(entries[start : start + 1000]).encode() for start in range(0, len(entries), 1000)]

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        with self.changed:
            self.entries = [entry for chunk in chunks for entry in json.loads(chunk)]
            self.indices = [index]
            self.changed.notify_all()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(condition: Callable[[], bool], *, timeout_s: float = 15.0, what: str = "it") -> float:
    """Wait for something that other threads bring about; the seconds it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout_s, f"{what} did not happen in {timeout_s} s"
        time.sleep(0.01)
    return time.monotonic() - begin


@dataclass
class Cluster:
    directory: Path
    authority: Authority
    options: Options = FAST
    addresses: dict[str, Address] = field(default_factory=dict)
    founders: dict[str, Address] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    machines: dict[str, ListMachine] = field(default_factory=dict)
    changes: dict[str, list[Status]] = field(default_factory=dict)
    tls: dict[str, TlsFiles] = field(default_factory=dict)

    def found(self, size: int) -> list[str]:
        uids = sorted(str(uuid.uuid4()) for _ in range(size))
        self.founders = {uid: self.address(uid) for uid in uids}
        for uid in uids:
            self.start(uid)
        return uids

    def address(self, uid: str) -> Address:
        return self.addresses.setdefault(uid, Address("127.0.0.1", free_port()))

    def start(self, uid: str, *, joining: bool = False, tls: TlsFiles | None = None, epoch: int = 0) -> Replica:
        machine = self.machines[uid] = ListMachine()
        changes = self.changes.setdefault(uid, [])
        replica = Replica(
            uid=uid,
            members=self.founders,
            directory=self.directory / uid,
            machine=machine,
            tls=tls or self.tls.setdefault(uid, self.authority.node(uid)),
            bind=self.address(uid),
            stamp=lambda entry: entry,
            joining=joining,
            epoch=epoch,
            options=self.options,
            on_change=changes.append,
        )
        replica.start()
        self.replicas[uid] = replica
        return replica

    def crash(self, uid: str) -> None:
        self.replicas.pop(uid).abandon()

    def stop_all(self) -> None:
        for replica in self.replicas.values():
            replica.abandon()
        self.replicas.clear()

    def leader(self) -> str:
        """The uid of the leader that all running replicas agree on, once they do."""
        found: set[str | None] = set()

        def agree() -> bool:
            nonlocal found
            states = [replica.status() for replica in self.replicas.values()]
            found = {state.leader for state in states}
            return len(found) == 1 and None not in found and all(state.is_quorate for state in states)

        until(agree, what="agreement on a leader")
        leader = found.pop()
        assert leader is not None
        return leader

    def follower(self) -> str:
        leader = self.leader()
        return next(uid for uid in sorted(self.replicas) if uid != leader)

    def settled(self, entries: list[str], *, timeout_s: float = 15.0) -> None:
        """Every running replica has applied exactly these."""
        for uid in self.replicas:
            machine = self.machines[uid]
            until(lambda m=machine: m.entries == entries, timeout_s=timeout_s, what=f"{len(entries)} entries")

    def with_options(self, **changes: float) -> None:
        self.options = replace(self.options, **changes)
