"""Three real kvorum-clusterfs processes on loopback addresses: replication, loss of quorum, kills, joins. Needs root and FUSE."""

import asyncio
import errno
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from cluster.store_daemons import Node, eventually, join, nodes, read_eventually, write

from kvorum import errors

__all__ = ["nodes"]


async def errno_of(path: Path, content: bytes) -> tuple[str, float]:
    """The error of a write through the mount, and how long it took."""
    begin = time.monotonic()
    try:
        await write(path, content)
    except OSError as error:
        return errno.errorcode[error.errno or 0], time.monotonic() - begin
    return "", time.monotonic() - begin


async def test_killing_two_of_three_denies_writes_at_once_while_reads_go_on(nodes: list[Node]) -> None:
    one, two, three = nodes
    await write(one.mount / "storage.cfg", b"dir: local\n")
    for node in (two, three):
        await read_eventually(node, "storage.cfg", b"dir: local\n")
    await write(two.mount / "nodes/n2/qemu-server/100.conf", b"name: a\n")
    await read_eventually(three, "nodes/n2/qemu-server/100.conf", b"name: a\n")
    assert (await errno_of(three.mount / "lxc/100.conf", b""))[0] == "EEXIST"
    await asyncio.to_thread(
        os.rename, three.mount / "nodes/n2/qemu-server/100.conf", three.mount / "nodes/n3/qemu-server/100.conf"
    )
    await read_eventually(one, "nodes/n3/qemu-server/100.conf", b"name: a\n")

    three.kill()
    await eventually(lambda: wrote(one, "after-one"))
    assert await two.client.read("after-one", linearizable=True) == b"x"

    two.kill()

    async def has_lost_quorum() -> bool:
        return not (await one.client.status()).quorate

    await eventually(has_lost_quorum, seconds=4)
    name, took = await errno_of(one.mount / "storage.cfg", b"changed")
    assert (name, took < 1.0) == ("EACCES", True)
    begin = time.monotonic()
    with pytest.raises(errors.NoQuorum) as caught:
        await one.client.write("storage.cfg", b"changed")
    assert time.monotonic() - begin < 1.0
    assert caught.value.missing == ["n2", "n3"]
    assert await one.client.read("storage.cfg") == b"dir: local\n"
    assert await asyncio.to_thread((one.mount / "after-one").read_bytes) == b"x"
    assert '"quorate": 0' in await asyncio.to_thread((one.mount / ".members").read_text)

    two.start()
    await eventually(lambda: wrote(one, "again"))
    await read_eventually(two, "again", b"x")
    assert await two.client.read("after-one") == b"x"


async def wrote(node: Node, path: str) -> bool:
    await node.client.write(path, b"x", deadline_s=5.0)
    return True


async def test_a_killed_daemon_comes_back_with_its_mount_and_its_data(nodes: list[Node]) -> None:
    one, two, _three = nodes
    await write(two.mount / "f", b"before")
    two.kill()
    with pytest.raises(OSError) as caught:
        await asyncio.to_thread(os.listdir, two.mount)
    assert caught.value.errno == errno.ENOTCONN
    await eventually(lambda: wrote(one, "while-away"))
    two.start()
    await read_eventually(two, "f", b"before")
    await read_eventually(two, "while-away", b"x")
    assert "clearing the mount" in two.log


async def test_sigterm_ends_with_zero_and_leaves_no_mount(nodes: list[Node]) -> None:
    three = nodes[2]
    assert await asyncio.to_thread(three.terminate) == 0
    assert await asyncio.to_thread(os.listdir, three.mount) == []
    await eventually(lambda: wrote(nodes[0], "two-are-enough"))
    three.start()
    await read_eventually(three, "two-are-enough", b"x")


