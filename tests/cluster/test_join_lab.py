"""Founding, joining, leaving and removing with the real processes on nodes of a lab, by the commands that people type."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvorum.errors import KvorumError
from lab.cluster import Lab
from lab.node import Node

pytestmark = pytest.mark.cluster


@pytest.fixture
def lab() -> Iterator[Lab]:
    one = Lab(f"join{secrets.token_hex(3)}")
    yield one
    one.down()
    assert one.leftovers() == []


def up(lab: Lab, nodes: int) -> list[Node]:
    lab.up(nodes, join=False, images=False)
    for node in lab.nodes:
        node.wait_ready(["clusterfs", "agent"])
    lab.nodes[0].run(["kvorum", "cluster", "init", "test", "--address", lab.nodes[0].address])
    return lab.nodes


def token_of(node: Node, ttl_s: int = 3600) -> str:
    words = ["kvorum", "cluster", "token", "--ttl", str(ttl_s), "-o", "json"]
    token: str = json.loads(node.run(words).stdout)["token"]
    return token


def join(node: Node, first: Node, token: str, *options: str) -> None:
    node.run(["kvorum", "cluster", "join", first.address, token, *options], timeout_s=120)


def refused(node: Node, *words: str) -> str:
    """What the command says on standard error; it must fail."""
    done = node.run(["kvorum", *words], is_checked=False, timeout_s=120)
    assert done.returncode != 0, done.stdout
    return " ".join(done.stderr.split())


def status(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.run(["kvorum", "cluster", "status", "-o", "json"]).stdout)
    return found


def names(node: Node) -> list[str]:
    return [found["name"].removeprefix("nodes/") for found in status(node)["nodes"]]


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except KvorumError:
            pass
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)


def is_listening(node: Node) -> bool:
    try:
        node.connect(8005).close()
    except OSError:
        return False
    return True


def is_untouched(node: Node) -> bool:
    """No identity, no keys, no port, no mount."""
    keys = ["find", "/var/lib/kvorum/node.json", "/var/lib/kvorum/pki", "!", "-type", "d"]
    found = node.run(keys, is_checked=False).stdout
    mounts = node.run(["cat", "/proc/mounts"]).stdout
    return not found and not is_listening(node) and " /etc/kvorum fuse" not in mounts


def test_three_nodes_become_a_cluster_and_one_leaves_and_returns(lab: Lab) -> None:
    n1, n2, n3 = up(lab, 3)
    token = token_of(n1)
    join(n2, n1, token)
    said = refused(n3, "cluster", "join", n1.address, token)
    assert "used already" in said
    assert is_untouched(n3)
    join(n3, n2, token_of(n2))  # any member will do
    for node in (n1, n2, n3):
        eventually(lambda node=node: names(node) == ["n1", "n2", "n3"], f"{node.name} knows all")  # type: ignore[misc]
        assert is_listening(node)
    n1.run(["tee", "/etc/kvorum/hello"], stdin="world")
    eventually(lambda: n3.run(["cat", "/etc/kvorum/hello"]).stdout == "world", "the file is on n3")
    assert "already in cluster test" in refused(n3, "cluster", "join", n1.address, token_of(n1))
    assert "already in cluster test" in refused(n3, "cluster", "init", "other", "--address", n3.address)

    n3.run(["kvorum", "cluster", "leave"], timeout_s=120)
    assert is_untouched(n3)
    assert names(n1) == ["n1", "n2"]
    join(n3, n1, token_of(n1))
    eventually(lambda: names(n2) == ["n1", "n2", "n3"] and not status(n2)["missing_nodes"], "n3 is back")

    leader = next(node for node in (n1, n2, n3) if status(n1)["leader"].endswith(node.name))
    leader.run(["kvorum", "cluster", "leave"], timeout_s=120)
    rest = [node for node in (n1, n2, n3) if node.name != leader.name]
    eventually(
        lambda: names(rest[0]) == [node.name for node in rest] and status(rest[0])["quorate"], "the rest goes on"
    )
    rest[0].run(["tee", "/etc/kvorum/hello"], stdin="again")


def test_a_join_that_may_not_be_changes_nothing(lab: Lab) -> None:
    n1, n2, n3 = up(lab, 3)
    n3.run(["kvorum", "cluster", "init", "other", "--address", n3.address])
    good = token_of(n1)
    version, name, secret, expires, ca = good.split(".")
    for token, words in {
        "kv1.x": "no join token",
        f"{version}.{name}.{secret[::-1]}.{expires}.{ca}": "does not know this join token",
        f"{version}.{name}.{secret}.00000001.{ca}": "has expired",
        f"{version}.{name}.{secret}.{expires}.{'0' * 64}": "its CA is another one",
    }.items():
        assert words in refused(n2, "cluster", "join", n1.address, token)
        assert is_untouched(n2)
    assert "its CA is another one" in refused(n2, "cluster", "join", n3.address, good)
    assert "named n1 is in the cluster" in refused(n2, "cluster", "join", n1.address, good, "--name", "n1")
    assert is_untouched(n2)
    assert names(n1) == ["n1"]
    join(n2, n1, good)
    eventually(lambda: names(n1) == ["n1", "n2"], "the good token is good still")


def test_a_dead_node_is_removed_and_stays_out_when_it_is_back(lab: Lab) -> None:
    n1, n2, n3 = up(lab, 3)
    for node in (n2, n3):
        join(node, n1, token_of(n1))
    assert "n3 is online" in refused(n1, "cluster", "remove", "n3")
    n3.kill()
    eventually(lambda: status(n1)["missing_nodes"] == ["nodes/n3"], "n3 is missing")
    n1.run(["kvorum", "cluster", "remove", "n3"], timeout_s=120)
    assert names(n1) == ["n1", "n2"]
    n3.start()
    n3.wait_ready(["agent"])
    eventually(lambda: is_listening(n3), "n3 serves again")
    assert names(n1) == ["n1", "n2"]
    n3.run(["kvorum", "cluster", "leave", "--force"], timeout_s=120)
    assert is_untouched(n3)
    join(n3, n1, token_of(n1))
    eventually(lambda: names(n2) == ["n1", "n2", "n3"], "n3 is back")


def test_the_daemons_start_in_any_order(lab: Lab) -> None:
    n1, n2 = up(lab, 2)
    join(n2, n1, token_of(n1))
    n2.stop_unit("clusterfs")
    n2.restart("agent")
    eventually(lambda: is_listening(n2), "the agent serves without its config store")
    assert "config store of this node does not answer" in refused(n2, "cluster", "status")
    n2.start_unit("clusterfs")
    eventually(lambda: status(n2)["quorate"] and not status(n2)["missing_nodes"], "n2 is whole again")
    n1.kill_unit("agent")
    eventually(lambda: is_listening(n1) and names(n1) == ["n1", "n2"], "a killed agent is back")


def test_without_a_majority_the_missing_are_named_and_nobody_joins(lab: Lab) -> None:
    n1, n2, n3 = up(lab, 3)
    join(n2, n1, token_of(n1))
    token = token_of(n1)
    n2.kill()
    eventually(lambda: not status(n1)["quorate"], "n1 knows that it is alone")
    eventually(lambda: status(n1)["missing_nodes"] == ["nodes/n2"], "n1 knows who is missing")
    for words in (["cluster", "token"], ["cluster", "leave"]):
        said = refused(n1, *words)
        assert "no quorum" in said and "n2" in said
    said = refused(n3, "cluster", "join", n1.address, token)
    assert "no quorum" in said and "n2" in said
    assert is_untouched(n3)


def test_nothing_is_parsed_before_the_handshake(lab: Lab) -> None:
    (n1,) = up(lab, 1)
    with n1.connect(8005) as plain:
        plain.settimeout(10)
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64))
        received = b""
        try:
            while chunk := plain.recv(4096):
                received += chunk
        except ConnectionError:
            pass
    assert not received or received[:1] == b"\x15", received  # silence, or an alert of TLS
