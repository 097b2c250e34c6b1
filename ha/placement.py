"""Which node takes a guest: a small scorer, and the reason when none can. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kvorum.ids import NodeName


@dataclass(frozen=True, slots=True)
class Choice:
    """`node` is empty when none can take it; `why` is a sentence's end either way."""

    node: str
    why: str


def choose_node(
    ready: Collection[NodeName], guests: Mapping[NodeName, int], *, avoid: Collection[str] = (), members: int = 0
) -> Choice:
    """The ready node with the fewest guests, then the first by name; those in `avoid` do not count."""
    candidates = sorted((guests.get(name, 0), name) for name in ready if name not in avoid)
    if not candidates:
        tried = f", and {', '.join(sorted(avoid))} did not do" if avoid else ""
        return Choice("", f"none of {members or len(ready)} nodes can take it now{tried}")
    count, name = candidates[0]
    return Choice(name, f"{name} has the fewest guests ({count})")
