"""The Python client: typed calls to any node of a cluster, with errors that people can act on.

`kvorum.connect()` is the way in. Each service of `proto/kvorum/v1` has a small class here that turns a call into a plain
method; results are the generated messages. No retries that could do a thing twice, no caching, no printing.
"""

from kvorum.client.connection import Client, connect
from kvorum.client.credentials import Credentials

__all__ = ["Client", "Credentials", "connect"]
