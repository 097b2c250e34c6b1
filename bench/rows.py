"""What a measurement says: rows with our figure, the peer's, their ratio and the bar; as a table and as JSON. Pure.

A bar that is missed is a figure like any other. It is printed as missed and ends nothing: machines are shared, and who
reads the table judges.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MET, MISSED, NO_BAR = "met", "MISSED", ""


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio` is how many times better we are than the peer in the same seconds; `is_met` is None where there is no bar.
    `figures` are for programs: plain numbers with the unit in their name."""

    group: str
    name: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    bar: str = ""
    is_met: bool | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return NO_BAR if self.is_met is None else MET if self.is_met else MISSED


@dataclass(frozen=True, slots=True)
class Burst:
    """Seconds that each operation of one burst took, in the order of their ends, and how long the burst was."""

    latencies_s: tuple[float, ...]
    duration_s: float

    @property
    def rate(self) -> float:
        return len(self.latencies_s) / self.duration_s

    @property
    def p50_ms(self) -> float:
        return quantile(self.latencies_s, 0.5) * 1e3

    @property
    def p99_ms(self) -> float:
        return quantile(self.latencies_s, 0.99) * 1e3

    @property
    def worst_ms(self) -> float:
        return max(self.latencies_s) * 1e3


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def of_pairs(ours: Sequence[float], peers: Sequence[float]) -> float:
    """The median of the ratios within pairs: what changed between pairs does not count."""
    return median([our / peer for our, peer in zip(ours, peers, strict=True)])


def table(rows: Sequence[Row]) -> str:
    heads = ("row", "ours", "peer", "ratio", "bar", "")
    lines = [
        (row.name, row.ours, row.peer, f"{row.ratio:.2f}x" if row.ratio is not None else "", row.bar, row.verdict)
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]

    def render(line: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([render(heads), rule, *(render(line) for line in lines)])


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{**asdict(row), "figures": dict(row.figures), "verdict": row.verdict} for row in rows]
