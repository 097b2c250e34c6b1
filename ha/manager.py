"""The HA manager's decisions: `decide(view, now) -> Decision`. Pure.

An entry of `service_status` is an order: this node, in this life of it (its lease's incarnation), shall start or stop
this guest; `uid` names the order. One rule carries the safety: an order to start on a node is given only when the node of
the order before has *released* the guest. It has, when it said so under that order's uid, or when its lease was fenced in
the log and it had acknowledged that its keeper guards the guest. That it is back in a new life is no release: its keeper
took the new lease when nothing *guarded* ran, and the guest may not have been guarded then. Such a node is asked anew.
Where the config file lies is a second condition,
never the first: a late move by a deposed manager does not make an owner.

Live migrations are the agent's. The manager sees that the file lies elsewhere and follows (`migrate`).
No state is a dead end: whatever cannot go on says why in `cause` and is tried again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from kvorum.ids import NodeName, NodeUid, Sid

from .leases import LONGEST_TAKEOVER_S, Lease, is_fresh, may_fence
from .placement import Choice, NodeFacts, Query, Situation, choose_node
from .resources import Request, Resource
from .status import ManagerStatus, NodeState, Result, Service, State
from .view import Node, View, config_path

BACKOFF_FIRST_S = 10
BACKOFF_MAX_S = 300
# Transitions of one resource in one round; the longest chain is fence, recovery, request_start, started.
_MAX_STEPS = 8


@dataclass(frozen=True, slots=True)
class FenceLease:
    """Refused, in apply, if the node has renewed since."""

    node: NodeName
    uid: NodeUid
    incarnation: int
    renewal: int
    cause: str


@dataclass(frozen=True, slots=True)
class MoveConfig:
    """Follows only from a *committed* recovery entry. Refused if the file has changed or moved since."""

    sid: Sid
    path: str
    new_path: str
    expected_version: int
    cause: str


Action = FenceLease | MoveConfig


@dataclass(frozen=True, slots=True)
class Decision:
    """`status` is None when there is nothing new to write. It goes first; if it is refused, the actions are void."""

    status: ManagerStatus | None
    actions: tuple[Action, ...] = ()
    journal: tuple[str, ...] = ()


def decide(view: View, now: float) -> Decision:
    """`now` in seconds since the epoch: for timestamps and back-off only, never for safety."""
    if not view.is_leader or not view.is_quorate:
        return Decision(status=None)
    old = view.status.service_status
    resources = _resources(view)
    services: dict[str, Service] = {}
    journal: list[str] = []
    loads = _loads(view)
    for sid in sorted({*resources, *(Sid(known) for known in old)}):
        entry = old.get(sid)
        if sid in resources:
            service = _Resource(view, resources[sid], now, loads).settle(entry)
        else:
            service = _Resource(view, Resource(sid), now, loads).leave(old[sid])
        if service is None:
            continue
        services[sid] = service
        if entry is None or (entry.state, entry.node, entry.target) != (service.state, service.node, service.target):
            before = "new" if entry is None else f"{entry.state}@{entry.node}"
            arrow = f" -> {service.target}" if service.target else ""
            journal.append(f"{sid}: {before} => {service.state}@{service.node}{arrow} ({service.cause})")
        if service.target and (entry is None or entry.target != service.target):
            loads[NodeName(service.target)] = loads.get(NodeName(service.target), 0) + 1
    journal.extend(
        f"{sid}: {old[sid].state} => removed (no resource any more)" for sid in sorted(set(old) - set(services))
    )
    status = ManagerStatus(
        master_node=view.self_node,
        timestamp=view.status.timestamp,
        node_status=_node_states(view, services),
        service_status=services,
    )
    changed = status != view.status
    return Decision(
        status=msgspec.structs.replace(status, timestamp=int(now)) if changed else None,
        actions=(*_fences(view, services), *_moves(view, services)),
        journal=tuple(journal),
    )


def has_released(node: Node | None, sid: str, service: Service) -> str:
    """How we know that the node of this order runs the guest no more and will not start it; empty when we do not."""
    if not service.node:
        return "no node ever had it"
    if node is None:
        return f"{service.node} is no member any more"
    result = node.lrm.results.get(service.uid)
    if result is not None and result.sid == sid and _ends_order(service, result):
        return f"{service.node} has let go of it"
    lease = node.lease
    if lease is not None and lease.is_fenced and lease.incarnation >= service.incarnation and sid in node.lrm.tracked:
        return f"{service.node} is fenced"
    return ""


def _ends_order(service: Service, result: Result) -> bool:
    """An order to start ends when it failed for good, an order to let go when it is done."""
    if service.state in (State.request_stop, State.migrate, State.stopped):
        return result.exit_code == 0
    return result.exit_code != 0


@dataclass(frozen=True, slots=True)
class _Resource:
    """One resource in one round: each method takes an entry and returns the next one, or the same."""

    view: View
    resource: Resource
    now: float
    loads: Mapping[NodeName, int]

    def settle(self, entry: Service | None) -> Service | None:
        service = entry if entry is not None else self._new()
        if service is None:
            return None
        for _ in range(_MAX_STEPS):
            following = _STATES[service.state](self, service)
            if following == service:
                return service
            service = following
        return service

    def leave(self, service: Service) -> Service | None:
        """No resource any more. Its order is forgotten only when nothing can run away from where its file lies.

        Else the same guest, made a resource again, would be a new one that nobody knows to run anywhere.
        """
        place = self.place()
        if not place or place == service.node or self.released(service):
            return None
        if self.is_lost(service):
            return self.turn(service, State.fence, self.silence(service))
        return service if service.state is State.migrate else self.order_release(service, place)

    # What the states ask

    @property
    def sid(self) -> Sid:
        return self.resource.sid

    @property
    def wants_running(self) -> bool:
        return self.resource.request is Request.started

    def node(self, name: str) -> Node | None:
        return self.view.nodes.get(NodeName(name))

    def lease(self, name: str) -> Lease | None:
        node = self.node(name)
        return node.lease if node is not None else None

    def place(self) -> str:
        """The node whose directory holds the config file; empty when there is none."""
        config = self.view.configs.get(self.sid)
        return config.node if config is not None else ""

    def is_ready(self, name: str) -> bool:
        """A live lease, and a local resource manager that works under it and guards this resource."""
        node = self.node(name)
        if node is None or node.lease is None or not is_fresh(node.lease):
            return False
        return node.lrm.incarnation == node.lease.incarnation and self.sid in node.lrm.tracked

    def is_overdue(self, name: str) -> bool:
        """Its lease, of whichever incarnation, is over or may be fenced now."""
        lease = self.lease(name)
        return lease is not None and (lease.is_fenced or may_fence(lease))

    def is_lost(self, service: Service) -> bool:
        """Whether the order's node needs fencing: it went silent in the life in which it got the order, or since."""
        return bool(service.node) and self.node(service.node) is not None and self.is_overdue(service.node)

    def result(self, service: Service) -> Result | None:
        node = self.node(service.node)
        result = node.lrm.results.get(service.uid) if node is not None else None
        return result if result is not None and result.sid == self.sid else None

    def released(self, service: Service) -> str:
        return "" if self.is_leaving(service.node) else has_released(self.node(service.node), self.sid, service)

    def is_leaving(self, name: str) -> bool:
        """It is no member any more, but its keeper may not have had its time yet: the removal is its last renewal's end."""
        left_s = self.view.leaving_s.get(NodeName(name), LONGEST_TAKEOVER_S)
        return bool(name) and self.node(name) is None and left_s >= 0

    def choose(self, avoid: Sequence[str]) -> Choice:
        facts = {
            name: NodeFacts("" if self.is_ready(name) else "is not ready", other_guests=self.loads.get(name, 0))
            for name in self.view.nodes
        }
        return choose_node(Query(self.sid, failed=tuple(avoid)), Situation(facts))

    # Making entries

    def order(
        self, service: Service, state: State, cause: str, *, node: str | None = None, target: str = ""
    ) -> Service:
        """A new order, under a new uid, to the node in its present life."""
        where = service.node if node is None else node
        lease = self.lease(where)
        return msgspec.structs.replace(
            service,
            state=state,
            node=where,
            target=target,
            uid=f"{self.view.status_version}-{int(self.now)}-{self.sid}",
            incarnation=lease.incarnation if lease is not None else 0,
            cause=cause,
            running=0,
            retry_at=0,
        )

    def turn(self, service: Service, state: State, cause: str, *, target: str = "") -> Service:
        """Another state under the same order, whose life and uid still decide who may run the guest."""
        return msgspec.structs.replace(service, state=state, cause=cause, target=target, retry_at=0)

    def _new(self) -> Service | None:
        empty = Service(state=State.request_start, node="", uid="", incarnation=0)
        if not self.place():
            return self.turn(empty, State.error, f"there is no guest {self.sid} in the cluster")
        state = State.request_start if self.wants_running else State.request_stop
        return self.order(empty, state, "new resource", node=self.place())

    # The states

    def request_start(self, service: Service) -> Service:
        if not self.wants_running:
            return self.order_stop(service)
        if gone := self.elsewhere_or_lost(service):
            return gone
        lease = self.lease(service.node)
        if self.is_ready(service.node) and lease is not None:
            return self.order(service, State.started, f"{service.node} shall run it")
        if lease is not None and lease.is_resting:
            return self.explain_rest(service)
        return self.explain(service, f"{service.node} is not ready: it has no live lease, or does not guard it yet")

    def started(self, service: Service) -> Service:
        if not self.wants_running:
            return self.order_stop(service)
        if gone := self.elsewhere_or_lost(service):
            return gone
        lease = self.lease(service.node)
        if lease is not None and lease.incarnation != service.incarnation:
            if self.is_ready(service.node):
                return self.order(
                    service, State.started, f"{service.node} is back in a new life and shall run it again"
                )
            return self.explain(service, f"{service.node} is back and clears up")
        if lease is not None and lease.is_resting:
            return self.explain_rest(service)
        result = self.result(service)
        if result is None:
            return service
        if result.exit_code == 0:
            return msgspec.structs.replace(
                service, running=1, failed_nodes=(), failures=0, cause=f"{service.node} runs it"
            )
        return self.start_failed(service, result)

    def start_failed(self, service: Service, result: Result) -> Service:
        """Another node up to max_relocate times, then a pause that doubles, then from the beginning."""
        failed = (*service.failed_nodes, service.node)
        why = f"it did not start on {service.node}: {result.cause or 'no reason given'}"
        choice = self.choose(failed)
        if len(failed) <= self.resource.max_relocate and choice.node:
            entry = msgspec.structs.replace(service, failed_nodes=failed)
            return self.turn(entry, State.recovery, f"{why}; {choice.why}", target=choice.node)
        delay = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(service.failures, 10))
        entry = self.turn(service, State.error, f"{why}; it is tried again after {delay} s")
        return msgspec.structs.replace(
            entry, failed_nodes=(), failures=service.failures + 1, retry_at=int(self.now) + delay
        )

    def request_stop(self, service: Service) -> Service:
        if how := self.released(service):
            if self.wants_running:
                return self.order(service, State.request_start, "start requested", node=self.place() or service.node)
            return self.turn(service, State.stopped, f"stop requested, and {how}")
        if self.wants_running:
            return self.order(service, State.request_start, "start requested")
        if gone := self.elsewhere_or_lost(service):
            return gone
        lease = self.lease(service.node)
        if self.is_ready(service.node) and lease is not None and lease.incarnation != service.incarnation:
            return self.order_stop(service)
        return self.explain_rest(service) if lease is not None and lease.is_resting else service

    def stopped(self, service: Service) -> Service:
        place = self.place()
        if self.wants_running:
            if not place:
                return self.explain(service, "its config file is gone")
            return self.order(service, State.request_start, "start requested", node=place)
        if place and place != service.node:
            # The released order stays as it is; only what people see follows the file.
            return self.order(service, State.request_stop, f"its config file lies on {place} now", node=place)
        return service

    def migrate(self, service: Service) -> Service:
        place = self.place()
        if not place:
            return self.explain(service, "its config file is gone")
        if how := self.released(service):
            return self.order(service, State.request_start, f"it has moved to {place}, and {how}", node=place)
        if place == service.node:
            return self.order(service, State.request_start, f"its config file is back on {place}")
        if place != service.target:
            return self.order_release(service, place)
        if self.is_lost(service):
            return self.turn(service, State.fence, self.silence(service))
        return service

    def fence(self, service: Service) -> Service:
        lease = self.lease(service.node)
        if how := self.released(service):
            if not self.wants_running:
                return self.turn(service, State.stopped, f"stop requested, and {how}")
            return self.turn(service, State.recovery, how)
        if not self.is_lost(service) and lease is not None:
            # It renewed before the fence, or begins a new life. Only the same node is asked, so nothing runs twice.
            return self.order(service, State.request_start, f"{service.node} answers again")
        if lease is not None and lease.is_fenced:
            return self.explain(
                service,
                f"{service.node} is fenced, but it never confirmed that it guards {self.sid}, so it may still run there; "
                f"make sure that {service.node} is off and remove it from the cluster, or bring it back",
            )
        return service

    def recovery(self, service: Service) -> Service:
        place = self.place()
        if not place:
            return self.explain(service, "its config file is gone")
        if not self.wants_running:
            return self.order(service, State.request_stop, "stop requested", node=place)
        # Moved already: by us, by the manager before us, or by a person. Or its node is back in a new life.
        if place != service.node or (self.is_ready(place) and place not in service.failed_nodes):
            return self.order(service, State.request_start, f"its config file lies on {place}", node=place)
        if service.target and self.is_ready(service.target):
            return service
        choice = self.choose(service.failed_nodes)
        if not choice.node and service.failed_nodes:
            choice = self.choose(())
        if not choice.node:
            return self.turn(service, State.recovery, choice.why)
        if choice.node == place:
            return self.order(service, State.request_start, f"{choice.why}", node=place)
        return self.turn(service, State.recovery, f"it is free to start elsewhere; {choice.why}", target=choice.node)

    def error(self, service: Service) -> Service:
        place = self.place()
        if not service.node:
            if not place:
                return service
            state = State.request_start if self.wants_running else State.request_stop
            return self.order(service, state, "its config file is there now", node=place)
        if not self.wants_running:
            return self.order_stop(service)
        if gone := self.elsewhere_or_lost(service):
            return gone
        # A clock that was set back must not keep it waiting for years.
        if self.now >= service.retry_at or service.retry_at - self.now > BACKOFF_MAX_S:
            return self.order(service, State.request_start, "it is tried again after a failure")
        return service

    # What several states do

    def elsewhere_or_lost(self, service: Service) -> Service | None:
        """The entry's next state when its file lies elsewhere or its node is silent."""
        place = self.place()
        if not place:
            return self.explain(service, "its config file is gone")
        if place != service.node:
            return self.order_release(service, place)
        if self.is_lost(service):
            return self.turn(service, State.fence, self.silence(service))
        if self.is_leaving(service.node):
            return self.explain(service, f"{service.node} is no member any more; its guests are given time to end")
        if self.node(service.node) is None:
            return self.turn(service, State.recovery, f"{service.node} is no member any more")
        return None

    def explain_rest(self, service: Service) -> Service:
        """Its silence means nothing, and a fence would prove nothing: the guest was not guarded there."""
        return self.explain(
            service,
            f"{service.node} gave its lease back when it had nothing to guard, and has not taken a new one; "
            f"if that lasts, make sure that {service.node} is off and remove it from the cluster",
        )

    def order_release(self, service: Service, place: str) -> Service:
        """The node shall confirm that it runs it no more; under the life in which it was ordered to run it."""
        entry = self.order(
            service, State.migrate, f"its config file lies on {place} now; {service.node} lets go of it", target=place
        )
        return msgspec.structs.replace(entry, incarnation=service.incarnation)

    def order_stop(self, service: Service) -> Service:
        return self.order(service, State.request_stop, "stop requested")

    def silence(self, service: Service) -> str:
        lease = self.lease(service.node)
        silent_s = lease.terms.takeover_after_s if lease is not None else LONGEST_TAKEOVER_S
        return f"{service.node} has not renewed its lease for {silent_s:.1f} s"

    def explain(self, service: Service, cause: str) -> Service:
        return msgspec.structs.replace(service, cause=cause)


