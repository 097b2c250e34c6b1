"""The log on a real file system: when the power fails everything acknowledged is there, when it is full nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent


def run(what: str, directory: Path) -> None:
    """In a mount namespace of its own, with which everything that it mounts goes."""
    program = [sys.executable, str(HERE / "log_on_ext4.py"), what, str(directory)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *program],
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}"},
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["keeps", "keeps-in-cache"])
def test_everything_acknowledged_survives_a_power_failure(tmp_path: Path, how: str) -> None:
    run(how, tmp_path)


def test_the_power_failure_is_one(tmp_path: Path) -> None:
    """A log that does not sync, as the stock package's, loses what it acknowledged: so the test above can fail."""
    run("loses", tmp_path)


def test_a_full_disk_takes_back_the_batch_and_goes_on_when_there_is_space(tmp_path: Path) -> None:
    run("fills", tmp_path)
