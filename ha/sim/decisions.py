"""The rules for what managers decide, at the moment when it is committed: S6, S9, S11, S12, S14, S16 and L12.

Each is counted anew here, from the committed entries alone; nothing of `ha.placement` is asked, which might be wrong itself.
Pure: every function takes what was and what is, and returns what is broken, or nothing.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ha.leases import may_fence
from ha.resources import Resource
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rules, StartOrder
from ha.status import AnswerState, DisarmState, ManagerStatus, NodeState, Service, State
from ha.view import View
from kvorum.ids import NodeName, Sid

# The longest pause before an error is tried again; a clock that was set back shows by more than that.
LONGEST_PAUSE_S = 300
_WITHOUT_ROOM = frozenset({State.stopped, State.error})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is committed beside the status; `places`: of config files."""

    resources: Mapping[Sid, Resource]
    rules: Rules
    places: Mapping[str, str]
    # Memory in bytes; nothing where the simulation knows no sizes.
    demands: Mapping[str, float]
    capacities: Mapping[str, float]


def broken(before: ManagerStatus, after: ManagerStatus, view: View | None, facts: Facts) -> str:
    """The first broken rule. `view`: what the decision was made on, if it is known."""
    for found in _all_broken(before, after, view, facts):
        return found
    return ""


def _all_broken(before: ManagerStatus, after: ManagerStatus, view: View | None, facts: Facts) -> Iterator[str]:
    if view is not None and view.status is not before and view.status != before:
        yield f"S6: {after.master_node} decided on a status that is not the one before"
    yield from _answers(before, after)
    moves = list(_new_moves(before, after))
    fencing = {name for name, state in after.node_status.items() if state is NodeState.fence}
    for sid, service in moves:
        if service.cmd and fencing & {service.node, service.target}:
            yield f"S9: {sid} moves from {service.node} to {service.target}, but {sorted(fencing)} are fenced"
        if is_disarmed(before):
            yield f"S16: {sid} is sent to {service.target} while HA is disarmed"
        yield from _rules(sid, service, after, facts)
    if view is not None:
        yield from _recovered(before, after, view)
        yield from _room({sid for sid, _ in moves}, before, after, view, facts)
        yield from _first_come(moves, before, after, view, facts)
    for sid, held in before.service_status.items():
        if held.state is State.error:
            lease = view.nodes[NodeName(held.node)].lease if view is not None and held.node else None
            if lease is None or not (lease.is_fenced or may_fence(lease)):
                yield from _error(sid, held, after, facts)


def _recovered(before: ManagerStatus, after: ManagerStatus, view: View) -> Iterator[str]:
    """From a silent member: by its fence, or by its answer to the order."""
    for sid, service in after.service_status.items():
        held = before.service_status.get(sid)
        node = view.nodes.get(NodeName(held.node)) if held is not None else None
        if held is None or node is None or held.state is State.recovery or service.state is not State.recovery:
            continue
        is_fenced = node.lease is not None and node.lease.is_fenced
        if not is_fenced and held.uid not in node.lrm.results:
            yield f"S3: {sid} is recovered from {held.node}, which is not fenced and has not answered"


def is_disarmed(status: ManagerStatus) -> bool:
    return status.disarm is not None and status.disarm.state is DisarmState.disarmed


def _new_moves(before: ManagerStatus, after: ManagerStatus) -> Iterator[tuple[str, Service]]:
    """Guests that got a target in this status."""
    for sid, service in after.service_status.items():
        held = before.service_status.get(sid)
        is_move = service.cmd[:1] in (("migrate",), ("relocate",)) or service.state is State.recovery
        if held is not service and is_move and service.target and (held is None or held.target != service.target):
            yield sid, service


def _answers(before: ManagerStatus, after: ManagerStatus) -> Iterator[str]:
    """A command is taken up once: who has a final answer keeps it, who is accepted is not accepted again."""
    for id_, answer in after.answers.items():
        known = before.answers.get(id_)
        if known is None or known.version != answer.version or known == answer:
            continue
        if known.state is not AnswerState.accepted or answer.state is AnswerState.accepted:
            yield f"S6: command {id_}, {answer.command!r}, was {known.state} and is {answer.state} once more"


def _rules(sid: str, service: Service, after: ManagerStatus, facts: Facts) -> Iterator[str]:
    resource = facts.resources.get(Sid(sid))
    if resource is None or not resource.wants_running:
        return
    for rule in facts.rules:
        if not rule.is_strict or sid not in rule.resources:
            continue
        if isinstance(rule, NodeAffinity) and service.target not in rule.nodes:
            yield f"S11: {sid} is sent to {service.target}, against {rule.id}"
        if isinstance(rule, ResourceAffinity) and rule.affinity is Affinity.negative:
            for other in sorted(rule.resources - {Sid(sid)} - _waiting_for({sid}, after)):
                held = after.service_status.get(other)
                if held is None or other not in facts.resources:
                    continue
                if service.target in takes(held):
                    yield f"S11: {sid} is sent to {service.target}, where {other} is, against {rule.id}"


