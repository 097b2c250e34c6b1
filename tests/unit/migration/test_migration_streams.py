"""Tunnel and relays with real sockets: what goes in comes out, ends end, strangers get nothing."""

import asyncio
import datetime
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.access import certificates, key_files
from agent.migration import relays, tunnel
from agent.migration.relays import check_peer
from agent.migration.streams import ByteStream, SocketStream
from kvorum.errors import PermissionDenied, Unreachable
from kvorum.ids import NodeUid
from kvorum.node import Pki

SOURCE, TARGET = NodeUid("00000000-0000-4000-8000-000000000001"), NodeUid("00000000-0000-4000-8000-000000000002")


@asynccontextmanager
async def echo(path: Path) -> AsyncIterator[list[int]]:
    """What stands for libvirtd or QEMU: answers each byte with itself. Yields how many connections came."""
    seen: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(1)
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    try:
        yield seen
    finally:
        server.close()


async def send_and_receive(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.readexactly(len(data)), 20)
    finally:
        writer.close()


async def is_cut(path: Path) -> bool:
    """Connected, then closed without a byte."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"hello")
    try:
        return await asyncio.wait_for(reader.read(1), 20) == b""
    except ConnectionError:
        return True
    finally:
        writer.close()


def nodes(directory: Path, *uids: NodeUid) -> list[Pki]:
    """Certificates of one authority."""
    now = datetime.datetime.now(datetime.UTC)
    authority = certificates.make_authority("test", now=now)
    made = []
    for number, uid in enumerate(uids):
        key = certificates.new_key()
        request = certificates.make_request(key, f"n{number}")
        signed = certificates.sign_node(request, authority, uid=uid, name=f"n{number}", address="127.0.0.1", now=now)
        pki = Pki(directory / secrets.token_hex(4))
        key_files.install(pki, ca=authority.certificate, certificate=signed, key=certificates.key_to_pem(key))
        made.append(pki)
    return made


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_the_tunnel_carries_bytes_both_ways_and_leaves_no_socket(tmp_path: Path) -> None:
    async def connect() -> ByteStream:
        # The far end, as the target's agent would have it, over a connected pair.
        far, near = await pair()
        tasks.append(asyncio.create_task(tunnel.to_libvirt(far, socket=tmp_path / "libvirt")))
        return near

    tasks: list[asyncio.Task[None]] = []
    path = tmp_path / "migrate" / "m.sock"
    data = secrets.token_bytes(3_000_000)
    async with echo(tmp_path / "libvirt") as seen, tunnel.listen(path, connect):
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
        assert await asyncio.gather(*(send_and_receive(path, data) for _ in range(3))) == [data] * 3
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert len(seen) == 3
    assert not path.exists()


async def test_a_target_that_does_not_answer_ends_the_connection(tmp_path: Path) -> None:
    async def connect() -> ByteStream:
        raise Unreachable("gone")

    async with tunnel.listen(tmp_path / "m.sock", connect):
        assert await is_cut(tmp_path / "m.sock")


async def test_a_target_without_libvirtd_says_so_and_closes(tmp_path: Path) -> None:
    far, near = await pair()
    with pytest.raises(Unreachable, match="libvirt does not answer"):
        await tunnel.to_libvirt(far, socket=tmp_path / "nothing")
    assert await near.read() == b""


async def test_leaving_cuts_what_is_still_open(tmp_path: Path) -> None:
    async def connect() -> ByteStream:
        near, far = await pair()
        kept.append(far)
        return near

    kept: list[ByteStream] = []
    async with tunnel.listen(tmp_path / "m.sock", connect):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "m.sock")
        writer.write(b"hello")
        while not kept:
            await asyncio.sleep(0)
        assert await kept[0].read() == b"hello"
    assert await asyncio.wait_for(reader.read(), 20) == b""
    assert await asyncio.wait_for(kept[0].read(), 20) == b""
    writer.close()


async def test_a_socket_that_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    async def connect() -> ByteStream:
        return (await pair())[0]

    (tmp_path / "m.sock").touch()
    async with tunnel.listen(tmp_path / "m.sock", connect):
        assert (tmp_path / "m.sock").is_socket()


async def test_disks_travel_between_the_two_nodes_that_were_named(tmp_path: Path) -> None:
    source, target = nodes(tmp_path, SOURCE, TARGET)
    data = secrets.token_bytes(3_000_000)
    async with relayed(tmp_path, source, target) as (near, seen):
        assert await asyncio.gather(*(send_and_receive(near, data) for _ in range(2))) == [data] * 2
        assert len(seen) == 2


async def test_a_node_that_was_not_named_gets_nothing_through_in_either_role(tmp_path: Path) -> None:
    stranger = NodeUid("00000000-0000-4000-8000-000000000009")
    source, target = nodes(tmp_path, stranger, TARGET)
    async with relayed(tmp_path, source, target) as (near, seen):
        assert await is_cut(near)
        assert seen == []
    source, target = nodes(tmp_path, SOURCE, stranger)
    async with relayed(tmp_path, source, target) as (near, seen):
        assert await is_cut(near)
        assert seen == []


async def test_a_node_of_another_cluster_gets_nothing_through(tmp_path: Path) -> None:
    (source,), (target,) = nodes(tmp_path, SOURCE), nodes(tmp_path, TARGET)
    async with relayed(tmp_path, source, target) as (near, seen):
        assert await is_cut(near)
        assert seen == []


async def test_nothing_but_a_handshake_is_heard(tmp_path: Path) -> None:
    """Neither plain words nor an old TLS nor a client without a certificate reaches the disks."""
    (target,) = nodes(tmp_path, TARGET)
    port = free_port()
    async with (
        echo(tmp_path / "qemu") as seen,
        relays.serve(tmp_path / "disks", address="127.0.0.1", port=port, source=SOURCE, pki=target),
    ):
        (tmp_path / "qemu").rename(tmp_path / "disks")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"NBDMAGIC" * 100)
        assert b"NBD" not in await asyncio.wait_for(reader.read(), 20)
        writer.close()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = version
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.write(b"x")
                await asyncio.wait_for(reader.readexactly(1), 20)
        assert seen == []


def test_a_certificate_is_a_nodes_by_its_uri_only() -> None:
    check_peer({"subjectAltName": (("DNS", "n1"), ("URI", f"kvorum://node/{SOURCE}"))}, SOURCE)
    for bad in ({"subjectAltName": (("DNS", SOURCE), ("URI", f"kvorum://user/{SOURCE}"))}, {}, None):
        with pytest.raises(PermissionDenied):
            check_peer(bad, SOURCE)


@asynccontextmanager
async def relayed(directory: Path, source: Pki, target: Pki) -> AsyncIterator[tuple[Path, list[int]]]:
    port, near, far = free_port(), directory / f"near{secrets.token_hex(2)}", directory / f"far{secrets.token_hex(2)}"
    async with (
        relays.serve(far, address="127.0.0.1", port=port, source=SOURCE, pki=target),
        echo(far) as seen,
        relays.forward(near, address="127.0.0.1", port=port, target=TARGET, pki=source),
    ):
        yield near, seen


async def pair() -> tuple[SocketStream, SocketStream]:
    import socket

    left, right = socket.socketpair()
    return (
        SocketStream(*await asyncio.open_unix_connection(sock=left)),
        SocketStream(*await asyncio.open_unix_connection(sock=right)),
    )
