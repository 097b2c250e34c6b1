"""What every group of rows is given: where to work, how often, how to tell how far it is."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.rows import Row


class Broken(Exception):
    """Something did not work, or an acknowledged write is gone: no figure says anything then."""


@dataclass(frozen=True, slots=True)
class Run:
    """`directory` is on a disk, and the same one for us and for the peer."""

    directory: Path
    rounds: int = 5
    # How long `calm` watches.
    minutes: float = 30.0
    begin: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        load = os.getloadavg()[0]
        print(f"[{time.monotonic() - self.begin:6.1f} s, load {load:4.1f}] {text}", file=sys.stderr, flush=True)


Group = Callable[[Run], Iterator[Row]]


def until(condition: Callable[[], bool], *, timeout_s: float, what: str, every_s: float = 0.02) -> float:
    """The seconds it took. Raises Broken."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > timeout_s:
            raise Broken(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(every_s)
    return time.monotonic() - begin
