"""What a client elsewhere needs to call a cluster: whom to trust, who it is, and where the nodes are.

One JSON file, 0600, made by `kvorum cluster credentials`. On a node root needs none: the agent's local socket knows root.
"""

from pathlib import Path

import msgspec

from kvorum.errors import ConfigError, NotFound
from kvorum.node import write_atomically


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """PEM texts, and addresses (`host:port`) to try in this order."""

    ca: str
    certificate: str
    key: str
    addresses: list[str] = []

    @classmethod
    def load(cls, path: Path | str) -> "Credentials":
        """Raises NotFound or ConfigError, both with a remedy."""
        remedy = "make one on a node with 'kvorum cluster credentials --out FILE'"
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except FileNotFoundError:
            raise NotFound(f"there is no credentials file {path}", remedy=remedy) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no credentials file: {error}", path=str(path), remedy=remedy) from error

    def save(self, path: Path | str) -> None:
        write_atomically(Path(path), msgspec.json.format(msgspec.json.encode(self)) + b"\n", mode=0o600)
