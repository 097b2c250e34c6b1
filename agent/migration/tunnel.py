"""How the source's libvirtd talks to the target's without either listening on the network.

At the source, libvirtd connects to a unix socket of the agent (`destination_uri`); each connection becomes a byte stream to
the target's agent (MigrationService.TunnelMigration, over the agents' mutual TLS), which connects to its own libvirtd. Who
may open such a stream is checked by the service: whoever may, commands the target's hypervisor.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

from agent.migration.streams import ByteStream, SocketStream, relay
from kvorum.errors import KvorumError, Unreachable
from kvorum.node import RUN

log = logging.getLogger(__name__)

DIRECTORY = RUN / "migrate"
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")
CONNECT_S = 10.0


def socket_path(migration_id: str) -> Path:
    return DIRECTORY / f"{migration_id}.sock"


def destination_uri(path: Path) -> str:
    """What libvirt is given as the destination of a peer-to-peer migration."""
    return f"qemu+unix:///system?socket={quote(str(path))}"


@contextlib.asynccontextmanager
async def listen(path: Path, connect: Callable[[], Awaitable[ByteStream]]) -> AsyncIterator[None]:
    """At the source: while inside, connections to `path` are carried by a stream from `connect` each.

    At the end they are cut and the socket is gone.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def carry(near: SocketStream) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                far = await connect()
        except (KvorumError, OSError, TimeoutError) as error:
            log.warning("tunnel %s: the target does not answer: %s", path.name, error)
            await near.close()
            return
        carried = await relay(near, far)
        log.debug("tunnel %s: %d bytes", path.name, carried)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await carry(SocketStream(reader, writer))
        except (KvorumError, OSError) as error:
            log.warning("tunnel %s: %s", path.name, error)
        finally:
            tasks.discard(task)

    await asyncio.to_thread(_make_room, path)
    server = await asyncio.start_unix_server(accept, path)
    try:
        await asyncio.to_thread(path.chmod, 0o600)
        yield
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(path.unlink, missing_ok=True)


async def to_libvirt(far: ByteStream, *, socket: Path = LIBVIRT_SOCKET) -> None:
    """At the target: carry one stream to this node's libvirtd until either ends. Raises Unreachable."""
    try:
        async with asyncio.timeout(CONNECT_S):
            near = SocketStream(*await asyncio.open_unix_connection(socket))
    except (OSError, TimeoutError) as error:
        await far.close()
        raise Unreachable("libvirt does not answer on the target node", remedy="start libvirtd there") from error
    await relay(near, far)


def _make_room(path: Path) -> None:
    """The directory is root's alone from its first moment; a socket that a killed agent left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(path.parent, 0o700)  # noqa: PTH101
    path.unlink(missing_ok=True)
