"""Byte streams and a relay between two of them. What the bytes mean, and who may send them, is decided elsewhere."""

import asyncio
import contextlib
import socket
from typing import Protocol

CHUNK_BYTES = 256 * 1024
CLOSE_S = 5.0
# A peer that vanished without a word (power cut, cable) is noticed within about this many seconds.
DEAD_PEER_S = 8


class ByteStream(Protocol):
    """Two directions that end together. Errors of the transport are OSError or kvorum.errors."""

    async def read(self) -> bytes:
        """The next bytes, at most as many as the other side likes to send at once; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more, not when the bytes have arrived."""

    async def close(self) -> None:
        """Send what was written, then end both directions. Idempotent."""


class SocketStream:
    """A connected socket as a ByteStream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(CHUNK_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()


def notice_dead_peer(writer: asyncio.StreamWriter) -> None:
    """Break the connection when the peer's host is silent: probes when idle, unacknowledged data otherwise.

    Without it QEMU waits for a dead target's disks for as long as TCP retransmits, a quarter of an hour.
    """
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_PEER_S // 2)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, DEAD_PEER_S // 2)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_S * 1000)


async def relay(left: ByteStream, right: ByteStream) -> int:
    """Both ways until either side ends or breaks; then both are closed. Returns the bytes carried.

    There is no deadline: a migration may think for long. Who is at the ends probes the other (libvirt and NBD do).
    """
    carried = 0

    async def pump(source: ByteStream, sink: ByteStream) -> None:
        nonlocal carried
        while data := await source.read():
            await sink.write(data)
            carried += len(data)

    pumps = {asyncio.ensure_future(pump(left, right)), asyncio.ensure_future(pump(right, left))}
    try:
        done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            error = ended.exception()
            # A broken connection is how streams end when a process dies; everything else is a bug or a refusal.
            if error is not None and not isinstance(error, OSError):
                raise error
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for stream in (left, right):
            with contextlib.suppress(OSError):
                await stream.close()
    return carried
