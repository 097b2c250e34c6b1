"""Commands under way for which no thread waits: their answers are handed on in the raft thread.

Sixty-four threads that each wait for a commit, wake up and want the interpreter cost more than their commits. Only what does not
go straight (a lost leader, an answer that is late) gets a thread, which then goes on as every blocking caller does, with
the same entry: `(client, seq)` makes that safe. What an entry is, and when to try again, is `clusterfs.proposer`'s business.
"""

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec

from clusterfs.consensus import Consensus
from clusterfs.outcomes import Done, Refusal, Result
from kvorum.errors import KvorumError

log = logging.getLogger(__name__)

OnResult = Callable[[Result | KvorumError], None]

# How often somebody looks for those that are late; nobody does while nothing is under way.
LOOK_S = 0.1
STRAGGLERS = 64
# With the stragglers far below the answers remembered for a client (`state.REMEMBERED_RESULTS`): a copy of any of them is
# still known. What comes on top waits its turn with the stragglers.
UNDER_WAY = 256


class Settle(Protocol):
    """Sends until there is an answer, and waits for it. Raises KvorumError."""

    def __call__(self, entry: bytes, end: float, *, is_sent: bool) -> Result: ...


class _Waiting(msgspec.Struct, frozen=True):
    entry: bytes
    end: float
    on_result: OnResult
    # When this attempt is given up.
    late_at: float


class Pending:
    def __init__(
        self,
        replica: Consensus,
        settle: Settle,
        explained: Callable[[KvorumError], KvorumError],
        *,
        attempt_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._settle = settle
        self._explained = explained
        self._attempt_s = attempt_s
        self._clock = clock
        # Whoever takes a command out of here is the one that calls its `on_result`.
        self._waiting: dict[int, _Waiting] = {}
        self._keys = itertools.count()
        self._stragglers = ThreadPoolExecutor(STRAGGLERS, thread_name_prefix="straggler")
        self._mutex = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._is_resting = False
        self._wanted = threading.Event()

    def submit(self, make: Callable[[], bytes], end: float, on_result: OnResult) -> None:
        """`make`: gives the entry its number, when its turn comes: one that waits with an old number would be taken for one of
        long ago. `end`: of the caller's patience."""
        if len(self._waiting) >= UNDER_WAY:
            self._stragglers.submit(self._begin, make, end, on_result)
            return
        key, entry = next(self._keys), make()
        self._waiting[key] = _Waiting(entry, end, on_result, min(end, self._clock() + self._attempt_s))
        try:
            self._replica.submit(entry, functools.partial(self._done, key), functools.partial(self._open, key))
        except KvorumError as error:
            self._tell(key, self._explained(error))
        else:
            self._watch()

    def pass_barrier(self, wait: Callable[[], object], passed: Callable[[KvorumError | None], None]) -> None:
        """A read that waits does so here: there are few of them."""

        def go() -> None:
            error: KvorumError | None = None
            try:
                wait()
            except KvorumError as raised:
                error = raised
            passed(error)

        self._stragglers.submit(go)

    def _done(self, key: int, answer: object) -> None:
        assert isinstance(answer, Done | Refusal | KvorumError), answer
        self._tell(key, answer)

    def _open(self, key: int, is_sent: bool) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._stragglers.submit(self._go_on, waiting, is_sent)

    def _tell(self, key: int, answer: Result | KvorumError) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            _tell(waiting, answer)

    def _begin(self, make: Callable[[], bytes], end: float, on_result: OnResult) -> None:
        self._go_on(_Waiting(make(), end, on_result, end), False)

    def _go_on(self, waiting: _Waiting, is_sent: bool) -> None:
        answer: Result | KvorumError
        try:
            answer = self._settle(waiting.entry, waiting.end, is_sent=is_sent)
        except KvorumError as error:
            answer = error
        _tell(waiting, answer)

    def _watch(self) -> None:
        """Somebody looks for late ones as long as there may be any; to wake that somebody for each command would cost as much
        as what is saved."""
        if self._is_resting:
            self._is_resting = False
            self._wanted.set()
        elif self._watcher is None:
            with self._mutex:
                if self._watcher is None:
                    self._watcher = threading.Thread(target=self._look, name="pending", daemon=True)
                    self._watcher.start()

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_S)
            now = self._clock()
            for key, waiting in self._waiting.copy().items():
                if now >= waiting.late_at:
                    self._open(key, True)
            self._wanted.clear()
            self._is_resting = True
            # In this order: who comes in between sees that nobody looks.
            if self._waiting:
                self._is_resting = False
            else:
                self._wanted.wait()


def _tell(waiting: _Waiting, answer: Result | KvorumError) -> None:
    try:
        waiting.on_result(answer)
    except Exception:
        # Consensus must not end because one caller's way back is broken.
        log.exception("an answer could not be handed on")
