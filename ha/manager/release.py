"""The one question on which single ownership rests: has the node of an order let go of the guest? Pure.

An order to another node than before is given only when the answer is yes, and nothing else makes it yes. That a node is back in a
new life is no release: its keeper took the new lease when nothing *guarded* ran, and the guest may not have been guarded.
"""

from ha.status import LETTING_GO, Result, Service, State
from ha.view import Node


def has_released(node: Node | None, sid: str, service: Service) -> str:
    """How we know that the node of this order runs the guest no more and will not start it; empty when we do not."""
    if not service.node:
        return "no node ever had it"
    if node is None:
        return f"{service.node} is no member any more"
    result = node.lrm.results.get(service.uid)
    if result is not None and result.sid == sid and _ends_order(result):
        return f"{service.node} has let go of it"
    lease = node.lease
    if lease is not None and lease.is_fenced and lease.incarnation >= service.incarnation and sid in node.lrm.tracked:
        return f"{service.node} is fenced"
    return ""


def _ends_order(result: Result) -> bool:
    """An order to let go ends when it is done, one to start when it failed for good; a migration that failed ends nothing.

    What counts is what was ordered when it was answered: meanwhile the entry may have gone on under the same uid.
    """
    if result.state in LETTING_GO:
        return result.exit_code == 0
    return result.state == State.started and result.exit_code != 0