def _waiting_for(sids: Collection[str], status: ManagerStatus) -> set[Sid]:
    """Those that start after one of these, or after one that does. They do not run, and take no place from it."""
    found = set(sids)
    while more := {
        sid
        for sid, service in status.service_status.items()
        if service.state in (State.request_start, State.request_stop)
        and sid not in found and not found.isdisjoint(service.waits_for)
    }:  # fmt: skip
        found |= more
    return {Sid(sid) for sid in found - set(sids)}


def takes(service: Service) -> frozenset[str]:
    """The nodes on which it is, comes to be, or has not left yet."""
    if service.state in _WITHOUT_ROOM:
        return frozenset()
    places = {service.target} if service.state is State.recovery else {service.node, service.target}
    return frozenset(places - {""})


def _room(chosen: set[str], before: ManagerStatus, after: ManagerStatus, view: View, facts: Facts) -> Iterator[str]:
    """Who is sent somewhere, or begins to take room where it is, finds room beside those that were there before and those
    that are sent there, too. Who merely stays is not asked."""
    limit = view.options.policy.memory_limit
    if limit <= 0:
        return
    fresh: dict[str, list[str]] = {}
    for sid, service in after.service_status.items():
        held, resource = before.service_status.get(sid), facts.resources.get(Sid(sid))
        if resource is None or not resource.wants_running:
            continue  # wherever it goes, it does not run there
        if sid in chosen:
            fresh.setdefault(service.target, []).append(sid)
        elif held is not None and _starts_in_place(held, service):
            fresh.setdefault(service.node, []).append(sid)
    for node, sids in fresh.items():
        capacity = facts.capacities.get(node, 0.0)
        waiting = _waiting_for(sids, after)
        there = [
            sid
            for sid, service in after.service_status.items()
            if node in takes(service)
            and sid not in waiting
            and (sid in sids or (sid in before.service_status and node in takes(before.service_status[sid])))
        ]
        used = sum(facts.demands.get(sid, 0.0) for sid in there)
        if capacity and used > capacity * limit * (1 + 1e-9):
            yield f"S12: {', '.join(sids)} to {node}, where {', '.join(there)} may use {used / capacity:.0%} of the memory"


def _first_come(
    moves: list[tuple[str, Service]], before: ManagerStatus, after: ManagerStatus, view: View, facts: Facts
) -> Iterator[str]:
    """L12: nobody is recovered to a node whose room another one waits for that comes first by its priority."""
    limit = view.options.policy.memory_limit
    if limit <= 0:
        return
    # Where these may be hangs on more than room, and who is waited for is as urgent as those that wait.
    ruled = {sid for rule in facts.rules if rule.is_strict for sid in rule.resources}
    ruled |= {sid for rule in facts.rules if isinstance(rule, StartOrder) for sid in (*rule.resources, *rule.after)}
    waiting = [
        (sid, service)
        for sid, service in after.service_status.items()
        if service.state is State.recovery and not service.target and not service.failed_nodes
        and sid not in ruled
        and facts.places.get(sid) == service.node and not view.configs[Sid(sid)].lock
    ]  # fmt: skip
    for sid, service in moves:
        own, node = facts.resources.get(Sid(sid)), view.nodes.get(NodeName(service.target))
        if service.state is not State.recovery or own is None or node is None or sid in ruled:
            continue
        used = sum(
            facts.demands.get(other, 0.0) for other, one in after.service_status.items() if service.target in takes(one)
        )
        free = facts.capacities.get(service.target, float("inf")) * limit - used + facts.demands.get(sid, 0.0)
        for other, _ in waiting:
            rival = facts.resources.get(Sid(other))
            is_first = rival is not None and rival.wants_running and rival.priority > own.priority
            if is_first and facts.demands.get(other, 0.0) <= free and other in node.lrm.tracked:
                yield f"L12: {sid} got the room on {service.target} for which {other} waits, which comes first"


def _starts_in_place(held: Service, service: Service) -> bool:
    """It ran nowhere, and is to start where its file lies."""
    if service.state not in (State.request_start, State.started) or held.uid == service.uid:
        return False
    return held.state is State.stopped or (held.state is State.recovery and not held.target)


def _error(sid: str, held: Service, after: ManagerStatus, facts: Facts) -> Iterator[str]:
    """Left only when its pause is over, when somebody gave the guest up or moved it, or when its node has to be fenced."""
    service = after.service_status.get(sid)
    resource = facts.resources.get(Sid(sid))
    if service is None or service.state in (State.error, State.fence) or resource is None:
        return
    is_over = after.timestamp >= held.retry_at or after.timestamp < held.retry_at - LONGEST_PAUSE_S
    is_elsewhere = facts.places.get(sid, "") != held.node
    if not (str(resource.request) in ("disabled", "ignored") or is_elsewhere or (is_over and held.retry_at)):
        yield f"S14: {sid} left its error for {service.state}, although nobody gave it up and its pause was not over"
