"""How a migration with local disks travels: through TLS relays of the agents on two of the migration ports.

QEMU would serve its disks (NBD) on a port itself, but NBD negotiates in plain words before it switches to TLS, and nothing
of ours parses a byte of a stranger. So memory and disks each use a unix socket of the same path on both nodes (libvirt
takes no mixture: no TLS of QEMU's together with a unix socket), and between them the agents speak TLS 1.3, each sure of the
other's node UUID. Without disks no relay is needed: QEMU's own migration stream begins with the handshake.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.migration.streams import ByteStream, SocketStream, notice_dead_peer, relay
from agent.migration.tunnel import DIRECTORY, listen
from kvorum.errors import PermissionDenied
from kvorum.ids import NodeUid
from kvorum.node import Pki

log = logging.getLogger(__name__)

CONNECT_S = 10.0
HANDSHAKE_S = 10.0


class Kind(StrEnum):
    memory = "memory"
    disks = "disks"


def socket_path(migration_id: str, kind: Kind) -> Path:
    """On both nodes."""
    return DIRECTORY / f"{migration_id}.{kind}"


def uri(path: Path) -> str:
    """For VIR_MIGRATE_PARAM_URI and VIR_MIGRATE_PARAM_DISKS_URI."""
    return f"unix://{path}"


@contextlib.asynccontextmanager
async def serve(path: Path, *, address: str, port: int, source: NodeUid, pki: Pki) -> AsyncIterator[None]:
    """At the target: while inside, TLS connections of the node `source` are carried to QEMU's socket at `path`."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, pki)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        far = SocketStream(reader, writer)
        try:
            notice_dead_peer(writer)
            check_peer(writer.get_extra_info("peercert"), source)
            async with asyncio.timeout(CONNECT_S):
                near = SocketStream(*await asyncio.open_unix_connection(path))
            await relay(near, far)
        except (PermissionDenied, OSError, TimeoutError) as error:
            log.warning("relay %s: %s", path.name, error)
        finally:
            tasks.discard(task)
            await far.close()

    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True, mode=0o700)
    await asyncio.to_thread(path.unlink, missing_ok=True)
    server = await asyncio.start_server(accept, address, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_S)
    try:
        yield
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(path.unlink, missing_ok=True)


@contextlib.asynccontextmanager
async def forward(path: Path, *, address: str, port: int, target: NodeUid, pki: Pki) -> AsyncIterator[None]:
    """At the source: while inside, what QEMU writes to the socket at `path` arrives at the target's."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, pki)

    async def connect() -> ByteStream:
        reader, writer = await asyncio.open_connection(address, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_S)
        notice_dead_peer(writer)
        try:
            check_peer(writer.get_extra_info("peercert"), target)
        except PermissionDenied:
            writer.close()
            raise
        return SocketStream(reader, writer)

    async with listen(path, connect):
        yield


def check_peer(certificate: Any, uid: NodeUid) -> None:
    """Raises PermissionDenied unless the certificate (as ssl.getpeercert gives it) is that node's."""
    names = certificate.get("subjectAltName", ()) if isinstance(certificate, dict) else ()
    if ("URI", f"kvorum://node/{uid}") not in names:
        raise PermissionDenied(f"the other side is not node {uid}", remedy="see which node has its address")


def _context(protocol: int, pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nodes are known by the UUID in their certificate, never by an address; `check_peer` sees to it.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki.ca)
    context.load_cert_chain(pki.certificate, pki.key)
    return context
