"""The keeper's mind: `step(state, event, now) -> (state, actions)`. Pure.

    none ----acquired----> live <---renewed---- paused
     ^ ^                    | |  age > A          ^ |
     | +---nothing to guard-+ +-------------------+ |  age > A + K
     |   nothing runs                               v
     +------------------------------------------- killed <--- fenced, from any phase

Age counts from *sending* the last call that was answered, so it is never less than what any survivor counts. A lease
that ran out is never renewed again: first every guest of it is proven gone, then a new incarnation is taken. While a
guest that must be gone cannot be proven gone, the watchdog is not fed, and at A + W the host is reset.

Without any guest to guard no lease is taken, and one that is held is given back (`Rest`): renewals are log entries, and
an idle cluster should not write to its disks. Nothing is guarded then, so nothing needs to be proven gone. A list may ask
for a lease before it names guests: those that run already come on it under the lease, and are not ended for having run before.

Each call carries the terms of a profile, by which the others go. The profile changes with an answered renewal only: a longer one
is lived by once a call with it was answered, a shorter one from the moment such a call is *sent*, answered or not.

An answer may carry a hint for when the next renewal comes: all holders' at once, so that one write to the disks carries them.
It can only bring that forward; whatever it is, no age is ever larger for it.
"""

import math
from dataclasses import dataclass, replace

from ha.lease_state import KILLED, LIVE, NONE, PAUSED, LeaseState
from ha.leases import DEFAULT, Profile, strictest

# A call that failed is made again so much later, not only when the next renewal is due: a store without quorum says so at once,
# and after a stall a profile leaves half a second for the first answer (`leases.MARGIN_S`).
RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class State:
    phase: str = NONE
    incarnation: int = 0
    # Boot-time second at which the last answered call was sent; 0 with no lease.
    anchor: float = 0.0
    # A call is under way since; None when none is.
    calling_since: float | None = None
    next_call_at: float = 0.0
    # When the guests ought to have been gone, for the reset; None while they may run or are proven gone.
    ending_since: float | None = None
    guests_revision: int = 0
    sids: tuple[str, ...] = ()
    # There will be guests to guard as soon as there is a lease.
    is_wanted: bool = False
    # The incarnation that is given back, until the store has answered; 0 when there is none.
    resting: int = 0
    # The node is no member any more: guests end, and no lease is taken again.
    has_left: bool = False
    # What it lives by, what its calls say, and what it was told to change to.
    profile: Profile = DEFAULT
    spoken: Profile = DEFAULT
    wanted: Profile = DEFAULT
    cause: str = "the keeper has just started"


# Events


@dataclass(frozen=True, slots=True)
class Tick:
    """`is_running`: processes of guarded guests exist; None when nobody looked, which counts as yes."""

    is_running: bool | None = None


@dataclass(frozen=True, slots=True)
class Renewed:
    sent_at: float
    incarnation: int
    # So long after it the store would like the next one (`next_after_s`); 0: no hint.
    next_in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Acquired:
    sent_at: float
    incarnation: int


