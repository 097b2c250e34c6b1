"""grpc hears of the choice in time: it reads it when it is imported, and says so when it does not know the word."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["clusterfs.main", "bench.hosted"])
def test_the_daemon_sets_it_before_grpc_is_there(module: str) -> None:
    order = (
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'grpc':\n"
        "            import os; print(os.environ.get('GRPC_EXPERIMENTS'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", order], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["-event_engine_listener"]
    assert "experiment" not in done.stderr
