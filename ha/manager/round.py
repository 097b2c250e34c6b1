"""One round: `decide(view, now) -> Decision`. Pure.

Commands first, then every resource, then what follows for nodes, answers and the whole. The status that comes out is
written at the version that was read, so of two managers one loses; actions follow only from what is committed.
"""

from collections.abc import Mapping

import msgspec

from ha.resources import Request, Resource
from ha.rules import Orders
from ha.status import ManagerStatus, Service, State
from ha.view import View, config_path
from kvorum.ids import Sid

from . import arming, balancing, commands, nodes, states
from .case import Case
from .decision import Action, Decision, MoveConfig
from .placing import Placing
from .strangers import told_apart


def decide(view: View, now: float) -> Decision:
    """`now` in seconds since the epoch: for timestamps, back-off and the end of a disarm only, never for safety."""
    if not view.is_leader or not view.is_quorate:
        return Decision(status=None)
    before, view = view.status, told_apart(view)
    resources = _resources(view)
    placing = Placing(view)
    desk = commands.Desk(view, resources, now, placing, dict(view.status.service_status))
    desk.take_all()
    services = _settle_all(view, now, resources, placing, desk.services)
    services, history = balancing.even_out(view, now, resources, placing, services)
    disarm = desk.disarm
    if disarm == view.status.disarm:
        disarm = arming.follow(view, services, disarm, now)
    status = ManagerStatus(
        master_node=view.self_node,
        timestamp=view.status.timestamp,
        node_status=nodes.node_states(view, placing, services),
        service_status=services,
        node_request=desk.node_request,
        disarm=disarm,
        answers=commands.settle_answers(desk.answers, services, view, now),
    )
    is_changed = status != before
    return Decision(
        status=msgspec.structs.replace(status, timestamp=int(now)) if is_changed else None,
        actions=_actions(view, services, resources, placing),
        journal=(*desk.journal, *_journal(before, status)),
        history=history,
    )


def _settle_all(
    view: View, now: float, resources: Mapping[Sid, Resource], placing: Placing, held: Mapping[str, Service]
) -> dict[str, Service]:
    services: dict[str, Service] = {}
    for sid in in_order(resources, held, view.rules.orders):
        entry = held.get(sid)
        if sid in resources:
            service = states.settle(Case(view, resources[sid], now, placing), entry)
        else:
            service = states.leave(Case(view, Resource(sid), now, placing), held[sid])
        if service is None:
            continue
        services[sid] = service
        if service is not entry:
            placing.put(sid, service)
    return services


def in_order(resources: Mapping[Sid, Resource], held: Mapping[str, Service], orders: Orders) -> list[Sid]:
    """Who comes first gets the room that there is; the same for whoever foretells it."""
    every = {*resources, *(Sid(known) for known in held)}
    # Whoever is waited for is no less urgent than those that wait for it.
    inherited = orders.with_inherited({sid: one.priority for sid, one in resources.items()}) if orders else {}
    depth = orders.depth

    def rank(sid: Sid) -> tuple[int, int, Sid]:
        own = resources[sid].priority if sid in resources else 0
        return -inherited.get(sid, own), depth.get(sid, 0), sid

    return sorted(every, key=rank)


def _resources(view: View) -> Mapping[Sid, Resource]:
    """Those that HA looks after. A file that does not parse changes nothing: then what is wanted follows from the states."""
    if view.resources is not None:
        return {sid: one for sid, one in view.resources.items() if one.request is not Request.ignored}
    return {
        Sid(sid): Resource(Sid(sid), states.request_of(service)) for sid, service in view.status.service_status.items()
    }


def _actions(
    view: View, services: Mapping[str, Service], resources: Mapping[Sid, Resource], placing: Placing
) -> tuple[Action, ...]:
    asked = commands.actions(view, services, resources)
    if view.status.is_disarmed:
        return asked
    return (*nodes.fences(view, services), *_moves(view, services, resources, placing), *asked)


def _moves(
    view: View, services: Mapping[str, Service], resources: Mapping[Sid, Resource], placing: Placing
) -> tuple[MoveConfig, ...]:
    """Of files whose guests are free: recovered ones, and those that have stopped for it."""
    moves: list[MoveConfig] = []
    for sid, service in services.items():
        if service.state not in (State.recovery, State.relocate) or not service.target:
            continue
        config = view.configs.get(Sid(sid))
        if view.status.service_status.get(sid) != service or config is None or Sid(sid) not in resources:
            continue
        case = Case(view, resources[Sid(sid)], 0.0, placing)
        if case.held_by(service) or (service.state is State.relocate and not case.released(service)):
            continue
        if config.node == service.node != service.target:
            old, new = config_path(sid, config.node), config_path(sid, service.target)
            moves.append(
                MoveConfig(Sid(sid), old, new, config.version, f"HA: {service.cause}", case.stale_lock(service))
            )
    return tuple(moves)


def _journal(before: ManagerStatus, after: ManagerStatus) -> tuple[str, ...]:
    lines: list[str] = []
    old, new = before.service_status, after.service_status
    for sid, service in new.items():
        entry = old.get(sid)
        if entry is service:
            continue
        if entry is None or (entry.state, entry.node, entry.target) != (service.state, service.node, service.target):
            was = "new" if entry is None else f"{entry.state}@{entry.node}"
            arrow = f" -> {service.target}" if service.target else ""
            lines.append(f"{sid}: {was} => {service.state}@{service.node}{arrow} ({service.cause})")
    lines += [f"{sid}: {old[sid].state} => removed (no resource any more)" for sid in sorted(set(old) - set(new))]
    for id_, answer in after.answers.items():
        known = before.answers.get(id_)
        if known is not None and known.state is not answer.state:
            lines.append(f"command {id_}, {answer.command!r}: {answer.state} ({answer.cause})")
    for name, state in after.node_status.items():
        if before.node_status.get(name) is not state:
            lines.append(f"node {name}: {before.node_status.get(name, 'new')} => {state}")
    if before.disarm != after.disarm:
        disarm = after.disarm
        lines.append(f"HA is {disarm.state}: {disarm.cause}" if disarm is not None else "HA is armed")
    return tuple(lines)
