"""Five nodes, any two of them dead: writes go on. A third: they fail at once and name who is missing, and reads go on."""

import errno
import json
import secrets
import time
from collections.abc import Iterator, Sequence

import pytest
from cluster.guest_lab import until

import kvorum
from kvorum.errors import KvorumError, NoQuorum, NotFound, OutcomeUnknown, Unreachable
from kvorum.node import AGENT_SOCKET, MOUNT
from lab.cluster import Lab
from lab.node import Node

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# What a call would wait if nobody noticed; an answer "at once" is far below it even on a busy machine.
DEADLINE_S = 30.0
AT_ONCE_S = 10.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"q{secrets.token_hex(3)}") as one:
        one.up(5, images=False)
        yield one
    assert one.leftovers() == []


@pytest.fixture
def nodes(lab: Lab) -> list[Node]:
    """All five, up and in touch."""
    until(lambda: all(is_whole(node, len(lab.nodes)) for node in lab.nodes), "all five in touch")
    return lab.nodes


def client_of(node: Node) -> kvorum.Client:
    return kvorum.connect(f"unix:{node.path(AGENT_SOCKET)}", timeout_s=DEADLINE_S)


def is_whole(node: Node, size: int) -> bool:
    try:
        with client_of(node) as client:
            status = client.cluster.status()
    except KvorumError:
        return False
    return status.quorate and len(status.nodes) == size and not status.missing_nodes


def leader_and_followers(nodes: Sequence[Node]) -> tuple[Node, list[Node]]:
    def find() -> str:
        with client_of(nodes[0]) as client:
            return client.cluster.status().leader.removeprefix("nodes/")

    name = until(find, "a leader")
    return next(node for node in nodes if node.name == name), [node for node in nodes if node.name != name]


def write_everywhere(nodes: Sequence[Node], word: str) -> None:
    """Through the mount and over the API of each node, an election or not; all of them read all of it."""
    for node in nodes:
        with client_of(node) as client:
            client.store.write(f"api-{node.name}", word.encode())
        node.run(["tee", f"{MOUNT}/mount-{node.name}"], stdin=word)
    for reader in nodes:
        with client_of(reader) as client:
            for writer in nodes:
                for name in (f"api-{writer.name}", f"mount-{writer.name}"):
                    assert client.store.get(name, linearizable=True).content == word.encode(), (reader.name, name)


def refuse_writes(node: Node, missing: Sequence[str]) -> None:
    """Over gRPC, on the command line and on the mount: at once, and with the names."""
    with client_of(node) as client:
        until(lambda: not client.cluster.status().quorate, f"{node.name} knows that the majority is gone")

        def knows_all() -> bool:
            return sorted(client.cluster.status().missing_nodes) == [f"nodes/{name}" for name in sorted(missing)]

        until(knows_all, f"{node.name} misses {missing}")
        begin = time.monotonic()
        with pytest.raises(NoQuorum, match="no quorum") as caught:
            client.store.write("refused", b"x")
        assert time.monotonic() - begin < AT_ONCE_S
        assert sorted(caught.value.missing) == sorted(missing)

    begin = time.monotonic()
    words = ["kvorum", "--timeout", f"{DEADLINE_S:g}", "store", "put", "refused"]
    done = node.run(words, stdin="x", is_checked=False, timeout_s=DEADLINE_S)
    assert time.monotonic() - begin < AT_ONCE_S
    assert done.returncode == 5, done.stderr
    assert "no quorum" in done.stderr
    assert all(name in done.stderr for name in missing), done.stderr

    begin = time.monotonic()
    program = f"import json, os\ntry: os.open('{MOUNT}/refused', os.O_CREAT | os.O_WRONLY)\nexcept OSError as e: print(e.errno)"
    done = node.run(["python3", "-c", program], timeout_s=DEADLINE_S)
    assert time.monotonic() - begin < AT_ONCE_S
    assert json.loads(done.stdout) == errno.EACCES


def read_on(node: Node, word: str) -> None:
    with client_of(node) as client:
        assert client.store.get("api-n1").content == word.encode()
        assert any(entry.path == "storage.cfg" for entry in client.store.list())
    assert node.run(["cat", f"{MOUNT}/mount-n1"]).stdout == word
    assert node.run(["kvorum", "store", "get", "api-n1"]).stdout == word
    assert "nodes" in node.run(["ls", str(MOUNT)]).stdout.split()


@pytest.mark.parametrize("with_leader", [True, False], ids=["leader and follower", "two followers"])
def test_any_two_of_five_may_die_and_a_third_stops_writes_but_no_reads(nodes: list[Node], with_leader: bool) -> None:
    write_everywhere(nodes, "before")
    leader, followers = leader_and_followers(nodes)
    order = [leader, *followers] if with_leader else [*followers[:3], leader, followers[3]]
    first, second, third, *rest = order
    for node in (first, second):
        node.kill()
    write_everywhere([third, *rest], "without two")

    third.kill()
    dead = [first.name, second.name, third.name]
    for node in rest:
        refuse_writes(node, dead)
        # What the dead wrote last is older than what everybody read before they died.
        read_on(node, "without two" if "n1" not in (first.name, second.name) else "before")

    second.start()
    for node in rest:
        until(lambda node=node: is_quorate(node), f"{node.name} has a majority again")
    until(lambda: is_quorate(second), "the node that came back serves")
    write_everywhere([second, *rest], "three again")
    for node in (first, third):
        node.start()
    until(lambda: all(is_whole(node, len(nodes)) for node in nodes), "all are back")
    write_everywhere(nodes, "after")
    for node in nodes:
        with client_of(node) as client, pytest.raises(NotFound):
            client.store.get("refused", linearizable=True)


def test_a_write_that_the_third_death_overtakes_does_not_wait_for_its_deadline(nodes: list[Node]) -> None:
    """Sent before anybody can know that the majority is gone: its fate may be unknown, but it is told early."""
    leader, followers = leader_and_followers(nodes)
    for node in followers[:3]:
        node.freeze()
    try:
        with client_of(leader) as client:
            begin = time.monotonic()
            with pytest.raises((NoQuorum, OutcomeUnknown)):
                client.store.write("overtaken", b"x")
            assert time.monotonic() - begin < AT_ONCE_S
    finally:
        for node in followers[:3]:
            node.thaw()
    until(lambda: all(is_whole(node, len(nodes)) for node in nodes), "all are in touch")


def is_quorate(node: Node) -> bool:
    try:
        with client_of(node) as client:
            return client.cluster.status().quorate
    except Unreachable:
        return False
