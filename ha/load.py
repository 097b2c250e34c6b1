"""How full nodes are, and how much worse a node gets by one guest more. Pure.

Three modes, `crs: ha=` of datacenter.cfg in Proxmox VE's words. *basic* counts guests. *static* adds up what guests are
configured to use at most. *dynamic* takes what is measured, and of guests that do not run yet what they may use at most.

A node's *strain* is the sum of squares of its CPU and memory use, memory five times as heavy: CPU can be shared, memory
cannot. The score of a node is by how much the guest would raise its strain. It follows from that node alone, so another node
that comes or goes changes nothing about it; and moving a guest to where it scores less lowers the sum of all strains, so
balancing comes to an end.

What must stay out: rules, and which nodes may be chosen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from typing import Protocol

MEMORY_WEIGHT = 5.0


class Mode(StrEnum):
    basic = "basic"
    static = "static"
    dynamic = "dynamic"


@dataclass(frozen=True, slots=True)
class Use:
    """Of a guest, a node, or the sum of some."""

    cores: float = 0.0
    memory_bytes: float = 0.0

    def __add__(self, other: "Use") -> "Use":
        return Use(self.cores + other.cores, self.memory_bytes + other.memory_bytes)

    def __sub__(self, other: "Use") -> "Use":
        """Never below nothing: what was measured may be older than what is taken away."""
        return Use(max(0.0, self.cores - other.cores), max(0.0, self.memory_bytes - other.memory_bytes))


NOTHING = Use()


@dataclass(frozen=True, slots=True)
class Demand:
    """What a guest is configured to use at most, and what it was measured to use; no cores means all of a node's."""

    most: Use = NOTHING
    measured: Use | None = None

    def expected(self, mode: Mode) -> Use:
        return self.measured if mode is Mode.dynamic and self.measured is not None else self.most


def strain(use: Use, capacity: Use) -> float:
    return _share(use.cores, capacity.cores) ** 2 + MEMORY_WEIGHT * _share(use.memory_bytes, capacity.memory_bytes) ** 2


class Using(Protocol):
    """What has a use; also one that is being added up."""

    @property
    def cores(self) -> float: ...
    @property
    def memory_bytes(self) -> float: ...


def added_strain(use: Using, capacity: Use, guest: Use) -> float:
    """By how much the guest raises it. Grows with the guest and with what is there already; 0 where no capacity is known."""
    cores, memory = (
        _share(guest.cores or capacity.cores, capacity.cores),
        _share(guest.memory_bytes, capacity.memory_bytes),
    )
    cores_before, memory_before = _share(use.cores, capacity.cores), _share(use.memory_bytes, capacity.memory_bytes)
    # (a + b)^2 - a^2, without the cancellation.
    return cores * (2 * cores_before + cores) + MEMORY_WEIGHT * memory * (2 * memory_before + memory)


def load(use: Use, capacity: Use) -> float:
    """0 to 1 and above: the mean of CPU and memory use."""
    return (_share(use.cores, capacity.cores) + _share(use.memory_bytes, capacity.memory_bytes)) / 2


def imbalance(loads: Sequence[float]) -> float:
    """The deviation by the mean: 0 when all are alike, 1 when half of the nodes carry everything, whatever their number."""
    if len(loads) < 2:
        return 0.0
    mean = sum(loads) / len(loads)
    if mean <= 0.0:
        return 0.0
    deviation = sqrt(sum((one - mean) ** 2 for one in loads) / len(loads))
    return deviation / mean


def total(uses: Iterable[Use]) -> Use:
    cores = memory = 0.0
    for use in uses:
        cores += use.cores
        memory += use.memory_bytes
    return Use(cores, memory)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 and part > 0.0 else 0.0
