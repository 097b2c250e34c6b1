"""What placement knows: nodes and how full they are, where each resource is and where it goes, what the rules say. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ha.load import NOTHING, Demand, Mode, Use
from ha.rules import Compiled
from kvorum.ids import NodeName, Sid


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """`unready` says why nothing may be put there now, as a sentence's end ("is in maintenance"); empty when it may."""

    unready: str = ""
    capacity: Use = NOTHING
    # Running guests that HA does not manage: how many, and what they may use at most.
    other_guests: int = 0
    other_use: Use = NOTHING
    # All that runs there, as measured; for the dynamic mode.
    measured: Use | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a resource is; `target` is where it goes. One that neither runs nor starts is not active: it takes no room.

    An empty `node`: it is nowhere and looks for a place.
    """

    node: str
    target: str = ""
    is_active: bool = True

    @property
    def destination(self) -> str:
        return self.target or self.node


@dataclass(frozen=True, slots=True)
class Policy:
    mode: Mode = Mode.basic
    # Configured memory of all guests of a node by its memory; 0 turns admission off.
    memory_limit: float = 1.0
    # Nodes whose loss the memory of the others must bear; new starts beyond it are refused, recoveries are what it is for.
    reserve_nodes: int = 0


@dataclass(frozen=True, slots=True)
class Situation:
    nodes: Mapping[NodeName, NodeFacts]
    placed: Mapping[Sid, Placed] = field(default_factory=dict)
    rules: Compiled = field(default_factory=Compiled)
    demands: Mapping[Sid, Demand] = field(default_factory=dict)
    policy: Policy = Policy()


class Preference(StrEnum):
    """In Proxmox VE's words."""

    # Where it is, unless it may not be there or a wish says so.
    none = "none"
    # The best node, wherever it is.
    best_score = "best-score"
    # The best one of those that have not been tried.
    try_next = "try-next"


@dataclass(frozen=True, slots=True)
class Query:
    """`current` is empty for a guest that runs nowhere."""

    sid: Sid
    preference: Preference = Preference.best_score
    current: str = ""
    # Whether it may leave a node where it may be for one that it would rather be on.
    failback: bool = True
    # Where it did not start.
    failed: tuple[str, ...] = ()
    # The node that it left for that node's maintenance.
    maintenance_node: str = ""
    # Nodes that will not do for this guest, each with the reason as a sentence's end ("does not guard it yet").
    barred: Mapping[NodeName, str] = field(default_factory=dict)
    # Not running yet and not being recovered: the reserve is not for it.
    is_new: bool = False
    # Its file lies on `current`, but it does not run there: it needs room there as anywhere.
    is_idle: bool = False
