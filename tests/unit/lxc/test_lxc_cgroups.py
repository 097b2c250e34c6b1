"""Cgroups and processes, read from trees of files that look like the kernel's."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from agent.guests import lxc_cgroups
from agent.guests.lxc_cgroups import Layout

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw,nosuid 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct,release_agent=/bin/x 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
cgroup /elsewhere/memory cgroup rw,memory 0 0
proc /proc proc rw 0 0
short line
"""


def test_the_mounted_hierarchies_are_found() -> None:
    layout = lxc_cgroups.parse_mounts(HYBRID)
    assert {key: str(path) for key, path in layout.v1.items()} == {
        "memory": "/sys/fs/cgroup/memory",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "name=systemd": "/sys/fs/cgroup/systemd",
    }
    assert layout.v2 == Path("/sys/fs/cgroup/unified")
    assert [path.name for path in layout.roots()] == ["memory", "cpu,cpuacct", "systemd", "unified"]


def test_a_pure_v2_host_has_one_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("cpuset cpu memory\n")
    (tmp_path / "self/mounts").write_text(f"cgroup2 {unified} cgroup2 rw 0 0\n")
    layout = lxc_cgroups.read_layout(tmp_path)
    assert layout == Layout({}, unified, frozenset(("cpuset", "cpu", "memory")))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Container 101 with three processes; 1011 is a neighbour whose name begins alike."""
    roots = {name: tmp_path / name for name in ("memory", "freezer")}
    for root, members in ((roots["memory"], "11\n"), (roots["freezer"], "11\n12\n")):
        (root / "kvorum-ct-101/ns").mkdir(parents=True)
        (root / "kvorum-ct-101/cgroup.procs").write_text("0\n")
        (root / "kvorum-ct-101/ns/cgroup.procs").write_text(members)
        (root / "kvorum-ct-1011").mkdir()
        (root / "kvorum-ct-1011/cgroup.procs").write_text("99\n")
    (roots["freezer"] / "kvorum-ct-101/freezer.state").write_text("THAWED\n")
    return Layout(roots)


def test_members_are_gathered_over_all_hierarchies_and_levels(layout: Layout) -> None:
    assert lxc_cgroups.pids(layout, "kvorum-ct-101") == {11, 12}
    assert lxc_cgroups.pids(layout, "kvorum-ct-1011") == {99}
    assert lxc_cgroups.pids(layout, "kvorum-ct-10") == set()
    assert lxc_cgroups.names(layout, "kvorum-ct-") == {"kvorum-ct-101", "kvorum-ct-1011"}


def test_the_first_process_is_the_one_that_is_1_inside_and_not_in_a_container_within(
    layout: Layout, tmp_path: Path
) -> None:
    proc = tmp_path / "proc"
    for pid, inner in ((11, "11\t7"), (12, "12\t1"), (13, "13\t9\t1")):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "status").write_text(f"Name:\tx\nNSpid:\t{inner}\nSigBlk:\t0000001000000000\n")
    assert lxc_cgroups.find_init(layout, "kvorum-ct-101", proc) == 12
    assert lxc_cgroups.find_init(layout, "kvorum-ct-1011", proc) is None
    assert lxc_cgroups.blocks_signal(12, 37, proc)
    assert not lxc_cgroups.blocks_signal(12, 36, proc)


def test_frozen_is_told_by_v1_and_by_v2(layout: Layout, tmp_path: Path) -> None:
    assert not lxc_cgroups.is_frozen(layout, "kvorum-ct-101")
    (layout.v1["freezer"] / "kvorum-ct-101/freezer.state").write_text("FREEZING\n")
    assert lxc_cgroups.is_frozen(layout, "kvorum-ct-101")
    lxc_cgroups.thaw(layout, "kvorum-ct-101")
    assert (layout.v1["freezer"] / "kvorum-ct-101/freezer.state").read_text() == "THAWED"
    unified = Layout({}, tmp_path / "v2")
    (tmp_path / "v2/kvorum-ct-101").mkdir(parents=True)
    (tmp_path / "v2/kvorum-ct-101/cgroup.events").write_text("populated 1\nfrozen 1\n")
    (tmp_path / "v2/kvorum-ct-101/cgroup.freeze").write_text("1")
    assert lxc_cgroups.is_frozen(unified, "kvorum-ct-101")
    lxc_cgroups.thaw(unified, "kvorum-ct-101")
    assert (tmp_path / "v2/kvorum-ct-101/cgroup.freeze").read_text() == "0"


def test_the_uptime_is_counted_from_the_start_of_the_process(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "12").mkdir()
    rest = " ".join(["S", *["0"] * 18, str(40 * ticks)])
    (tmp_path / "12/stat").write_text(f"12 (a name) with ) in it) {rest} 0 0\n")
    (tmp_path / "uptime").write_text("100.5 3.0\n")
    assert lxc_cgroups.uptime_s(12, tmp_path) == pytest.approx(60.5)
    assert lxc_cgroups.uptime_s(13, tmp_path) == 0.0


def test_a_process_that_is_not_in_the_cgroup_is_not_signalled() -> None:
    """Its pid may have been another's a moment ago."""
    process = subprocess.Popen(["sleep", "30"])
    try:
        assert not lxc_cgroups.signal_member(process.pid, "kvorum-ct-101", signal.SIGKILL)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not lxc_cgroups.signal_member(process.pid, "kvorum-ct-101", signal.SIGKILL)


def test_empty_cgroups_are_swept_from_the_bottom(tmp_path: Path) -> None:
    layout = Layout({"memory": tmp_path})
    (tmp_path / "gone/a/b").mkdir(parents=True)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy/member").write_text("a real cgroup with processes refuses as well")
    assert lxc_cgroups.sweep(layout, "gone")
    assert not (tmp_path / "gone").exists()
    assert not lxc_cgroups.sweep(layout, "busy")
    assert lxc_cgroups.sweep(layout, "never there")
