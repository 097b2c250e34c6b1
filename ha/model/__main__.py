"""`python -m ha.model`: explores every model, then every mutation; the exit status is 1 if one holds what it should
not, or not.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from . import memory, ownership, slot
from .explore import Explored, explore

Steps = Callable[[Any, Any], Iterable[tuple[str, Any]]]


def first_broken(
    starts: Mapping[str, Any], steps: Steps, rules: object, broken: Callable[[Any], str]
) -> Explored[Any] | None:
    """The counterexample from the first start that leads to one; None when none does."""
    for start in starts.values():
        found = explore(start, partial(steps, rules), broken)
        if found.broken:
            return found
    return None


def main() -> int:
    is_well = True
    for name, model in (("ownership", ownership), ("renewals in memory", memory), ("slot", slot)):
        for start_name, start in model.STARTS.items():
            found: Explored[Any] = explore(start, partial(model.steps, model.Rules()), model.broken)
            print(f"{name}, {start_name}: {found.broken or 'holds'} in {found.states} states")
            is_well = is_well and not found.broken
        for mutation, rules in model.MUTATIONS.items():
            broken = first_broken(model.STARTS, model.steps, rules, model.broken)
            if broken is None:
                print(f"{name}, mutation NOT FOUND: {mutation}")
                is_well = False
            else:
                print(f"{name}, {mutation}: {broken.broken}")
                print("".join(f"    {step}\n" for step in broken.story), end="")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
