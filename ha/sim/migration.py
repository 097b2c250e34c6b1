"""A model of a live migration between two agents: prepare, copy, switch over, resume; each step may fail, and either host
may go.

The rule of the real one: the source's copy has ended, and the target's is whole and paused, before the config file
moves; the target resumes its copy when the file lies with it, its lease is live and its keeper guards the guest. What
became of a copy whose source started anew is thrown away. Which of that is right is for the checks to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from ha.lease_state import may_start
from ha.view import config_path
from kvorum.errors import Fenced

from .host import MIGRATE_LOCK, Host, Process
from .store import Answer, Done, Move, Refused, Write
from .timeline import Timeline

LOOK_S = (0.2, 1.0)
MOVE_LIMIT_S = 120.0


@dataclass(eq=False)
class Migration:
    """One try. `fails` is the chance that the copying breaks by itself."""

    timeline: Timeline
    random: Random
    sid: str
    source: Host
    target: Host
    can_talk: Callable[[str, str], bool]
    done: Callable[[str], None]
    fails: float = 0.0
    copy: Process | None = None
    # Of the config file under this try's lock.
    version: int = 0
    # The source's copy has ended; from here on it only goes forward.
    has_left: bool = False
    is_over: bool = False

    def begin(self) -> None:
        """Takes the guest's lock first: whoever takes it off has made this try void."""
        store, path = self.source.store, config_path(self.sid, self.source.name)
        file = store.truth.files.get(path) if store.has_majority(self.source.name) else None
        if file is None or self.sid in self.source.migrating:
            self._answer("the guest is not ours, or on its way")
            return
        if file.content not in ("", MIGRATE_LOCK):
            self._answer(f"it is locked ({file.content})")
            return
        self.source.migrating.add(self.sid)

        def locked(answer: Answer) -> None:
            if isinstance(answer, Done):
                self.version = answer.number
                self.source.after(self.random.uniform(0.05, 0.5), self._prepare)
            else:
                self._end("its file has changed")

        store.propose(self.source.name, Write(path, MIGRATE_LOCK, file.version), locked, deadline_s=3.0)

    def _prepare(self) -> None:
        process = self.source.processes.get(self.sid)
        if process is None:
            self.has_left = True
            self._hand_over(self.timeline.now + MOVE_LIMIT_S)
            return
        if process.is_starting or process.is_dying or process.hangs or process.is_incoming:
            self._end("it does not run well enough to be moved")
            return
        if not self.can_talk(self.source.name, self.target.name) or self.sid in self.target.processes:
            self._end(f"{self.target.name} cannot take it")
            return
        self.copy = Process(is_starting=False, is_incoming=True)
        self.target.processes[self.sid] = self.copy
        self._look_again()
        self._copy(process, self.timeline.now + self.random.uniform(0.3, 8.0))

    def _copy(self, process: Process, until: float) -> None:
        is_well = self.source.processes.get(self.sid) is process and not process.is_dying and not process.hangs
        breaks = self.random.random() < self.fails
        if not is_well or breaks or not self._is_copy_there() or not self.can_talk(self.source.name, self.target.name):
            self._call_off("the copying broke off")
            return
        if self.timeline.now < until or process.is_paused:
            self.source.after(self.random.uniform(0.1, 0.4), partial(self._copy, process, until))
            return
        # The switch-over: the source's copy ends, the target's is whole.
        del self.source.processes[self.sid]
        self.has_left = True
        self.source.watcher.tell(f"{self.source.name}: {self.sid} has left for {self.target.name}")
        self._hand_over(self.timeline.now + MOVE_LIMIT_S)

    def _call_off(self, why: str) -> None:
        self.is_over = True
        if self._is_copy_there() and self.can_talk(self.source.name, self.target.name):
            self._discard()
        self._end(why)

    def _hand_over(self, until: float) -> None:
        """By the majority's word on where the file lies; tried again while nobody can know whether it moved."""
        store, source = self.source.store, self.source.name
        path, new_path = config_path(self.sid, source), config_path(self.sid, self.target.name)
        truth = store.truth.files
        if store.has_majority(source) and new_path in truth:
            self._moved(Done(0))
            return
        is_ours = path in truth and truth[path].version == self.version
        if (store.has_majority(source) and not is_ours) or self.timeline.now > until:
            self._moved(Refused("it is neither here nor there"))
            return

        def answered(answer: Answer) -> None:
            again = partial(self._hand_over, until)
            self.source.after(0.3, partial(self._moved, answer) if isinstance(answer, Done) else again)

        store.propose(source, Move(path, new_path, self.version), answered, deadline_s=3.0)

    def _moved(self, answer: Answer) -> None:
        if isinstance(answer, Done):
            self._end("")
            return
        self.is_over = True
        if self._is_copy_there() and self.can_talk(self.source.name, self.target.name):
            self._discard()
        self._end("somebody else has it")

    def _end(self, cause: str) -> None:
        """The lock stays: it is taken off by whoever starts or moves the guest next."""
        self.source.migrating.discard(self.sid)
        self._answer(cause)

    def _answer(self, cause: str) -> None:
        self.source.after(0.01, partial(self.done, cause))

    # The target's agent

    def _is_copy_there(self) -> bool:
        return self.copy is not None and self.target.processes.get(self.sid) is self.copy

    def _discard(self) -> None:
        if self._is_copy_there():
            del self.target.processes[self.sid]

    def _look_again(self) -> None:
        self.target.after(self.random.uniform(*LOOK_S), self._look)

    def _look(self) -> None:
        if not self._is_copy_there() or self.copy is None or self.copy.is_dying:
            return
        store = self.target.store
        if not store.has_majority(self.target.name):
            self._look_again()
            return
        files = store.truth.files
        is_mine = config_path(self.sid, self.target.name) in files
        is_sources = config_path(self.sid, self.source.name) in files
        # Its source runs it, or has begun a new life, or has given up: this copy is of the past.
        is_stale = self.is_over or self.sid in self.source.processes
        if is_mine and self.has_left and not is_stale:
            self.target.after(self.random.uniform(0.0, 0.2), self._resume)
            return
        is_hopeless = not self.has_left and not self.can_talk(self.source.name, self.target.name)
        if (is_stale and self.has_left) or not (is_mine or is_sources) or is_mine or is_hopeless:
            self._discard()
            return
        self._look_again()

    def _resume(self) -> None:
        if not self._is_copy_there() or self.copy is None or self.copy.is_dying:
            return
        try:
            may_start(self.target.published, self.target.clock(), self.sid)
        except Fenced:
            self._look_again()
            return
        self.copy.is_incoming = False
        self.target.watcher.tell(f"{self.target.name}: {self.sid} runs on, it came from {self.source.name}")
        self.target.watcher.guest_arrived(self.target, self.sid)
        self.target.watcher.guest_runs(self.sid)
