"""Many seeds on all cores: how far it is, how fast, what happened in them, and which of them broke a rule.

A chunk of seeds is one piece of work for one process. Chunks come back in order, so the same seeds give the same report.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context

from .world import simulate

CHUNK = 20
PROGRESS_S = 10.0
# Who breaks a rule in so many seeds has been told enough.
MOST_FAILURES = 20


@dataclass(slots=True)
class Report:
    """`counts`: how often what happened, see `checks.Checks.counts`."""

    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    # Seed and rule.
    failures: list[tuple[int, str]] = field(default_factory=list)
    # Of virtual time: the longest that a cluster took to come to rest.
    slowest_rest_s: float = 0.0
    virtual_s: float = 0.0

    def add(self, other: "Report") -> None:
        self.seeds += other.seeds
        self.counts.update(other.counts)
        self.failures += other.failures
        self.slowest_rest_s = max(self.slowest_rest_s, other.slowest_rest_s)
        self.virtual_s += other.virtual_s


def run_chunk(seeds: Sequence[int]) -> Report:
    report = Report()
    for seed in seeds:
        outcome = simulate(seed)
        report.seeds += 1
        report.counts.update(outcome.counts)
        report.slowest_rest_s = max(report.slowest_rest_s, outcome.rest_s)
        report.virtual_s += outcome.virtual_s
        if outcome.violation:
            report.failures.append((seed, outcome.violation))
    return report


def run(seeds: Sequence[int], jobs: int, tell: Callable[[str], None]) -> Report:
    """Stops early when too many fail."""
    report = Report()
    began = told = time.monotonic()
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    with _mapped(chunks, jobs) as reports:
        for one in reports:
            for seed, violation in one.failures:
                tell(f"seed {seed}: {violation}\n    python -m ha.sim --seed {seed} --shrink")
            report.add(one)
            if len(report.failures) >= MOST_FAILURES:
                tell(f"{len(report.failures)} seeds fail; the others are left out")
                break
            now = time.monotonic()
            if now - told >= PROGRESS_S:
                told = now
                rate = report.seeds / (now - began)
                left_s = (len(seeds) - report.seeds) / rate
                tell(f"{report.seeds} of {len(seeds)} seeds, {rate:.0f} a second, {left_s:.0f} s to go")
    return report


@contextmanager
def _mapped(chunks: list[Sequence[int]], jobs: int) -> Iterator[Iterator[Report]]:
    if jobs <= 1 or len(chunks) <= 1:
        yield map(run_chunk, chunks)
        return
    with get_context("fork").Pool(jobs) as pool:
        yield pool.imap(run_chunk, chunks)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def say(line: str) -> None:
    print(line)
    sys.stdout.flush()
