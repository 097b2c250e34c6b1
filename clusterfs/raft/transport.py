"""Messages between replicas over TCP and mutual TLS, by one I/O thread of its own.

The raft thread puts messages into bounded queues and never waits; what comes in is decoded here and handed to it with a wake-up
at once. Both sides of a pair dial, because addresses change; the pair keeps one link. Who may be a peer is told by
consensus (`set_peers`); everybody else is cut off after the handshake, unread.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from pysyncobj.node import Node
from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from .credentials import Credentials
from .exchange import Exchange, Outgoing
from .frames import HELLO, epoch_of, frame
from .link import READ, Link, LinkFailed, Stage
from .messages import AnyMessage, decode, encode
from .values import Address, Options

log = logging.getLogger(__name__)

_MAX_STRANGERS = 64
# Who was turned away is logged once in this many seconds.
_LOG_AGAIN_S = 30.0
_REDIAL_MAX_S = 2.0
_PAUSE_BYTES = 32 * 2**20


@dataclass(slots=True)
class Peer:
    """The I/O thread's view of one other replica."""

    addresses: tuple[Address, ...]
    link: Link | None = None
    dialling: Link | None = None
    dial_at: float = 0.0
    dials: int = 0
    refusals: int = 0


@dataclass(slots=True)
class Inbox:
    """From the I/O thread to the raft thread, in order: (uid, message), or (uid, True/False) for a link up or down."""

    items: deque[tuple[str, AnyMessage | bool, int]] = field(default_factory=deque)
    size_bytes: int = 0


