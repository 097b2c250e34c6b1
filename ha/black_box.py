"""What the keeper has recorded, carried to where people look: the cluster log, and this node's status for the others.

The keeper cannot do it itself, since it talks to nobody but the store's leases, and often enough it ends the host just then. So
whoever comes after the reset reads its records and posts those that were not posted yet; which these are is kept beside
them. Losing that count posts some lines twice, no more.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from kvorum.errors import KvorumError
from kvorum.node import write_atomically

from . import lease_state
from .keeper import records
from .keeper.records import Record
from .lease_state import LeaseState

log = logging.getLogger(__name__)

POSTED_FILE = records.RECORDS_FILE.with_name("posted")
POLL_S = 2.0
# Of this node's status; `kvorum ha records` shows it.
STATUS_KEY = "ha/keeper"
SHOWN = 20
# syslog's.
WARNING, NOTICE = 4, 5
_QUIET = ("armed", "disarmed", "resumed", "gone")


class Log(Protocol):
    """Of the store's client."""

    async def log_message(self, message: str, *, priority: int, tag: str) -> None: ...
    async def set_status(self, values: Mapping[str, bytes]) -> None: ...


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The keeper of one node, as others see it."""

    phase: str
    cause: str
    profile: str
    tolerates_s: float
    takeover_after_s: float
    watchdog: str
    # The newest ones, in order.
    records: tuple[Record, ...]


class BlackBox:
    def __init__(
        self,
        store: Log,
        *,
        path: Path = records.RECORDS_FILE,
        posted: Path = POSTED_FILE,
        state: Path = lease_state.STATE_FILE,
    ) -> None:
        self._store = store
        self._path = path
        self._posted = posted
        self._state = state
        self._shown: Shown | None = None

    async def run(self) -> None:
        """Until cancelled. What cannot be posted now is posted later."""
        while True:
            with suppress(KvorumError, OSError):
                await self.look()
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """Raises KvorumError when the store does not answer, OSError when the disk refuses the count."""
        found = await asyncio.to_thread(records.read, self._path)
        await self._post(found)
        shown = summary(lease_state.read(self._state), found)
        if shown != self._shown:
            await self._store.set_status({STATUS_KEY: msgspec.json.encode(shown)})
            self._shown = shown

    async def _post(self, found: Sequence[Record]) -> None:
        posted = self._read_posted()
        for record in found:
            if record.number > posted or record.number < posted - records.MAX_LINES:
                priority = NOTICE if record.kind in _QUIET else WARNING
                await self._store.log_message(records.told(record), priority=priority, tag="kvorum-keeper")
                await asyncio.to_thread(write_atomically, self._posted, str(record.number).encode())

    def _read_posted(self) -> int:
        try:
            return int(self._posted.read_text())
        except (OSError, ValueError):
            return 0


def summary(state: LeaseState, found: Sequence[Record]) -> Shown:
    """Nothing in it changes while nothing happens: it is told to every node of the cluster."""
    return Shown(
        phase=state.phase,
        cause=state.cause,
        profile=state.profile.name,
        tolerates_s=state.profile.tolerates_s,
        takeover_after_s=round(state.profile.takeover_after_s, 3),
        watchdog=state.watchdog,
        records=tuple(found[-SHOWN:]),
    )
