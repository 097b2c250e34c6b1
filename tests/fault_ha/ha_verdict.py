"""What a trial has shown: the table of all strikes, and every reason why it has failed or proves nothing. Pure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ha.leases import PROFILES, Profile


class Kind(StrEnum):
    """What strikes a node, as the table and the command line call it."""

    node_killed = "node killed"
    leader_killed = "leader killed"
    network_cut = "network cut"
    node_frozen = "node frozen"
    both_cut = "network and storage cut"
    storage_cut = "storage cut"
    short_cut = "short network cut"
    short_freeze = "short freeze"


# Those that must lose nothing and fence nobody; after all others the guests must run elsewhere.
HARMLESS = (Kind.storage_cut, Kind.short_cut, Kind.short_freeze)
MOVING = tuple(kind for kind in Kind if kind not in HARMLESS)

# p50 and p99 of the seconds from a strike to the guest's process elsewhere.
BARS = {"fast": (12.0, 20.0), "normal": (22.0, 30.0)}
# What it may cost more that the node was the store's leader and HA's manager: of the p50.
LEADER_BAR_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One guest in one strike. Seconds since the strike, or since its end when the guest was to stay; None: never."""

    sid: str
    # Its process on another node; none is looked for when the guest was to stay.
    running_s: float | None
    # Its first stamp there.
    stamped_s: float | None


@dataclass(frozen=True, slots=True)
class Strike:
    kind: Kind
    profile: str
    victim: str
    samples: tuple[Sample, ...]
    # A line each.
    doubles: tuple[str, ...] = ()
    # Sids of guests that did not run again, or that a harmless strike has ended.
    lost: tuple[str, ...] = ()
    # Names of nodes that lost a lease which nothing was to end.
    needless: tuple[str, ...] = ()
    # What else was not as it had to be.
    faults: tuple[str, ...] = ()


def plan(rounds: int, profile: str) -> dict[tuple[str, Kind], int]:
    """How often each kind strikes, by profile and kind. `profile` may be `both`: half the rounds each."""
    shares = {"fast": rounds - rounds // 2, "normal": rounds // 2} if profile == "both" else {profile: rounds}
    return {(name, kind): count for name, count in shares.items() if count for kind in Kind}


def stall_limits_s(kind: Kind, profile: Profile) -> tuple[float, float]:
    """How long a harmless strike lasts, at least and at most: a stall that the profile tolerates, or for the storage
    alone, which HA does not judge a node by, anything up to the time at which others would take over."""
    if kind == Kind.storage_cut:
        return profile.tolerates_s, profile.takeover_after_s + 1.0
    return 0.4 * profile.tolerates_s, 0.95 * profile.tolerates_s


def faults(strikes: Sequence[Strike], asked: Mapping[tuple[str, Kind], int], sids: Sequence[str]) -> list[str]:
    """A line for each reason not to pass; empty only when all that was asked for has happened and was well."""
    found = [] if asked else ["nothing was asked for"]
    for (profile, kind), count in asked.items():
        own = [strike for strike in strikes if (strike.profile, strike.kind) == (profile, kind)]
        if len(own) < count:
            found.append(f"{kind}, {profile}: struck {len(own)} times of {count}")
    for number, strike in enumerate(strikes, start=1):
        found += [f"strike {number} ({strike.kind}, {strike.profile}): {line}" for line in _faults_of_one(strike, sids)]
    return found


def _faults_of_one(strike: Strike, sids: Sequence[str]) -> list[str]:
    found = [*strike.doubles, *strike.faults]
    found += [f"{sid} was lost" for sid in strike.lost]
    found += [f"{node} lost its lease for nothing" for node in strike.needless]
    by_sid = {sample.sid: sample for sample in strike.samples}
    for sid in sids:
        sample = by_sid.get(sid)
        if sample is None or sample.stamped_s is None:
            found.append(f"{sid} was not seen to stamp again")
        if strike.kind in MOVING and (sample is None or sample.running_s is None):
            found.append(f"{sid} was not seen to run elsewhere")
    return found


def table(strikes: Sequence[Strike]) -> list[str]:
    """Lines for people: what was struck how often, how long it took, and whether the bars are met."""
    head = (
        "profile",
        "strike",
        "times",
        "guests",
        "running p50",
        "p99",
        "stamp p50",
        "max",
        "double",
        "lost",
        "needless",
        "bar",
    )
    rows: list[tuple[str, ...]] = [head]
    for profile in PROFILES:
        for kind in Kind:
            own = [strike for strike in strikes if (strike.profile, strike.kind) == (profile, kind)]
            if own:
                rows.append(_row(own, [one for one in strikes if one.profile == profile]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if n < 2 or n == len(head) - 1 else cell.rjust(width)
                 for n, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return [*lines, "seconds; after a strike that must lose nothing, 'stamp' counts from its end"]


def missed_bars(strikes: Sequence[Strike]) -> list[str]:
    """Rows of the table whose times are above their bar."""
    return [line for line in table(strikes)[:-1] if "MISSED" in line]


def _row(own: Sequence[Strike], same_profile: Sequence[Strike]) -> tuple[str, ...]:
    kind, profile = own[0].kind, own[0].profile
    running = _times(own, is_running=True)
    stamped = _times(own, is_running=False)
    return (
        profile, kind, str(len(own)), str(sum(len(strike.samples) for strike in own)),
        _shown(median(running)), _shown(percentile(running, 0.99)), _shown(median(stamped)), _shown(max(stamped, default=None)),
        str(sum(len(strike.doubles) for strike in own)), str(sum(len(strike.lost) for strike in own)),
        str(sum(len(strike.needless) for strike in own)), _bar(kind, profile, running, same_profile),
    )  # fmt: skip


def _bar(kind: Kind, profile: str, running: Sequence[float], same_profile: Sequence[Strike]) -> str:
    if kind not in MOVING or profile not in BARS or not running:
        return ""
    half, most = BARS[profile]
    is_met = statistics.median(running) <= half and percentile_of(running, 0.99) <= most
    told = f"{half:g} / {most:g}"
    plain = _times([strike for strike in same_profile if strike.kind == Kind.node_killed], is_running=True)
    if kind == Kind.leader_killed and plain:
        more = statistics.median(running) - statistics.median(plain)
        is_met = is_met and more <= LEADER_BAR_S
        told += f", {more:+.1f} of +{LEADER_BAR_S:g}"
    return f"{told}: {'met' if is_met else 'MISSED'}"


def _times(strikes: Sequence[Strike], *, is_running: bool) -> list[float]:
    samples = [sample for strike in strikes for sample in strike.samples]
    times = [sample.running_s if is_running else sample.stamped_s for sample in samples]
    return sorted(time for time in times if time is not None)


def median(times: Sequence[float]) -> float | None:
    return statistics.median(times) if times else None


def percentile(times: Sequence[float], share: float) -> float | None:
    return percentile_of(times, share) if times else None


def percentile_of(times: Sequence[float], share: float) -> float:
    """The smallest that is not below so large a share of them: of fewer than a hundred, p99 is the largest."""
    return sorted(times)[math.ceil(share * len(times)) - 1]


def _shown(time: float | None) -> str:
    return "-" if time is None else f"{time:.1f}"
