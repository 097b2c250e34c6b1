"""`python -m ha.sim`: runs seeds on all cores and says what happened in them; the exit status is 1 if one breaks a rule."""

import argparse
import sys
import time

from .plan import shrink
from .run import Report, cores, run, say
from .world import Outcome, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ha.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=cores(), help="how many processes; all cores unless given")
    parser.add_argument("--seed", type=int, default=None, help="only this one, with its story")
    parser.add_argument("--shrink", action="store_true", help="look for the fewest events that still fail")
    options = parser.parse_args()
    if options.seed is not None:
        return one(options.seed, is_shrunk=options.shrink)
    began = time.monotonic()
    report = run(range(options.first, options.first + options.seeds), options.jobs, say)
    say(summary(report, time.monotonic() - began))
    return 1 if report.failures else 0


def one(seed: int, *, is_shrunk: bool) -> int:
    outcome = simulate(seed)
    if outcome.violation and is_shrunk:
        outcome = shortest(outcome)
    say("\n".join(outcome.story))
    if outcome.violation:
        say(f"seed {seed}: {outcome.violation}")
        say("events: " + ", ".join(f"{event.kind} at {event.at_s:.1f}" for event in outcome.events))
        return 1
    say(f"seed {seed} holds: {told(outcome.counts)}")
    return 0


def summary(report: Report, spent_s: float) -> str:
    """A run in which nothing happens proves nothing, so it says what did."""
    verdict = f"{len(report.failures)} FAIL" if report.failures else "all hold"
    lines = [
        f"{report.seeds} seeds, {verdict}: {report.virtual_s / 3600:.1f} hours of clusters in {spent_s:.0f} s "
        f"({report.seeds / max(spent_s, 1e-9):.0f} seeds a second), at rest after {report.slowest_rest_s:.0f} s",
        told(report.counts),
    ]
    lines += [f"seed {seed}: {violation}" for seed, violation in report.failures]
    return "\n".join(lines)


def told(counts: "dict[str, int]") -> str:
    groups: dict[str, list[str]] = {}
    for what in sorted(counts):
        group, _, name = what.partition(": ")
        groups.setdefault(group, []).append(f"{counts[what]} {name}")
    return "\n".join(f"  {group}: {', '.join(names)}" for group, names in groups.items())


def shortest(outcome: Outcome) -> Outcome:
    """The same rule broken by fewer events."""
    rule = outcome.violation.split(":")[0]
    left = shrink(outcome.events, lambda events: simulate(outcome.seed, events=events).violation.split(":")[0] == rule)
    return simulate(outcome.seed, events=left)


if __name__ == "__main__":
    sys.exit(main())