async def test_the_whole_cluster_restarts_by_itself(nodes: list[Node]) -> None:
    await write(nodes[0].mount / "f", b"kept")
    for node in nodes:
        node.kill()
    for node in nodes:
        node.start()
    for node in nodes:
        await read_eventually(node, "f", b"kept")
    await eventually(lambda: wrote(nodes[2], "goes-on"))
    for node in nodes:
        await read_eventually(node, "goes-on", b"x")
        names = [member.name for member in (await node.client.status()).members]
        assert names == ["n1", "n2", "n3"]


async def test_a_member_that_is_removed_leaves_and_a_name_can_come_back(nodes: list[Node]) -> None:
    one, _two, three = nodes
    await one.client.remove_member(three.identity.uid)
    assert [member.name for member in (await one.client.status()).members] == ["n1", "n2"]
    assert not await asyncio.to_thread((one.mount / "nodes/n3").exists)
    archive = Path(await three.client.retire())
    assert archive.is_dir()
    assert await asyncio.to_thread(os.listdir, three.mount) == []
    with pytest.raises(errors.AlreadyExists, match="was removed"):
        await one.client.add_member(three.member, deadline_s=5.0)
    three.take(msgspec.structs.replace(three.identity, uid=str(uuid.uuid4())))
    await join(one, three, nodes)
    members = {member.name: member.number for member in (await three.client.status()).members}
    assert members == {"n1": 1, "n2": 2, "n3": 4}


async def test_a_lock_is_won_by_one_node_and_a_new_file_by_one_creator(nodes: list[Node]) -> None:
    def attempts(node: Node) -> list[int]:
        won = []
        for number in range(20):
            with suppress(FileExistsError):
                (node.mount / f"priv/lock/{number}").mkdir()
                won.append(number)
            with suppress(FileExistsError):
                os.close(os.open(node.mount / f"excl-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won.append(100 + number)
        return won

    results = await asyncio.gather(*(asyncio.to_thread(attempts, node) for node in nodes))
    everything = [number for won in results for number in won]
    assert sorted(everything) == [*range(20), *range(100, 120)]


async def test_status_and_the_cluster_log_reach_all_nodes_without_a_quorum(nodes: list[Node]) -> None:
    one, two, three = nodes
    await one.client.set_status({"tasklist": b"[]", "rrd/pve-node-9.0/n1": b"1::2:U"})
    await two.client.log_message("from two\n", tag="test")
    for node in nodes:
        await eventually(lambda n=node: has_status(n, "n1", "tasklist", b"[]"))
        await eventually(lambda n=node: shows(n, ".clusterlog", b'"node": "n2", "user": "root", "msg": "from two#010"'))
        await eventually(lambda n=node: shows(n, ".rrd", b"pve-node-9.0/n1:1::2:U\n"))
        await eventually(lambda n=node: shows(n, ".version", b'"n1": {\n"tasklist": '))

    async def is_the_same_everywhere() -> bool:
        # Other lines may still be on their way.
        texts = [await asyncio.to_thread((node.mount / ".clusterlog").read_bytes) for node in nodes]
        return texts[0] == texts[1] == texts[2]

    await eventually(is_the_same_everywhere)

    two.kill()
    three.kill()
    await one.client.set_status({"tasklist": b"[1]"})
    await one.client.log_message("alone")
    assert await one.client.get_status("tasklist") == b"[1]"
    two.start()
    await eventually(lambda: has_status(two, "n1", "tasklist", b"[1]"))
    # What it said in its earlier life comes back from the others.
    for message in (b"from two#010", b"alone"):
        await eventually(lambda m=message: shows(two, ".clusterlog", m))
    listed = await two.client.list_status()
    assert [(node.node, node.age_seconds) for node in listed.nodes if node.node == "n1"] == [("n1", 0.0)]


async def has_status(node: Node, owner: str, key: str, value: bytes) -> bool:
    return await node.client.get_status(key, node=owner) == value


async def shows(node: Node, name: str, text: bytes) -> bool:
    return text in await asyncio.to_thread((node.mount / name).read_bytes)
