"""What HA will do if nodes die now, or if one is put into maintenance: the manager itself, played ahead on a view of today. Pure.

`play` lets `ha.manager.decide` go on round after round in a world where everything works: fences are answered, files move,
nodes do at once what they are told. Nothing here decides; so what is foretold is what happens, unless something changes first.

What must stay out: a second opinion about placement, and sentences for people (they are in what the manager says).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from kvorum.ids import NodeName, Sid

from .leases import is_fresh
from .manager import FenceLease, MoveConfig, decide
from .status import LETTING_GO, AnswerState, ManagerStatus, Remedy, Result, Service, State
from .view import Command, Node, View

# The longest way: fence, recovery, move, order; as many again for a guest that has to try elsewhere.
MAX_ROUNDS = 16
# As often the clock goes on to when somebody who waits for others waits no longer.
MAX_WAITS = 100
# From the end of T to a running guest: four commits, each a round of the manager, and its start.
RECOVERY_S = 2.0
PLAN_ID = "plan"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`target` is empty when it neither runs nor will run anywhere, `node` when it stays so."""

    sid: Sid
    node: str
    target: str
    state: State
    cause: str
    remedies: tuple[Remedy, ...] = ()
    # Whom it waits for before it starts there, and how much later it starts for their delays and its deadlines.
    waits_for: tuple[str, ...] = ()
    later_s: float = 0.0
    # One of them does not start by itself.
    is_stuck: bool = False


