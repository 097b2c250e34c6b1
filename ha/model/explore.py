"""Breadth first through all states: the first broken rule found is at the end of a shortest story. Pure."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Explored(Generic[State]):
    states: int
    # Steps to a broken rule, and the rule; empty when none is broken.
    story: tuple[str, ...] = ()
    broken: str = ""


def explore(
    start: State,
    steps: Callable[[State], Iterable[tuple[str, State]]],
    broken: Callable[[State], str],
    *,
    limit: int = 5_000_000,
) -> Explored[State]:
    """`broken`: the rule that a state breaks, or nothing. Raises AssertionError beyond `limit` states: then it proves nothing."""
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    waiting = deque((start,))
    while waiting:
        state = waiting.popleft()
        for label, after in steps(state):
            if after in came_from:
                continue
            came_from[after] = (state, label)
            if why := broken(after):
                return Explored(len(came_from), _story(came_from, after), why)
            waiting.append(after)
        assert len(came_from) <= limit, f"more than {limit} states: make the model smaller"
    return Explored(len(came_from))


def _story(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    labels: list[str] = []
    while (before := came_from[state]) is not None:
        state, label = before
        labels.append(label)
    return tuple(reversed(labels))
