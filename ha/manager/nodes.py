"""The nodes in one round: the state that people see, and which of them are fenced. Pure."""

from collections.abc import Mapping

from ha.leases import is_fresh, may_fence
from ha.status import Mode, NodeState, Service, State
from ha.view import View
from kvorum.ids import NodeName

from .decision import FenceLease
from .placing import Placing

# A node that is no member any more is remembered for so long.
GONE_S = 3600.0


def node_states(view: View, placing: Placing, services: Mapping[str, Service]) -> dict[str, NodeState]:
    fencing = {service.node for service in services.values() if service.state is State.fence}
    states: dict[str, NodeState] = {}
    for name in sorted(view.nodes):
        lease = view.nodes[name].lease
        if name in fencing:
            states[name] = NodeState.fence
        elif placing.mode(name) is Mode.maintenance:
            states[name] = NodeState.maintenance
        elif lease is not None and is_fresh(lease):
            states[name] = NodeState.online
        else:
            states[name] = NodeState.unknown
    for gone in sorted(set(view.status.node_status) - set(states)):
        if view.leaving_s.get(NodeName(gone), 0.0) > -GONE_S:
            states[gone] = NodeState.gone
    return states


def fences(view: View, services: Mapping[str, Service]) -> tuple[FenceLease, ...]:
    """Only nodes that hold up a guest, each once."""
    found: dict[NodeName, FenceLease] = {}
    for service in services.values():
        node = view.nodes.get(NodeName(service.node))
        if service.state is not State.fence or node is None or node.lease is None:
            continue
        if may_fence(node.lease):
            cause = f"{node.name} has not renewed its lease for more than {node.lease.terms.takeover_after_s:.1f} s"
            found[node.name] = FenceLease(node.name, node.uid, node.lease.incarnation, node.lease.renewal, cause)
    return tuple(found.values())