@dataclass(frozen=True, slots=True)
class Rested:
    """The store knows that this incarnation is over; nothing was guarded under it."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The store says that this incarnation is fenced or over."""

    sent_at: float
    incarnation: int


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer, or one that says nothing about the lease."""

    cause: str


@dataclass(frozen=True, slots=True)
class GuestsLoaded:
    """`is_lease_wanted`: also without any guest on the list."""

    revision: int
    sids: tuple[str, ...]
    is_lease_wanted: bool = False
    # None: as it is.
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """This node is no member of its cluster any more; the others may start its guests at any moment."""


Event = Tick | Renewed | Acquired | Rested | Refused | Failed | GuestsLoaded | Left


# Actions


@dataclass(frozen=True, slots=True)
class Renew:
    incarnation: int
    profile: Profile


@dataclass(frozen=True, slots=True)
class Acquire:
    profile: Profile


@dataclass(frozen=True, slots=True)
class Rest:
    incarnation: int


@dataclass(frozen=True, slots=True)
class Pause:
    pass


@dataclass(frozen=True, slots=True)
class Resume:
    pass


@dataclass(frozen=True, slots=True)
class Kill:
    pass


@dataclass(frozen=True, slots=True)
class PetWatchdog:
    pass


@dataclass(frozen=True, slots=True)
class ResetHost:
    cause: str


Action = Renew | Acquire | Rest | Pause | Resume | Kill | PetWatchdog | ResetHost


def initial(previous: LeaseState, now: float, *, uid: str) -> State:
    """The state after a start. A lease of the life before goes on if it is still trusted; otherwise its guests end.

    What the life before lived by was no longer than anything it said.
    """
    profile = previous.profile
    # The list comes from guests.json, not from here: what is not loaded cannot be guarded.
    if previous.uid == uid and previous.phase == LIVE and now < previous.valid_until_boottime:
        return State(
            phase=LIVE,
            incarnation=previous.incarnation,
            anchor=previous.valid_until_boottime - profile.pause_after_s,
            next_call_at=now,
            profile=profile,
            spoken=profile,
            wanted=profile,
            cause="goes on with the lease of the keeper before",
        )
    start = State(profile=profile, spoken=profile, wanted=profile)
    return replace(start, phase=KILLED, next_call_at=now, ending_since=now, cause="no lease has been taken yet")


def needs_lease(state: State) -> bool:
    return bool(state.sids) or state.is_wanted


def valid_until(state: State) -> float:
    return state.anchor + state.profile.pause_after_s if state.phase == LIVE else 0.0


def published(state: State, *, boot_id: str, uid: str) -> LeaseState:
    """What goes into state.json."""
    return LeaseState(
        phase=state.phase,
        incarnation=state.incarnation,
        valid_until_boottime=valid_until(state),
        guests_revision=state.guests_revision,
        sids=state.sids,
        boot_id=boot_id,
        uid=uid,
        profile=state.profile,
        cause=state.cause,
    )


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """The next state and what to do, in this order. Any event also lets time pass."""
    state, resumed = _take(state, event, now)
    state, ended = _let_time_pass(state, now)
    if isinstance(event, Tick):
        state, proven = _prove(state, event, now)
    else:
        proven = ()
    state, called = _call(state, now)
    return state, (*resumed, *ended, *proven, *called)


def _take(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    match event:
        case Renewed():
            state = replace(state, calling_since=None)
            if event.incarnation != state.incarnation or state.phase not in (LIVE, PAUSED):
                return state, ()
            # Calls go one after the other: this is the answer to the last one that was sent.
            state = replace(state, anchor=max(state.anchor, event.sent_at), profile=state.spoken)
            if state.wanted != state.spoken:
                state = replace(state, spoken=state.wanted, next_call_at=now)
            elif state.phase == LIVE:
                hinted = event.sent_at + next_after_s(event.next_in_s, state.spoken.renew_period_s)
                state = replace(state, next_call_at=min(state.next_call_at, hinted))
            if state.phase == PAUSED and now - state.anchor < state.profile.pause_after_s:
                return replace(state, phase=LIVE, cause="the lease is renewed again"), (Resume(),)
            return state, ()
        case Acquired():
            state = replace(state, calling_since=None)
            # An answer that came too late to be of use; the next one will be of a later incarnation.
            if state.phase != NONE or state.has_left or now - event.sent_at >= state.spoken.pause_after_s:
                return state, ()
            state = replace(state, profile=state.spoken)
            if not needs_lease(state):
                return _rest(replace(state, incarnation=event.incarnation)), ()
            cause = f"holds the lease {event.incarnation}"
            return replace(state, phase=LIVE, incarnation=event.incarnation, anchor=event.sent_at, cause=cause), ()
        case Rested():
            resting = 0 if event.incarnation == state.resting else state.resting
            return replace(state, calling_since=None, resting=resting), ()
        case Refused():
            resting = 0 if event.incarnation == state.resting else state.resting
            state = replace(state, calling_since=None, next_call_at=now + RETRY_S, resting=resting)
            if event.incarnation != state.incarnation or state.phase not in (LIVE, PAUSED):
                return state, ()
            return replace(state, phase=KILLED, ending_since=now, cause="the lease has been fenced"), (Kill(),)
        case Failed():
            return replace(state, calling_since=None, next_call_at=now + RETRY_S), ()
        case GuestsLoaded():
            wanted = event.profile or state.wanted
            state = replace(
                state, guests_revision=event.revision, sids=event.sids, is_wanted=event.is_lease_wanted, wanted=wanted
            )
            return (_rest(state) if state.phase == LIVE and not needs_lease(state) else state), ()
        case Left():
            cause = "this node has left its cluster"
            return replace(state, phase=KILLED, has_left=True, ending_since=now, cause=cause), ()
        case Tick():
            return state, ()


def next_after_s(hint_s: float, period_s: float) -> float:
    """From one renewal to the next. A hint brings it forward, by half the period at most, and never puts it off: all that is
    derived from the period holds whatever the store says."""
    return min(max(hint_s, period_s / 2), period_s) if hint_s > 0 else period_s


def due_in_s(state: State, now: float) -> float:
    """Until the next renewal is to be sent; without end when one is under way, or none is to be sent."""
    is_idle = state.phase == LIVE and state.calling_since is None and not state.has_left
    return max(0.0, state.next_call_at - now) if is_idle else math.inf


def may_load(state: State) -> bool:
    """Whether another list may be taken up: whom we have stopped we must wake or end, so until then the list stays."""
    return state.phase not in (PAUSED, KILLED) or not state.sids


def _let_time_pass(state: State, now: float) -> tuple[State, tuple[Action, ...]]:
    age, profile = now - state.anchor, state.profile
    if state.phase == LIVE and age > profile.pause_after_s:
        cause = f"no renewal was answered for {profile.pause_after_s:.1f} s"
        state = replace(state, phase=PAUSED, cause=cause)
    if state.phase == PAUSED and age > profile.kill_after_s:
        cause = f"no renewal was answered for {profile.kill_after_s:.1f} s"
        ended_at = state.anchor + profile.pause_after_s
        state = replace(state, phase=KILLED, ending_since=ended_at, cause=cause)
    # Again at each step: a start that was under way may bring forth new processes.
    if state.phase == PAUSED:
        return state, (Pause(),)
    return state, (Kill(),) if state.phase == KILLED else ()


def _prove(state: State, tick: Tick, now: float) -> tuple[State, tuple[Action, ...]]:
    """Whether nothing of an ended lease is left; the watchdog is fed only while nothing runs that may not."""
    if state.phase in (LIVE, PAUSED):
        return state, (PetWatchdog(),) if state.phase == LIVE else ()
    if tick.is_running is False:
        if state.phase == NONE:
            return state, (PetWatchdog(),)
        cause = f"{state.cause}; no HA guest is left"
        return replace(state, phase=NONE, ending_since=None, anchor=0.0, cause=cause), (PetWatchdog(),)
    if state.phase == NONE:
        # Something of the guarded guests runs without a lease: it was started behind our back.
        ended = replace(state, phase=KILLED, ending_since=now, cause="a guarded guest runs without a lease")
        return ended, (Kill(),)
    within_s = state.profile.watchdog_s
    if state.ending_since is not None and now - state.ending_since > within_s:
        return state, (ResetHost(f"HA guests could not be ended within {within_s:.1f} s: {state.cause}"),)
    return state, ()


def _call(state: State, now: float) -> tuple[State, tuple[Action, ...]]:
    """At most one call at a time, each given up before the next is due."""
    if state.has_left or state.calling_since is not None or now < state.next_call_at:
        return state, ()
    if state.phase in (LIVE, PAUSED):
        # The others may go by this one from now on.
        state = replace(state, profile=strictest(state.profile, state.spoken))
        return _calling(state, now), (Renew(state.incarnation, state.spoken),)
    if state.phase == NONE and needs_lease(state):
        return _calling(replace(state, resting=0, spoken=state.wanted), now), (Acquire(state.wanted),)
    if state.phase == NONE and state.resting:
        return _calling(state, now), (Rest(state.resting),)
    return state, ()


def _rest(state: State) -> State:
    """Give the lease back. From this moment on nothing starts here, whenever the store hears of it."""
    cause = "there is no HA guest to guard"
    return replace(state, phase=NONE, anchor=0.0, resting=state.incarnation, next_call_at=0.0, cause=cause)


def _calling(state: State, now: float) -> State:
    return replace(state, calling_since=now, next_call_at=now + state.spoken.renew_period_s)
