"""`python -m ha.sim`: runs seeds; the first that breaks a rule tells its story and the exit status is 1."""

import argparse
import sys
import time

from .plan import shrink
from .world import Outcome, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ha.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, default=None, help="only this one, with its story")
    parser.add_argument("--shrink", action="store_true", help="look for the fewest events that still fail")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else (options.seed,)
    began = time.monotonic()
    starts = fences = migrations = 0
    slowest_s = 0.0
    for seed in seeds:
        outcome = simulate(seed)
        if outcome.violation and options.shrink:
            outcome = shortest(outcome)
        if outcome.violation or options.seed is not None:
            print("\n".join(outcome.story))
        if outcome.violation:
            print(f"seed {seed}: {outcome.violation}")
            print("events: " + ", ".join(f"{event.kind} at {event.at_s:.1f}" for event in outcome.events))
            return 1
        starts, fences = starts + outcome.starts, fences + outcome.fences
        migrations += outcome.migrations
        slowest_s = max(slowest_s, outcome.rest_s)
    spent_s = time.monotonic() - began
    print(
        f"{len(seeds)} seeds hold: {starts} starts, {fences} fences, {migrations} live migrations, "
        f"at rest after {slowest_s:.0f} s; {spent_s:.1f} s"
    )
    return 0


def shortest(outcome: Outcome) -> Outcome:
    """The same rule broken by fewer events."""
    rule = outcome.violation.split(":")[0]
    left = shrink(outcome.events, lambda events: simulate(outcome.seed, events=events).violation.split(":")[0] == rule)
    return simulate(outcome.seed, events=left)


if __name__ == "__main__":
    sys.exit(main())
