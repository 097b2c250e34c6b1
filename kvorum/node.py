"""What a node knows of itself before it can ask anybody: identity, keys, and where things are.

The identity is written once, by the agent that forms or joins a cluster, and read by every process of the node. The
private key never leaves the node. Nothing here talks to the network or to the store.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvorum.errors import ConfigError, NotFound
from kvorum.ids import NodeName, NodeUid

MOUNT = Path("/etc/kvorum")
STATE = Path("/var/lib/kvorum")
RUN = Path("/run/kvorum")
LOG = Path("/var/log/kvorum")

IDENTITY_FILE = STATE / "node.json"
CLUSTERFS_DIR = STATE / "clusterfs"
TASK_DIR = STATE / "tasks"
CLUSTERFS_SOCKET = RUN / "clusterfs.sock"
AGENT_SOCKET = RUN / "agent.sock"
KEEPER_DIR = RUN / "keeper"

AGENT_PORT = 8005
RAFT_PORT = 5405
MIGRATION_PORTS = range(60000, 60051)
VNC_PORTS = range(5900, 6000)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is in its cluster."""

    uid: str
    name: str
    # IP address on the cluster network.
    address: str
    cluster_name: str
    # Votes and keeps the log, and nothing else: no mount, no guests.
    witness: bool = False

    @property
    def node_uid(self) -> NodeUid:
        return NodeUid(self.uid)

    @property
    def node_name(self) -> NodeName:
        return NodeName(self.name)


@dataclass(frozen=True, slots=True)
class Pki:
    """Where a node's certificates lie; all PEM. `key` is 0600."""

    directory: Path = STATE / "pki"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.directory / "node.pem"

    @property
    def key(self) -> Path:
        return self.directory / "node.key"


def load_identity(path: Path = IDENTITY_FILE) -> Identity:
    """Raises NotFound when the node is in no cluster, ConfigError when the file is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        raise NotFound(
            "this node is in no cluster", remedy="run 'kvorum cluster init' or 'kvorum cluster join ADDRESS TOKEN'"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the node's identity: {error}", path=str(path)) from error


def save_identity(identity: Identity, path: Path = IDENTITY_FILE) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(identity)) + b"\n", mode=0o600)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a local file so that after a crash either the old or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
