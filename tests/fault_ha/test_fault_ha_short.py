"""Once each what `make fault-ha` does many times, of the strikes that tests/cluster/test_ha_lab.py does not have."""

import subprocess
import sys
from pathlib import Path

import pytest
from ha_verdict import Kind


@pytest.mark.cluster
def test_a_node_without_storage_keeps_its_guests_and_one_without_network_too_loses_them_to_others_once() -> None:
    kinds = [word for kind in (Kind.storage_cut, Kind.both_cut, Kind.short_cut) for word in ("--only", kind)]
    program = Path(__file__).with_name("fault_ha_run.py")
    done = subprocess.run(
        [sys.executable, str(program), "--rounds", "1", "--profile", "fast", "--name", "wfaultha", *kinds],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
