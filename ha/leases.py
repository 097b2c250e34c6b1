"""How long a lease is trusted, by whom: the arithmetic on which single ownership rests. Pure.

The holder counts from *sending* a renewal, every other node from *applying* it, each on its own boot-time clock. Sending
comes before applying, so the holder's age is never the smaller one, up to the drift of two clocks. Between the two
thresholds lies everything the holder needs to end its guests, by itself or by its watchdog. Nobody compares clocks.
"""

from dataclasses import dataclass, field

from kvorum.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Profile:
    """All in seconds. The defaults are the `fast` profile: guests start elsewhere about 10 s after their node died."""

    # A renewal is sent this often.
    renew_period_s: float = 1.0
    # And given up after this, so that a hanging call never delays the next.
    call_deadline_s: float = 0.8
    # A: at this age the holder pauses its guests.
    pause_after_s: float = 3.5
    # K: and this much later it kills them.
    kill_grace_s: float = 1.0
    # W: the host is reset when the guests are not proven gone this long after A. The last ping of the watchdog is before A.
    watchdog_s: float = 5.0
    # r: from the watchdog's firing to nothing running any more.
    reset_s: float = 0.5
    # rho: relative drift of two boot-time clocks.
    drift: float = 1e-3
    # e: the guard loop's own delays.
    slack_s: float = 0.5
    # T: at this age, counted from its own apply, a survivor may fence. Derived; given only to be validated.
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


def derive_takeover_s(profile: Profile) -> float:
    """T = (A + max(K, W + r)) (1 + rho) + e."""
    ending = max(profile.kill_grace_s, profile.watchdog_s + profile.reset_s)
    return (profile.pause_after_s + ending) * (1 + profile.drift) + profile.slack_s


def validate(profile: Profile) -> None:
    """Raises InvalidInput when two copies of a guest could run, or when a single lost call would pause guests."""
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
    if not 0 <= profile.drift < 0.1:
        raise InvalidInput(f"a clock drift of {profile.drift} is no clock", field="drift")
    if profile.call_deadline_s >= profile.renew_period_s:
        raise InvalidInput("a renewal must be given up before the next is due", field="call_deadline_s")
    if profile.pause_after_s < 2 * profile.renew_period_s + profile.call_deadline_s:
        raise InvalidInput(
            f"pausing at {profile.pause_after_s} s would punish one lost renewal",
            field="pause_after_s",
            remedy=f"use at least {2 * profile.renew_period_s + profile.call_deadline_s:.1f} s",
        )
    if profile.kill_grace_s >= profile.watchdog_s:
        raise InvalidInput("guests must be killed before the watchdog resets the host", field="kill_grace_s")
    least = derive_takeover_s(profile)
    if profile.takeover_after_s < least:
        raise InvalidInput(
            f"taking over after {profile.takeover_after_s:.2f} s leaves the holder too little time to end its guests",
            field="takeover_after_s",
            remedy=f"use at least {least:.2f} s",
        )


FAST = Profile()


@dataclass(frozen=True, slots=True)
class Lease:
    """A node's lease as one replica knows it. `age_s` counts from that replica's own apply of the last renewal."""

    incarnation: int
    renewal: int
    is_fenced: bool
    age_s: float
    # Given back: nothing is guarded under it, and it is never renewed again.
    is_resting: bool = False


def may_fence(lease: Lease, profile: Profile) -> bool:
    """Whether the holder has had its time. The fence itself is refused, in apply, if it has renewed meanwhile."""
    return not lease.is_fenced and not lease.is_resting and lease.age_s > profile.takeover_after_s


def is_fresh(lease: Lease, profile: Profile) -> bool:
    """Whether the holder surely trusts it still, near enough to give it work."""
    return not lease.is_fenced and not lease.is_resting and lease.age_s < profile.pause_after_s
