"""The guard: reads the world, steps the core, performs what comes back.

Its loop waits for nothing but the courier's line, and never longer than a tick: no file on a disk, no name service, no log that
somebody has to read, no gRPC. Files lie in memory (`/run`); lines of the log and of the black box are handed to threads. What
remains is /proc, signals and the watchdog; a look at /proc that hangs leaves the watchdog unfed, which is right.
"""

import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from ha.lease_state import GUESTS_FILE, LIVE, NONE, STATE_FILE, LeaseState, boot_id, boottime, read
from ha.leases import DEFAULT, Profile
from kvorum.errors import InvalidInput

from . import core
from .link import Call
from .processes import Guarded, Guests
from .records import Record, Renewal
from .watchdog import Watchdog

log = logging.getLogger("kvorum-keeper")

TICK_LIVE_S = 0.1
TICK_ENDING_S = 0.03
# What a timer is late by anyway.
TICK_LEAST_S = 0.001
# This long before the reset its reasons go to the disk, so that the reset itself need not wait for it.
LAST_WORDS_S = 1.0
# What counts as late, and how long it is remembered.
LATE_S = 0.05
LATE_KEPT_S = 60.0
RENEWALS_KEPT = 8


class GuestEntry(msgspec.Struct, frozen=True):
    sid: str
    uuid: str = ""


class GuestList(msgspec.Struct, frozen=True):
    """guests.json, written by the local resource manager."""

    revision: int = 0
    guests: tuple[GuestEntry, ...] = ()
    lease_wanted: bool = False
    profile: Profile | None = None


class Line(Protocol):
    """To the courier (`link.Link`)."""

    def ask(self, call: Call, *, rest_deadline_s: float) -> None: ...
    def wait(self, timeout_s: float) -> core.Event | None: ...


class BlackBox(Protocol):
    """`records.Recorder`."""

    def put(self, record: Record) -> None: ...


class Lateness:
    """The worst delay of the loop within the last minute, and when it was."""

    def __init__(self) -> None:
        self._found: deque[tuple[float, float]] = deque(maxlen=64)

    def note(self, now: float, late_s: float) -> None:
        if late_s > LATE_S:
            self._found.append((now, late_s))

    def worst(self, now: float) -> tuple[float, float]:
        """Seconds late, seconds ago."""
        recent = [(late_s, now - at) for at, late_s in self._found if now - at <= LATE_KEPT_S]
        return max(recent, default=(0.0, 0.0))


