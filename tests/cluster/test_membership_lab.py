"""A witness, new names and addresses, and a majority lost for good, on nodes of a lab, by the commands that people type."""

import json
import secrets
import time
from collections.abc import Callable, Iterator

import pytest

from kvorum.errors import KvorumError
from lab.cluster import Lab
from lab.node import Node

pytestmark = pytest.mark.cluster


@pytest.fixture
def lab() -> Iterator[Lab]:
    one = Lab(f"mem{secrets.token_hex(3)}")
    one.up(3, images=False, witness=True)
    yield one
    one.down()
    assert one.leftovers() == []


def kvorum(node: Node, *words: str) -> str:
    return node.run(["kvorum", *words], timeout_s=120).stdout


def refused(node: Node, *words: str) -> str:
    done = node.run(["kvorum", *words], is_checked=False, timeout_s=120)
    assert done.returncode != 0, done.stdout
    return " ".join(done.stderr.split())


def nodes(node: Node) -> dict[str, tuple[str, str, bool]]:
    """By name: address, state, and whether it votes."""
    found = json.loads(kvorum(node, "node", "list", "-o", "json"))
    return {one["name"].removeprefix("nodes/"): (one["address"], one["state"], one["voter"]) for one in found}


def eventually(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 40
    while True:
        try:
            if condition():
                return
        except (KvorumError, OSError):
            pass
        assert time.monotonic() < end, what
        time.sleep(0.2)


def test_the_life_of_two_nodes_and_a_witness(lab: Lab) -> None:
    one, two, witness = lab.nodes
    # The witness votes, mounts nothing and takes no guests.
    assert nodes(one)["n3"][2]
    assert "witness" in refused(one, "vm", "create", "--node", "n3", "--id", "100", "memory=64")
    assert witness.run(["ls", "/etc/kvorum"]).stdout == ""
    # Another name and another address: the node goes on under them by itself.
    kvorum(one, "node", "rename", "n2", "rack2")
    eventually(lambda: two.run(["readlink", "/etc/kvorum/local"]).stdout.strip() == "nodes/rack2", "the link follows")
    eventually(lambda: nodes(two)["rack2"][1] == "NODE_STATE_ONLINE", "the agent follows")
    assert one.run(["ls", "/etc/kvorum/nodes"]).stdout.split() == ["n1", "rack2"]
    assert "no address of this node" in refused(one, "node", "set-address", "rack2", "10.77.0.22")
    two.run(["ip", "address", "add", "10.77.0.22/24", "dev", "vmbr0"])
    kvorum(one, "node", "set-address", "rack2", "10.77.0.22")
    moved = ("10.77.0.22", "NODE_STATE_ONLINE", True)
    for node in (one, two):
        eventually(lambda n=node: nodes(n).get("rack2") == moved, "the node is there")  # type: ignore[misc]
    # With the witness, either node may go.
    one.kill()
    eventually(lambda: two.run(["touch", "/etc/kvorum/without-n1"]).returncode == 0, "a quorum with the witness")
    witness.kill()
    eventually(lambda: "NO" in kvorum(two, "cluster", "status"), "no quorum alone")
    dry_run = ("cluster", "recover", "--from-this-node", "--dry-run")
    eventually(lambda: "reached" not in kvorum(two, *dry_run), "their links end")
    assert "confirmed" in refused(two, "cluster", "recover", "--from-this-node", "--confirm", "else")
    kvorum(two, "cluster", "recover", "--from-this-node", "--confirm", lab.layout.name)
    two.run(["touch", "/etc/kvorum/alone"])
    # The two that were lost come back, a majority of what the cluster was.
    for node in (one, witness):
        node.start()
        node.wait_ready(["clusterfs", "agent"])
        eventually(lambda n=node: "rejoin" in kvorum(n, "cluster", "status"), "it stops")  # type: ignore[misc]
    assert "quorum" in refused(two, "cluster", "recover", "--from-this-node", "--confirm", lab.layout.name)
    for node in (one, witness):
        kvorum(node, "cluster", "rejoin")
    eventually(lambda: all(voter for _address, _state, voter in nodes(two).values()), "all vote again")
    assert "alone" in one.run(["ls", "/etc/kvorum"]).stdout
