"""What a daemon does not need is not in its memory."""

import subprocess
import sys

DAEMON = """
import sys
import clusterfs.main, clusterfs.replicas
from pysyncobj import HAS_CRYPTO
assert "cryptography" not in sys.modules and not HAS_CRYPTO
"""
# As in the agent, or in a program that offers both.
AFTERWARDS = DAEMON + "from cryptography.fernet import Fernet; Fernet(Fernet.generate_key())"
BEFORE = "import cryptography.fernet, clusterfs.raft; cryptography.fernet.Fernet.generate_key()"


def _run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_daemon_does_not_load_cryptography() -> None:
    _run(DAEMON)


def test_cryptography_can_be_had_beside_it() -> None:
    _run(AFTERWARDS)
    _run(BEFORE)
