"""What anybody may import: the words, formats, client and command line of Kvorum.

Everything that people and other programs need to talk to a cluster lives here, and nothing that runs one: no host is
touched, no state is kept. The rooms that do (`clusterfs`, `ha`, `agent`) import this package and never the reverse.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvorum.client import Client, Credentials, connect

try:
    __version__ = version("kvorum")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0"

__all__ = ["Client", "Credentials", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    """Load the client on first use: most importers need words only, and gRPC takes a third of a second to load."""
    if name in {"Client", "Credentials", "connect"}:
        import kvorum.client

        return getattr(kvorum.client, name)
    raise AttributeError(f"module 'kvorum' has no attribute {name!r}")
