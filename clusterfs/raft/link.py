"""One connection to one peer: TCP, then TLS 1.3, then the peer's identity, then frames; in that order and no other.

Non-blocking, driven by `transport` through a selector; it never waits. Until the certificate is checked nothing is
read beyond the handshake, and a link counts as up only when the other side has said hello, which it does after
checking ours: so both agree on whether there is a link.
"""

import select
import socket
import ssl
from collections import deque
from enum import Enum, auto

from .credentials import PROTOCOL, Credentials, node_of
from .frames import FrameReader, hello
from .values import Address, Options

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# A TLS record; more never comes at once.
_RECEIVE_BYTES = 2**14
_SEND_BYTES = 2**17
# Reads of one link before the others have their turn.
_READS = 64


class Stage(Enum):
    connecting = auto()
    handshake = auto()
    hello = auto()
    up = auto()


class LinkFailed(Exception):
    """The link is of no more use; says why. `is_refusal`: the peer is not who it should be; `is_close`: it ended the link."""

    def __init__(self, message: str, *, is_refusal: bool = False, is_close: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal
        self.is_close = is_close


class Link:
    def __init__(
        self, sock: socket.socket, credentials: Credentials, options: Options, *, uid: str | None, now: float
    ) -> None:
        """`uid`: who is dialled; None when we were."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.uid = uid
        self.is_dialled = uid is not None
        self.stage = Stage.connecting if self.is_dialled else Stage.handshake
        self.deadline = now + (options.dial_timeout_s if self.is_dialled else options.handshake_timeout_s)
        self.heard_at = self.sent_at = self.up_at = now
        self.handshake_s = options.handshake_timeout_s
        self.queued_bytes = 0
        self.is_paused = False
        self._options = options
        self._credentials = credentials
        self._raw = sock
        self._tls: ssl.SSLSocket | None = None
        self._reader = FrameReader(options.max_frame_bytes)
        self._outgoing: deque[bytes] = deque()
        self._sending = memoryview(b"")
        self._wants_write = self.is_dialled
        # What the selector was last told of `interest`.
        self.watched = self.interest
        if not self.is_dialled:
            self._wrap()

    @classmethod
    def dial(
        cls,
        address: Address,
        credentials: Credentials,
        options: Options,
        *,
        uid: str,
        source: str,
        now: float,
        patience_s: float,
    ) -> "Link":
        """`patience_s`: until the peer's kernel has to have answered.

        Raises OSError when the address cannot be reached at all, or is a name.
        """
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        family, kind, protocol, _, target = found[0]
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            link = cls(sock, credentials, options, uid=uid, now=now)
            link.deadline = now + patience_s
            if source:
                # Peers see the cluster network's address, whatever the routes.
                sock.bind((source, 0))
            sock.connect(target)
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            raise
        return link

    def fileno(self) -> int:
        return (self._tls or self._raw).fileno()

    @property
    def interest(self) -> int:
        """What to wait for: READ, WRITE."""
        reads = 0 if self.is_paused or self.stage is Stage.connecting else READ
        return reads | (WRITE if self._wants_write else 0)

    def close(self) -> None:
        (self._tls or self._raw).close()

    def queue(self, data: bytes) -> None:
        self._outgoing.append(data)
        self.queued_bytes += len(data)

    def advance(self, events: int, now: float) -> list[bytes]:
        """Do what can be done without waiting; the payloads that came in. Raises LinkFailed."""
        try:
            if self.stage is Stage.connecting:
                self._finish_connecting(now)
            if self.stage is Stage.handshake:
                # Whoever it turns out to be is checked by the caller before anything else is read.
                self._shake_hands(now)
                return []
            if self.stage is Stage.connecting:
                return []
            payloads = self._receive(now) if events & ~WRITE else []
            self.flush(now)
        except LinkFailed:
            raise
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            is_up = self.stage is Stage.up
            raise LinkFailed("closed by the peer", is_refusal=not is_up, is_close=is_up) from error
        except ssl.SSLError as error:
            raise LinkFailed(f"TLS: {error.reason or error}", is_refusal=self.stage is not Stage.up) from error
        except (ConnectionResetError, BrokenPipeError) as error:
            raise LinkFailed(str(error), is_close=self.stage is Stage.up) from error
        except (OSError, ValueError) as error:
            raise LinkFailed(str(error)) from error
        return payloads

    def flush(self, now: float) -> None:
        """Send what is queued, as far as it goes."""
        if self._tls is None or self.stage in (Stage.connecting, Stage.handshake):
            return
        self._wants_write = False
        while True:
            if not self._sending:
                if not self._outgoing:
                    return
                self._sending = memoryview(self._gather())
            try:
                sent = self._tls.send(self._sending)
            except ssl.SSLWantWriteError:
                self._wants_write = True
                return
            except ssl.SSLWantReadError:
                return
            self._sending = self._sending[sent:]
            self.queued_bytes -= sent
            self.sent_at = now

    def _gather(self) -> bytes:
        """Small frames leave together."""
        parts = [self._outgoing.popleft()]
        size = len(parts[0])
        while self._outgoing and size + len(self._outgoing[0]) <= _SEND_BYTES:
            parts.append(self._outgoing.popleft())
            size += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _finish_connecting(self, now: float) -> None:
        error = self._raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "cannot connect")
        try:
            self._raw.getpeername()
        except OSError:
            return
        self.stage = Stage.handshake
        self.deadline = now + self.handshake_s
        self._wrap()

    def _wrap(self) -> None:
        context = self._credentials.client() if self.is_dialled else self._credentials.server()
        self._tls = context.wrap_socket(
            self._raw, server_side=not self.is_dialled, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )

    def _shake_hands(self, now: float) -> None:
        assert self._tls is not None
        self._wants_write = False
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._wants_write = True
            return
        if self._tls.version() != "TLSv1.3" or self._tls.selected_alpn_protocol() != PROTOCOL:
            raise LinkFailed("it does not speak our protocol", is_refusal=True)
        named = node_of(self._tls)
        if named is None:
            raise LinkFailed("its certificate names no node", is_refusal=True)
        if self.is_dialled and named != self.uid:
            raise LinkFailed(f"its certificate names node {named}", is_refusal=True)
        self.uid = named
        self.stage = Stage.hello
        self.heard_at = now

    def greet(self, epoch: int) -> None:
        """Say hello: the peer's certificate was checked against the members."""
        self.queue(hello(epoch))

    def _receive(self, now: float) -> list[bytes]:
        assert self._tls is not None
        payloads: list[bytes] = []
        for _ in range(_READS):
            try:
                data = self._tls.recv(_RECEIVE_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLWantWriteError:
                self._wants_write = True
                break
            if not data:
                raise LinkFailed("closed by the peer", is_close=self.stage is Stage.up)
            self.heard_at = now
            payloads += self._reader.feed(data)
            if len(data) < _RECEIVE_BYTES and not self._tls.pending():
                # Probably all; if not, the selector tells.
                break
        return payloads

    @property
    def has_more(self) -> bool:
        """Data that TLS has taken from the socket, so that no selector will tell of it."""
        return self._tls is not None and self.stage in (Stage.hello, Stage.up) and self._tls.pending() > 0
