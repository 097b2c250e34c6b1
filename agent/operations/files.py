"""Changing one file of the store: read it, edit it, write it at the version that was read, and again when somebody was faster.

What an edit means is for whoever brings it; an edit may run several times and must be a function of what it is given.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from agent.inventory import GuestStore, StoredEntry
from kvorum.errors import AlreadyExists, NotFound, StaleVersion

TRIES = 5
T = TypeVar("T")


class FileStore(GuestStore, Protocol):
    """The part of the store's client that files are changed with."""

    async def write(
        self,
        path: str,
        content: bytes,
        *,
        expected_version: int | None = None,
        absent: bool = False,
        parents: bool = False,
        reason: str = "",
    ) -> StoredEntry: ...


async def load(store: GuestStore, path: str, *, linearizable: bool = False) -> tuple[bytes, int]:
    """Content and version; nothing and 0 when there is no such file."""
    try:
        entry = await store.get(path, linearizable=linearizable)
    except NotFound:
        return b"", 0
    return entry.content, entry.version


async def change(
    store: FileStore, path: str, edit: Callable[[bytes], tuple[T, bytes]], *, reason: str, is_dry_run: bool = False
) -> tuple[T, int]:
    """`edit` gives a value and the new content, which is not written when it is the old one; the value of the last try, and the
    file's version. Raises what `edit` raises, StaleVersion when others are always faster, NoQuorum."""
    for _ in range(TRIES):
        content, version = await load(store, path, linearizable=True)
        value, after = edit(content)
        if is_dry_run or after == content:
            return value, version
        try:
            entry = await store.write(
                path, after, expected_version=version or None, absent=not version, parents=True, reason=reason
            )
        except (StaleVersion, AlreadyExists):
            continue
        return value, entry.version
    raise StaleVersion(f"{path} changes faster than it can be written", remedy="try again")
