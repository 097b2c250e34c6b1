"""Who may speak: only nodes of our CA that are members, and nothing is read from anybody before that is certain."""

import contextlib
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from raft_cluster import Authority, Cluster, free_port, until

from clusterfs.raft import Address, TlsFiles
from clusterfs.raft.credentials import PROTOCOL
from clusterfs.raft.frames import FrameReader, FrameTooLong, frame
from clusterfs.raft.messages import AnyMessage, decode
from clusterfs.raft.transport import Fate


class Stranger:
    """A client of its own making."""

    def __init__(
        self, address: Address, tls: TlsFiles | None, *, protocol: str = PROTOCOL, version: ssl.TLSVersion | None = None
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        if version is not None:
            context.maximum_version = version
        if tls is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        self.sock = context.wrap_socket(socket.create_connection((address.host, address.port), timeout=5))

    def is_turned_away(self, data: bytes = b"") -> bool:
        """Said hello and `data`; was the answer a closed door, without a byte?"""
        try:
            self.sock.sendall(struct.pack(">I", 0) + data)
            return self.sock.recv(1) == b""
        except OSError:
            return True
        finally:
            self.sock.close()


@pytest.fixture
def single(cluster: Cluster) -> Address:
    (uid,) = cluster.found(1)
    cluster.leader()
    return cluster.addresses[uid]


def test_a_member_that_says_hello_is_answered(single: Address, cluster: Cluster) -> None:
    """So that the refusals below mean something."""
    friend = str(uuid.uuid4())
    (replica,) = cluster.replicas.values()
    replica.allow_peer(friend, Address("127.0.0.1", free_port()))
    tls = cluster.authority.node(friend)
    until(lambda: not Stranger(single, tls).is_turned_away(), what="a welcome")


@pytest.mark.parametrize("who", ["nobody", "another CA", "unknown node", "user", "two nodes"])
def test_whoever_is_no_member_cannot_speak(who: str, single: Address, cluster: Cluster, tmp_path: Path) -> None:
    ca, member = cluster.authority, next(iter(cluster.replicas))
    tls = {
        "nobody": lambda: None,
        "another CA": lambda: Authority(tmp_path / "other", "test").node(member),
        "unknown node": lambda: ca.node(str(uuid.uuid4())),
        "user": lambda: ca.issue("kvorum://user/root@pam"),
        "two nodes": lambda: ca.issue("kvorum://node/"),
    }[who]()
    try:
        stranger = Stranger(single, tls)
    except OSError:
        return
    assert stranger.is_turned_away(frame(b"\x81\xa4type\xa0"))


def test_an_older_tls_is_not_spoken(single: Address, cluster: Cluster) -> None:
    tls = cluster.authority.node(str(uuid.uuid4()))
    with pytest.raises(OSError, match=r"(?i)version|protocol|reset|eof"):
        Stranger(single, tls, version=ssl.TLSVersion.TLSv1_2)


def test_plain_bytes_get_no_answer_but_a_closed_door(single: Address) -> None:
    with socket.create_connection((single.host, single.port), timeout=5) as sock:
        sock.sendall(b"\x00\x00\x00\x05hello, replica")
        try:
            answer = sock.recv(1000)
        except ConnectionError:
            answer = b""
        # A TLS alert (content type 21) is the handshake's own no.
        assert answer == b"" or answer[0] == 21


def test_a_member_that_talks_nonsense_is_cut_off_and_the_replica_goes_on(single: Address, cluster: Cluster) -> None:
    friend = str(uuid.uuid4())
    (replica,) = cluster.replicas.values()
    replica.allow_peer(friend, Address("127.0.0.1", free_port()))
    tls = cluster.authority.node(friend)
    until(lambda: not Stranger(single, tls).is_turned_away(), what="a welcome")
    for nonsense in (frame(b"\x80\x04K\x01."), frame(msgspec.msgpack.encode({"type": "exec"})), b"\xff\xff\xff\xff"):
        stranger = Stranger(single, tls)
        stranger.sock.sendall(struct.pack(">I", 0) + nonsense)
        stranger.sock.settimeout(5)
        received = b""
        with pytest.MonkeyPatch.context():
            try:
                while chunk := stranger.sock.recv(1000):
                    received += chunk
            except ConnectionError:
                pass
        stranger.sock.close()
    assert replica.propose(b"still here", deadline_s=5) == 1


def test_a_server_with_another_nodes_certificate_is_not_believed(cluster: Cluster) -> None:
    """Somebody at n2's address who is not n2."""
    uids = sorted(str(uuid.uuid4()) for _ in range(2))
    cluster.founders = {uid: cluster.address(uid) for uid in uids}
    cluster.start(uids[0])
    impostor = str(uuid.uuid4())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls = cluster.authority.node(impostor)
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols([PROTOCOL])
    received = b""
    with socket.create_server((cluster.addresses[uids[1]].host, cluster.addresses[uids[1]].port)) as server:
        server.settimeout(10)
        sock, _ = server.accept()
        try:
            with context.wrap_socket(sock, server_side=True) as secured:
                secured.settimeout(5)
                secured.sendall(struct.pack(">I", 0))
                received = secured.recv(100)
        except OSError:
            pass
    assert received == b""
    assert cluster.replicas[uids[0]].status().members[uids[1]] is False


def test_a_replica_listens_on_its_own_address_only(single: Address) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", single.port), timeout=2)


def test_a_connection_that_breaks_comes_back_by_itself(cluster: Cluster) -> None:
    first, second = cluster.found(2)
    cluster.leader()
    transport = cluster.replicas[first]._transport
    assert transport is not None
    for _ in range(3):
        link = transport._up[second]
        assert link._tls is not None
        with contextlib.suppress(OSError):  # both sides may have dialled, and this link just lost against the other
            link._tls.shutdown(socket.SHUT_RDWR)
        until(lambda old=link: transport._up.get(second, old) is not old, timeout_s=10)
    until(lambda: all(cluster.replicas[first].status().members.values()), timeout_s=10)


def test_a_link_that_has_fallen_silent_is_replaced_long_before_it_is_given_up(cluster: Cluster) -> None:
    """As after a cut of the network, when TCP waits for longer and longer before it sends again."""
    cluster.with_options(link_timeout_s=60.0, keepalive_s=0.1)
    first, second = cluster.found(2)
    cluster.leader()
    ends = []
    for one, other in ((first, second), (second, first)):
        transport = cluster.replicas[one]._transport
        assert transport is not None
        ends.append((transport, other, transport._up[other]))
        # Neither side hears the other on it any more, and neither closes it.
        transport._epoll.modify(transport._up[other].fileno(), 0)
    for transport, other, silent in ends:
        until(lambda t=transport, o=other, s=silent: t._up.get(o, s) is not s, timeout_s=15, what="another link")
    cluster.replicas[cluster.leader()].propose(b"x", deadline_s=5)


def test_a_link_that_only_the_higher_one_finds_silent_is_replaced_and_not_lost(cluster: Cluster) -> None:
    """After a cut TCP may carry one direction again long before the other."""
    cluster.with_options(link_timeout_s=60.0, keepalive_s=0.1)
    low, high = sorted(cluster.found(2))
    cluster.leader()
    lower, higher = (cluster.replicas[uid]._transport for uid in (low, high))
    assert lower is not None and higher is not None
    dial = higher._dial
    # Of the links that may be, the one that the lower one has dialled.
    higher._dial = lambda *_: None  # type: ignore[method-assign]
    while not (low in higher._up and high in lower._up and lower._up[high].is_dialled):
        if high in lower._up and (tls := lower._up[high]._tls) is not None and not lower._up[high].is_dialled:
            with contextlib.suppress(OSError):
                tls.shutdown(socket.SHUT_RDWR)
        time.sleep(0.05)
    time.sleep(0.5)
    told: list[object] = []
    for one in (lower, higher):

        def put(uid: str, item: AnyMessage | Fate, size: int, tell: Callable[..., None] = one._put) -> None:
            told.append(item)
            tell(uid, item, size)

        one._put = put  # type: ignore[method-assign]
    higher._dial = dial  # type: ignore[method-assign]
    silent = higher._up[low]
    higher._epoll.modify(silent.fileno(), 0)
    until(lambda: higher._up.get(low, silent) is not silent, timeout_s=15, what="another link")
    until(lambda: not lower._up[high].is_dialled, timeout_s=15, what="another link of the lower one's")
    assert Fate.closed not in told
    cluster.replicas[cluster.leader()].propose(b"x", deadline_s=5)


def test_links_live_on_while_the_raft_thread_is_busy(cluster: Cluster) -> None:
    """As when it loads a snapshot: the stand-in keeps them alive, for several times the silence that would end them."""
    silence_s = 0.8
    cluster.with_options(link_timeout_s=silence_s, keepalive_s=0.1)
    cluster.found(3)
    leader, busy = cluster.leader(), cluster.follower()
    transport, consensus = cluster.replicas[leader]._transport, cluster.replicas[busy]._consensus
    assert transport is not None and consensus is not None
    is_over = threading.Event()
    begin, link = transport._now(), transport._up[busy]
    consensus.call_soon(lambda: is_over.wait(60) and None)
    try:
        until(lambda: (transport.heard_at(busy) or 0.0) > begin + 3 * silence_s, what="a sign of life")
        assert transport._up[busy] is link
    finally:
        is_over.set()


def test_an_oversized_frame_is_refused_from_its_length_alone() -> None:
    with pytest.raises(FrameTooLong):
        FrameReader(1000).feed(struct.pack(">I", 1001))


def test_frames_arrive_whole_however_they_are_cut() -> None:
    payloads = [b"a", b"b" * 300, b"c" * 7]
    stream = b"".join(map(frame, payloads)) + struct.pack(">I", 0)
    for size in (1, 2, 3, 5, 64, 1000):
        reader = FrameReader(1000)
        found = [p for start in range(0, len(stream), size) for p in reader.feed(stream[start : start + size])]
        assert found == [*payloads, b""]


@pytest.mark.parametrize(
    "payload", [b"", b"\x80", b"\x90", msgspec.msgpack.encode({"type": "forward", "commands": "x"})]
)
def test_only_our_messages_decode(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(payload)


def test_what_goes_over_the_wire_is_msgpack_and_no_pickle(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every payload of a cluster's life decodes as msgpack, and none is a pickle."""
    import pickletools

    from clusterfs.raft import transport

    sent: list[bytes] = []

    def recording(payload: bytes) -> bytes:
        sent.append(payload)
        return frame(payload)

    monkeypatch.setattr(transport, "frame", recording)
    cluster.found(3)
    follower = cluster.follower()
    cluster.replicas[follower].propose(b"x", deadline_s=5)
    newcomer = str(uuid.uuid4())
    cluster.start(newcomer, joining=True)
    cluster.replicas[follower].add_member(newcomer, cluster.address(newcomer), deadline_s=10)
    kinds = {msgspec.msgpack.decode(payload)["type"] for payload in sent}
    assert {"append_entries", "append_reply", "forward", "forwarded", "request_vote", "change_member"} <= kinds
    for payload in sent:
        with pytest.raises(Exception):  # noqa: B017
            list(pickletools.genops(payload))
    for path in cluster.directory.rglob("*"):
        if path.is_file() and path.name in ("log", "snapshot"):
            assert b"pysyncobj" not in path.read_bytes().lower() and b"\x80\x02" not in path.read_bytes()[:2]
