"""How long a lease is trusted, by whom: the arithmetic on which single ownership rests. Pure.

The holder counts from *sending* a renewal, every other node from *applying* it, each on its own boot-time clock. Sending
comes before applying, so the holder's age is never the smaller one, up to the drift of two clocks. Between the two
thresholds lies everything the holder needs to end its guests, by itself or by its watchdog. Nobody compares clocks.

Three profiles say how long a stall is to be sat out; everything else follows. A holder puts the *terms* of its profile into
each call, and others go by what it put there, never by their own settings: so a change of profile is safe at any moment.
The holder's side of that bargain is `strictest`: it lives by the shortest of what it may have said.
"""

from dataclasses import dataclass, field, replace

from kvorum.errors import InvalidInput

# A stall may begin just before a renewal is due, and the answer to that one takes a moment.
MARGIN_S = 0.5
# No watchdog waits longer; a lease ends in the end.
WATCHDOG_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a renewal says to the others; all they need to know of its sender's profile."""

    # A: fresh enough to be given work until then.
    pause_after_s: float
    # T: at this age, counted from its own apply, a survivor may fence.
    takeover_after_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """All in seconds. The defaults are the `fast` profile."""

    name: str = "fast"
    # A process, a disk or a link may stand still for so long, and no guest is lost.
    tolerates_s: float = 3.0
    # A renewal is sent this often.
    renew_period_s: float = 1.0
    # And given up after this, so that a hanging call never delays the next.
    call_deadline_s: float = 0.8
    # A: at this age the holder pauses its guests.
    pause_after_s: float = 3.5
    # K: and this much later it kills them. Not shorter than need be: T goes by W + r, and after a stall the store's links and
    # leader have to come back before a renewal is answered.
    kill_grace_s: float = 2.0
    # W: the host is reset when the guests are not proven gone this long after A. The last ping of the watchdog is before A.
    watchdog_s: float = 5.0
    # r: from the watchdog's firing to nothing running any more.
    reset_s: float = 0.5
    # rho: relative drift of two boot-time clocks.
    drift: float = 1e-3
    # e: the guard loop's own delays.
    slack_s: float = 0.5
    # T. Derived; given only to be validated.
    takeover_after_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        if self.takeover_after_s == 0.0:
            object.__setattr__(self, "takeover_after_s", derive_takeover_s(self))
        validate(self)

    @property
    def kill_after_s(self) -> float:
        return self.pause_after_s + self.kill_grace_s

    @property
    def reset_after_s(self) -> float:
        return self.pause_after_s + self.watchdog_s

    @property
    def terms(self) -> Terms:
        return Terms(self.pause_after_s, self.takeover_after_s)


def derive_takeover_s(profile: Profile) -> float:
    """T = (A + max(K, W + r)) (1 + rho) + e."""
    ending = max(profile.kill_grace_s, profile.watchdog_s + profile.reset_s)
    return (profile.pause_after_s + ending) * (1 + profile.drift) + profile.slack_s


def validate(profile: Profile) -> None:
    """Raises InvalidInput when two copies of a guest could run, or when a stall that is to be tolerated would cost guests."""
    _validate_signs(profile)
    if profile.call_deadline_s >= profile.renew_period_s:
        raise InvalidInput("a renewal must be given up before the next is due", field="call_deadline_s")
    if profile.pause_after_s < 2 * profile.renew_period_s + profile.call_deadline_s:
        raise InvalidInput(
            f"pausing at {profile.pause_after_s} s would punish one lost renewal",
            field="pause_after_s",
            remedy=f"use at least {2 * profile.renew_period_s + profile.call_deadline_s:.1f} s",
        )
    if profile.kill_grace_s >= profile.watchdog_s:
        raise InvalidInput(
            "guests must be killed before the watchdog resets the host",
            field="watchdog_s",
            remedy=f"let the watchdog wait more than {profile.kill_grace_s:g} s",
        )
    patience_s = profile.tolerates_s + profile.renew_period_s + MARGIN_S
    if profile.kill_after_s < patience_s - 1e-9:
        raise InvalidInput(
            f"killing at {profile.kill_after_s:g} s would not sit out a stall of {profile.tolerates_s:g} s",
            field="tolerates_s",
            remedy=f"kill after {patience_s:.1f} s at the earliest",
        )
    if profile.watchdog_s < profile.tolerates_s + MARGIN_S - 1e-9:
        raise InvalidInput(
            f"a watchdog of {profile.watchdog_s:g} s would reset a host that stalls for {profile.tolerates_s:g} s",
            field="watchdog_s",
            remedy=f"let it wait at least {profile.tolerates_s + MARGIN_S:g} s, or choose a profile that tolerates less",
        )
    if profile.watchdog_s > WATCHDOG_MAX_S:
        raise InvalidInput(
            f"a watchdog of {profile.watchdog_s:g} s keeps a dead node's guests waiting for too long",
            field="watchdog_s",
            remedy=f"at most {WATCHDOG_MAX_S:g} s",
        )
    least = derive_takeover_s(profile)
    if profile.takeover_after_s < least:
        raise InvalidInput(
            f"taking over after {profile.takeover_after_s:.2f} s leaves the holder too little time to end its guests",
            field="takeover_after_s",
            remedy=f"use at least {least:.2f} s",
        )


