"""The store as operations write to it: each change carries who caused it, which is whoever is being served.

Tasks inherit the caller of the request that started them. What the agent does by itself is the agent's.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.access.caller import current_caller
from agent.inventory import StoredEntry
from kvorum.errors import PermissionDenied

if TYPE_CHECKING:
    from clusterfs.client import StoreClient

SOURCE = "agent"


class AuthoredStore:
    def __init__(self, store: "StoreClient") -> None:
        self._store = store

    async def get(self, path: str, *, linearizable: bool = False) -> StoredEntry:
        return await self._store.get(path, linearizable=linearizable)

    async def list(
        self, path: str = "", *, recursive: bool = False, with_content: bool = False
    ) -> Iterable[StoredEntry]:
        return await self._store.list(path, recursive=recursive, with_content=with_content)

    async def write(
        self,
        path: str,
        content: bytes,
        *,
        expected_version: int | None = None,
        absent: bool = False,
        parents: bool = False,
        reason: str = "",
    ) -> StoredEntry:
        return await self._store.write(
            path,
            content,
            expected_version=expected_version,
            absent=absent,
            parents=parents,
            reason=reason,
            author=author(),
            source=SOURCE,
        )

    async def move(self, path: str, new_path: str, *, expected_version: int = 0, reason: str = "") -> StoredEntry:
        return await self._store.move(
            path, new_path, expected_version=expected_version, reason=reason, author=author(), source=SOURCE
        )

    async def delete(self, path: str, *, expected_version: int = 0, reason: str = "") -> None:
        await self._store.delete(path, expected_version=expected_version, reason=reason, author=author(), source=SOURCE)


def author() -> str:
    try:
        return current_caller().author
    except PermissionDenied:
        return "agent"