@dataclass(frozen=True, slots=True)
class Played:
    """The view at rest; of each guest that went elsewhere why to that node, and of each that waited for whom, until when."""

    end: View
    causes: Mapping[Sid, str]
    waited: Mapping[Sid, tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The manager would not do it."""

    cause: str


def if_killed(view: View, killed: Collection[NodeName], now: float) -> tuple[Outcome, ...]:
    """Of the guests of these nodes. The others must have a majority."""
    held = {Sid(sid): service for sid, service in view.status.service_status.items() if service.node in killed}
    nodes = {name: _dead(node) if name in killed else node for name, node in view.nodes.items()}
    played = play(replace(view, nodes=nodes, commands=()), now)
    return tuple(_outcome(sid, held[sid], played, killed) for sid in sorted(held))


def if_drained(view: View, node: NodeName, now: float) -> tuple[Outcome, ...] | Refusal:
    """Of the guests of a node that is put into maintenance now."""
    wish = Command(PLAN_ID, 1, f"enable-node-maintenance {node}")
    played = play(replace(view, commands=(wish,)), now)
    answer = played.end.status.answers.get(PLAN_ID)
    if answer is not None and answer.state is AnswerState.refused:
        return Refusal(answer.cause)
    held = {Sid(sid): service for sid, service in view.status.service_status.items() if service.node == node}
    return tuple(_outcome(sid, held[sid], played, (node,)) for sid in sorted(held))


def play(view: View, now: float) -> Played:
    """The clock stands still but for those who wait for others, each time they would come to rest without them."""
    view = replace(view, is_leader=True, is_quorate=True)
    causes: dict[Sid, str] = {}
    targets: dict[Sid, str] = {}
    waited: dict[Sid, tuple[tuple[str, ...], float]] = {}
    began, rounds = now, MAX_ROUNDS + 3 * _links(view)
    for _ in range(MAX_WAITS):
        for _ in range(rounds):
            decision = decide(view, now)
            if decision.status is not None:
                status = decision.status
                view = replace(view, status=status, status_version=view.status_version + 1)
                _note(status, causes, targets, waited, now - began)
            after = _obeyed(_performed(view, decision.actions))
            if decision.status is None and after == view:
                break
            view = after
        moments = [
            float(service.retry_at)
            for service in view.status.service_status.values()
            if service.waits_for and service.retry_at > now
        ]
        if not moments:
            break
        now = min(moments)
    return Played(view, causes, waited)


def _links(view: View) -> int:
    """Of the longest chain in which one starts after the other."""
    places = {config.startup.place for config in view.configs.values()}
    return max(view.rules.orders.depth.values(), default=0) + len(places) - 1 if places else 0


def _note(
    status: ManagerStatus,
    causes: dict[Sid, str],
    targets: dict[Sid, str],
    waited: dict[Sid, tuple[tuple[str, ...], float]],
    later_s: float,
) -> None:
    for name, service in status.service_status.items():
        sid = Sid(name)
        # How it is going there, which comes next, is no reason.
        if service.target and targets.get(sid) != service.target:
            targets[sid], causes[sid] = service.target, service.cause
        if service.waits_for:
            known = waited[sid][0] if sid in waited else ()
            waited[sid] = (tuple(dict.fromkeys((*known, *service.waits_for))), later_s)
        elif sid in waited and not service.running and service.state is State.started:
            waited[sid] = (waited[sid][0], later_s)


def starts_after_s(view: View, killed: Collection[NodeName]) -> float:
    """Until the last of these nodes' guests starts elsewhere; negative when none of them has a lease."""
    waits = [
        node.lease.terms.takeover_after_s
        for name, node in view.nodes.items()
        if name in killed and node.lease is not None and not node.lease.is_resting
    ]
    return max(waits) + RECOVERY_S if waits else -1.0


def unmanaged(view: View, nodes: Collection[NodeName]) -> Sequence[Sid]:
    """Guests of these nodes that HA does not look after."""
    return sorted(
        sid for sid, config in view.configs.items() if config.node in nodes and sid not in view.status.service_status
    )


def _dead(node: Node) -> Node:
    """As it looks when its time is over."""
    if node.lease is None or node.lease.is_resting or node.lease.is_fenced:
        return node
    return replace(node, lease=replace(node.lease, age_s=node.lease.terms.takeover_after_s + 1.0))


def _outcome(sid: Sid, before: Service, played: Played, nodes: Collection[NodeName]) -> Outcome:
    service = played.end.status.service_status.get(sid)
    if service is None:
        return Outcome(sid, before.node, "", State.stopped, "it is no resource any more")
    is_elsewhere = service.node not in nodes and service.state is not State.recovery
    waits_for, later_s = played.waited.get(sid, ((), 0.0))
    if service.state is State.request_start and service.waits_for:
        # It has a place, and does not start there.
        return Outcome(
            sid, before.node, "", service.state, service.cause, service.remedies, service.waits_for,
            is_stuck=service.is_stuck,
        )  # fmt: skip
    cause = played.causes.get(sid, service.cause) if is_elsewhere else service.cause
    target = service.node if is_elsewhere else ""
    return Outcome(sid, before.node, target, service.state, cause, service.remedies, waits_for, later_s)


def _performed(view: View, actions: Collection[object]) -> View:
    nodes, configs = dict(view.nodes), dict(view.configs)
    for action in actions:
        match action:
            case FenceLease(node=name):
                lease = nodes[name].lease
                assert lease is not None
                nodes[name] = replace(nodes[name], lease=replace(lease, is_fenced=True))
            case MoveConfig(sid=sid, new_path=path):
                configs[sid] = replace(
                    configs[sid], node=NodeName(path.split("/")[1]), version=configs[sid].version + 1, lock=""
                )
    return replace(view, nodes=nodes, configs=configs)


def _obeyed(view: View) -> View:
    """Every node that lives has done what it was told."""
    nodes, configs = dict(view.nodes), dict(view.configs)
    for name, service in view.status.service_status.items():
        sid, node = Sid(name), nodes.get(NodeName(service.node))
        if node is None or node.lease is None or not is_fresh(node.lease) or not service.uid:
            continue
        if service.uid in node.lrm.results or service.incarnation != node.lrm.incarnation:
            continue
        if service.state is not State.started and service.state not in LETTING_GO:
            continue
        if service.state is State.migrate and service.cmd and sid in configs and configs[sid].node == service.node:
            configs[sid] = replace(configs[sid], node=NodeName(service.target), version=configs[sid].version + 1)
        result = Result(sid=sid, state=service.state, exit_code=0)
        lrm = msgspec.structs.replace(node.lrm, results={**node.lrm.results, service.uid: result})
        nodes[node.name] = replace(node, lrm=lrm)
    return replace(view, nodes=nodes, configs=configs)
