"""Leftovers are found by looking at the machine."""

import subprocess
from pathlib import Path

from lab.layout import LabLayout
from lab.leftovers import Kind, find, mount_points

MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
90 27 0:50 / /var/lib/kvorum-lab/x/shared rw - tmpfs tmpfs rw
91 90 0:51 / /var/lib/kvorum-lab/x/shared/deep rw - tmpfs tmpfs rw
92 27 0:52 / /var/lib/kvorum-lab/xy rw - tmpfs tmpfs rw
"""


def test_mounts_in_the_labs_directory_are_listed_deepest_first() -> None:
    assert mount_points(LabLayout("x"), MOUNTINFO) == [
        "/var/lib/kvorum-lab/x/shared/deep",
        "/var/lib/kvorum-lab/x/shared",
    ]


def test_a_process_that_carries_the_labs_mark_is_a_leftover(tmp_path: Path) -> None:
    layout = LabLayout("unit-leftover", base=tmp_path)
    assert find(layout) == []
    process = subprocess.Popen(["sleep", "1000"], env={"KVORUM_LAB": layout.name})
    try:
        assert [(one.kind, one.what.split()[0]) for one in find(layout)] == [(Kind.process, str(process.pid))]
    finally:
        process.kill()
        process.wait()


def test_a_directory_that_stayed_is_a_leftover(tmp_path: Path) -> None:
    layout = LabLayout("unit-leftover", base=tmp_path)
    layout.directory.mkdir()
    assert [one.kind for one in find(layout)] == [Kind.directory]
