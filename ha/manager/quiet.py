"""Whether a round would decide what the last one decided: then it is skipped. Pure.

Leases age and are renewed all the time; what a decision takes from that is only who is fresh, who is fenced, who may
be. Everything else is in files, and times that are waited for are in the status.
"""

from dataclasses import dataclass

from ha.leases import is_fresh, may_fence
from ha.status import ManagerStatus
from ha.view import View

from .nodes import GONE_S

# A look at everything now and then costs little, and mends what nobody thought of.
LONGEST_S = 30.0
# Loads change without a file; as often as they are told.
BALANCE_S = 10.0


@dataclass(slots=True)
class Quiet:
    """The last round that had nothing to do. Times as `decide` takes them."""

    _inputs: object = None
    _since: float = 0.0
    _until: float = 0.0

    def is_same(self, view: View, revision: int, now: float) -> bool:
        return self._inputs is not None and self._since <= now < self._until and self._inputs == inputs(view, revision)

    def keep(self, view: View, revision: int, now: float) -> None:
        self._inputs = inputs(view, revision)
        longest_s = BALANCE_S if view.options.budget.is_enabled else LONGEST_S
        self._since, self._until = now, min(now + longest_s, next_moment(view.status, now))


def inputs(view: View, revision: int) -> object:
    """Everything that a decision depends on but the time. `revision` stands for all files."""
    nodes = tuple(
        (
            name,
            node.uid,
            node.lease is not None
            and (
                node.lease.incarnation,
                node.lease.is_fenced,
                node.lease.is_resting,
                is_fresh(node.lease),
                node.lease.is_unproven,
                node.lease.renewal if may_fence(node.lease) else None,
            ),
        )
        for name, node in sorted(view.nodes.items())
    )
    leaving = tuple((name, seconds >= 0, seconds > -GONE_S) for name, seconds in sorted(view.leaving_s.items()))
    return (view.is_leader, view.is_quorate, view.self_node, revision, nodes, leaving)


def next_moment(status: ManagerStatus, now: float) -> float:
    """When something is due that is only waited for."""
    moments = [
        float(time) for service in status.service_status.values() for time in (service.retry_at, service.move_after)
    ]
    moments += [answer.at + 3600.0 for answer in status.answers.values()]
    if status.disarm is not None:
        moments.append(float(status.disarm.since + status.disarm.for_s))
    return min((moment for moment in moments if moment > now), default=float("inf"))
