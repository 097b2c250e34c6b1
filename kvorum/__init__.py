"""What anybody may import: the words, formats, client and command line of Kvorum.

Everything that people and other programs need to talk to a cluster lives here, and nothing that runs one: no host is
touched, no state is kept. The rooms that do (`clusterfs`, `ha`, `agent`) import this package and never the reverse.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kvorum")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0"

__all__ = ["__version__"]
