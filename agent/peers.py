"""Channels to the agents of other nodes: mutual TLS, where the peer must be the very member that the name stands for.

A name becomes a uid and an address by the present membership; the certificate must carry that uid. Channels are kept and shared;
gRPC reconnects them. Nothing is retried here, and every call needs its own deadline.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from kvorum.errors import NotFound
from kvorum.node import AGENT_PORT, Pki

from .access import key_files
from .background import Background
from .membership.view import View

log = logging.getLogger(__name__)

KEEPALIVE_S = 10
KEEPALIVE_TIMEOUT_S = 5

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    # Also between calls: a connection that a dead node has left would fail the next call, when the node is long back.
    ("grpc.keepalive_permit_without_calls", 1),
    # A node that is back should be heard of within a second or two.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class _Open:
    uid: str
    target: str
    channel: grpc.aio.Channel


class Peers:
    def __init__(
        self, view: Callable[[], View], background: Background, *, pki: Pki | None = None, port: int = AGENT_PORT
    ) -> None:
        self._view = view
        self._background = background
        self._pki = pki or Pki()
        self._port = port
        self._open: dict[str, _Open] = {}

    def agent(self, node_name: str) -> grpc.aio.Channel:
        """The channel to that member's agent (also this node's own). Raises NotFound for a name that is no member's."""
        member = self._view().by_name(node_name)
        if member is None:
            raise NotFound(f"{node_name} is no node of this cluster", remedy="see 'kvorum node list'")
        target = host_port(member.address, self._port)
        known = self._open.get(member.name)
        if known is not None and (known.uid, known.target) == (member.uid, target):
            return known.channel
        if known is not None:
            self._drop(member.name)
        ca, certificate, key = key_files.read(self._pki)
        channel = secure_channel(target, name=member.uid, ca=ca, certificate=certificate, key=key)
        self._open[member.name] = _Open(member.uid, target, channel)
        return channel

    async def close(self) -> None:
        """Also when the node leaves its cluster: the next cluster's channels need other keys."""
        channels = [known.channel for known in self._open.values()]
        self._open.clear()
        for channel in channels:
            await channel.close()

    def _drop(self, name: str) -> None:
        stale = self._open.pop(name)
        self._background.start(f"close the channel to {name} at {stale.target}", stale.channel.close())


def secure_channel(target: str, *, name: str, ca: bytes, certificate: bytes, key: bytes) -> grpc.aio.Channel:
    """A channel to `target` (`host:port`), whose certificate must be signed by `ca` and carry `name`. All PEM."""
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", name)]
    return grpc.aio.secure_channel(target, credentials, options=options)


def host_port(address: str, port: int) -> str:
    """`10.0.0.1:8005`, `[fd00::1]:8005`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
