"""How large and how full nodes and guests are, as the nodes tell each other every ten seconds (`agent.publishing`).

What is not told is not known, and then guests are counted. Nothing here decides anything: an old number costs a worse
choice, no more.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvorum.errors import KvorumError
from kvorum.ids import Sid

from .balance import History
from .load import Use
from .view import Config, View

if TYPE_CHECKING:
    from clusterfs.client import StoreClient

log = logging.getLogger(__name__)

REFRESH_S = 10.0
NODE_PREFIX = "rrd/pve-node-9.0/"
GUEST_PREFIX = "rrd/pve-vm-9.0/"
# Columns of the records, see agent.load.
_NODE_CPUS, _NODE_CPU, _NODE_MEMORY, _NODE_USED = 4, 5, 7, 8
_GUEST_STATUS, _GUEST_CPUS, _GUEST_CPU, _GUEST_USED = 2, 5, 6, 8


@dataclass(frozen=True, slots=True)
class NodeLoad:
    capacity: Use
    measured: Use | None


@dataclass(frozen=True, slots=True)
class GuestLoad:
    """`node`: who tells it."""

    node: str
    is_running: bool
    measured: Use | None


@dataclass(slots=True)
class Loads:
    store: "StoreClient"
    nodes: dict[str, NodeLoad] = field(default_factory=dict)
    # By vmid.
    guests: dict[str, GuestLoad] = field(default_factory=dict)
    _looked_at: float = float("-inf")
    # The last merge, for as long as neither of the two has changed.
    _merged: tuple[Mapping[Sid, Config], dict[str, GuestLoad], Mapping[Sid, Config]] | None = None

    async def refresh(self, now: float) -> None:
        """At most every ten seconds. `now` on the boot-time clock."""
        if now - self._looked_at < REFRESH_S:
            return
        self._looked_at = now
        try:
            found = await self.store.list_status(prefix=NODE_PREFIX, with_values=True)
            guests = await self.store.list_status(prefix=GUEST_PREFIX, with_values=True)
        except KvorumError as error:
            log.debug("loads are not known: %s", error)
            return
        records = ((value.key.removeprefix(NODE_PREFIX), value.value) for node in found.nodes for value in node.values)
        self.nodes = parse_nodes(records)
        self.guests = parse_guests(
            (node.node, value.key.removeprefix(GUEST_PREFIX), value.value)
            for node in guests.nodes
            for value in node.values
        )

    def added_to(self, view: View, history: History) -> View:
        nodes = {
            name: replace(node, capacity=self.nodes[name].capacity, measured=self.nodes[name].measured)
            if name in self.nodes
            else node
            for name, node in view.nodes.items()
        }
        return replace(view, nodes=nodes, configs=self._with_guests(view.configs), history=history)

    def _with_guests(self, configs: Mapping[Sid, Config]) -> Mapping[Sid, Config]:
        """Each with what the node tells that has its file."""
        if self._merged is None or self._merged[0] is not configs or self._merged[1] is not self.guests:
            merged = dict(configs)
            for sid, config in configs.items():
                told = self.guests.get(sid.partition(":")[2])
                if told is not None and told.node == config.node:
                    demand = replace(config.demand, measured=told.measured)
                    merged[sid] = replace(config, demand=demand, is_running=told.is_running)
            self._merged = (configs, self.guests, merged)
        return self._merged[2]


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


def parse_guests(records: Iterable[tuple[str, str, bytes]]) -> dict[str, GuestLoad]:
    """Node, vmid and record to loads by vmid; a record that cannot be read is left out. Pure."""
    found: dict[str, GuestLoad] = {}
    for node, vmid, record in records:
        columns = record.decode(errors="replace").split(":")
        if len(columns) <= _GUEST_USED or (vmid in found and found[vmid].is_running):
            continue
        is_running = columns[_GUEST_STATUS] not in ("stopped", "")
        cpus, share, used = (_number(columns, index) for index in (_GUEST_CPUS, _GUEST_CPU, _GUEST_USED))
        is_measured = is_running and cpus is not None and share is not None and used is not None
        found[vmid] = GuestLoad(node, is_running, Use(share * cpus, used) if is_measured else None)  # type: ignore[operator,arg-type]
    return found


def _number(columns: list[str], index: int) -> float | None:
    try:
        return float(columns[index])
    except (IndexError, ValueError):
        return None
