"""Messages between replicas over TCP and mutual TLS, sent and received by the raft thread itself.

A commit that passes from thread to thread pays for each hand-over with a wait for the interpreter's lock, which costs more than
the message. So the raft thread waits in `poll` for messages as such, and writes to a link at once. While it is busy elsewhere (a
slow disk, a snapshot that loads) a second thread stands in, so that links neither seem dead nor fill up. Whoever holds `_io` is
the one that touches links. Nobody ever waits for a peer: what does not fit into a socket stays in a bounded queue.

Both sides of a pair dial, because addresses change; the pair keeps one link. Who may be a peer is told by
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
from enum import Enum, auto

import msgspec

from kvorum import epochs

from .credentials import Credentials
from .exchange import Exchange, Outgoing, node_named
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
# The raft thread has been elsewhere for so long, in seconds: the stand-in takes over, for turns of so long.
_ABSENT_S = 0.1
_TURN_S = 0.05
# Between two looks at deadlines and keepalives.
_LOOK_S = 0.05
# A link on which so many keepalives were missed is doubtful.
_MISSED = 3
# So long a dial beside a link may take for its handshake: no other is made meanwhile.
_BESIDE_S = 1.0
# One dial in so many waits for a peer that is far away; the others are for one that is back.
_PATIENT = 4


class Fate(Enum):
    """What becomes of a link."""

    up = auto()
    # For a reason that says nothing about the peer's process.
    down = auto()
    # The peer closed it, as the kernel does when a process ends.
    closed = auto()


@dataclass(slots=True)
class Peer:
    """One other replica, and the ways to it."""

    addresses: tuple[Address, ...]
    link: Link | None = None
    dialling: Link | None = None
    dial_at: float = 0.0
    dials: int = 0
    refusals: int = 0


@dataclass(slots=True)
class Inbox:
    """What came in and consensus has not seen yet, in order: (uid, message), or (uid, what became of the link)."""

    items: deque[tuple[str, AnyMessage | Fate, int]] = field(default_factory=deque)
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
        # Read by others without `_io`; replaced whole.
        self._up: dict[str, Link] = {}
        self._wanted_peers: Mapping[str, Sequence[Address]] | None = None
        self._is_stopping = False
        self._logged: dict[str, float] = {}
        self._paused: set[Link] = set()
        # Links whose TLS holds data that no selector will tell of.
        self._unread: set[Link] = set()
        self._looked_at = float("-inf")
        self._epoll = select.epoll()
        self._bell = _Bell()
        self._listener = _listen(bind)
        self._epoll.register(self._listener.fileno(), READ)
        self._epoll.register(self._bell.fileno(), READ)
        self._io = threading.Lock()
        self._is_raft_waiting = False
        self._polled_at = clock()
        self._absence = threading.Event()
        self._thread = threading.Thread(target=self._stand_in, name="raft-io", daemon=True)

    # The raft thread's side.

    def start(self) -> None:
        self._polled_at = self._now()
        self._thread.start()

    def wake(self) -> None:
        self._bell.ring()

    def poll(self, timeout_s: float) -> None:
        """Where the raft thread waits: until something has come in, or somebody rings."""
        self._take_io()
        try:
            if not self._is_stopping:
                self._round(0.0 if self._inbox.items else timeout_s)
        finally:
            self._polled_at = self._now()
            self._io.release()
        self._deliver()

    def _take_io(self) -> None:
        if not self._io.acquire(blocking=False):
            self._is_raft_waiting = True
            self._bell.ring()
            self._io.acquire()
            self._is_raft_waiting = False

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
        if self._io.acquire(blocking=False):
            try:
                self._take_outbox(self._now())
            finally:
                self._io.release()
        else:
            self._bell.ring()
        return True

    def backlog_bytes(self, uid: str) -> int:
        link = self._up.get(uid)
        return link.queued_bytes if link is not None else 0

    def heard_at(self, uid: str) -> float | None:
        link = self._up.get(uid)
        return link.heard_at if link is not None else None

    def set_peers(self, peers: Mapping[str, Sequence[Address]]) -> None:
        self._wanted_peers = dict(peers)
        self._bell.ring()

    def _deliver(self) -> None:
        items = self._inbox.items
        for _ in range(len(items)):
            uid, item, size = items.popleft()
            self._inbox.size_bytes -= size
            node = node_named(uid)
            match item:
                case Fate.up:
                    self._onNodeConnected(node)
                case Fate.closed:
                    self.on_closed(node)
                    self._onNodeDisconnected(node)
                case Fate.down:
                    self._onNodeDisconnected(node)
                case message:
                    self._onMessageReceived(node, message)

    def destroy(self) -> None:
        """pysyncobj's word for stopping; safe to repeat."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._absence.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5.0)
        with self._io:
            for link in [*self._links.values()]:
                link.close()
            self._listener.close()
            self._epoll.close()

    # The stand-in.

    def _stand_in(self) -> None:
        while not self._absence.wait(_ABSENT_S):
            while (
                not self._is_stopping
                and not self._is_raft_waiting
                and self._now() - self._polled_at > _ABSENT_S
                and self._io.acquire(blocking=False)
            ):
                try:
                    self._round(_TURN_S)
                except Exception:
                    log.exception("raft I/O")
                finally:
                    self._io.release()

    # For whoever holds `_io`.

    def _round(self, timeout_s: float) -> None:
        """Wait for something to do, and do it."""
        try:
            self._do_round(timeout_s)
        except Exception:
            # One peer's trouble, or our own fault: the others' links must live.
            log.exception("raft I/O")

    def _do_round(self, timeout_s: float) -> None:
        if self._wanted_peers is not None:
            self._take_peers()
        self._take_outbox(self._now())
        self._resume()
        events = self._epoll.poll(0.0 if self._unread else min(timeout_s, self._until_look()))
        now = self._now()
        for descriptor, mask in events:
            if descriptor == self._bell.fileno():
                self._bell.hush()
            elif (link := self._links.get(descriptor)) is not None:
                self._advance(link, mask, now)
            elif descriptor == self._listener.fileno():
                self._accept(now)
        for link in [link for link in self._unread if not link.is_paused]:
            self._advance(link, READ, now)
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._look_after(now)

    def _until_look(self) -> float:
        """While every peer is linked there is only the keepalive to send."""
        is_settled = len(self._links) == len(self._up) == len(self._peers)
        return self._options.keepalive_s / 2 if is_settled else _LOOK_S

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
        touched: dict[Link, None] = {}
        while self._outbox:
            uid, data = self._outbox.popleft()
            link = self._up.get(uid)
            if link is not None:
                link.queue(data)
                touched[link] = None
        for link in touched:
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
            is_wanted = peer.link is None or self._is_doubtful(peer.link, now)
            if not is_wanted and peer.dialling is not None and peer.dialling.stage is not Stage.hello:
                # The link was only slow. To who has heard our hello this one is the link by now.
                self._drop(peer.dialling, peer)
            if is_wanted and peer.dialling is None and peer.addresses and now >= peer.dial_at:
                self._dial(uid, peer, now)

    def _is_doubtful(self, link: Link, now: float) -> bool:
        """After a cut of the network TCP tries again at ever longer intervals, for as long as the cut itself was. A new
        connection gets through at once, and takes the old one's place."""
        return now - link.heard_at > _MISSED * self._options.keepalive_s and not link.is_paused

    def _dial(self, uid: str, peer: Peer, now: float) -> None:
        address = peer.addresses[peer.dials % len(peer.addresses)]
        peer.dials += 1
        self._plan_dial(uid, peer, now)
        source = self._bind.host if self._bind.host not in ("", "0.0.0.0", "::") else ""  # noqa: S104
        # Of each address in turn.
        is_patient = (peer.dials // len(peer.addresses)) % _PATIENT == 0
        patience_s = self._options.dial_timeout_s if is_patient else self._options.redial_s
        try:
            link = Link.dial(
                address, self._credentials, self._options, uid=uid, source=source, now=now, patience_s=patience_s
            )
        except (OSError, ValueError, OverflowError) as error:
            self._say(uid, logging.INFO, f"cannot dial {uid} at {address.host}: {error}", now)
            return
        if peer.link is not None:
            link.handshake_s = _BESIDE_S
        peer.dialling = link
        self._links[link.fileno()] = link
        self._epoll.register(link.fileno(), link.watched)

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
            self._epoll.register(link.fileno(), link.watched)

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
                (self._unread.add if link.has_more else self._unread.discard)(link)

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
            self._bell.ring()
            raise LinkFailed(
                f"it is of epoch {epochs.text(epoch)} and we are of epoch {epochs.text(self.epoch)}", is_refusal=True
            )
        if epoch < self.epoch:
            rival = ", separately from this node's" if epochs.are_rivals(epoch, self.epoch) else ""
            raise LinkFailed(
                f"it is of epoch {epochs.text(epoch)}{rival}, and this cluster was recovered as epoch "
                f"{epochs.text(self.epoch)}: run 'kvorum cluster rejoin' on it",
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
            # Two that were dialled at one moment. Later, who dials has heard nothing on the old one for long, whatever we have.
            if dialler > old_dialler and now - old.up_at < self._options.keepalive_s * 2:
                raise LinkFailed("there is a link already")
            self._drop(old, peer)
        if peer.dialling is link:
            peer.dialling = None
        link.stage, link.up_at = Stage.up, now
        peer.link, peer.refusals = link, 0
        self._up = {**self._up, uid: link}
        self._put(uid, Fate.up, 0)
        log.info("%s is connected", uid)

    def _put(self, uid: str, item: AnyMessage | Fate, size: int) -> None:
        self._inbox.size_bytes += size
        self._inbox.items.append((uid, item, size))

    def _fail(self, link: Link, error: LinkFailed, now: float) -> None:
        peer = self._peers.get(link.uid or "")
        if peer is not None:
            if error.is_refusal or link.stage is Stage.hello:
                peer.refusals += 1
            # Who could not be reached is dialled again as planned when this dial began.
            if link.stage is not Stage.connecting:
                self._plan_dial(link.uid or "", peer, now)
        who = link.uid or "a stranger"
        self._say(who, logging.WARNING if error.is_refusal else logging.INFO, f"{who} is cut off: {error}", now)
        self._drop(link, peer, Fate.closed if error.is_close else Fate.down)

    def _drop(self, link: Link, peer: Peer | None, fate: Fate = Fate.down) -> None:
        if self._links.pop(link.fileno(), None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(link.fileno())
        link.close()
        self._paused.discard(link)
        self._unread.discard(link)
        if peer is not None and peer.dialling is link:
            peer.dialling = None
        if peer is not None and peer.link is link:
            peer.link = None
            assert link.uid is not None
            self._up = {uid: one for uid, one in self._up.items() if one is not link}
            self._put(link.uid, fate, 0)

    def _watch(self, link: Link) -> None:
        if link.interest != link.watched:
            link.watched = link.interest
            self._epoll.modify(link.fileno(), link.watched)

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


class _Bell:
    """Ends the wait of whoever polls. Rung often and heard once: what is rung for is put in place before, and looked for after
    `hush`."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_ringing = False
        # Closed with the last reference: a thread that rings late must not write into somebody else's file.
        weakref.finalize(self, os.close, self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        if not self._is_ringing:
            self._is_ringing = True
            os.eventfd_write(self._descriptor, 1)

    def hush(self) -> None:
        # In this order: who finds it ringing must not be heard by nobody.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)
        self._is_ringing = False
