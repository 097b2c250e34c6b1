"""Keeps the session's thread on the processor of a program that asks again and again.

The two never run at the same time, for one waits for the other; on two processors each request costs two wake-ups of a
sleeping processor, four times what the request itself costs. Being on the same processor is not enough: while our thread
runs there the kernel wakes the program on another one that is idle. A thread of policy SCHED_IDLE does not count as
occupying its processor, so the program is woken where it was and goes on at once.

The price is that such a thread gets next to nothing from a processor that has other work, so both are for as long only as
requests come in quick succession: one that comes late ends it, and it does not begin where more is to run than there are
processors. What is read from /dev/fuse is `clusterfs.fusesession`.
"""

import logging
import os
import resource
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

# So many requests in a row from one thread: it is worth being near it, and time to look where it is.
LOOK_EVERY = 16
# Of them, those before which our thread had to sleep; a program on our processor leaves it no time to.
_ASLEEP = 4
# A request that took so long to come or to be taken ends it: the program has something else to do, or the processor has.
_LATE_S = 0.002
# For how long it is then not tried again: longer each time, until it has gone well for a while.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _FORGIVEN_AFTER_S = 0.02, 20.0, 1.0


def running() -> int:
    """How many threads of the system run or could, the asking one included: proc_loadavg(5). Many when nobody can tell."""
    try:
        with open("/proc/loadavg", "rb") as file:  # noqa: PTH123 - on the way of a read
            return int(file.read().split()[3].partition(b"/")[0])
    except (OSError, ValueError, IndexError):
        return 1 << 30


class Nearness:
    """All but `leave_if_idle` are called by the session's thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_near = False
        self._clock = clock
        self._thread = 0
        self._all: set[int] = set()
        self._processor: int | None = None
        self._looks = self._seen = 0
        self._slept = 0
        self._at = self._not_before = float("-inf")
        self._pause_s = _FIRST_PAUSE_S
        self._mutex = threading.Lock()

    def begin(self) -> None:
        self._thread = threading.get_native_id()
        self._all = os.sched_getaffinity(0)

    def look(self, program: int) -> None:
        """Thread `program` has asked LOOK_EVERY times in a row."""
        if len(self._all) < 2:
            return
        self._looks += 1
        if not self.is_near:
            if self._clock() >= self._not_before and running() <= len(self._all):
                self._go_to(program)
            return
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        if slept - self._slept >= _ASLEEP:
            self._go_to(program)
        self._slept = slept

    def is_late(self) -> bool:
        """To be asked at each request while near; True when that is over."""
        now = self._clock()
        before, self._at = self._at, now
        if now - before <= _LATE_S:
            return False
        is_again = now - self._not_before < _FORGIVEN_AFTER_S
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S) if is_again else _FIRST_PAUSE_S
        self._not_before = now + self._pause_s
        self.leave()
        return True

    def leave_if_idle(self) -> None:
        """Called now and then by somebody else: an idle thread must not wait for one busy processor."""
        if self.is_near and self._looks == self._seen:
            self.leave()
        self._seen = self._looks

    def leave(self) -> None:
        with self._mutex:
            self.is_near = False
            self._processor = None
            self._be(os.SCHED_OTHER, self._all)

    def _go_to(self, program: int) -> None:
        try:
            with open(f"/proc/{program}/stat", "rb") as file:  # noqa: PTH123 - on the way of a read
                processor = int(file.read().rpartition(b")")[2].split()[36])
        except (OSError, ValueError, IndexError):
            return
        with self._mutex:
            if processor != self._processor and processor in self._all and self._be(os.SCHED_IDLE, {processor}):
                self.is_near = True
                self._processor = processor
                self._at = self._clock()

    def _be(self, policy: int, processors: set[int]) -> bool:
        try:
            os.sched_setaffinity(self._thread, processors)
            os.sched_setscheduler(self._thread, policy, os.sched_param(0))
        except OSError as error:
            log.debug("affinity: %s", error)
            return False
        return True