class TlsTransport(Exchange):
    def __init__(
        self, *, uid: str, bind: Address, credentials: Credentials, options: Options, clock: Callable[[], float]
    ) -> None:
        """Binds at once. Raises OSError."""
        super().__init__()
        self._uid = uid
        self._bind = bind
        self._credentials = credentials
        self._options = options
        self._now = clock
        self._peers: dict[str, Peer] = {}
        self._links: dict[int, Link] = {}
        self._inbox = Inbox()
        self._outbox: deque[tuple[str, bytes]] = deque()
        # Written by the I/O thread, read by others; entries are replaced whole.
        self._up: dict[str, Link] = {}
        self._wanted_peers: Mapping[str, Sequence[Address]] | None = None
        self._is_stopping = False
        self._logged: dict[str, float] = {}
        self._paused: set[Link] = set()
        self._epoll = select.epoll()
        self._io_wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._raft_wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Closed with the last reference: a thread that rings late must not write into somebody else's file.
        weakref.finalize(self, _close, self._io_wake, self._raft_wake)
        self._listener = _listen(bind)
        self._epoll.register(self._listener.fileno(), READ)
        self._epoll.register(self._io_wake, READ)
        self._thread = threading.Thread(target=self._run, name="raft-io", daemon=True)

    # The raft thread's side.

    def attach(self, poller: Poller) -> None:
        """Wake the raft thread's poll from now on, and start."""
        poller.subscribe(self._raft_wake, self._deliver, POLL_EVENT_TYPE.READ)
        self._thread.start()

    def wake(self) -> None:
        _ring(self._raft_wake)

    def transmit(self, uid: str, message: Outgoing) -> bool:
        link = self._up.get(uid)
        if link is None:
            return False
        payload = encode(message)
        if len(payload) > self._options.max_frame_bytes:
            log.error("a message of %d bytes to %s is over the limit and not sent", len(payload), uid)
            return False
        if link.queued_bytes + len(payload) > self._options.queue_bytes:
            return False
        self._outbox.append((uid, frame(payload)))
        _ring(self._io_wake)
        return True

    def backlog_bytes(self, uid: str) -> int:
        link = self._up.get(uid)
        return link.queued_bytes if link is not None else 0

    def heard_at(self, uid: str) -> float | None:
        link = self._up.get(uid)
        return link.heard_at if link is not None else None

    def set_peers(self, peers: Mapping[str, Sequence[Address]]) -> None:
        self._wanted_peers = dict(peers)
        _ring(self._io_wake)

    def _deliver(self, _descriptor: int, _events: int) -> None:
        _drain(self._raft_wake)
        items = self._inbox.items
        for _ in range(len(items)):
            uid, item, size = items.popleft()
            self._inbox.size_bytes -= size
            if item is True:
                self._onNodeConnected(Node(uid))
            elif item is False:
                self._onNodeDisconnected(Node(uid))
            else:
                self._onMessageReceived(Node(uid), item)
        if self._paused:
            _ring(self._io_wake)

    def destroy(self) -> None:
        """pysyncobj's word for stopping; safe to repeat."""
        if self._is_stopping:
            return
        self._is_stopping = True
        _ring(self._io_wake)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5.0)
        for link in [*self._links.values()]:
            link.close()
        self._listener.close()
        self._epoll.close()

    # The I/O thread's side.

    def _run(self) -> None:
        period = min(self._options.redial_s, self._options.keepalive_s) / 2
        while not self._is_stopping:
            try:
                self._round(period)
            except Exception:
                # One peer's trouble, or our own fault: the others' links must live.
                log.exception("raft I/O")

    def _round(self, period: float) -> None:
        is_more = any(link.has_more and not link.is_paused for link in self._links.values())
        events = self._epoll.poll(0.0 if is_more else period)
        now = self._now()
        for descriptor, mask in events:
            if descriptor == self._io_wake:
                _drain(self._io_wake)
            elif descriptor == self._listener.fileno():
                self._accept(now)
            elif (link := self._links.get(descriptor)) is not None:
                self._advance(link, mask, now)
        for link in [link for link in self._links.values() if link.has_more and not link.is_paused]:
            self._advance(link, READ, now)
        if self._wanted_peers is not None:
            self._take_peers()
        self._take_outbox(now)
        self._resume()
        self._look_after(now)

    def _take_peers(self) -> None:
        wanted, self._wanted_peers = self._wanted_peers, None
        assert wanted is not None
        for uid in [uid for uid in self._peers if uid not in wanted]:
            peer = self._peers.pop(uid)
            for link in (peer.link, peer.dialling):
                if link is not None:
                    self._drop(link, peer)
        for uid, addresses in wanted.items():
            self._peers.setdefault(uid, Peer(())).addresses = tuple(addresses)

    def _take_outbox(self, now: float) -> None:
        touched: dict[int, Link] = {}
        while self._outbox:
            uid, data = self._outbox.popleft()
            link = self._up.get(uid)
            if link is not None:
                link.queue(data)
                touched[link.fileno()] = link
        for link in touched.values():
            self._advance(link, 0, now)

    def _resume(self) -> None:
        """Read again from those who were told to wait, once the raft thread has caught up."""
        if self._paused and self._inbox.size_bytes < _PAUSE_BYTES // 2:
            for link in self._paused:
                link.is_paused = False
                self._watch(link)
            self._paused.clear()

    def _look_after(self, now: float) -> None:
        """Deadlines, keepalives and dialling."""
        for link in list(self._links.values()):
            if link.stage is not Stage.up:
                if now > link.deadline:
                    self._fail(link, LinkFailed(f"no answer ({link.stage.name})"), now)
            elif now - link.heard_at > self._options.link_timeout_s and not link.is_paused:
                self._fail(link, LinkFailed("silent for too long"), now)
            elif now - link.sent_at > self._options.keepalive_s and not link.queued_bytes:
                link.queue(HELLO)
                self._advance(link, 0, now)
        for uid, peer in self._peers.items():
            if peer.link is None and peer.dialling is None and peer.addresses and now >= peer.dial_at:
                self._dial(uid, peer, now)

    def _dial(self, uid: str, peer: Peer, now: float) -> None:
        address = peer.addresses[peer.dials % len(peer.addresses)]
        peer.dials += 1
        self._plan_dial(uid, peer, now)
        source = self._bind.host if self._bind.host not in ("", "0.0.0.0", "::") else ""  # noqa: S104
        try:
            link = Link.dial(address, self._credentials, self._options, uid=uid, source=source, now=now)
        except OSError as error:
            self._say(uid, logging.INFO, f"cannot dial {uid} at {address.host}: {error}", now)
            return
        peer.dialling = link
        self._links[link.fileno()] = link
        self._epoll.register(link.fileno(), link.interest)

    def _plan_dial(self, uid: str, peer: Peer, now: float) -> None:
        """The pair should not dial at the same moment, and one that turns us away not be asked all the time."""
        pause = min(self._options.redial_s * 2**peer.refusals, _REDIAL_MAX_S)
        peer.dial_at = now + pause * (1.0 if self._uid < uid else 1.7)

    def _accept(self, now: float) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("cannot accept: %s", error)
                return
            if sum(link.uid is None for link in self._links.values()) >= _MAX_STRANGERS:
                sock.close()
                self._say("", logging.WARNING, f"too many handshakes at once; {address[0]} is turned away", now)
                continue
            try:
                link = Link(sock, self._credentials, self._options, uid=None, now=now)
            except OSError as error:
                sock.close()
                self._say(str(address[0]), logging.INFO, f"{address[0]}: {error}", now)
                continue
            self._links[link.fileno()] = link
            self._epoll.register(link.fileno(), link.interest)

    def _advance(self, link: Link, events: int, now: float) -> None:
        if self._links.get(link.fileno()) is not link:
            return
        try:
            was_shaking = link.stage in (Stage.connecting, Stage.handshake)
            payloads = link.advance(events, now)
            if was_shaking and link.stage is Stage.hello:
                self._require_peer(link)
                link.greet(self.epoch)
                payloads = link.advance(READ, now)
            for payload in payloads:
                self._receive(link, payload, now)
        except LinkFailed as error:
            self._fail(link, error, now)
        except (ValueError, msgspec.DecodeError) as error:
            self._fail(link, LinkFailed(f"it sends nonsense: {error}", is_refusal=True), now)
        else:
            if self._links.get(link.fileno()) is link:
                self._watch(link)

    def _require_peer(self, link: Link) -> None:
        if link.uid not in self._peers:
            raise LinkFailed(f"node {link.uid} is no member", is_refusal=True)

    def _receive(self, link: Link, payload: bytes, now: float) -> None:
        if link.stage is Stage.hello:
            self._require_epoch(link, payload)
            self._bring_up(link, now)
            return
        if payload and link.stage is Stage.up:
            assert link.uid is not None
            self._put(link.uid, decode(payload), len(payload))
            if self._inbox.size_bytes > _PAUSE_BYTES:
                link.is_paused = True
                self._paused.add(link)

    def _require_epoch(self, link: Link, payload: bytes) -> None:
        """The first frame says hello. Of two epochs the lower one is over: not a word of it is taken."""
        epoch = epoch_of(payload)
        if epoch is None:
            raise LinkFailed("it does not say hello", is_refusal=True)
        if epoch > self.epoch:
            assert link.uid is not None
            self.superseded_by = (link.uid, epoch)
            _ring(self._raft_wake)
            raise LinkFailed(f"it is of epoch {epoch} and we are of epoch {self.epoch}", is_refusal=True)
        if epoch < self.epoch:
            raise LinkFailed(
                f"it is of epoch {epoch} and this cluster was recovered as epoch {self.epoch}: "
                "run 'kvorum cluster rejoin' on it",
                is_refusal=True,
            )

    def _bring_up(self, link: Link, now: float) -> None:
        """Of two links the one stays that the lower uid dialled; of two in one direction the newer, for the other is dead."""
        uid = link.uid
        assert uid is not None
        peer = self._peers[uid]
        old = peer.link
        if old is not None:
            dialler, old_dialler = (self._uid if one.is_dialled else uid for one in (link, old))
            if dialler > old_dialler and now - old.heard_at < self._options.keepalive_s * 2:
                raise LinkFailed("there is a link already")
            self._drop(old, peer)
        if peer.dialling is link:
            peer.dialling = None
        link.stage = Stage.up
        peer.link, peer.refusals = link, 0
        self._up = {**self._up, uid: link}
        self._put(uid, True, 0)
        log.info("%s is connected", uid)

    def _put(self, uid: str, item: AnyMessage | bool, size: int) -> None:
        self._inbox.size_bytes += size
        self._inbox.items.append((uid, item, size))
        _ring(self._raft_wake)

    def _fail(self, link: Link, error: LinkFailed, now: float) -> None:
        peer = self._peers.get(link.uid or "")
        if peer is not None:
            if error.is_refusal or link.stage is Stage.hello:
                peer.refusals += 1
            self._plan_dial(link.uid or "", peer, now)
        who = link.uid or "a stranger"
        self._say(who, logging.WARNING if error.is_refusal else logging.INFO, f"{who} is cut off: {error}", now)
        self._drop(link, peer)

    def _drop(self, link: Link, peer: Peer | None) -> None:
        if self._links.pop(link.fileno(), None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(link.fileno())
        link.close()
        self._paused.discard(link)
        if peer is not None and peer.dialling is link:
            peer.dialling = None
        if peer is not None and peer.link is link:
            peer.link = None
            assert link.uid is not None
            self._up = {uid: one for uid, one in self._up.items() if one is not link}
            self._put(link.uid, False, 0)

    def _watch(self, link: Link) -> None:
        self._epoll.modify(link.fileno(), link.interest)

    def _say(self, about: str, level: int, text: str, now: float) -> None:
        if now - self._logged.get(about, float("-inf")) > _LOG_AGAIN_S:
            self._logged[about] = now
            if len(self._logged) > 1000:
                self._logged.clear()
            log.log(level, "%s", text)


def _listen(address: Address) -> socket.socket:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    family, kind, protocol, _, target = found[0]
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(target)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _ring(descriptor: int) -> None:
    # Full means that it rings already.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(descriptor, 1)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(descriptor)
