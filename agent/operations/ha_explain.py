"""Why a guest is where it is, and what happens if its node dies now: plain words from what the manager knows. Pure.

The choices are those of `ha.placement` and `ha.foresight`; only their telling is here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.operations.ha_picture import Picture
from ha import foresight
from ha.foresight import Outcome
from ha.leases import is_fresh
from ha.manager.placing import Placing
from ha.placement import Preference, Query, explain
from ha.status import Remedy, Service, State
from kvorum.ids import NodeName, Sid


@dataclass(frozen=True, slots=True)
class Told:
    placement: tuple[str, ...]
    if_lost: tuple[str, ...]
    # Negative while the node is well.
    fence_in_s: float


def tell(picture: Picture, sid: Sid, now: float) -> Told:
    service = picture.view.status.service_status.get(sid)
    if service is None:
        return Told(("the manager has not seen it yet",), (), -1.0)
    fence_in_s = silence_left_s(picture, service.node)
    if_lost = _if_lost(picture, sid, service, fence_in_s, now)
    return Told(_placement(picture, sid, service), if_lost, fence_in_s)


def silence_left_s(picture: Picture, node: str) -> float:
    """Until a silent node's guests may start elsewhere; negative while its lease is fresh, or when there is none."""
    member = picture.view.nodes.get(NodeName(node))
    if member is None or member.lease is None or member.lease.is_resting or is_fresh(member.lease):
        return -1.0
    if member.lease.is_fenced:
        return 0.0
    return max(0.0, member.lease.terms.takeover_after_s - member.lease.age_s)


def remedies(service: Service, sid: str) -> list[str]:
    told = [told_remedy(remedy, sid, service.node, service.state) for remedy in service.remedies]
    return [*told_stuck(sid, is_stuck=service.is_stuck), *told]


def told_stuck(sid: str, *, is_stuck: bool) -> list[str]:
    """What to do about one that waits for somebody who does not start by itself."""
    what = "start what it waits for, or loosen the rule that makes it wait"
    return [f"{what}: kvorum ha explain {sid} names it"] if is_stuck else []


def told_remedy(remedy: Remedy, sid: str, node: str, state: str = "") -> str:
    match remedy:
        case Remedy.wait:
            return "wait: HA goes on by itself"
        case Remedy.disable:
            return f"give it up, which forgets what went wrong: kvorum ha set {sid} --state disabled; then started, to try anew"
        case Remedy.mend:
            return "mend what the cause names; the guest's last task says more: kvorum task list"
        case Remedy.remove_node:
            return f"make sure that {node} is off, then: kvorum cluster remove {node}"
        case Remedy.revive_node:
            return f"bring {node} back; it goes on there"
        case Remedy.make_room:
            return (
                "make room: bring back or add a node, loosen a rule (kvorum ha rule list), or end a node's maintenance"
            )


def _placement(picture: Picture, sid: Sid, service: Service) -> tuple[str, ...]:
    resource = (picture.view.resources or {}).get(sid)
    is_here = service.state not in (State.recovery, State.stopped, State.error)
    query = Query(
        sid,
        Preference.none if is_here else Preference.best_score,
        current=service.node if is_here else "",
        failback=resource.failback if resource is not None else True,
        failed=service.failed_nodes,
        maintenance_node=service.maintenance_node,
    )
    told = tuple(line.strip() for line in explain(query, Placing(picture.view).situation).lines())
    return (*told, *_order(picture, sid))


def _order(picture: Picture, sid: Sid) -> Sequence[str]:
    """Who starts before it and after it."""
    told = list(picture.view.rules.orders.told(sid))
    config = picture.view.configs.get(sid)
    if config is not None and config.startup.order is not None and sid not in picture.view.rules.orders.followers:
        told.append(
            f"its startup order is {config.startup.order}: of those that lose their node together, lower ones start before it"
        )
    return told


def _if_lost(picture: Picture, sid: Sid, service: Service, fence_in_s: float, now: float) -> tuple[str, ...]:
    node = NodeName(service.node)
    if service.state is State.stopped:
        return (f"it does not run, so nothing starts; its configuration moves along if {node} dies",)
    if node not in picture.view.nodes:
        return ()
    if picture.view.status.is_disarmed:
        return ("HA is disarmed: nothing is fenced and nothing starts elsewhere until it is armed",)
    if not picture.keeps_quorum_without(frozenset({node})):
        return (
            f"without {node} there is no majority: nothing starts elsewhere, and the other nodes end their HA guests",
        )
    outcomes = [one for one in foresight.if_killed(picture.view, [node], now) if one.sid == sid]
    return tuple(line for outcome in outcomes for line in _foretold(picture, node, outcome, fence_in_s))


def _foretold(picture: Picture, node: NodeName, outcome: Outcome, fence_in_s: float) -> Sequence[str]:
    if not outcome.target:
        again = [told_remedy(remedy, outcome.sid, node) for remedy in outcome.remedies if remedy is not Remedy.wait]
        stuck = told_stuck(outcome.sid, is_stuck=outcome.is_stuck)
        return [f"it would not start elsewhere by itself: {outcome.cause}", *stuck, *again]
    after_s = foresight.starts_after_s(picture.view, [node])
    takeover_s = after_s - foresight.RECOVERY_S
    if fence_in_s >= 0:
        return [
            f"{node} is silent: it starts on {outcome.target} in about {fence_in_s + foresight.RECOVERY_S:.0f} s "
            f"({outcome.cause})",
        ]
    return [
        f"it starts on {outcome.target} about {after_s + outcome.later_s:.0f} s after the death of {node} ({outcome.cause})",
        *((f"it waits there for {', '.join(outcome.waits_for)} to start first",) if outcome.waits_for else ()),
        f"until then {takeover_s:.1f} s (T) pass, in which {node} has surely ended it, whatever happened to it",
    ]
