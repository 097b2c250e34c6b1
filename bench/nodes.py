"""Our side: kvorum-clusterfs daemons on loopback addresses, with certificates of a CA of their own and mounted each.

The real daemon, or `bench.hosted`, which is the same with a door for load. Whatever happens, none of them and none of their
mounts is left behind.
"""

import contextlib
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from agent.access import certificates
from bench.run import Broken, until
from kvorum.node import Identity, Pki, save_identity
from kvorum.v1 import replica_pb2, replica_pb2_grpc, store_pb2, store_pb2_grpc

DAEMON = "clusterfs.main"
HOSTED = "bench.hosted"
START_S = 20.0
JOIN_S = 60.0
CLUSTER_NAME = "bench"
OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # One connection for each channel, as different processes would have.
    ("grpc.use_local_subchannel_pool", 1),
]


class Node:
    def __init__(
        self, directory: Path, authority: certificates.Authority, name: str, address: str, module: str
    ) -> None:
        self.identity = Identity(uid=str(uuid.uuid4()), name=name, address=address, cluster_name=CLUSTER_NAME)
        self.directory = directory / name
        self.mount = self.directory / "mnt"
        self.socket = self.directory / "run/clusterfs.sock"
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self._channel: grpc.Channel | None = None
        save_identity(self.identity, self.directory / "state/node.json")
        _issue(Pki(self.directory / "state/pki"), authority, self.identity)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def uid(self) -> str:
        return self.identity.uid

    @property
    def member(self) -> replica_pb2.Member:
        return replica_pb2.Member(uid=self.uid, name=self.identity.name, address=self.identity.address)

    @property
    def log_file(self) -> Path:
        return self.directory / "log"

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self.socket}", options=OPTIONS)
        return self._channel

    @property
    def store(self) -> store_pb2_grpc.StoreServiceStub:
        return store_pb2_grpc.StoreServiceStub(self.channel)

    @property
    def replica(self) -> replica_pb2_grpc.ReplicaServiceStub:
        return replica_pb2_grpc.ReplicaServiceStub(self.channel)

    # Life

    def start(self) -> None:
        # Should the measurement be killed, its daemons end and unmount.
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", self._module, "--mount", str(self.mount)]
        command += ["--state-dir", str(self.directory / "state"), "--run-dir", str(self.directory / "run")]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        until(self._answers, timeout_s=START_S, what=f"the start of {self.identity.name} (see {self.log_file})")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise Broken(f"{self.identity.name} has ended:\n{self.log_file.read_text()[-2000:]}")
        return self.status() is not None

    def status(self) -> replica_pb2.GetReplicaStatusResponse | None:
        """None when it does not answer."""
        with contextlib.suppress(grpc.RpcError):
            return self.replica.GetReplicaStatus(replica_pb2.GetReplicaStatusRequest(), timeout=2.0)
        return None

    def is_ready(self) -> bool:
        status = self.status()
        return (
            status is not None
            and status.ready
            and status.quorate
            and any(member.uid == self.uid for member in status.members)
        )

    def activate(self, members: Sequence["Node"]) -> None:
        request = replica_pb2.ActivateReplicaRequest(
            members=[node.member for node in members], cluster_name=CLUSTER_NAME
        )
        self.replica.ActivateReplica(request, timeout=JOIN_S)

    def add(self, node: "Node") -> None:
        self.replica.AddMember(replica_pb2.AddMemberRequest(member=node.member), timeout=JOIN_S)

    def remove(self, node: "Node") -> None:
        self.replica.RemoveMember(replica_pb2.RemoveMemberRequest(uid=node.uid), timeout=JOIN_S)

    def write(self, path: str, content: bytes, *, timeout_s: float = 10.0, parents: bool = False) -> None:
        """Raises grpc.RpcError."""
        self.store.WriteEntry(
            store_pb2.WriteEntryRequest(path=path, content=content, parents=parents), timeout=timeout_s
        )

    def load(self, **order: float) -> Any:
        """What `bench.hosted` answers to an order."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise Broken(f"{self.identity.name} has ended:\n{self.log_file.read_text()[-2000:]}")
        return json.loads(answer)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)

    def clean(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self.kill()
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True, timeout=10)


class Cluster:
    """Nodes that are made one by one; the first founds, the others join as an agent lets them."""

    def __init__(self, directory: Path, *, module: str = DAEMON) -> None:
        self.directory = directory
        self.nodes: list[Node] = []
        self._module = module
        now = datetime.datetime.now(datetime.UTC)
        self._authority = certificates.make_authority(CLUSTER_NAME, now=now)
        # Several measurements at once do not meet: each has a network of its own within 127/8.
        self._net = f"127.{random.randint(64, 199)}.{random.randint(1, 250)}"  # noqa: S311

    def new(self, *, module: str | None = None) -> Node:
        number = len(self.nodes) + 1
        node = Node(self.directory, self._authority, f"n{number}", f"{self._net}.{number}", module or self._module)
        self.nodes.append(node)
        node.start()
        return node

    def join(self, node: Node) -> None:
        """Returns when the node says that it is ready."""
        leader = self.leader()
        node.activate(self.nodes)
        leader.add(node)
        until(node.is_ready, timeout_s=JOIN_S, what=f"{node.identity.name} getting ready")

    def leader(self) -> Node:
        """The node that all who answer take for the leader, once they agree."""
        found: Node | None = None

        def agree() -> bool:
            nonlocal found
            answers = [status for node in self.nodes if (status := node.status()) is not None and status.active]
            uids = {status.leader_uid for status in answers}
            found = next((node for node in self.nodes if {node.uid} == uids), None)
            return found is not None and all(status.quorate for status in answers)

        until(agree, timeout_s=30.0, what="agreement on a leader")
        assert found is not None
        return found

    def followers(self) -> list[Node]:
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]

    def clean(self) -> None:
        for node in self.nodes:
            node.clean()


@contextlib.contextmanager
def cluster(directory: Path, *, size: int = 3, module: str = DAEMON) -> Iterator[Cluster]:
    """A cluster in which everybody is ready."""
    made = Cluster(directory, module=module)
    try:
        first = made.new()
        first.activate([first])
        for _ in range(size - 1):
            made.join(made.new())
        yield made
    finally:
        made.clean()


def directory_request(path: str) -> store_pb2.WriteEntryRequest:
    return store_pb2.WriteEntryRequest(path=path, directory=True, parents=True)


def _issue(pki: Pki, authority: certificates.Authority, identity: Identity) -> None:
    key = certificates.new_key()
    pki.directory.mkdir(parents=True)
    pki.ca.write_bytes(authority.certificate)
    pki.certificate.write_bytes(
        certificates.sign_node(
            certificates.make_request(key, identity.name),
            authority,
            uid=identity.uid,
            name=identity.name,
            address=identity.address,
            now=datetime.datetime.now(datetime.UTC),
        )
    )
    pki.key.touch(mode=0o600)
    pki.key.write_bytes(certificates.key_to_pem(key))


def written_bytes(pid: int) -> int:
    """Bytes that a process has caused to be written to disks."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return int(value)
    raise Broken(f"/proc/{pid}/io says nothing of write_bytes")


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
