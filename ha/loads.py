"""How large and how full nodes and guests are, as the nodes tell each other every ten seconds (`agent.publishing`).

What is not told is not known, and then guests are counted. Nothing here decides anything: an old number costs a worse
choice, no more.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvorum.errors import KvorumError

from .balance import History
from .load import Use
from .view import View

if TYPE_CHECKING:
    from clusterfs.client import StoreClient

log = logging.getLogger(__name__)

REFRESH_S = 10.0
NODE_PREFIX = "rrd/pve-node-9.0/"
# Columns of the records, see agent.load.
_NODE_CPUS, _NODE_CPU, _NODE_MEMORY, _NODE_USED = 4, 5, 7, 8


@dataclass(frozen=True, slots=True)
class NodeLoad:
    capacity: Use
    measured: Use | None


@dataclass(slots=True)
class Loads:
    store: "StoreClient"
    nodes: dict[str, NodeLoad] = field(default_factory=dict)
    _looked_at: float = float("-inf")

    async def refresh(self, now: float) -> None:
        """At most every ten seconds. `now` on the boot-time clock."""
        if now - self._looked_at < REFRESH_S:
            return
        self._looked_at = now
        try:
            found = await self.store.list_status(prefix=NODE_PREFIX, with_values=True)
        except KvorumError as error:
            log.debug("loads are not known: %s", error)
            return
        records = ((value.key.removeprefix(NODE_PREFIX), value.value) for node in found.nodes for value in node.values)
        self.nodes = parse_nodes(records)

    def added_to(self, view: View, history: History) -> View:
        nodes = {
            name: replace(node, capacity=self.nodes[name].capacity, measured=self.nodes[name].measured)
            if name in self.nodes
            else node
            for name, node in view.nodes.items()
        }
        return replace(view, nodes=nodes, history=history)


def parse_nodes(records: Iterable[tuple[str, bytes]]) -> dict[str, NodeLoad]:
    """By name; a record that cannot be read is left out. Pure."""
    found: dict[str, NodeLoad] = {}
    for name, record in records:
        columns = record.decode(errors="replace").split(":")
        cores, memory = _number(columns, _NODE_CPUS), _number(columns, _NODE_MEMORY)
        if cores is None or memory is None or cores <= 0 or memory <= 0:
            continue
        share, used = _number(columns, _NODE_CPU), _number(columns, _NODE_USED)
        measured = Use(share * cores, used) if share is not None and used is not None else None
        found[name] = NodeLoad(Use(cores, memory), measured)
    return found


def _number(columns: list[str], index: int) -> float | None:
    try:
        return float(columns[index])
    except (IndexError, ValueError):
        return None
