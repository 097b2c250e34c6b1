"""HA's values as messages of its service, and back. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from agent.operations import ha_resources
from agent.operations.ha_commands import Asked
from agent.operations.ha_explain import remedies, silence_left_s, told_remedy, told_stuck
from agent.operations.ha_picture import Picture
from agent.operations.ha_reserve import told as told_loss
from ha.foresight import Outcome
from ha.keeper.records import told
from ha.leases import Profile
from ha.reserve import Survey
from ha.resources import sid_of
from ha.rules import Affinity, Conflict, NodeAffinity, ResourceAffinity, Rule, StartOrder
from ha.rules.text import DEFAULT_WEIGHT
from ha.status import NodeState, Service, State
from ha.view import Node
from kvorum.config import Section
from kvorum.errors import ConfigError, InvalidInput
from kvorum.ids import Sid, node_resource, parse_node_name, parse_sid
from kvorum.v1 import ha_pb2 as pb

_REQUESTS = {
    "started": pb.HA_REQUEST_STATE_STARTED,
    "stopped": pb.HA_REQUEST_STATE_STOPPED,
    "disabled": pb.HA_REQUEST_STATE_DISABLED,
    "ignored": pb.HA_REQUEST_STATE_IGNORED,
}
_NODE_AFFINITY, _RESOURCE_AFFINITY, _START_ORDER = "node-affinity", "resource-affinity", "start-order"

MAX_LOSSES = 20

# Resources


def resource_message(section: Section, service: Service | None, place: str, now: float) -> pb.HaResource:
    """`place`: the node that owns the guest's file, empty when there is no such guest. `now`: seconds since the epoch."""
    sid = sid_of(section)
    resource = pb.HaResource(
        sid=sid,
        request_state=_REQUESTS.get(ha_resources.request_state(section), pb.HA_REQUEST_STATE_UNSPECIFIED),
        comment=section.get("comment", ""),
        node=_node(place),
        failback=_flag(section, "failback"),
        max_restart=_number(section, "max_restart"),
        max_relocate=_number(section, "max_relocate"),
        priority=_number(section, "priority", 0),
        retry_in_seconds=-1.0,
        waits_at_most_seconds=-1.0,
    )
    if service is not None:
        resource.state = service.state
        resource.cause = service.cause
        resource.target = _node(service.target)
        resource.remedies.extend(remedies(service, sid))
        until = max(service.retry_at, service.move_after)
        resource.retry_in_seconds = until - now if until > now else -1.0
        resource.waits_for.extend(service.waits_for)
        resource.waits_at_most_seconds = service.wait_until - now if service.wait_until > now else -1.0
    elif not place:
        resource.cause = "there is no such guest"
    return resource


def request_of(resource: pb.HaResource) -> str | None:
    """The state that is asked for, in the file's words; None when the message does not say."""
    return next((state for state, number in _REQUESTS.items() if number == resource.request_state), None)


def entries_of(resource: pb.HaResource) -> dict[str, str]:
    """What else the message says, as it is written."""
    entries: dict[str, str] = {}
    for key in ("max_restart", "max_relocate", "priority"):
        if resource.HasField(key):
            entries[key] = str(getattr(resource, key))
    if resource.HasField("failback"):
        entries["failback"] = "1" if resource.failback else "0"
    return entries


# Status


def node_message(picture: Picture, node: Node) -> pb.HaNode:
    name, lease = node.name, node.lease
    keeper = picture.keepers.get(name)
    is_held = lease is not None and not lease.is_resting
    state = str(picture.view.status.node_status.get(name, NodeState.unknown))
    if lease is not None and (lease.is_fenced or lease.is_resting) and state != NodeState.maintenance:
        state = "fence" if lease.is_fenced else "idle"
    return pb.HaNode(
        name=node_resource(name),
        state=state,
        lease_age_seconds=lease.age_s if lease is not None and is_held else -1.0,
        fence_in_seconds=silence_left_s(picture, name),
        takeover_after_seconds=lease.terms.takeover_after_s if lease is not None and is_held else -1.0,
        maintenance=picture.view.status.is_drained(name),
        mode=node.lrm.mode,
        watchdog=keeper.watchdog if keeper is not None else "",
        profile=keeper.profile if keeper is not None else "",
    )


def disarm_message(picture: Picture, now: float) -> pb.HaDisarm | None:
    disarm = picture.view.status.disarm
    if disarm is None:
        return None
    return pb.HaDisarm(
        mode=disarm.mode,
        state=disarm.state,
        cause=disarm.cause,
        arms_in_seconds=max(0.0, disarm.since + disarm.for_s - now),
    )


def profile_message(profile: Profile, *, is_chosen: bool) -> pb.HaProfile:
    return pb.HaProfile(
        name=profile.name,
        tolerates_seconds=profile.tolerates_s,
        pause_after_seconds=profile.pause_after_s,
        kill_after_seconds=profile.kill_after_s,
        reset_after_seconds=profile.reset_after_s,
        takeover_after_seconds=profile.takeover_after_s,
        chosen=is_chosen,
    )


def command_message(asked: Asked) -> pb.HaCommand:
    return pb.HaCommand(id=asked.id, text=asked.text, state=asked.state, cause=asked.cause)


