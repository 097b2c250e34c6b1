"""The part of the store on which HA decides, kept here as the replica has it: listed once, then every change as it comes.

A round costs nothing that grows with the number of guests while nothing changes; `revision` says whether something did.
What is here may be a moment older than the replica, never newer, and never goes back. No decisions, no meaning: paths
and entries only.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from kvorum.errors import KvorumError, NotFound

from .options import DATACENTER_CFG

if TYPE_CHECKING:
    from clusterfs.client import StoreClient
    from kvorum.v1 import store_pb2

log = logging.getLogger(__name__)

TOPS = ("ha", "nodes")
RETRY_S = 1.0
# A watch that says nothing for so long is begun anew: a stream may hang without ending.
SILENCE_S = 30.0


class Mirror:
    def __init__(self, store: "StoreClient", on_change: Callable[[], None]) -> None:
        self._store = store
        self._on_change = on_change
        self.files: dict[str, store_pb2.Entry] = {}
        # Log index up to which everything is in here; 0 while nothing is.
        self.index = 0
        self.revision = 0
        # By top: what was listed at this index; what a watch tells of before is in there.
        self._listed: dict[str, int] = {}
        self._frozen: Mapping[str, store_pb2.Entry] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.load()
                if self.index:
                    await self._follow()
                    continue
            except (KvorumError, TimeoutError) as error:
                log.debug("the mirror begins anew: %s", error)
            await asyncio.sleep(RETRY_S)

    def snapshot(self) -> "Mapping[str, store_pb2.Entry]":
        """The files as they are now; the same mapping until they change."""
        if self._frozen is None:
            self._frozen = dict(self.files)
        return self._frozen

    async def load(self) -> None:
        """Everything anew. A listing that is older than what is here changes nothing. Raises Unreachable, Refused."""
        files: dict[str, store_pb2.Entry] = {}
        listed: dict[str, int] = {}
        for top in TOPS:
            try:
                found = await self._store.list(top, recursive=True, with_content=True)
            except NotFound:
                continue
            files.update((entry.path, entry) for entry in found.entries)
            listed[top] = found.applied_index
        with suppress(NotFound):
            answer = await self._store.get_at(DATACENTER_CFG)
            files[DATACENTER_CFG] = answer.entry
            listed[DATACENTER_CFG] = answer.applied_index
        # Watched from the oldest of them: what a later listing has already is told again, and changes nothing.
        index = min(listed.values(), default=0)
        if index >= self.index and index:
            is_news = {path: entry.version for path, entry in files.items()} != {
                path: entry.version for path, entry in self.files.items()
            }
            self.files, self.index, self._listed = files, index, listed
            if is_news or not self.revision:
                self._changed()

    async def _follow(self) -> None:
        """Raises KvorumError when the watch ends, TimeoutError when it is silent."""
        changes = self._store.watch("", from_index=self.index, with_content=True)
        while True:
            async with asyncio.timeout(SILENCE_S):
                change = await anext(changes, None)
            if change is None:
                return
            if change.index < self.index:
                continue
            self.index = max(self.index, change.index)
            if not self.apply(change):
                return

    def apply(self, change: "store_pb2.WatchEntriesResponse") -> bool:
        """False when everything has to be listed anew."""
        match change.WhichOneof("change"):
            case "written":
                entry = change.written
                if self._is_news(entry.path, change.index):
                    self.files[entry.path] = entry
                    self._changed()
            case "deleted":
                path = change.deleted
                gone = [name for name in self.files if name == path or name.startswith(f"{path}/")]
                if gone and self._is_news(path, change.index):
                    for name in gone:
                        del self.files[name]
                    self._changed()
            case "moved":
                source, entry = change.moved.path, change.moved.entry
                if any(name.startswith(f"{source}/") for name in self.files):
                    return False  # a directory with all that is in it
                if self._is_news(source, change.index) and self.files.pop(source, None) is not None:
                    self._changed()
                if self._is_news(entry.path, change.index):
                    self.files[entry.path] = entry
                    self._changed()
        return True

    def _is_news(self, path: str, index: int) -> bool:
        """Whether it is about what we keep, and not told again of what a listing had already."""
        top = path if path == DATACENTER_CFG else path.partition("/")[0]
        return (top in TOPS or top == DATACENTER_CFG) and index > self._listed.get(top, 0)

    def _changed(self) -> None:
        self.revision += 1
        self._frozen = None
        self._on_change()
