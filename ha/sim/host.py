"""A model of one host: its clock, its keeper around the real core, its agent, the guests' processes and a watchdog.

What runs here is what the checks are about. A process counts as running from the moment the guest may write to its disk
until it is gone for good: a signal that was sent ends nothing yet, and one that hangs in the kernel outlives every signal
but the host's reset. Some hosts have a watchdog device, whose time goes on while the host is frozen; on the others the
first thing that happens after a freeze is the keeper's step, which stands for its real-time priority; what it kills then
was frozen for so long that nothing of it is on its way to a disk.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Protocol

from ha import lrm
from ha.keeper import core
from ha.lease_state import LIVE, LeaseState, may_start
from ha.leases import DEFAULT, Profile
from ha.status import ManagerStatus
from ha.view import View, config_path
from kvorum.errors import Fenced

from .store import Acquire, Answer, Command, Done, Refused, Renew, Rest, Store, Write
from .timeline import Timeline

TICK_S = 0.1
# What the config file of a guest says while it moves.
MIGRATE_LOCK = "lock: migrate"


class Watcher(Protocol):
    """The checks, as a host and its daemon report to them."""

    def guest_runs(self, sid: str) -> None: ...
    def deciding(self, after: ManagerStatus, view: View) -> None: ...
    def order_taken(self, host: "Host", action: lrm.Action) -> None: ...
    def status_shown(self, host: "Host", status: ManagerStatus) -> None: ...
    def lease_taken(self, host: "Host") -> None: ...
    def watchdog_closed(self, host: "Host") -> None: ...
    def guest_started(self, host: "Host", sid: str, incarnation: int) -> None: ...
    def guest_arrived(self, host: "Host", sid: str) -> None: ...
    def tell(self, line: str) -> None: ...
    def count(self, what: str) -> None: ...


@dataclass(slots=True, eq=False)
class Process:
    # Not yet: it exists, and runs only after a second look at the lease.
    is_starting: bool = True
    is_paused: bool = False
    is_dying: bool = False
    hangs: bool = False
    # A copy that is on its way here, or whole and paused: not by a signal, so the keeper's does not wake it.
    is_incoming: bool = False


@dataclass(frozen=True, slots=True)
class Faults:
    """Of which this seed makes use; chances, not counts."""

    start_fails: float = 0.0
    kill_hangs: float = 0.0
    migration_fails: float = 0.0
    # Longest way of an answer from the store's process to the keeper; a freeze may fall in between.
    reply_s: float = 0.01
    # Mutations that the simulation must notice.
    counts_from_reply: bool = False
    rejoins_uncleared: bool = False
    lives_by_the_longer: bool = False
    skips_generation: bool = False
    keeps_watchdog: bool = False


@dataclass(eq=False)
class Host:
    name: str
    timeline: Timeline
    random: Random
    watcher: Watcher
    has_watchdog: bool
    faults: Faults = Faults()
    offset: float = 0.0
    rate: float = 1.0
    is_up: bool = True
    is_frozen: bool = False
    is_thawing: bool = False
    boot: int = 1
    # Set by the world.
    store: Store = field(init=False)
    # None while the keeper's process is dead.
    keeper: core.State | None = None
    keeper_life: int = 0
    # The life of the keeper that has read the list.
    loaded_by: int = 0
    # /run/kvorum/keeper: gone after a boot.
    published: LeaseState = field(default_factory=LeaseState)
    guests_file: tuple[int, tuple[str, ...], bool] = (0, (), False)
    # Beside them, in the same file.
    profile_file: Profile = DEFAULT
    processes: dict[str, Process] = field(default_factory=dict)
    # What came to pass while it was frozen.
    deferred: list[Callable[[], None]] = field(default_factory=list)
    # When the keeper last came to its senses, on the timeline: after a freeze, or a death.
    awake_since: float = 0.0
    fed_at: float | None = None
    armed_s: float = 0.0
    # Seconds; freezes when the keeper's next answer is on its way, which is when it matters what the age counts from.
    freeze_at_answer_s: float = 0.0
    # The same, between a start's first look at the lease and its process.
    freeze_at_start_s: float = 0.0
    # Only when nothing else runs here.
    freezes_alone: bool = False
    # Between the process and the second look, before it runs.
    freeze_at_fork_s: float = 0.0
    # The power goes as soon as a new lease is taken, for so long.
    dies_young_s: float = 0.0
    bad_starts: set[str] = field(default_factory=set)
    # Guests that are leaving, as the agent's records have it.
    migrating: set[str] = field(default_factory=set)
    # What the store hints at for its renewals; None: nothing.
    hints: Random | None = None
    on_boot: Callable[[], None] = lambda: None
    on_off: Callable[[], None] = lambda: None
    # The power is back after a fault.
    on_power: Callable[[], None] = lambda: None

    def clock(self) -> float:
        """CLOCK_BOOTTIME, but for its start; the nodes' clocks drift and have nothing in common."""
        return self.offset + self.timeline.now * self.rate

    def after(self, delay_s: float, thunk: Callable[[], None]) -> None:
        """On this host: waits while it is frozen, and is lost with the power."""
        boot = self.boot

        def run() -> None:
            if self.boot != boot or not self.is_up:
                return
            if self.is_frozen:
                self.deferred.append(run)
                return
            thunk()

        self.timeline.after(delay_s, run)

    # Power

    def power_off(self, why: str) -> None:
        if not self.is_up:
            return
        self.watcher.tell(f"{self.name}: power off ({why})")
        self.boot += 1
        self.is_up = self.is_frozen = False
        self.processes.clear()
        self.migrating.clear()
        self.deferred.clear()
        self.keeper, self.fed_at = None, None
        self.published, self.guests_file, self.profile_file = LeaseState(), (0, (), False), DEFAULT
        self.store.restart(self.name)
        self.on_off()

    def power_on(self) -> None:
        if self.is_up:
            return
        self.watcher.tell(f"{self.name}: boots")
        self.is_up = True
        self.start_keeper()
        self.on_boot()

    def freeze(self) -> None:
        # A freeze on top of a dead keeper, without a device, is a gap that the docs name.
        is_guarded = self.has_watchdog or self.keeper is not None
        if self.is_up and not self.is_frozen and is_guarded:
            self.watcher.tell(f"{self.name}: frozen")
            self.is_frozen = True

    def thaw(self) -> None:
        if not self.is_frozen:
            return
        self.watcher.tell(f"{self.name}: thawed")
        self.is_frozen, self.is_thawing = False, True
        self.awake_since = self.timeline.now
        waiting, self.deferred = self.deferred, []
        # Threads wake in any order; the keeper may see an answer from before the freeze before it sees the time.
        self.random.shuffle(waiting)
        if self.random.random() < 0.5:
            self.tick()
        for thunk in waiting:
            thunk()
        self.tick()
        self.is_thawing = False
        for sid in sorted(self.processes):
            self.watcher.guest_runs(sid)

    # The keeper

    def start_keeper(self) -> None:
        if self.keeper is not None:
            return
        self.keeper_life += 1
        self.awake_since = self.timeline.now
        self.keeper = core.initial(self.published, self.clock(), uid=self.name)
        if self.faults.rejoins_uncleared and self.keeper.phase != LIVE:
            self.keeper = core.State()
        self._tick_again(self.keeper_life)

    def kill_keeper(self) -> None:
        self.watcher.tell(f"{self.name}: keeper killed")
        self.keeper = None

    def _tick_again(self, life: int) -> None:
        if self.keeper is not None and self.keeper_life == life:
            self.tick()
            self.after(TICK_S * self.random.uniform(0.9, 1.2), partial(self._tick_again, life))

    def tick(self) -> None:
        if self.keeper is None:
            return
        revision, sids, is_wanted = self.guests_file
        may_load = revision != self.keeper.guests_revision and (
            core.may_load(self.keeper) or self.loaded_by != self.keeper_life
        )
        if may_load:
            self.loaded_by = self.keeper_life
            self._step(core.GuestsLoaded(revision, sids, is_wanted, self.profile_file))
        if self.keeper.phase == LIVE:
            self._step(core.Tick())
            return
        is_left = any(sid in self.keeper.sids for sid in self.processes)
        self._step(core.Tick(is_left and not self.faults.rejoins_uncleared))

    def _step(self, event: core.Event) -> None:
        if self.keeper is None:
            return
        before = self.keeper
        self.keeper, actions = core.step(before, event, self.clock())
        if self.faults.lives_by_the_longer and self.keeper.profile.takeover_after_s < before.profile.takeover_after_s:
            self.keeper = replace(self.keeper, profile=before.profile)
        if before.phase != self.keeper.phase:
            self.watcher.count(f"keepers: {self.keeper.phase}")
            self.watcher.tell(f"{self.name}: keeper {before.phase} => {self.keeper.phase} ({self.keeper.cause})")
        for action in actions:
            self._perform(action)
        if self.keeper is before:
            return
        self.published = core.published(self.keeper, boot_id="", uid=self.name)

    def _perform(self, action: core.Action) -> None:
        assert self.keeper is not None
        match action:
            case core.PetWatchdog():
                self._feed(bool(self.keeper.sids))
            case core.Renew() | core.Acquire() | core.Rest():
                self._call(action)
            case core.Pause():
                for sid in self._guarded():
                    self.processes[sid].is_paused = True
            case core.Resume():
                for sid in self._guarded():
                    self.processes[sid].is_paused = False
                    self.watcher.guest_runs(sid)
            case core.Kill():
                for sid in self._guarded():
                    self.end(sid)
            case core.ResetHost():
                self._reset(action.cause)

    def _guarded(self) -> list[str]:
        assert self.keeper is not None
        return [sid for sid in self.keeper.sids if sid in self.processes]

    def _call(self, action: core.Renew | core.Acquire | core.Rest) -> None:
        sent_at, life = self.clock(), self.keeper_life

        def answered(answer: Answer) -> None:
            self.after(
                self.random.uniform(0, self.faults.reply_s), partial(self._answered, life, action, sent_at, answer)
            )
            if self.freeze_at_answer_s and not self.is_frozen and isinstance(answer, Done):
                self.freeze()
                self.timeline.after(self.freeze_at_answer_s, self.thaw)
                self.freeze_at_answer_s = 0.0

        command: Command
        deadline_s = DEFAULT.call_deadline_s if isinstance(action, core.Rest) else action.profile.call_deadline_s
        match action:
            case core.Acquire():
                command = Acquire(self.name, action.profile.terms)
            case core.Renew():
                command = Renew(self.name, action.incarnation, sent_at, action.profile.terms)
            case core.Rest():
                command = Rest(self.name, action.incarnation)
        self.store.propose(self.name, command, answered, deadline_s=deadline_s)

    def _answered(
        self, life: int, action: core.Renew | core.Acquire | core.Rest, sent_at: float, answer: Answer
    ) -> None:
        if life != self.keeper_life or self.keeper is None:
            return
        if self.faults.counts_from_reply:
            sent_at = self.clock()
        match answer, action:
            case Done(), core.Acquire():
                self.tick()
                is_held = self.keeper.phase == LIVE
                self._step(core.Acquired(sent_at, answer.number))
                if not is_held and self.keeper.phase == LIVE:
                    self.watcher.lease_taken(self)
                    self._die_young()
            case Done(), core.Renew():
                self._step(core.Renewed(sent_at, action.incarnation, self._hint_s()))
            case Done(), core.Rest():
                self._step(core.Rested(action.incarnation))
            case Refused("fenced"), core.Renew() | core.Rest():
                self._step(core.Refused(sent_at, action.incarnation))
            case _:
                self._step(core.Failed("no answer"))

    def _hint_s(self) -> float:
        """The store's, for the next renewal. None may do harm, so it is anything."""
        if self.hints is None:
            return 0.0
        return self.hints.choice((0.0, -1.0, math.inf, math.nan, 1e-3, self.hints.uniform(0.0, 10.0)))

    def _die_young(self) -> None:
        if not self.dies_young_s:
            return

        def off() -> None:
            off_s, self.dies_young_s = self.dies_young_s, 0.0
            if not off_s:
                return  # everything heals meanwhile
            self.power_off("power cut, before the first renewal")
            self.timeline.after(off_s, self.on_power)

        self.after(self.random.uniform(0.0, 0.5), off)

    def _feed(self, is_guarding: bool) -> None:
        if not self.has_watchdog or (not is_guarding and not self.faults.keeps_watchdog):
            if self.fed_at is not None:
                self.watcher.watchdog_closed(self)
            self.fed_at = None
            return
        is_armed = self.fed_at is not None
        self.fed_at = self.clock()
        assert self.keeper is not None
        self.armed_s = self.keeper.profile.watchdog_s
        if not is_armed:
            self._watch(self.boot)

    def _watch(self, boot: int) -> None:
        """The device: no part of the host, so it does not freeze with it."""
        if self.boot != boot or self.fed_at is None:
            return
        if self.clock() - self.fed_at > self.armed_s:
            self._reset("watchdog")
        else:
            self.timeline.after(0.1, partial(self._watch, boot))

    def _reset(self, why: str) -> None:
        boot = self.boot
        self.watcher.count("keepers: reset by the watchdog" if why == "watchdog" else "keepers: reset the host")

        def off() -> None:
            if self.boot == boot:
                self.power_off(why)
                self.timeline.after(self.random.uniform(3, 8), self.power_on)

        self.timeline.after(self.random.uniform(0, DEFAULT.reset_s * 0.8), off)

    # Guests

    def is_running(self, sid: str) -> bool:
        """May it write to its disk at this moment?"""
        process = self.processes.get(sid)
        if process is None or process.is_starting or process.is_incoming or not self.is_up or self.is_frozen:
            return False
        return process.hangs or not process.is_paused

    def end(self, sid: str) -> None:
        process = self.processes.get(sid)
        if process is None or process.is_dying:
            return
        process.is_dying = True
        if self.random.random() < self.faults.kill_hangs and self.has_watchdog:
            process.hangs = True
            self.watcher.tell(f"{self.name}: {sid} does not die")
            self.watcher.guest_runs(sid)
            return
        if self.is_thawing:
            del self.processes[sid]
            return
        self.after(self.random.uniform(0, 0.2), partial(self._gone, sid, process))

    def release_hung(self) -> None:
        """Whatever kept processes in the kernel lets go of them, and they die at last."""
        for sid in [sid for sid, process in self.processes.items() if process.hangs]:
            del self.processes[sid]

    def crash_guest(self, sid: str) -> None:
        process = self.processes.get(sid)
        if process is not None and not process.is_dying:
            self.watcher.tell(f"{self.name}: {sid} crashes")
            del self.processes[sid]

    def _gone(self, sid: str, process: Process) -> None:
        if self.processes.get(sid) is process:
            del self.processes[sid]

    def start(self, sid: str, incarnation: int | None, done: Callable[[str], None]) -> None:
        """The agent's: looks at the lease before there is a process, and again before it runs. `None`: not HA's."""
        if (why := self._refusal(sid, incarnation)) or sid in self.processes:
            self.after(0.01, partial(done, why or "it runs already"))
            return
        # Volumes and networks are made ready first: a freeze may fall before that, and the process come long after it.
        ready_s = self.random.uniform(0.0, 1.0)
        if self.freeze_at_start_s and self.freezes_alone:
            ready_s += self.random.uniform(0.5, 2.5)  # until the node has another lease
        fork = partial(self.after, ready_s, partial(self._fork, sid, incarnation, done))
        if incarnation is None:
            self.after(self.random.uniform(0.02, 0.3), fork)
        else:
            self._own(sid, fork, done)

    def _own(self, sid: str, then: Callable[[], None], done: Callable[[str], None]) -> None:
        """The majority must say that the file is here; a lock that a migration left is taken off in one guarded write."""
        path = config_path(sid, self.name)
        file = self.store.truth.files.get(path) if self.store.has_majority(self.name) else None
        if file is None or sid in self.migrating:
            self.after(0.05, partial(done, "the guest is not ours, or on its way"))
        elif file.content not in ("", MIGRATE_LOCK):
            self.after(0.05, partial(done, f"it is locked ({file.content})"))
        elif file.content != MIGRATE_LOCK:
            self.after(self.random.uniform(0.02, 0.3), then)
            if self.freeze_at_start_s and not self.is_frozen and not (self.freezes_alone and self.processes):
                self.freeze()
                self.timeline.after(self.freeze_at_start_s, self.thaw)
                self.freeze_at_start_s = 0.0
        else:

            def answered(answer: Answer) -> None:
                self.after(0.0, then if isinstance(answer, Done) else partial(done, "its file has changed"))

            self.store.propose(self.name, Write(path, "", file.version), answered, deadline_s=3.0)

    def _refusal(self, sid: str, incarnation: int | None) -> str:
        if incarnation is None:
            return ""
        try:
            asked = None if self.faults.skips_generation else incarnation
            may_start(self.published, self.clock(), sid, incarnation=asked)
        except Fenced as error:
            return str(error)
        return ""

    def _fork(self, sid: str, incarnation: int | None, done: Callable[[str], None]) -> None:
        if sid in self.processes:
            done("it runs already")
            return
        process = self.processes[sid] = Process()
        self.after(self.random.uniform(0.05, 1.5), partial(self._let_run, sid, process, incarnation, done))
        if self.freeze_at_fork_s and incarnation is not None and not self.is_frozen:
            self.freeze()
            self.timeline.after(self.freeze_at_fork_s, self.thaw)
            self.freeze_at_fork_s = 0.0

    def _let_run(self, sid: str, process: Process, incarnation: int | None, done: Callable[[str], None]) -> None:
        if self.processes.get(sid) is not process or process.is_dying:
            done("it ended while it started")
            return
        fails = sid in self.bad_starts or self.random.random() < self.faults.start_fails
        if why := "it fails" if fails else self._refusal(sid, incarnation):
            self._gone(sid, process)
            done(why)
            return
        process.is_starting = False
        if incarnation is not None:
            self.watcher.guest_started(self, sid, incarnation)
        self.watcher.tell(f"{self.name}: {sid} runs")
        self.watcher.guest_runs(sid)
        done("")

    def stop(self, sid: str, done: Callable[[str], None]) -> None:
        process = self.processes.get(sid)

        def gone() -> None:
            if process is not None:
                self._gone(sid, process)
            done("")

        if process is not None and process.hangs:
            self.after(2.0, partial(done, "it does not die"))
            return
        self.after(self.random.uniform(0.05, 1.5), gone)
