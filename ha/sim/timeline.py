"""Virtual time: a queue of things to happen, in seconds. Equal times happen in the order in which they were put in."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

Thunk = Callable[[], None]


@dataclass(slots=True)
class Timeline:
    now: float = 0.0
    _queue: list[tuple[float, int, Thunk]] = field(default_factory=list)
    _count: int = 0

    def after(self, delay_s: float, thunk: Thunk) -> None:
        assert delay_s >= 0, "nothing happens in the past"
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, thunk))

    def run_until(self, end: float) -> None:
        while self._queue and self._queue[0][0] <= end:
            self.now, _, thunk = heapq.heappop(self._queue)
            thunk()
        self.now = max(self.now, end)
