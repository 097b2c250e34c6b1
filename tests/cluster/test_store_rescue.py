"""A stopped daemon's tree is taken out, put into a fresh store, and served by a real daemon again. Needs root and FUSE."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from cluster.store_daemons import Ca, Node, eventually, read_eventually, write

from clusterfs.offline_cli import export_tree, import_tree, verify
from kvorum.errors import Refused


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path, Ca(), "n1", f"127.{random.randint(64, 250)}.{random.randint(1, 250)}.1")
    try:
        node.start()
        await eventually(node.is_up)
        await node.client.activate([node.member], "test")
        yield node
    finally:
        await node.client.close()
        node.clean()
        print(node.log)


async def test_a_tree_is_rescued_from_a_stopped_node_and_served_again(alone: Node, tmp_path: Path) -> None:
    state_dir, out = alone.directory / "state", tmp_path / "rescued"

    def run(command: object, *arguments: object) -> BaseException | None:
        words = ["--state-dir", str(state_dir), *(str(argument) for argument in arguments)]
        return CliRunner().invoke(command, words).exception  # type: ignore[arg-type]

    await write(alone.mount / "storage.cfg", b"dir: local\n")
    await write(alone.mount / "nodes/n1/qemu-server/100.conf", b"name: a\n")
    assert isinstance(run(verify), Refused), "its daemon runs"
    alone.kill()
    alone.clean()
    assert run(verify) is None
    assert run(export_tree, out) is None
    (state_dir / "clusterfs").rename(state_dir / "clusterfs.old")
    assert run(import_tree, out) is None
    alone.start()
    await read_eventually(alone, "storage.cfg", b"dir: local\n")

    async def can_write() -> bool:
        await write(alone.mount / "after", b"x")
        return True

    await eventually(can_write)
    assert (alone.mount / "qemu-server/100.conf").read_bytes() == b"name: a\n"
    assert alone.terminate() == 0
    assert run(verify) is None
