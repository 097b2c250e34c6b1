"""What happens to a cluster and when, as a list made from the seed before anything runs; and the shortest list that still fails.

Each event brings its own seed. So a list from which some are taken out is a plan as good as the whole, and what remains of a
failure can be looked for by leaving out whatever is not needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .faults import FAULTS, STALLS
from .operators import OPERATORS

# Chance of each kind to be in a seed's swarm: rare combinations are not drowned by common ones.
SWARM = 0.6
# Share of seeds in which one to three kinds come again and again, so that what needs several of a kind is found, too.
FOCUSED = 0.25

# Longer than the longest stall that any profile tolerates, and the renewals after it.
MILD_PAUSE_S = 40.0


@dataclass(frozen=True, slots=True)
class Planned:
    """`at_s` from the beginning of the trouble; `seed` is what the event makes its choices from."""

    at_s: float
    kind: str
    seed: int


def plan(random: Random, kinds: Sequence[str] = ()) -> tuple[Planned, ...]:
    """`kinds`: these and no others, for who looks for something in particular."""
    if not kinds and random.random() < FOCUSED:
        kinds = random.sample(sorted({**FAULTS, **OPERATORS}), random.randint(1, 3))
    faults = [kind for kind in FAULTS if random.random() < SWARM] or ["cut"]
    people = [kind for kind in OPERATORS if random.random() < SWARM] or ["add-and-cut"]
    # Some seeds are mostly weather, some mostly people.
    share = random.choice((0.15, 0.4, 0.8))
    pace_s = random.choice((2.0, 5.0) if kinds else (2.0, 5.0, 10.0))
    span_s = random.uniform(40, 100)
    planned: list[Planned] = []
    at_s = 0.0
    while at_s < span_s:
        kind = random.choice(kinds or (people if random.random() < share else faults))
        planned.append(Planned(at_s, kind, random.getrandbits(32)))
        at_s += random.expovariate(1 / pace_s)
    return tuple(planned)


def mild_plan(random: Random) -> tuple[Planned, ...]:
    """Stalls that the profile tolerates, one after the other, with time between them to draw breath."""
    times = [MILD_PAUSE_S * number + random.uniform(0, 5) for number in range(random.randint(3, 6))]
    return tuple(Planned(at_s, random.choice(sorted(STALLS)), random.getrandbits(32)) for at_s in times)


def shrink(
    whole: Sequence[Planned], fails: Callable[[tuple[Planned, ...]], bool], *, tries: int = 400
) -> tuple[Planned, ...]:
    """Fewer events that still fail: halves are left out, then quarters, then single ones."""
    left = tuple(whole)
    size = max(1, len(left) // 2)
    while tries > 0:
        begin, is_shorter = 0, False
        while begin < len(left) and tries > 0:
            without = (*left[:begin], *left[begin + size :])
            tries -= 1
            if fails(without):
                left, is_shorter = without, True
            else:
                begin += size
        if size == 1 and not is_shorter:
            break
        size = max(1, size // 2)
    return left
