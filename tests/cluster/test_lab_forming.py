"""`up` forms one cluster of all nodes, by the commands that people use."""

import secrets
import time
from collections.abc import Callable, Iterator

import pytest

from lab.cluster import Lab
from lab.forming import add_shared_storage

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"form{secrets.token_hex(3)}") as one:
        one.up(3, images=False)
        yield one
    assert one.leftovers() == []


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_what_is_written_on_one_node_is_read_on_another(lab: Lab) -> None:
    n1, _, n3 = lab.nodes
    n1.run(["tee", "/etc/kvorum/hello"], stdin="written on n1\n")
    wait_for(lambda: n3.path("/etc/kvorum/hello").exists(), "the file on n3")
    assert n3.run(["cat", "/etc/kvorum/hello"]).stdout == "written on n1\n"


def test_all_nodes_are_members(lab: Lab) -> None:
    wait_for(
        lambda: set(lab.node("n2").run(["ls", "/etc/kvorum/nodes"]).stdout.split()) == {"n1", "n2", "n3"}, "members"
    )


def test_the_cluster_knows_the_storage_that_all_nodes_share_once(lab: Lab) -> None:
    add_shared_storage(lab.node("n1"))
    text = lab.node("n1").run(["cat", "/etc/kvorum/storage.cfg"]).stdout
    assert text.count("dir: shared") == 1
    assert text.count("dir: local") == 1


def test_a_node_is_a_member_again_after_a_power_cut(lab: Lab) -> None:
    node = lab.node("n2")
    node.kill()
    lab.node("n1").run(["tee", "/etc/kvorum/meanwhile"], stdin="x")
    node.start()
    wait_for(lambda: node.path("/etc/kvorum/meanwhile").exists(), "what was written while it was off")


def test_two_nodes_of_three_go_on_and_one_alone_does_not(lab: Lab) -> None:
    n1, n2, n3 = lab.nodes
    lab.cut("n3")
    try:
        n1.run(["tee", "/etc/kvorum/majority"], stdin="x", timeout_s=20)
        # A write that was on its way when the cable was cut may still come to be; its caller is told "unknown", not "no".
        wait_for(lambda: '"quorate": 0' in n3.path("/etc/kvorum/.members").read_text(), "n3 knows that it is alone")
        alone = n3.run(["tee", "/etc/kvorum/alone"], stdin="x", is_checked=False, timeout_s=20)
        assert alone.returncode != 0
        assert n3.run(["cat", "/etc/kvorum/storage.cfg"]).stdout, "reads go on"
    finally:
        lab.heal("n3")
    wait_for(lambda: n3.path("/etc/kvorum/majority").exists(), "n3 has caught up")
    assert not n2.path("/etc/kvorum/alone").exists()