class Guard:
    def __init__(self, uid: str, *, line: Line, watchdog: Watchdog, guests: Guests, box: BlackBox) -> None:
        self._boot = boot_id()
        self._watchdog = watchdog
        self._guests = guests
        self._line = line
        self._box = box
        self._uid = uid
        self._state = core.initial(read(STATE_FILE), boottime(), uid=uid)
        self._published: LeaseState | None = None
        self._loaded: tuple[int, int] = (0, 0)
        # None: as the keeper before left it.
        self._is_armed: bool | None = None
        self.is_stopping = False
        self._last_failure = ""
        self._has_said_last_words = False
        self._renewals: deque[tuple[float, float, str]] = deque(maxlen=RENEWALS_KEPT)
        self._asked_at = 0.0
        self.lateness = Lateness()

    def stop(self) -> None:
        """For a signal handler."""
        self.is_stopping = True

    def run(self) -> None:
        """Until stopped, or until the node is no member any more. Guests are left as they are: the next keeper goes on in
        time, or else."""
        self._load_guests()
        while not self.is_stopping:
            self._tick()
            event = self._wait(self._pause_s())
            if isinstance(event, core.Left):
                return
            if isinstance(event, core.Acquired):
                # What came up while the call was under way belongs to no lease.
                self._tick()
            if event is not None:
                self._step(event)
        self._let_go_if_nothing_runs()

    def _pause_s(self) -> float:
        """A tick, or until a renewal is due: those of all nodes are sent at the same moment."""
        if self._state.phase != LIVE:
            return TICK_ENDING_S
        return max(TICK_LEAST_S, min(TICK_LIVE_S, core.due_in_s(self._state, boottime())))

    def end(self) -> None:
        """The node is no member any more: ends its HA guests, which others may start now, and only then lets go.

        Without a mount and a membership nobody else here would. The reset stands behind it, as always. A stop leaves the
        list where it is, so that the next keeper goes on.
        """
        self._load_guests()
        self._step(core.Left())
        while self._state.phase != NONE and not self.is_stopping:
            self._tick()
            self._wait(TICK_ENDING_S)
        if self._state.phase == NONE:
            self._disarm("this node has left its cluster, and no HA guest is left")
            GUESTS_FILE.unlink(missing_ok=True)
            STATE_FILE.unlink(missing_ok=True)

    def _let_go_if_nothing_runs(self) -> None:
        """At a stop, of the host above all: the device is closed when nothing guarded runs, and from before that look on
        nothing may start. Otherwise it stays armed, and whoever stopped the keeper has as long as that to start it again."""
        if self._is_armed is False:
            return
        state = core.published(self._state, boot_id=self._boot, uid=self._uid)
        closed = msgspec.structs.replace(state, phase=NONE, valid_until_boottime=0.0, cause="the keeper was stopped")
        self._write(closed)
        if self._state.phase in (LIVE, NONE) and not self._guests.is_any_left():
            self._disarm("the keeper was stopped when no HA guest ran")
            return
        self._write(state)
        log.warning("stopped while HA guests run: the watchdog stays armed")

    def _wait(self, timeout_s: float) -> core.Event | None:
        began = boottime()
        event = self._line.wait(timeout_s)
        now = boottime()
        if event is None:
            self.lateness.note(now, now - began - timeout_s)
        elif isinstance(event, core.Failed | core.Renewed | core.Acquired):
            failure = event.cause if isinstance(event, core.Failed) else ""
            self._renewals.append((self._asked_at, now - self._asked_at, failure))
        return event

    def _tick(self) -> None:
        self._load_guests()
        is_looking = self._state.phase != LIVE
        self._step(core.Tick(self._guests.is_any_left() if is_looking else None))

    def _step(self, event: core.Event) -> None:
        before = self._state
        self._state, actions = core.step(before, event, boottime())
        if before.phase != self._state.phase:
            self._tell(before.phase)
        if isinstance(event, core.Failed) and event.cause != self._last_failure:
            log.warning("the lease was not renewed: %s", event.cause)
        if isinstance(event, core.Failed | core.Renewed | core.Acquired):
            self._last_failure = event.cause if isinstance(event, core.Failed) else ""
        if before.profile.watchdog_s != self._state.profile.watchdog_s and self._is_armed:
            self._watchdog.arm(self._state.profile.watchdog_s)
        # Before a resume the agents must read `live`, before an end they must not; signals first is right for both: a start that
        # slips in between is ended by the next step. Calls last: whoever goes on after this process must already live by
        # what a call says.
        for call in self._perform(actions):
            self._asked_at = boottime()
            self._line.ask(call, rest_deadline_s=DEFAULT.call_deadline_s)

    def _perform(self, actions: tuple[core.Action, ...]) -> Iterator[Call]:
        """Yields the calls, when all else is done and published."""
        calls: list[Call] = []
        for action in actions:
            match action:
                case core.Renew() | core.Acquire() | core.Rest():
                    calls.append(action)
                case core.Pause():
                    if count := self._guests.pause():
                        log.warning("paused %d processes of HA guests", count)
                case core.Resume():
                    self._guests.resume()
                case core.Kill():
                    if count := self._guests.kill():
                        log.warning("killed %d processes of HA guests", count)
                    self._say_last_words()
                case core.PetWatchdog():
                    self._feed()
                case core.ResetHost():
                    log.critical("RESETTING THIS HOST: %s: %s", action.cause, ", ".join(self._guests.left()))
                    self._watchdog.reset()
        self._publish()
        yield from calls

    # The watchdog

    def _feed(self) -> None:
        """Armed only while there is something to guard."""
        if self._state.sids and not self._is_armed:
            self._watchdog.arm(self._state.profile.watchdog_s)
            self._is_armed = True
            self._note("armed", "there are HA guests to guard")
        elif not self._state.sids and self._is_armed is not False:
            self._disarm("there is no HA guest to guard")
        self._watchdog.pet()

    def _disarm(self, cause: str) -> None:
        if self._is_armed:
            self._note("disarmed", cause)
        self._watchdog.disarm()
        self._is_armed = False

    # What is told

    def _tell(self, before: str) -> None:
        after = self._state.phase
        log.log(logging.INFO if after == LIVE else logging.WARNING, "%s => %s (%s)", before, after, self._state.cause)
        # A keeper that begins, and one that has nothing to guard, has done nothing to anybody.
        if not self._state.sids:
            return
        match before, after:
            case _, "paused" | "killed":
                self._has_said_last_words = False
                self._note(after, self._state.cause)
            case "paused", "live":
                self._note("resumed", self._state.cause)
            case "killed", "none":
                self._note("gone", self._state.cause)

    def _say_last_words(self) -> None:
        state = self._state
        if self._has_said_last_words or state.ending_since is None:
            return
        if boottime() - state.ending_since > state.profile.watchdog_s - LAST_WORDS_S:
            self._has_said_last_words = True
            self._note("reset", f"HA guests cannot be ended: {state.cause}", left=tuple(self._guests.left()))

    def _note(self, kind: str, cause: str, *, left: tuple[str, ...] = ()) -> None:
        now, state = boottime(), self._state
        late_s, ago_s = self.lateness.worst(now)
        self._box.put(
            Record(
                kind=kind,
                cause=cause,
                boottime=now,
                boot_id=self._boot,
                uid=self._uid,
                incarnation=state.incarnation,
                profile=state.profile.name,
                age_s={"store": round(now - state.anchor, 3)} if state.anchor else {},
                renewals=tuple(
                    Renewal(round(now - sent_at, 3), round(took_s, 3), failure)
                    for sent_at, took_s, failure in self._renewals
                ),
                late_s=round(late_s, 3),
                late_ago_s=round(ago_s, 1),
                guests=state.sids,
                left=left,
                watchdog=self._watchdog.describe(),
            )
        )

    # Files in memory

    def _load_guests(self) -> None:
        """guests.json, when it is new. A damaged file changes nothing; what is guarded stays guarded."""
        if self._loaded != (0, 0) and not core.may_load(self._state):
            return
        try:
            stat = GUESTS_FILE.stat()
            if (stat.st_ino, stat.st_mtime_ns) == self._loaded:
                return
            content = msgspec.json.decode(GUESTS_FILE.read_bytes(), type=GuestList)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, InvalidInput) as error:
            log.error("cannot read %s: %s", GUESTS_FILE, error)
            return
        self._loaded = (stat.st_ino, stat.st_mtime_ns)
        self._guests.guard(Guarded(entry.sid, entry.uuid) for entry in content.guests)
        sids = tuple(entry.sid for entry in content.guests)
        self._step(core.GuestsLoaded(content.revision, sids, content.lease_wanted, content.profile))

    def _publish(self) -> None:
        state = core.published(self._state, boot_id=self._boot, uid=self._uid)
        state = msgspec.structs.replace(state, watchdog=self._watchdog.describe())
        if state != self._published:
            self._write(state)

    def _write(self, state: LeaseState) -> None:
        # No fsync: the file matters to processes of this boot only.
        temporary: Path = STATE_FILE.with_suffix(".new")
        try:
            temporary.write_bytes(msgspec.json.encode(state))
            temporary.replace(STATE_FILE)
            self._published = state
        except OSError as error:
            log.error("cannot write %s: %s", STATE_FILE, error)
