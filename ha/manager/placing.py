"""Where everything is in this round, for the scorer; each decision of the round is put on the board, so that the next sees
it. Pure.

Says of each node whether it may take guests, and asks `ha.placement` for all who choose a node. The board is made when
it is first asked: most rounds choose nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from ha.leases import is_fresh
from ha.load import NOTHING, Use
from ha.placement import Board, Choice, NodeFacts, Placed, Preference, Query, Situation
from ha.resources import Resource
from ha.status import Mode, Service, State
from ha.view import Startup, View
from kvorum.ids import NodeName, Sid

# States in which the guest takes no room: it does not run, and is not on its way.
_IDLE = frozenset({State.stopped, State.error})


class Placing:
    def __init__(self, view: View) -> None:
        self._view = view
        self.modes: Mapping[NodeName, Mode] = {name: node_mode(view, name) for name in view.nodes}
        self._put: dict[Sid, Placed] = {}
        self._tracked: dict[NodeName, frozenset[str]] = {}
        self._latest: tuple[tuple[str, ...], frozenset[str]] | None = None

    def mode(self, name: str) -> Mode:
        return self.modes.get(NodeName(name), Mode.active)

    def is_drained(self, name: str) -> bool:
        return self._view.status.is_drained(name)

    @property
    def rebalances_on_start(self) -> bool:
        return self._view.options.rebalances_on_start

    def is_free(self, sid: Sid) -> bool:
        """No rule speaks of it."""
        return self._view.rules.terms(sid).is_free

    def is_allowed(self, sid: Sid, node: str) -> bool:
        return self._board_for(sid).is_allowed(sid, node)

    def guards(self, name: NodeName, sid: str) -> bool:
        """Whether the local resource manager of a node has acknowledged a resource."""
        return sid in self._guarded(name)

    def barred(self, sid: str) -> Mapping[NodeName, str]:
        """Nodes that might take guests and have not acknowledged this one, each with the reason as a sentence's end."""
        return self._unguarded.get(sid, {})

    def _guarded(self, name: NodeName) -> frozenset[str]:
        if name not in self._tracked:
            node = self._view.nodes.get(name)
            tracked = node.lrm.tracked if node is not None else ()
            # Most nodes guard the same, everything: comparing is cheaper than making a set of thousands.
            if self._latest is None or self._latest[0] != tracked:
                self._latest = (tracked, frozenset(tracked))
            self._tracked[name] = self._latest[1]
        return self._tracked[name]

    @cached_property
    def _unguarded(self) -> Mapping[str, Mapping[NodeName, str]]:
        """Mostly empty, so it is looked for once a round and not for each guest on each node."""
        every = {*(self._view.resources or ()), *map(Sid, self._view.status.service_status)}
        found: dict[str, dict[NodeName, str]] = {}
        complete: frozenset[str] | None = None
        for name in self._view.nodes:
            if self._unready(name) or (guarded := self._guarded(name)) is complete:
                continue
            missing = every - guarded
            complete = complete if missing else guarded
            for sid in missing:
                found.setdefault(sid, {})[name] = "does not guard it yet"
        return found

    def batch(self, name: str) -> Sequence[tuple[Sid, Startup]]:
        """Those that lost their node together, first ones by their `startup` options first."""
        return self._batches.get(name, ())

    @cached_property
    def _batches(self) -> Mapping[str, Sequence[tuple[Sid, Startup]]]:
        found: dict[str, list[tuple[Sid, Startup]]] = {}
        for name, service in self._view.status.service_status.items():
            config = self._view.configs.get(Sid(name))
            startup = config.startup if config is not None else Startup()
            # Those whose turn comes in this very round have no batch yet: they are still in the life that has ended.
            for batch in {service.batch, f"{service.node}/{service.incarnation}"}:
                found.setdefault(batch, []).append((Sid(name), startup))
        return {name: sorted(members, key=lambda one: (one[1].place, one[0])) for name, members in found.items()}

    def choose(
        self,
        resource: Resource,
        preference: Preference,
        *,
        current: str,
        failed: tuple[str, ...],
        maintenance_node: str,
        is_new: bool,
        is_idle: bool,
        barred: Mapping[NodeName, str],
    ) -> Choice:
        query = Query(
            resource.sid,
            preference,
            current=current,
            failback=resource.failback,
            failed=failed,
            maintenance_node=maintenance_node,
            barred=barred,
            is_new=is_new,
            is_idle=is_idle,
        )
        return self._board_for(resource.sid).choose(query)

    def lacks_room(self, sid: Sid, node: str, *, is_new: bool = False) -> str:
        """Why a node has no memory for a guest that does not run there, as a sentence's end; empty when it has."""
        return self._board_for(sid).lacks_room(NodeName(node), Query(sid, is_new=is_new))

    def put(self, sid: Sid, service: Service) -> None:
        """What was decided about it in this round."""
        self._waits.pop(sid, None)
        if self._is_waiting(service):
            self._waits[sid] = service.waits_for
        if "_board" in self.__dict__:
            self._board.put(sid, self._placed(sid, service))
        else:
            self._put[sid] = self._placed(sid, service)

    def _placed(self, sid: Sid, service: Service) -> Placed:
        """One whose file lies elsewhere (a person moved it) is on its way there, whatever its entry says yet."""
        found = placed(service)
        config = self._view.configs.get(sid)
        if not found.target and config is not None and config.node != service.node and service.state not in _IDLE:
            return Placed(found.node, config.node)
        return found

    @cached_property
    def situation(self) -> Situation:
        view = self._view
        held = view.status.service_status.items()
        entries = {Sid(sid): self._placed(Sid(sid), service) for sid, service in held} | self._put
        others: dict[NodeName, int] = {}
        uses: dict[NodeName, Use] = {}
        for sid, config in view.configs.items():
            if sid in entries or config.is_running is False:
                continue
            others[config.node] = others.get(config.node, 0) + 1
            if config.is_running:
                # Of one that nobody knows to run it would be a guess, and guests would stay down for it.
                uses[config.node] = uses.get(config.node, NOTHING) + config.demand.most
        nodes = {
            name: NodeFacts(
                unready=self._unready(name),
                capacity=node.capacity,
                other_guests=others.get(name, 0),
                other_use=uses.get(name, NOTHING),
                measured=node.measured,
            )
            for name, node in view.nodes.items()
        }
        demands = {sid: config.demand for sid, config in view.configs.items() if sid in entries}
        return Situation(nodes, entries, view.rules, demands, view.options.policy)

    def situation_now(self) -> Situation:
        """With all that was decided in this round."""
        return replace(self.situation, placed=dict(self._board.placed))

    @cached_property
    def _board(self) -> Board:
        return Board(self.situation)

    def _board_for(self, sid: Sid) -> Board:
        """As one sees it for whom others wait: they do not run, and must not keep it from its place."""
        others: set[Sid] = set()
        while more := {
            other
            for other, firsts in self._waits.items()
            if other not in others and not {sid, *others}.isdisjoint(firsts)
        } - {sid}:
            others |= more
        return self._board.without_guests(others) if others else self._board

    @cached_property
    def _waits(self) -> dict[Sid, tuple[str, ...]]:
        """Of those that do not run, and wait for others."""
        held = self._view.status.service_status.items()
        return {Sid(sid): service.waits_for for sid, service in held if self._is_waiting(service)}

    def _is_waiting(self, service: Service) -> bool:
        if not service.waits_for or service.state not in (State.request_start, State.request_stop):
            return False
        node = self._view.nodes.get(NodeName(service.node))
        result = node.lrm.results.get(service.uid) if node is not None else None
        return result is None or result.state != State.request_start or result.exit_code != 0

    def _unready(self, name: NodeName) -> str:
        """Why a node may take no guests, as a sentence's end."""
        node = self._view.nodes[name]
        if node.lease is None or not is_fresh(node.lease):
            return "has no live lease"
        if node.lrm.incarnation != node.lease.incarnation:
            return "has not taken up its lease yet"
        match self.modes[name]:
            case Mode.maintenance:
                return "is in maintenance"
            case Mode.restart | Mode.shutdown:
                return "goes down"
        return ""


def node_mode(view: View, name: NodeName) -> Mode:
    """What becomes of a node's guests: going down comes before an operator's maintenance, that before nothing."""
    mode = view.nodes[name].lrm.mode
    if mode in (Mode.restart, Mode.shutdown):
        return mode
    if view.status.is_drained(name) or mode is Mode.maintenance:
        return Mode.maintenance
    return Mode.active


def placed(service: Service) -> Placed:
    if service.state is State.recovery:
        # It is nowhere; what counts is where it goes.
        return Placed("", service.target, is_active=bool(service.target))
    return Placed(service.node, service.target, is_active=service.state not in _IDLE)
