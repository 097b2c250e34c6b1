"""One minute of what `make fault` does for ten."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.cluster
def test_a_minute_of_faults_loses_nothing_and_every_history_has_an_order() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fault_run.py")), "--minutes", "0.8"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
