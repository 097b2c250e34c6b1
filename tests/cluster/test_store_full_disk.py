"""A real daemon whose file system is full: writers are refused at once and told why, readers get what they want, and it goes
on by itself."""

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster.small_disk import SmallDisk, small_disk
from cluster.store_daemons import Ca, Node, eventually, write

from kvorum import errors


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[tuple[Node, SmallDisk]]:
    with small_disk(tmp_path / "disk", size_mib=32) as disk:
        node = Node(disk.path, Ca(), "n1", f"127.{random.randint(64, 250)}.{random.randint(1, 250)}.1")
        try:
            node.start()
            await eventually(node.is_up)
            await node.client.activate([node.member], "test")
            yield node, disk
        finally:
            await node.client.close()
            node.clean()


async def errno_of(path: Path, content: bytes) -> str:
    try:
        await write(path, content)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


async def test_a_full_disk_refuses_writers_and_passes(node: tuple[Node, SmallDisk]) -> None:
    alone, disk = node
    await write(alone.mount / "before", b"x")
    ballast = disk.path / "ballast"
    with ballast.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(bytes(4096))
    told = ""
    for number in range(40):
        told = await errno_of(alone.mount / f"large{number}", random.randbytes(500_000))
        if told:
            break
    # Of the one that was under way nobody knows.
    assert told in ("ENOSPC", "ETIMEDOUT")
    for _ in range(3):
        assert await errno_of(alone.mount / "refused", b"y") == "ENOSPC"
    with pytest.raises(errors.DiskFull) as caught:
        await alone.client.write("refused", b"y")
    assert "free some" in caught.value.remedy
    assert "no space" in (await alone.client.status()).failure
    assert (alone.mount / "before").read_bytes() == b"x"
    ballast.unlink()

    async def can_write() -> bool:
        try:
            await write(alone.mount / "after", b"z")
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EACCES)
            return False
        return True

    await eventually(can_write)
    assert not (await alone.client.status()).failure
    alone.kill()
    await asyncio.to_thread(alone.clean)
    alone.start()

    async def is_back() -> bool:
        return await asyncio.to_thread((alone.mount / "after").read_bytes) == b"z"

    await eventually(is_back)
    assert (alone.mount / "before").read_bytes() == b"x"
    assert not (alone.mount / "refused").exists()
