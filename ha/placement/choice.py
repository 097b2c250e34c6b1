"""The answer of placement, in values and in plain words. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvorum.ids import NodeName


@dataclass(frozen=True, slots=True)
class Ranked:
    """A node that would do. `cost` is the weight of the wishes it does not fulfil, `score` how much fuller it gets."""

    node: NodeName
    cost: int
    score: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """`node` is empty when none can take it; `why` is a sentence's end either way.

    `ranked` are those that would do, best first; `refused` says of each other node why not.
    """

    node: str
    why: str
    cost: int = 0
    score: float = 0.0
    ranked: tuple[Ranked, ...] = ()
    refused: Mapping[NodeName, str] = field(default_factory=dict)

    def why_not(self, node: NodeName) -> str:
        """Why this node was not chosen, as a sentence's end; empty for the chosen one and for one that nobody knows."""
        if node == self.node:
            return ""
        if node in self.refused:
            return self.refused[node]
        for ranked in self.ranked:
            if ranked.node == node:
                return self._compare(ranked)
        return ""

    def _compare(self, other: Ranked) -> str:
        if other.cost > self.cost:
            return f"would do, but {self.node} suits the rules better" + (f": {other.why}" if other.why else "")
        if other.score > self.score:
            return f"would do, but gets fuller than {self.node} ({other.score:.3g} against {self.score:.3g})"
        return f"would do as well as {self.node}"


def summary(refused: Mapping[NodeName, str]) -> str:
    """Reasons with their nodes, as short as possible: `n1, n2: not ready; n3: no room`."""
    by_reason: dict[str, list[str]] = {}
    for node in sorted(refused):
        by_reason.setdefault(refused[node], []).append(node)
    return "; ".join(f"{', '.join(nodes)} {reason}" for reason, nodes in by_reason.items())
