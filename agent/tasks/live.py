"""A task while it runs: its record, its log, its stack of undo steps, and those who wait for news of it."""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from .files import TaskFiles
from .handle import Undo
from .record import TaskRecord, TaskState, UndoStep, last_line

log = logging.getLogger(__name__)

UNDO_TIMEOUT_S = 60.0
# A body that talks without end must not fill the memory; what is said beyond this is dropped.
MAX_LINES = 20_000


class LiveTask:
    def __init__(self, record: TaskRecord, files: TaskFiles, changed: Callable[[TaskRecord], None]) -> None:
        self.record = record
        self.lines: list[str] = []
        self.is_committed = False
        self.work: asyncio.Task[None] | None = None
        self._files = files
        self._changed = changed
        self._undo: list[tuple[Undo, UndoStep | None]] = []
        self._news = asyncio.Event()

    def say(self, text: str) -> None:
        if len(self.lines) >= MAX_LINES:
            return
        new = text.splitlines() or [""]
        self.lines += new
        self._files.append(self.record.upid, new)
        self._announce()

    def advance(self, fraction: float, phase: str) -> None:
        is_new_phase = bool(phase) and phase != self.record.phase
        self.record = self.record.advanced(fraction, phase)
        self._changed(self.record)
        if is_new_phase:
            self._files.save(self.record)
            self.say(phase)
        self._announce()

    def register(self, callback: Undo, step: UndoStep | None) -> None:
        self._undo.append((callback, step))
        if step is not None:
            self._keep_undo()

    def commit(self) -> None:
        self.is_committed = True
        self._undo.clear()
        self._keep_undo()

    async def roll_back(self) -> None:
        """Undo in reverse order; a step that fails or hangs is logged and does not stop the ones before it."""
        while self._undo:
            callback, step = self._undo.pop()
            try:
                async with asyncio.timeout(UNDO_TIMEOUT_S):
                    await callback()
            except Exception as error:  # whatever it is, the other steps must still be undone
                log.warning("task %s: undo of %s failed: %s", self.record.upid, step or callback, error)
                self.say(f"cannot undo {step or 'a step'}: {error or type(error).__name__}")
            self._keep_undo()

    def end(self, state: TaskState, error: str = "") -> None:
        record = self.record.ended(state, now_s=time.time(), error=error)
        self.say(last_line(state, error))
        self.record = record
        self._files.save(record)
        self._changed(record)
        self._announce()

    async def news(self) -> None:
        """Return at the next change of log, progress or state."""
        await self._news.wait()

    def _announce(self) -> None:
        """Wake everyone who waits now, and nobody who comes later."""
        self._news.set()
        self._news = asyncio.Event()

    def _keep_undo(self) -> None:
        steps = tuple(step for _, step in self._undo if step is not None)
        self.record = msgspec.structs.replace(self.record, undo=steps)
        self._files.save(self.record)
        self._changed(self.record)
