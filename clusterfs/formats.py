"""The version of entries that a cluster writes while its nodes are upgraded one by one: pure.

A node that meets an entry of a version that it does not know stops, and must: so nobody may write one before all members
know it. Each node tells as volatile status what it knows; the leader raises the version when all members are there and know
more (`clusterfs.running`). A member that is away holds it back, for it may come back as it was.
"""

from collections.abc import Mapping

from clusterfs.commands import VERSION

KEY = "clusterfs/format"


def announcement() -> dict[str, bytes]:
    """What this program tells the others."""
    return {KEY: b"%d" % VERSION}


def may_be_raised(written: int, told: Mapping[str, bytes | None], online: Mapping[str, bool]) -> bool:
    """Whether entries may be written in this program's version; `told`: what each member says of itself."""
    if written >= VERSION or not told:
        return False
    return all(online.get(uid, False) and _number(value) >= VERSION for uid, value in told.items())


def _number(value: bytes | None) -> int:
    return int(value) if value is not None and len(value) < 10 and value.isdigit() else 0
