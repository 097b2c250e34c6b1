"""Disarming HA for a while, and arming it again. Pure.

Disarmed, no node holds a lease, none is fenced, nothing is recovered, no watchdog is fed: for work on the network that
all nodes notice. What is under way is finished first. It always ends by itself, and a clock that was set back ends it
at once: to be armed is safe. Then the nodes take new leases before anything else counts: a lease that was given back is
neither fresh nor overdue.
"""

from collections.abc import Mapping

import msgspec

from ha.leases import is_fresh
from ha.status import Disarm, DisarmState, Service, State
from ha.view import View

MODES = ("freeze", "ignore")
DEFAULT_S = 1800
MAX_S = 24 * 3600


def follow(view: View, services: Mapping[str, Service], disarm: Disarm | None, now: float) -> Disarm | None:
    """The record after this round, whose services are given."""
    if disarm is None or not disarm.since <= now < disarm.since + disarm.for_s:
        return None
    if disarm.state is DisarmState.disarmed:
        holding = sorted(name for name, node in view.nodes.items() if node.lease is not None and is_fresh(node.lease))
        cause = f"{', '.join(holding)} still give back their leases" if holding else "no node holds a lease"
        return msgspec.structs.replace(disarm, cause=cause)
    busy = [sid for sid in sorted(services) if is_under_way(view, services[sid])]
    if busy:
        more = f" and {len(busy) - 5} more" if len(busy) > 5 else ""
        cause = f"what is under way is finished first: {', '.join(busy[:5])}{more}"
        return msgspec.structs.replace(disarm, cause=cause)
    return msgspec.structs.replace(disarm, state=DisarmState.disarmed, cause="the nodes give back their leases")


def is_under_way(view: View, service: Service) -> bool:
    """What would be left half done. What only a person can bring to an end does not hold up others."""
    match service.state:
        case State.migrate | State.relocate:
            return True
        case State.recovery:
            return bool(service.target)
        case State.started:
            # What was recovered a moment ago is not given up half way: disarmed, nobody would start it.
            return not service.running
        case State.fence:
            node = view.nodes.get(service.node)  # type: ignore[call-overload]
            return node is not None and node.lease is not None and not node.lease.is_fenced
    return False
