"""The handle for work that is short enough for a request: nothing is kept on disk, but what was begun is undone on failure."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .handle import Undo
from .live import UNDO_TIMEOUT_S
from .record import UndoStep

log = logging.getLogger(__name__)


class DirectHandle:
    upid = ""

    def __init__(self) -> None:
        self._undo: list[Undo] = []

    def log(self, line: str) -> None:
        log.info("%s", line)

    def progress(self, fraction: float, phase: str = "") -> None:
        """Nobody watches."""

    def undo(self, callback: Undo, step: UndoStep | None = None) -> None:
        self._undo.append(callback)

    def commit(self) -> None:
        self._undo.clear()

    async def roll_back(self) -> None:
        while self._undo:
            callback = self._undo.pop()
            try:
                async with asyncio.timeout(UNDO_TIMEOUT_S):
                    await callback()
            except Exception as error:  # the other steps must still be undone
                log.warning("cannot undo: %s", error or type(error).__name__)


@asynccontextmanager
async def undoing() -> AsyncIterator[DirectHandle]:
    """Undo in reverse order what was registered, if the block raises or is cancelled."""
    handle = DirectHandle()
    try:
        yield handle
    except BaseException:
        await asyncio.shield(handle.roll_back())
        raise
