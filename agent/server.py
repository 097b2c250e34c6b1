"""The agent's gRPC servers: one on the local socket for the life of the process, one on TLS while the node is in a cluster.

gRPC cannot add a port to a server that has started, so the network side is a server of its own that opens and closes as the
node joins and leaves; both serve the same service objects. Assembly only: what is served is registered by `agent.services`.
"""

import datetime
import fcntl
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from kvorum.errors import KvorumError, Refused, Unreachable

from .calls import CallGate, Identify
from .peers import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S, host_port

log = logging.getLogger(__name__)

MESSAGE_MAX_BYTES = 4 * 1024 * 1024
STOP_GRACE_S = 1.0

OPTIONS: list[tuple[str, int]] = [
    # A second agent must fail to start, not share the port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    # Clients may ping as often as our own do.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_S * 500),
    ("grpc.keepalive_permit_without_calls", 1),
]


class Services:
    """Stands in for a server while services register, so that two servers can serve the same objects."""

    def __init__(self) -> None:
        self._generic: list[Any] = []
        self._registered: list[tuple[str, Mapping[str, Any]]] = []
        self.names: list[str] = []
        self.health = HealthServicer()

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._generic.extend(handlers)
        self.names += [handler.service_name() for handler in handlers]

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        self._registered.append((service_name, handlers))

    def add_standard(self) -> None:
        """Health checking and reflection, after all others."""
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self)
        names = [*self.names, "grpc.reflection.v1alpha.ServerReflection"]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names), self)

    async def set_serving(self) -> None:
        for name in ("", *self.names):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def serve_on(self, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers(tuple(self._generic))
        for name, handlers in self._registered:
            server.add_registered_method_handlers(name, handlers)


class Listener:
    """One running server."""

    def __init__(self, server: grpc.aio.Server, where: str, lock: IO[str] | None = None) -> None:
        self._server = server
        self._where = where
        self._lock = lock

    async def close(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new calls at once; those being served get `grace_s` seconds."""
        await self._server.stop(grace_s)
        if self._lock is not None:
            self._lock.close()
        log.info("no longer listening on %s", self._where)


async def listen_locally(
    socket: Path, services: Services, *, identify: Identify, explain: Callable[[KvorumError], KvorumError]
) -> Listener:
    """Serve on a unix socket that only root can open. Raises Refused when another agent does, Unreachable for other reasons."""
    socket.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_out_others(socket)
    server = grpc.aio.server(interceptors=[CallGate(identify, explain)], options=OPTIONS)
    services.serve_on(server)
    # The socket must not be open to others even for a moment, and gRPC takes no mode.
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise Unreachable(f"cannot listen on {socket}: {error}") from error
    finally:
        os.umask(before)
    await server.start()
    log.info("listening on %s", socket)
    return Listener(server, str(socket), lock)


def _lock_out_others(socket: Path) -> IO[str]:
    """gRPC would take the socket away from an agent that runs. The lock ends with the process."""
    lock = socket.with_suffix(".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Refused(f"another agent serves {socket}", remedy="stop that one first") from error
    return lock


async def listen_with_tls(
    addresses: Sequence[str],
    port: int,
    services: Services,
    *,
    roots: Callable[[datetime.datetime], bytes],
    certificate: bytes,
    key: bytes,
    identify: Identify,
    explain: Callable[[KvorumError], KvorumError],
) -> Listener:
    """Serve on TLS to peers whose certificate leads to one of `roots`, asked anew at each handshake.

    The first address must work, else Unreachable is raised; the others are a convenience.
    """
    server = grpc.aio.server(interceptors=[CallGate(identify, explain)], options=OPTIONS)
    services.serve_on(server)

    def configuration() -> grpc.ServerCertificateConfiguration:
        now = datetime.datetime.now(datetime.UTC)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], roots(now))

    credentials = grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=True
    )
    bound: list[str] = []
    for address in addresses:
        target = host_port(address, port)
        try:
            server.add_secure_port(target, credentials)
            bound.append(target)
        except RuntimeError as error:
            if not bound:
                await server.stop(None)
                raise Unreachable(f"cannot listen on {target}: {error}") from error
            log.warning("not listening on %s: %s", target, error)
    await server.start()
    where = ", ".join(bound)
    log.info("listening on %s", where)
    return Listener(server, where)
