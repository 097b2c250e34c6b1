"""What a restarted daemon needs to find its cluster again: the members it knew last. A local file, never replicated."""

from pathlib import Path

import msgspec

from clusterfs.membership import Member
from kvorum.errors import ConfigError
from kvorum.node import write_atomically

FILE = "seed.json"


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """`joining`: the cluster has not been heard to have this node among its members yet."""

    cluster_name: str
    members: list[Member]
    joining: bool
    # Of the cluster, as far as it was heard: a replica that starts without a log listens to no lower one.
    epoch: int = 0
    # This node has come up at another address than the cluster knows, and is to tell it.
    moved: bool = False


def load(directory: Path) -> Seed | None:
    """None when no replica has been activated here. Raises ConfigError."""
    path = directory / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Seed)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"the list of members does not parse: {error}",
            path=str(path),
            remedy="restore it from a backup, or remove this node from the cluster and join it again",
        ) from error


def save(seed: Seed, directory: Path) -> None:
    write_atomically(directory / FILE, msgspec.json.format(msgspec.json.encode(seed)) + b"\n", mode=0o600)
