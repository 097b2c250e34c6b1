"""One resource in one round: what its states ask about it, and how its next entry is made. Pure.

Entries are made in two ways. `order` gives the node a new order under a new uid; `turn` goes on under the order that
there is, whose life and uid still decide who may run the guest. Nothing else changes who may run what.
"""

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from ha.leases import LONGEST_TAKEOVER_S, Lease, is_fresh, may_fence
from ha.placement import Choice, Preference
from ha.resources import Request, Resource
from ha.status import Mode, Remedy, Result, Service, State
from ha.view import Node, View
from kvorum.ids import NodeName, Sid, parse_sid

from . import release
from .placing import Placing

BACKOFF_FIRST_S = 10
BACKOFF_MAX_S = 300
_STARTS = (State.request_start, State.started)
# Locks that mean nothing once their holder is gone; what else holds a guest is for a person.
STALE_LOCKS = frozenset(
    {"backup", "clone", "migrate", "mounted", "rollback", "snapshot", "snapshot-delete", "suspended", "suspending"}
)


@dataclass(frozen=True, slots=True)
class Case:
    view: View
    resource: Resource
    now: float
    placing: Placing

    # What the states ask

    @property
    def sid(self) -> Sid:
        return self.resource.sid

    def wants_running(self, service: Service) -> bool:
        """An operator's stop counts from the moment at which it is taken up, until resources.cfg says so too."""
        return self.resource.wants_running and not is_stopping(service)

    @property
    def is_given_up(self) -> bool:
        return self.resource.request is Request.disabled

    @property
    def can_migrate(self) -> bool:
        """Live; a container has to stop for it."""
        return parse_sid(self.sid)[0] == "vm"

    def node(self, name: str) -> Node | None:
        return self.view.nodes.get(NodeName(name))

    def lease(self, name: str) -> Lease | None:
        node = self.node(name)
        return node.lease if node is not None else None

    def place(self) -> str:
        """The node whose directory holds the config file; empty when there is none."""
        config = self.view.configs.get(self.sid)
        return config.node if config is not None else ""

    def lock(self) -> str:
        config = self.view.configs.get(self.sid)
        return config.lock if config is not None else ""

    def stale_lock(self, service: Service) -> str:
        """The lock of a task whose node is fenced and has not begun a new life, in which it might hold the guest anew."""
        lease = self.lease(service.node)
        is_over = bool(service.after_fence) and lease is not None and lease.is_fenced
        return self.lock() if is_over and self.lock() in STALE_LOCKS else ""

    def held_by(self, service: Service) -> str:
        """The lock of a task that works on the guest (backup, snapshot, ...) and may live, wherever the file goes.

        The lock of a migration holds up nobody: whoever moves that file is guarded by its version.
        """
        return "" if self.lock() == "migrate" or self.stale_lock(service) else self.lock()

    def is_ready(self, name: str) -> bool:
        """A live lease, and a local resource manager that works under it and guards this resource."""
        node = self.node(name)
        if node is None or node.lease is None or not is_fresh(node.lease):
            return False
        return node.lrm.incarnation == node.lease.incarnation and self.placing.guards(node.name, self.sid)

    def is_open(self, name: str) -> bool:
        """Ready, and it takes guests."""
        return self.is_ready(name) and self.mode(name) is Mode.active

    def is_of_this_life(self, service: Service) -> bool:
        lease = self.lease(service.node)
        return lease is not None and lease.incarnation == service.incarnation

    def mode(self, name: str) -> Mode:
        return self.placing.mode(name)

    def is_resting(self, name: str) -> bool:
        """It gave its lease back, or never had one: its silence means nothing."""
        lease = self.lease(name)
        return self.node(name) is not None and (lease is None or lease.is_resting)

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
        if self.is_leaving(service.node):
            return ""
        return release.has_released(self.node(service.node), self.sid, service)

    def is_leaving(self, name: str) -> bool:
        """It is no member any more, but its keeper may not have had its time yet: the removal is its last renewal's end."""
        left_s = self.view.leaving_s.get(NodeName(name), LONGEST_TAKEOVER_S)
        return bool(name) and self.node(name) is None and left_s >= 0

    def choose(
        self,
        preference: Preference = Preference.best_score,
        *,
        current: str = "",
        failed: tuple[str, ...] = (),
        avoid: Collection[str] = (),
        maintenance_node: str = "",
        is_new: bool = False,
        is_idle: bool = False,
    ) -> Choice:
        barred = self.placing.barred(self.sid)
        if avoid:
            barred = {**barred, **{NodeName(name): "is where it shall leave" for name in avoid}}
        return self.placing.choose(
            self.resource,
            preference,
            current=current,
            failed=failed,
            maintenance_node=maintenance_node,
            is_new=is_new,
            is_idle=is_idle,
            barred=barred,
        )

    # Making entries

    def order(
        self,
        service: Service,
        state: State,
        cause: str,
        *,
        node: str | None = None,
        target: str = "",
        cmd: tuple[str, ...] = (),
        command: str = "",
    ) -> Service:
        """A new order, under a new uid, to the node in its present life. To another node than before only when that has
        released the guest; and where a migration may have left it running, it is asked for first."""
        where = service.node if node is None else node
        # Also when the file came back to the node that has carried the guest away, and has said that it let go of it.
        has_left = where != service.node or bool(self.released(service))
        if has_left and service.carried_to not in ("", where):
            return self.order_release_there(service, where)
        member, lease = self.node(where), self.lease(where)
        kept = service.node_uid if where == service.node else ""
        return msgspec.structs.replace(
            service,
            state=state,
            node=where,
            target=target,
            uid=f"{self.view.status_version}-{int(self.now)}-{self.sid}",
            incarnation=lease.incarnation if lease is not None else 0,
            node_uid=member.uid if member is not None else kept,
            cause=cause,
            cmd=cmd,
            command=command,
            # Of a migration that failed nothing is left; of one whose file has gone on its copy may.
            carried_to=service.carried_to if where == service.node != self.place() else "",
            timeout=None,
            after_fence=0,
            running=0,
            running_since=service.running_since if _runs_on(service, state, where, lease) else 0,
            retry_at=0,
            remedies=(),
            waits_for=(),
            wait_since=0,
            wait_until=0,
            is_stuck=False,
            batch=service.batch if state in _STARTS else "",
        )

    def turn(
        self,
        service: Service,
        state: State,
        cause: str,
        *,
        target: str = "",
        remedies: tuple[Remedy, ...] = (),
    ) -> Service:
        """Another state under the same order, whose life and uid still decide who may run the guest."""
        return msgspec.structs.replace(
            service,
            state=state,
            cause=cause,
            target=target,
            cmd=(),
            command="",
            retry_at=0,
            remedies=remedies,
            running_since=0,
            waits_for=(),
            wait_since=0,
            wait_until=0,
            is_stuck=False,
        )

    def explain(self, service: Service, cause: str, *remedies: Remedy) -> Service:
        return msgspec.structs.replace(service, cause=cause, remedies=remedies, is_stuck=False)

    # What several states do

    def order_start(self, service: Service, cause: str, *, node: str | None = None) -> Service:
        return self.order(service, State.request_start, cause, node=node)

    def order_stop(self, service: Service, cause: str = "stop requested", *, node: str | None = None) -> Service:
        """An operator's stop keeps its deadline and its command."""
        entry = self.order(service, State.request_stop, cause, node=node)
        if is_stopping(service):
            entry = msgspec.structs.replace(entry, cmd=service.cmd, command=service.command, timeout=service.timeout)
        return entry

    def order_as_requested(self, service: Service, cause: str, *, node: str | None = None) -> Service:
        if self.wants_running(service):
            return self.order_start(service, cause, node=node)
        return self.order_stop(service, cause, node=node)

    def order_release(self, service: Service, place: str) -> Service:
        """The node shall confirm that it runs it no more; under the life in which it was ordered to run it."""
        entry = self.order(
            service, State.migrate, f"its config file lies on {place} now; {service.node} lets go of it", target=place
        )
        return msgspec.structs.replace(entry, incarnation=service.incarnation)

    def order_release_there(self, service: Service, place: str) -> Service:
        """The same of the node to which a migration may have carried it, in the life in which that is now: its keeper has
        seen to what ran in an earlier one."""
        there = service.carried_to
        cause = f"its config file lies on {place}; {there}, where a migration was to bring it, lets go of it first"
        asked = msgspec.structs.replace(service, node=there, node_uid="", carried_to="")
        return self.order(asked, State.migrate, cause, target=place)

    def elsewhere_or_lost(self, service: Service) -> Service | None:
        """The entry's next state when its file lies elsewhere or its node is silent."""
        place = self.place()
        if not place:
            return self.explain(service, "its config file is gone", Remedy.disable)
        if place != service.node:
            return self.order_release(service, place)
        if self.is_lost(service):
            return self.turn(service, State.fence, self.silence(service), remedies=(Remedy.wait,))
        if self.is_leaving(service.node):
            cause = f"{service.node} is no member any more; its guests are given time to end"
            return self.explain(service, cause, Remedy.wait)
        if self.node(service.node) is None:
            return self.turn(service, State.recovery, f"{service.node} is no member any more")
        return None

    def explain_rest(self, service: Service) -> Service:
        """Its silence means nothing, and a fence would prove nothing: the guest was not guarded there."""
        lease = self.lease(service.node)
        why = (
            "gave its lease back when it had nothing to guard, and"
            if lease is not None
            else "has never had a lease, and"
        )
        return self.explain(
            service,
            f"{service.node} {why} has not taken a new one; "
            f"if that lasts, make sure that {service.node} is off and remove it from the cluster",
            Remedy.wait,
            Remedy.remove_node,
        )

    def silence(self, service: Service) -> str:
        lease = self.lease(service.node)
        silent_s = lease.terms.takeover_after_s if lease is not None else LONGEST_TAKEOVER_S
        return f"{service.node} has not renewed its lease for {silent_s:.1f} s"

    def is_waiting(self, until: int, longest_s: int) -> bool:
        """Until a moment that was written down. A clock that was set back must not make it wait for years."""
        return self.now < until <= self.now + longest_s


def _runs_on(service: Service, state: State, where: str, lease: Lease | None) -> bool:
    """Whether a guest that runs still runs under the new order: in the same life of its node, or carried over live."""
    if where == service.node:
        is_same_life = lease is not None and lease.incarnation == service.incarnation
        return is_same_life and state in (*_STARTS, State.migrate)
    return state in _STARTS and service.state is State.migrate and bool(service.cmd)


def in_batch(service: Service, entry: Service) -> Service:
    """The entry that follows when the node of this one has ended its guests all at once."""
    return msgspec.structs.replace(entry, batch=f"{service.node}/{service.incarnation}")


def is_stopping(service: Service) -> bool:
    return service.cmd[:1] == ("stop",)


def backoff_s(failures: int, *, first_s: int = BACKOFF_FIRST_S, longest_s: int = BACKOFF_MAX_S) -> int:
    return min(longest_s, first_s << min(failures, 10))
