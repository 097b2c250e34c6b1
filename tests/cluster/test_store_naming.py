"""Real daemons: a node gets another name and another address without being installed anew, and its link comes back by itself."""

import asyncio

import pytest
from cluster.store_daemons import Node, eventually, nodes, read_eventually, write

from kvorum import errors
from kvorum.node import load_identity

__all__ = ["nodes"]


async def known(node: Node) -> dict[str, tuple[str, bool]]:
    """Address and connection by name, as the node sees it."""
    return {member.name: (member.address, member.connected) for member in (await node.client.status()).members}


async def test_a_renamed_node_keeps_its_guests_and_their_generations(nodes: list[Node]) -> None:
    one, _two, three = nodes
    await write(three.mount / "nodes/n3/qemu-server/100.conf", b"name: a\n")
    await read_eventually(one, "nodes/n3/qemu-server/100.conf", b"name: a\n")
    before = await one.client.get("nodes/n3/qemu-server/100.conf")
    with pytest.raises(errors.AlreadyExists):
        await one.client.rename_member(three.identity.uid, "n2")
    await one.client.rename_member(three.identity.uid, "rack2")
    after = await one.client.get("nodes/rack2/qemu-server/100.conf")
    assert (after.placement, after.version) == (before.placement, before.version)

    async def is_gone() -> bool:
        return not await asyncio.to_thread((one.mount / "nodes/n3").exists)

    await eventually(is_gone)

    async def has_followed() -> bool:
        status = await three.client.status()
        return load_identity(three.directory / "state/node.json").name == "rack2" and status.active and status.mounted

    await eventually(has_followed)
    assert await asyncio.to_thread((three.mount / "local").readlink) == (one.mount / "nodes/rack2").relative_to(
        one.mount
    )
    await eventually(lambda: _is_connected(one, "rack2"))
    await eventually(lambda: _is_written(three, "local/lxc/101.conf", b"hostname: b\n"))
    await read_eventually(one, "nodes/rack2/lxc/101.conf", b"hostname: b\n")


async def _is_written(node: Node, path: str, content: bytes) -> bool:
    """The replica has just begun anew: for a moment it has no quorum yet."""
    try:
        await write(node.mount / path, content)
    except PermissionError:
        return False
    return True


async def _is_connected(node: Node, name: str) -> bool:
    return (await known(node)).get(name, ("", False))[1]


async def test_a_node_goes_to_another_address_and_its_link_comes_back(nodes: list[Node]) -> None:
    one, two, three = nodes
    with pytest.raises(errors.AlreadyExists):
        await one.client.move_member(three.identity.uid, two.identity.address)
    elsewhere = three.identity.address.rpartition(".")[0] + ".77"
    for node in (three, await leader(nodes)):
        await one.client.move_member(node.identity.uid, elsewhere)

        async def is_there(moved: Node = node, address: str = elsewhere) -> bool:
            if load_identity(moved.directory / "state/node.json").address != address:
                return False
            seen = [await known(other) for other in nodes]
            is_known = all(view.get(moved.identity.name) == (address, True) for view in seen)
            return is_known and (await moved.client.status()).quorate

        await eventually(is_there)
        await eventually(lambda n=node, e=elsewhere: _is_written(n, "storage.cfg", e.encode()))  # type: ignore[misc]
        await read_eventually(one, "storage.cfg", elsewhere.encode())
        elsewhere = elsewhere[:-2] + "78"


async def leader(nodes: list[Node]) -> Node:
    uid = (await nodes[0].client.status()).leader_uid
    return next(node for node in nodes if node.identity.uid == uid)


async def test_a_daemon_whose_address_is_gone_waits_to_be_told_the_new_one(nodes: list[Node]) -> None:
    one, _two, three = nodes
    three.kill()
    identity = three.directory / "state/node.json"
    identity.write_text(identity.read_text().replace(three.identity.address, "192.0.2.1"))
    three.start()

    async def is_served() -> bool:
        return not (await three.client.status()).active

    await eventually(is_served)
    elsewhere = three.identity.address.rpartition(".")[0] + ".80"
    await three.client.readdress(elsewhere)

    async def is_there() -> bool:
        return (await known(one)).get("n3") == (elsewhere, True)

    await eventually(is_there)


async def test_a_node_whose_host_has_another_address_tells_the_cluster(nodes: list[Node]) -> None:
    one, _two, three = nodes
    elsewhere = three.identity.address.rpartition(".")[0] + ".79"
    with pytest.raises(errors.Refused, match="cannot listen"):
        await three.client.readdress("192.0.2.1")
    await three.client.readdress(elsewhere)

    async def is_there() -> bool:
        return (await known(one)).get("n3") == (elsewhere, True)

    await eventually(is_there)
    await eventually(lambda: _is_written(three, "storage.cfg", b"from elsewhere\n"))
    await read_eventually(one, "storage.cfg", b"from elsewhere\n")
