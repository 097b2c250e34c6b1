"""`make sim`: thousands of simulated clusters, each from one seed; one that breaks a rule is printed to be replayed.

make sim                        10,000 seeds
make sim SEEDS=500 FIRST=20000  other ones, fewer
make sim SEED=123 STEPS=5000    one, with its story
make sim SEED=123 WITHOUT="split,freeze,loss"   the same without some of its faults
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

HERE = Path(__file__).resolve().parent
for place in (HERE, HERE.parents[1] / "unit" / "raft", HERE.parents[2]):
    sys.path.insert(0, str(place))

from sim_weather import NETWORK, STEPS, Outcome, simulate  # noqa: E402

CHUNK = 10
FAILURES_SHOWN = 20
# With their story, made as short as it gets.
FAILURES_TOLD = 2
STORY_LINES = 40


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, default=None, help="only this one, with its story")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 20 ms, before everything is well again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without", default="", help="faults that do not strike, with commas between them")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return tell(options.seed, options.steps, frozenset(filter(None, options.without.split(","))))
    return run_all(range(options.first, options.first + options.seeds), options.steps, options.jobs)


def tell(seed: int, steps: int, without: frozenset[str]) -> int:
    outcome = simulate(seed, steps=steps, without=without, has_story=True)
    print("\n".join(outcome.story))
    print(f"seed {seed}: {outcome.violation or 'holds'}")
    return 1 if outcome.violation else 0


def run_all(seeds: range, steps: int, jobs: int) -> int:
    began = told_at = time.monotonic()
    total, faults, failed = Outcome(-1), Counter[str](), []
    for done, outcome in enumerate(outcomes(seeds, steps, jobs), 1):
        faults.update(outcome.faults)
        add(total, outcome)
        if outcome.violation:
            failed.append(outcome.seed)
            if len(failed) <= FAILURES_SHOWN:
                print(f"seed {outcome.seed}: {outcome.violation}\n    {command(outcome.seed, steps)}", flush=True)
        if time.monotonic() - told_at > 10:
            told_at = time.monotonic()
            pace = done / (told_at - began)
            left = (len(seeds) - done) / pace
            print(
                f"{done} of {len(seeds)} seeds, {len(failed)} failed, {pace:.1f} seeds/s, {left:.0f} s left", flush=True
            )
    took = time.monotonic() - began
    print(", ".join(f"{count} x {name}" for name, count in faults.most_common()))
    print(
        f"{total.seconds / 3600:.1f} virtual hours, {total.terms} terms, {total.crashes} crashes, {total.changes} joins, "
        f"{total.acknowledged} writes acknowledged, {total.denied} denied, {total.unknown} unknown, "
        f"{total.reads} linearizable reads; the production state machine in {total.stores} of {len(seeds)}; "
        f"{took:.0f} s, {len(seeds) / took:.1f} seeds/s"
    )
    for seed in failed[:FAILURES_TOLD]:
        tell_least(seed, steps)
    print(
        f"{len(seeds) - len(failed)} of {len(seeds)} seeds hold, 0 lost"
        if not failed
        else f"{len(failed)} of {len(seeds)} seeds FAILED: {', '.join(map(str, failed[:FAILURES_SHOWN]))}"
    )
    return 1 if failed else 0


def command(seed: int, steps: int, without: frozenset[str] = frozenset()) -> str:
    """What replays it."""
    parts = [f"make sim SEED={seed}"]
    if steps != STEPS:
        parts.append(f"STEPS={steps}")
    if without:
        parts.append(f'WITHOUT="{",".join(sorted(without))}"')
    return " ".join(parts)


def tell_least(seed: int, steps: int) -> None:
    """The end of the story with as few steps and kinds of faults as it fails with, whatever it fails of then."""
    steps, without = least(seed, steps)
    story = simulate(seed, steps=steps, without=without, has_story=True).story
    print(f"\nseed {seed}, with less: {command(seed, steps, without)}")
    print("\n".join(story[-STORY_LINES:]), flush=True)


def least(seed: int, steps: int) -> tuple[int, frozenset[str]]:
    def fails(steps: int, without: frozenset[str]) -> bool:
        return bool(simulate(seed, steps=steps, without=without).violation)

    without: frozenset[str] = frozenset()
    outcome = simulate(seed, steps=steps)
    for name in (*sorted(outcome.faults), *NETWORK):
        if fails(steps, without | {name}):
            without |= {name}
    # Before everything is well again it takes as many steps as it takes; half of them may do.
    while steps > 1 and fails(steps // 2, without):
        steps //= 2
    return steps, without


def add(total: Outcome, outcome: Outcome) -> None:
    for name in ("seconds", "terms", "crashes", "acknowledged", "denied", "unknown", "reads", "changes", "stores"):
        setattr(total, name, getattr(total, name) + getattr(outcome, name))


def outcomes(seeds: range, steps: int, jobs: int) -> Iterator[Outcome]:
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            yield from simulate_chunk(chunk, steps)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(simulate_chunk, chunk, steps) for chunk in chunks]):
                yield from future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def simulate_chunk(seeds: range, steps: int) -> list[Outcome]:
    return [simulate(seed, steps=steps) for seed in seeds]


if __name__ == "__main__":
    sys.exit(main())