def outcome_message(outcome: Outcome) -> pb.HaOutcome:
    return pb.HaOutcome(
        sid=outcome.sid,
        node=_node(outcome.node),
        target_node=_node(outcome.target),
        state=outcome.state,
        cause=outcome.cause,
        remedies=[
            *told_stuck(outcome.sid, is_stuck=outcome.is_stuck),
            *(told_remedy(remedy, outcome.sid, outcome.node, outcome.state) for remedy in outcome.remedies),
        ],
        waits_for=outcome.waits_for,
        later_seconds=outcome.later_s,
    )


def reserve_message(survey: Survey) -> pb.HaReserve:
    return pb.HaReserve(
        nodes=survey.size,
        survived=survey.is_survived,
        looked_at=survey.looked_at,
        every=survey.every,
        loss_count=len(survey.losses),
        losses=[
            pb.HaLoss(
                nodes=[node_resource(name) for name in loss.nodes],
                keeps_quorum=loss.keeps_quorum,
                homeless=[
                    pb.HaOutcome(sid=one.sid, node=node_resource(one.node), state=State.recovery, cause=one.why)
                    for one in loss.homeless
                ],
                message=told_loss(loss),
            )
            for loss in survey.losses[:MAX_LOSSES]
        ],
    )


def record_messages(picture: Picture, names: Iterable[str]) -> Sequence[pb.HaRecord]:
    found = [
        pb.HaRecord(node=node_resource(name), kind=record.kind, text=told(record), time=record.time)
        for name in names
        if name in picture.keepers
        for record in picture.keepers[name].records
    ]
    return sorted(found, key=lambda record: record.time)


# Rules


def rule_message(rule: Rule) -> pb.HaRule:
    message = pb.HaRule(
        id=rule.id,
        resources=sorted(rule.resources),
        strict=rule.is_strict,
        enabled=rule.is_enabled,
        comment=rule.comment,
    )
    match rule:
        case NodeAffinity():
            message.kind = _NODE_AFFINITY
            message.weight = rule.weight
            message.nodes.update({str(name): priority for name, priority in rule.nodes.items()})
        case ResourceAffinity():
            message.kind = _RESOURCE_AFFINITY
            message.affinity = rule.affinity
            message.weight = rule.weight
        case StartOrder():
            message.kind = _START_ORDER
            message.after.extend(sorted(rule.after))
            message.delay_seconds = rule.delay_s
            if rule.deadline_s is not None:
                message.deadline_seconds = rule.deadline_s
    return message


def rule_of(message: pb.HaRule) -> Rule:
    """Raises InvalidInput. Whether the format can hold it, `Rules.with_rule` says."""
    if not message.id:
        raise InvalidInput("a rule needs a name", field="id")
    for sid in message.resources:
        parse_sid(sid, field="resources")
    resources = frozenset(Sid(sid) for sid in message.resources)
    if not resources:
        raise InvalidInput("a rule needs resources", field="resources", remedy="name some, such as vm:100,ct:101")
    weight = message.weight or DEFAULT_WEIGHT
    match message.kind:
        case "node-affinity":
            nodes = {parse_node_name(name, field="nodes"): priority for name, priority in message.nodes.items()}
            if not nodes:
                raise InvalidInput("a node-affinity needs nodes", field="nodes", remedy="name some, such as n1:2,n2")
            return NodeAffinity(message.id, resources, nodes, message.strict, message.enabled, weight, message.comment)
        case "resource-affinity":
            if message.affinity not in Affinity.__members__:
                raise InvalidInput(
                    f"{message.affinity!r} is no affinity", field="affinity", remedy="use positive or negative"
                )
            if len(resources) < 2:
                raise InvalidInput("a resource-affinity is about two resources or more", field="resources")
            affinity = Affinity(message.affinity)
            return ResourceAffinity(
                message.id, resources, affinity, message.strict, message.enabled, weight, message.comment
            )
        case "start-order":
            return _start_order_of(message, resources)
    raise InvalidInput(
        f"there are no {message.kind!r} rules",
        field="kind",
        remedy=f"use {_NODE_AFFINITY}, {_RESOURCE_AFFINITY} or {_START_ORDER}",
    )


def _start_order_of(message: pb.HaRule, resources: frozenset[Sid]) -> StartOrder:
    for sid in message.after:
        parse_sid(sid, field="after")
    after = frozenset(Sid(sid) for sid in message.after)
    if not after:
        raise InvalidInput(
            "a start-order needs those that start first", field="after", remedy="name some, such as vm:100"
        )
    deadline_s = message.deadline_seconds if message.HasField("deadline_seconds") else None
    return StartOrder(
        message.id,
        resources,
        after,
        message.delay_seconds,
        deadline_s,
        message.strict,
        message.enabled,
        message.comment,
    )


def conflict_message(conflict: Conflict) -> pb.HaConflict:
    return pb.HaConflict(rules=conflict.rules, message=str(conflict))


def _node(name: str) -> str:
    return node_resource(name) if name else ""


def _number(section: Section, key: str, default: int = 1) -> int:
    try:
        return section.get_int(key, default)
    except ConfigError:
        return default


def _flag(section: Section, key: str) -> bool:
    try:
        return section.get_bool(key, True)
    except ConfigError:
        return True


def places_of(picture: Picture) -> Mapping[str, str]:
    return {sid: config.node for sid, config in picture.view.configs.items()}
