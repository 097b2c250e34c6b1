"""A lab comes up, and goes without a trace however it was interrupted."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum.errors import AlreadyExists, InvalidInput, NotFound
from lab import leftovers, relay
from lab.cluster import Lab

pytestmark = pytest.mark.cluster


@pytest.fixture
def lab() -> Iterator[Lab]:
    one = Lab(f"life{secrets.token_hex(3)}")
    yield one
    one.down()
    assert one.leftovers() == []


def lab_command(lab: Lab, *words: str) -> list[str]:
    return [sys.executable, "-m", "lab", "--name", lab.layout.name, *words]


def test_nodes_are_hosts_of_their_own_on_one_network(lab: Lab) -> None:
    lines: list[str] = []
    lab.up(3, join=False, images=False, progress=lines.append)
    n1, n2, n3 = lab.nodes
    assert lines and all(" s  " in line for line in lines)
    assert [node.run(["hostname"]).stdout for node in lab.nodes] == ["n1\n", "n2\n", "n3\n"]
    assert len({node.run(["cat", "/etc/machine-id"]).stdout for node in lab.nodes}) == 3
    n1.run(["busybox", "ping", "-c1", "-W5", "n3"])
    uuids = {
        line
        for node in lab.nodes
        for line in node.run(["virsh", "capabilities"]).stdout.splitlines()
        if "<uuid>" in line
    }
    assert len(uuids) == 3, "libvirt refuses migration between hosts of one UUID"
    n1.run(["tee", "/srv/shared/seen", "/var/lib/vz/hidden"], stdin="hello")
    assert n2.run(["cat", "/srv/shared/seen"]).stdout == "hello"
    assert n3.run(["test", "-e", "/var/lib/vz/hidden"], is_checked=False).returncode == 1


def test_a_node_sees_only_itself(lab: Lab) -> None:
    lab.up(1, join=False, images=False)
    node = lab.node("n1")
    assert node.run(["cat", "/proc/1/comm"]).stdout.startswith("python")
    assert node.run(["ls", "/sys/class/net"]).stdout.split() == ["lo", "uplink", "vmbr0"]
    assert "kvorum-lab" not in node.run(["cat", "/proc/self/cgroup"]).stdout
    listening = node.run(["ss", "-Hltn"]).stdout
    assert ":16509" not in listening and ":16514" not in listening, "libvirtd has no door to the network"


def test_a_commands_exit_status_and_output_come_through(lab: Lab) -> None:
    lab.up(1, join=False, images=False)
    done = subprocess.run(
        lab_command(lab, "exec", "n1", "--", "sh", "-c", "read word; echo got $word; exit 7"),
        input="it\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "got it\n")


def test_the_commands_show_what_the_lab_is_like(lab: Lab) -> None:
    def said(*words: str) -> str:
        done = subprocess.run(lab_command(lab, *words), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "nodes power on" in said("up", "--no-join", "--no-images", "--nodes", "2")
    said("cut", "n1", "n2")
    said("kill", "n2")
    said("freeze", "n1")
    published = json.loads(said("publish", "n1", "8005", "-o", "json"))
    found = json.loads(said("status", "-o", "json"))
    assert [node["state"] for node in found["nodes"]] == ["frozen", "off"]
    assert found["cuts"] == [["n1", "n2"], ["n2", "n1"]]
    assert found["published"] == [published]
    table = said("status")
    assert "frozen" in table and "n1 cannot send to n2" in table and published["address"] in table
    said("thaw", "n1")
    said("heal")
    said("start", "n2")
    said("restart", "n2", "libvirtd")
    assert "libvirtd: started" in said("logs", "n2")
    assert [len(said("logs", "n2", "-n", str(lines)).splitlines()) for lines in (1, 2)] == [1, 2]
    said("unpublish", "n1", "8005")
    found = json.loads(said("status", "-o", "json"))
    assert [node["state"] for node in found["nodes"]] == ["on", "on"]
    assert (found["cuts"], found["published"]) == ([], [])
    said("down")


def test_two_labs_live_side_by_side(lab: Lab) -> None:
    lab.up(1, join=False, images=False)
    with Lab(f"{lab.layout.name}x") as other:
        other.up(2, join=False, images=False)
        assert other.node("n1").run(["busybox", "ping", "-c1", "-W5", "n2"]).returncode == 0
        missing = lab.node("n1").run(["busybox", "ping", "-c1", "-W1", "10.77.0.2"], is_checked=False)
        assert missing.returncode != 0, "the other lab's network is not ours"
    assert other.leftovers() == []
    assert lab.node("n1").run(["true"]).returncode == 0


def test_up_refuses_to_touch_a_lab_that_runs_and_replaces_one_that_crashed(lab: Lab) -> None:
    lab.up(1, join=False, images=False)
    with pytest.raises(AlreadyExists):
        lab.up(1, join=False, images=False)
    lab.node("n1").kill()
    lab.up(1, join=False, images=False)
    assert lab.node("n1").is_on


def test_nodes_outside_the_lab_and_names_that_are_none_are_told_apart(lab: Lab) -> None:
    with pytest.raises(NotFound):
        assert lab.nodes
    lab.up(1, join=False, images=False)
    with pytest.raises(NotFound):
        lab.node("n2")
    with pytest.raises(InvalidInput):
        lab.node("../n1")


def test_down_takes_everything_along_and_may_be_said_twice(lab: Lab) -> None:
    lab.up(2, join=False, images=False)
    n1, n2 = lab.nodes
    relay.publish(n1.layout, 8005)
    n1.freeze()
    running = n2.popen(["sleep", "1000"])
    Path(lab.shared, "image").write_bytes(bytes(2**20))
    n2.run(["losetup", "-f", "/srv/shared/image"])
    kinds = {one.kind for one in lab.leftovers()}
    assert kinds == set(leftovers.Kind), "the search finds each kind while the lab is up"
    lab.down()
    assert lab.leftovers() == []
    assert running.wait(timeout=10) != 0
    lab.down()


@pytest.mark.parametrize("after_s", [0.2, 0.26, 0.32, 0.38, 0.44, 0.5, 0.7])
def test_an_interrupted_up_leaves_nothing_that_down_does_not_find(lab: Lab, after_s: float) -> None:
    with subprocess.Popen(lab_command(lab, "up", "--no-join", "--nodes", "3"), stdout=subprocess.DEVNULL) as bringing:
        time.sleep(after_s)
        bringing.kill()
    lab.down()
    assert lab.leftovers() == []
    lab.up(1, join=False, images=False)
    assert lab.node("n1").run(["true"]).returncode == 0


def test_an_interrupted_down_is_finished_by_the_next(lab: Lab) -> None:
    for after_s in (0.16, 0.2, 0.24, 0.28):
        lab.up(2, join=False, images=False)
        with subprocess.Popen(lab_command(lab, "down")) as bringing:
            time.sleep(after_s)
            bringing.kill()
        lab.down()
        assert lab.leftovers() == []


def test_a_killed_ups_lock_does_not_outlive_it(lab: Lab) -> None:
    with subprocess.Popen(lab_command(lab, "up", "--no-join"), stdout=subprocess.DEVNULL) as bringing:
        deadline = time.monotonic() + 20
        while not lab.layout.state_file.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(bringing.pid, signal.SIGSTOP)
        assert lab.layout.state_file.exists()
        bringing.kill()
    lab.down()


def test_a_node_that_cannot_boot_says_why(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvorum.errors import CommandFailed
    from lab import boot

    monkeypatch.setattr(boot, "PREFIX_LENGTH", 99)
    with pytest.raises(CommandFailed) as caught:
        lab.up(1, join=False, images=False)
    assert "console.log" in caught.value.remedy
