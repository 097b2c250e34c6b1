"""Scenarios: what happens to a small cluster at which second, read from a file, played by the production code in virtual time.

`script` reads the file, `stage` is the cluster, `recorder` writes down what could be seen from outside: starts, stops, moves,
states, fences, resets. `python -m ha.sim.scenarios IN.json OUT.json` plays them all. Unlike in the seeds of `ha.sim.world`
nothing is left to chance but the small delays, and those follow from the scenario's name.

What must stay out: what should have happened. Whoever has an expectation compares.
"""

from collections.abc import Mapping
from typing import Any

from .recorder import Event
from .script import read
from .stage import Stage


def play(scenario: Mapping[str, Any]) -> list[Event]:
    """What happened, in order of time."""
    return Stage(read(scenario)).play()