def _resources(view: View) -> Mapping[Sid, Resource]:
    """A file that does not parse changes nothing: what is wanted then follows from what was decided last."""
    if view.resources is not None:
        return view.resources
    asleep = (State.request_stop, State.stopped)
    return {
        Sid(sid): Resource(Sid(sid), Request.stopped if service.state in asleep else Request.started)
        for sid, service in view.status.service_status.items()
    }


def _loads(view: View) -> dict[NodeName, int]:
    """Guests by node: config files, and recoveries under way."""
    loads: dict[NodeName, int] = {}
    for config in view.configs.values():
        loads[config.node] = loads.get(config.node, 0) + 1
    for service in view.status.service_status.values():
        if service.target:
            loads[NodeName(service.target)] = loads.get(NodeName(service.target), 0) + 1
    return loads


def _node_states(view: View, services: Mapping[str, Service]) -> dict[str, NodeState]:
    fencing = {service.node for service in services.values() if service.state is State.fence}
    states: dict[str, NodeState] = {}
    for name in sorted(view.nodes):
        lease = view.nodes[name].lease
        if name in fencing:
            states[name] = NodeState.fence
        elif lease is not None and is_fresh(lease):
            states[name] = NodeState.online
        else:
            states[name] = NodeState.unknown
    return states


def _fences(view: View, services: Mapping[str, Service]) -> tuple[FenceLease, ...]:
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


def _moves(view: View, services: Mapping[str, Service]) -> tuple[MoveConfig, ...]:
    moves: list[MoveConfig] = []
    for sid, service in services.items():
        committed = view.status.service_status.get(sid)
        config = view.configs.get(Sid(sid))
        if committed != service or config is None or service.state is not State.recovery or not service.target:
            continue
        if config.node == service.node != service.target:
            old, new = config_path(sid, config.node), config_path(sid, service.target)
            moves.append(MoveConfig(Sid(sid), old, new, config.version, f"HA recovery: {service.cause}"))
    return tuple(moves)


_STATES: Mapping[State, Callable[[_Resource, Service], Service]] = {
    State.request_start: _Resource.request_start,
    State.started: _Resource.started,
    State.request_stop: _Resource.request_stop,
    State.stopped: _Resource.stopped,
    State.migrate: _Resource.migrate,
    State.fence: _Resource.fence,
    State.recovery: _Resource.recovery,
    State.error: _Resource.error,
}
