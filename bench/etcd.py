"""The peer: three etcd servers from Debian on loopback addresses, durable as they come, and the few calls that are measured.

The messages are put together by hand: a handful of fields by number, and no generated code. Between its nodes etcd speaks
plain HTTP here; ours speak mutual TLS.
"""

import contextlib
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio

from bench.run import Broken, until

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
STATUS = "/etcdserverpb.Maintenance/Status"
_VARINT, _BYTES = 0, 2
# Of a status answer, and of the header within it.
_HEADER, _LEADER, _HEADER_MEMBER = 1, 4, 2

OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def fields(message: bytes) -> dict[int, int | bytes]:
    """The last value of each field, varints and lengths only: all that etcd's answers to us have."""
    found: dict[int, int | bytes] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == _VARINT:
            found[tag >> 3] = number()
        elif tag & 7 == _BYTES:
            length = number()
            found[tag >> 3] = message[at : at + length]
            at += length
        else:
            raise Broken(f"etcd answers with a field of kind {tag & 7}")
    return found


def put(key: bytes, value: bytes) -> bytes:
    """A PutRequest: key is field 1, value is field 2."""
    return b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value


def get(key: bytes, *, serializable: bool) -> bytes:
    """A RangeRequest for one key: serializable is field 7."""
    return b"\x0a" + varint(len(key)) + key + (b"\x38\x01" if serializable else b"")


class Server:
    def __init__(self, directory: Path, name: str, address: str, initial_cluster: str) -> None:
        self.name = name
        self.target = f"{address}:2379"
        self._log = directory / f"{name}.log"
        self._command = [
            *("setpriv", "--pdeathsig", "KILL", "etcd", "--name", name, "--data-dir", str(directory / name)),
            *("--listen-client-urls", f"http://{address}:2379", "--advertise-client-urls", f"http://{address}:2379"),
            *(
                "--listen-peer-urls",
                f"http://{address}:2380",
                "--initial-advertise-peer-urls",
                f"http://{address}:2380",
            ),
            *("--initial-cluster", initial_cluster, "--logger", "zap", "--log-level", "warn"),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.channel = grpc.insecure_channel(self.target, options=OPTIONS)
        self.put: Callable[..., bytes] = self.channel.unary_unary(PUT)
        self.range: Callable[..., bytes] = self.channel.unary_unary(RANGE)
        self._status: Callable[..., bytes] = self.channel.unary_unary(STATUS)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def seen(self) -> tuple[int, int] | None:
        """Its own id and that of its leader; None when it does not answer or knows none."""
        with contextlib.suppress(grpc.RpcError):
            answer = fields(self._status(b"", timeout=1.0))
            header, leader = answer.get(_HEADER), answer.get(_LEADER, 0)
            assert isinstance(header, bytes)
            own = fields(header)[_HEADER_MEMBER]
            assert isinstance(own, int)
            assert isinstance(leader, int)
            return (own, leader) if leader else None
        return None

    def is_up(self) -> bool:
        return self.seen() is not None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)

    def clean(self) -> None:
        self.channel.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()


class Cluster:
    def __init__(self, directory: Path) -> None:
        if shutil.which("etcd") is None:
            raise Broken("there is no etcd: run 'tools/system-setup bench'")
        directory.mkdir(parents=True)
        net = f"127.{random.randint(200, 250)}.{random.randint(1, 250)}"  # noqa: S311
        names = {f"e{number}": f"{net}.{number}" for number in (1, 2, 3)}
        initial = ",".join(f"{name}=http://{address}:2380" for name, address in names.items())
        self.servers = [Server(directory, name, address, initial) for name, address in names.items()]

    def leader(self) -> Server:
        """The server that all who answer take for the leader, once they agree."""
        found: Server | None = None

        def agree() -> bool:
            nonlocal found
            seen = {server: ids for server in self.servers if (ids := server.seen()) is not None}
            leaders = {leader for _own, leader in seen.values()}
            found = next((server for server, (own, _leader) in seen.items() if {own} == leaders), None)
            return found is not None

        until(agree, timeout_s=30.0, what="agreement on a leader of etcd", every_s=0.1)
        assert found is not None
        return found

    def followers(self) -> list[Server]:
        leader = self.leader()
        return [server for server in self.servers if server is not leader]


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    made = Cluster(directory)
    try:
        for server in made.servers:
            server.start()
        made.leader()
        yield made
    finally:
        for server in made.servers:
            server.clean()
