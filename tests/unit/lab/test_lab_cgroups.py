"""What /proc/mounts says of control groups, in each of the layouts that exist; and killing by control group."""

import subprocess
import time
from pathlib import Path

import pytest

from kvorum.errors import CommandFailed
from lab import cgroups, programs
from lab.cgroups import Hierarchy, parse_mounts

HYBRID = """\
proc /proc proc rw 0 0
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid,nodev 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,release_agent=/lib/agent,name=systemd 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /somewhere/else cgroup rw,freezer 0 0
"""
PURE = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n"


def test_the_hybrid_layout_has_each_hierarchy_once() -> None:
    root = Path("/sys/fs/cgroup")
    assert parse_mounts(HYBRID) == (
        Hierarchy(root / "unified", is_v2=True),
        Hierarchy(root / "systemd", ("name=systemd",)),
        Hierarchy(root / "cpu,cpuacct", ("cpu", "cpuacct")),
    )


def test_the_pure_layout_is_one_tree() -> None:
    assert parse_mounts(PURE) == (Hierarchy(Path("/sys/fs/cgroup"), is_v2=True),)


def test_a_hierarchy_is_mounted_again_by_its_controllers() -> None:
    options = [h.mount_options for h in parse_mounts(HYBRID)]
    assert options[1:] == ["none,name=systemd", "cpu,cpuacct"]


@pytest.fixture
def group():
    name = f"kvorum-lab.unit{time.monotonic_ns()}.n1"
    yield name
    cgroups.destroy(name)


def test_what_joins_a_control_group_is_found_frozen_and_killed_with_all_its_children(group: str) -> None:
    cgroups.make(group, has_leaf=True)
    started = subprocess.Popen(cgroups.joining(group, ["sh", "-c", "sleep 1000 & wait"]))
    deadline = time.monotonic() + 10
    while len(found := cgroups.processes(group)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started.pid in found and len(found) == 2
    cgroups.freeze(group)
    assert cgroups.is_frozen(group)
    cgroups.destroy(group)
    assert started.wait(timeout=10) == -9
    assert cgroups.existing(group) == []


def test_joining_a_control_group_that_is_gone_runs_nothing(group: str, tmp_path: Path) -> None:
    cgroups.make(group, has_leaf=True)
    command = cgroups.joining(group, ["touch", str(tmp_path / "ran")])
    cgroups.destroy(group)
    with pytest.raises(CommandFailed):
        programs.run(command)
    assert not (tmp_path / "ran").exists()


def test_a_group_whose_name_begins_alike_is_left_alone(group: str) -> None:
    other = f"{group}0"
    cgroups.make(group, has_leaf=True)
    cgroups.make(other, has_leaf=True)
    try:
        cgroups.destroy(group)
        assert cgroups.existing(other)
    finally:
        cgroups.destroy(other)
