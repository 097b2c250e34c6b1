"""Work of the agent that outlives a call: started here so that it is never lost, and ended when the agent ends.

A failing piece of background work is logged and does not take its neighbours along, which a TaskGroup would do. Work that
people started and want to follow is a task (`agent.tasks`), not this.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0


class Background:
    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run until done. The name stands in the log when it fails."""
        task = asyncio.create_task(self._guarded(name, work), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def stop(self) -> None:
        """Cancel all and wait for their clean-up, at most STOP_TIMEOUT_S seconds."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            _, late = await asyncio.wait(running, timeout=STOP_TIMEOUT_S)
            for task in late:
                log.warning("%s: does not end, left behind", task.get_name())

    async def _guarded(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s: ended with an unexpected error", name)