def _validate_signs(profile: Profile) -> None:
    times = {
        "renew_period_s": profile.renew_period_s,
        "call_deadline_s": profile.call_deadline_s,
        "pause_after_s": profile.pause_after_s,
        "kill_grace_s": profile.kill_grace_s,
        "watchdog_s": profile.watchdog_s,
        "reset_s": profile.reset_s,
        "slack_s": profile.slack_s,
    }
    for name, value in times.items():
        if not value > 0:
            raise InvalidInput(f"{name} is {value}; it must be more than 0", field=name)
    if not profile.tolerates_s >= 0:
        raise InvalidInput(f"tolerates_s is {profile.tolerates_s}; it must not be less than 0", field="tolerates_s")
    if not 0 <= profile.drift < 0.1:
        raise InvalidInput(f"a clock drift of {profile.drift} is no clock", field="drift")


FAST = Profile()
NORMAL = Profile(
    name="normal",
    tolerates_s=8.0,
    renew_period_s=3.0,
    call_deadline_s=1.5,
    pause_after_s=8.0,
    kill_grace_s=3.5,
    watchdog_s=9.0,
)
PATIENT = Profile(
    name="patient",
    tolerates_s=25.0,
    renew_period_s=5.0,
    call_deadline_s=4.0,
    pause_after_s=26.0,
    kill_grace_s=5.0,
    watchdog_s=26.0,
)
PROFILES = {profile.name: profile for profile in (FAST, NORMAL, PATIENT)}
DEFAULT = NORMAL
# No holder can have said more than this: what to wait for when nobody knows what it said.
LONGEST_TAKEOVER_S = replace(PATIENT, watchdog_s=WATCHDOG_MAX_S, takeover_after_s=0.0).takeover_after_s


def named(name: str, watchdog_s: float = 0.0) -> Profile:
    """A profile by its name, on hosts whose watchdog waits `watchdog_s` (0: as the profile has it). Raises InvalidInput."""
    if name not in PROFILES:
        raise InvalidInput(
            f"there is no profile {name!r}", field="profile", remedy=f"use one of {', '.join(sorted(PROFILES))}"
        )
    if not watchdog_s:
        return PROFILES[name]
    return replace(PROFILES[name], watchdog_s=watchdog_s, takeover_after_s=0.0)


def strictest(one: Profile, other: Profile) -> Profile:
    """What a holder has to live by that may have told the others either: whatever ends anything, at the earlier moment."""
    if one == other:
        return one
    period_s = min(one.renew_period_s, other.renew_period_s)
    pause_s = min(one.pause_after_s, other.pause_after_s)
    grace_s = min(one.kill_grace_s, other.kill_grace_s)
    watchdog_s = min(one.watchdog_s, other.watchdog_s)
    tolerates_s = min(one.tolerates_s, other.tolerates_s, pause_s + grace_s - period_s - MARGIN_S)
    return Profile(
        name=min(one, other, key=lambda profile: profile.takeover_after_s).name,
        tolerates_s=max(0.0, tolerates_s),
        renew_period_s=period_s,
        call_deadline_s=min(one.call_deadline_s, other.call_deadline_s),
        pause_after_s=pause_s,
        kill_grace_s=grace_s,
        watchdog_s=watchdog_s,
        reset_s=max(one.reset_s, other.reset_s),
        drift=max(one.drift, other.drift),
        slack_s=min(one.slack_s, other.slack_s),
    )


@dataclass(frozen=True, slots=True)
class Lease:
    """A node's lease as one replica knows it. `age_s` counts from that replica's own apply of the last renewal."""

    incarnation: int
    renewal: int
    is_fenced: bool
    age_s: float
    # What its holder put into it.
    terms: Terms
    # Given back: nothing is guarded under it, and it is never renewed again.
    is_resting: bool = False
    # Nobody could renew until a moment ago, so its silence says nothing yet (`ha.outage`).
    is_excused: bool = False
    # This manager has not seen it renewed yet: its age may count from the own replica's start, not from a renewal (`ha.outage`).
    is_unproven: bool = False


def may_fence(lease: Lease) -> bool:
    """Whether the holder has had its time. The fence itself is refused, in apply, if it has renewed meanwhile."""
    is_over = lease.is_fenced or lease.is_resting or lease.is_excused
    return not is_over and lease.age_s > lease.terms.takeover_after_s


def is_fresh(lease: Lease) -> bool:
    """Whether the holder surely trusts it still, near enough to give it work."""
    return not lease.is_fenced and not lease.is_resting and lease.age_s < lease.terms.pause_after_s
