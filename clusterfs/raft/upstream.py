"""pysyncobj as it is where cryptography is not installed. Imported before anything else of this package.

It imports that library, at once, for the one case that a password encrypts its own transport, which is not used here: what
crosses the wire is TLS of the standard library. In each daemon that would be 7.6 MB of resident memory.
"""

import sys

_UNUSED = "cryptography"


def load() -> None:
    """Nothing where one of the two is loaded already."""
    if "pysyncobj" in sys.modules or _UNUSED in sys.modules:
        return
    # What an import finds so is "not there", for which pysyncobj is prepared (`HAS_CRYPTO`).
    sys.modules[_UNUSED] = None  # type: ignore[assignment]
    try:
        import pysyncobj  # noqa: F401
    finally:
        del sys.modules[_UNUSED]


load()
