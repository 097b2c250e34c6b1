"""Takes back, in reverse order, what an operation had done before it failed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

log = logging.getLogger(__name__)

STEP_TIMEOUT_S = 20.0


class Undo:
    """`async with Undo("join") as undo: ... undo.add("the key files", remove_them)`; a block that ends well is left as it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    def add(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """`step` must bear being called when only half of what it undoes was done."""
        self._steps.append((what, step))

    async def __aenter__(self) -> "Undo":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._steps:
            log.warning("%s: failed (%s), undoing", self._name, error or type(error).__name__)
            # A caller that goes away while we undo must not leave half of it.
            await asyncio.shield(self._take_back())

    async def _take_back(self) -> None:
        while self._steps:
            what, step = self._steps.pop()
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    await step()
            except Exception as error:
                log.error("%s: not undone: %s: %s", self._name, what, error)
