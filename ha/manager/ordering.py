"""Who waits for whom, to start and to stop: start-order rules, and the `startup` options of those that lost their node
together. Pure.

Whom one waits for counts as up by what is committed, an answer of its node; so it is later by a round, never too early. A
wait by a rule that is not strict, and every wait by a `startup` option, has an end: nobody stays down for good because
somebody else does. A guest that others wait for by a rule waits by rules only, so the two never make a circle.

What must stay out: who may run where. A guest that waits has its node already, and the room there; only those that it waits for
may take them (`placing`), else each would wait for the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from ha.leases import is_fresh
from ha.resources import Request
from ha.rules import Wait
from ha.status import Remedy, Service, State
from ha.view import Startup, View
from kvorum.ids import NodeName, Sid

from . import release
from .case import Case, is_stopping

# How long those that lost their node together wait for each other at most, whatever their options say.
STARTUP_S = 120
# How long a guest that shall stop waits at most for those that stop before it; the same while its node goes down.
STOP_S = 180
LEAVE_S = 40

_NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Hold:
    """Why it waits for `sid`, as a part of a sentence. Times in seconds since the epoch: when that changes by itself, and
    when it waits no longer; `_NEVER` where it does not."""

    sid: str
    why: str
    look_at: int = _NEVER
    until: int = _NEVER
    is_on_its_way: bool = True


def held_start(case: Case, service: Service) -> Service | None:
    """The entry as it waits; None when it may start."""
    if not _may_wait(case, service):
        return None
    since = _since(case, service)
    # Once HA is disarmed nobody starts anything: whoever need not wait at any price starts before that.
    is_last_call = case.view.status.disarm is not None
    waits = [wait for wait in case.view.rules.orders.waits.get(case.sid, ()) if wait.is_strict or not is_last_call]
    holds = [hold for wait in waits if (hold := _by_rule(case, wait, since)) is not None]
    if service.batch and not is_last_call and case.sid not in case.view.rules.orders.followers:
        holds += _by_startup(case, service, since)
    return _waiting(case, service, since, holds, " for")


def held_stop(case: Case, service: Service) -> Service | None:
    """Of a guest that resources.cfg wants stopped: those that start after it stop first, if they shall stop too."""
    since = _since(case, service)
    holds = [
        Hold(wait.then, f"{wait.then} stops first (rule {wait.rule})", until=since + STOP_S)
        for wait, follower in _followers(case)
        if not _wants_running(case.view, wait.then, follower) and follower.state in (State.started, State.request_stop)
    ]
    return _waiting(case, service, since, holds, " before it stops:")


def held_leave(case: Case, service: Service) -> Service | None:
    """Of a guest whose node goes down: those there that start after it stop first."""
    since = _since(case, service)
    still_there = (State.started, State.request_stop, State.relocate, State.migrate)
    holds = [
        Hold(wait.then, f"{wait.then} stops first (rule {wait.rule})", until=since + LEAVE_S)
        for wait, follower in _followers(case)
        if follower.node == service.node
        and follower.state in still_there
        and not release.has_released(case.node(follower.node), wait.then, follower)
    ]
    return _waiting(case, service, since, holds, " before it stops:")


def is_up(view: View, service: Service | None) -> bool:
    """Its node has answered that it runs, in this life, and is well. Carried over live, it does not stop meanwhile."""
    node = view.nodes.get(NodeName(service.node)) if service is not None else None
    if service is None or node is None or node.lease is None:
        return False
    if node.lease.incarnation != service.incarnation or not is_fresh(node.lease) or node.lease.is_unproven:
        return False
    if service.state is State.migrate:
        return service.cmd[:1] == ("migrate",)
    return service.state is State.started and bool(service.running)


def displaced(case: Case, service: Service) -> Service | None:
    """One whose wait is over, but not the place that it had meanwhile: it goes on to another one. None when it has it still."""
    if not service.waits_for or _runs_already(case, service):
        return None
    why = case.placing.lacks_room(case.sid, service.node)
    if not why and case.placing.is_allowed(case.sid, service.node):
        return None
    entry = case.order_stop(
        service, f"its place was taken while it waited: {service.node} {why or 'is against a rule now'}"
    )
    # It takes no place from those that it has waited for until its node has answered, either.
    return msgspec.structs.replace(entry, waits_for=service.waits_for)


def _may_wait(case: Case, service: Service) -> bool:
    if not service.batch and case.sid not in case.view.rules.orders.waits:
        return False
    return not _runs_already(case, service)


def _runs_already(case: Case, service: Service) -> bool:
    """Says its node: it came by live migration, or ran on while HA looked away."""
    result = case.result(service)
    return result is not None and result.state == State.request_start and result.exit_code == 0


def _since(case: Case, service: Service) -> int:
    """When it began to wait; a clock that was set back begins anew."""
    return service.wait_since if 0 < service.wait_since <= case.now else int(case.now)


def _by_rule(case: Case, wait: Wait, since: int) -> Hold | None:
    until = since + wait.patience_s if wait.patience_s else _NEVER
    first = case.view.status.service_status.get(wait.first)
    if case.now >= until:
        return None
    if first is None and not _is_resource(case.view, wait.first):
        return None  # nobody knows whether it runs
    if not _wants_running(case.view, wait.first, first) or (first is not None and first.state is State.error):
        if not wait.is_strict:
            return None
        why = f"{wait.first}, which {_lying(first)} (rule {wait.rule})"
        return Hold(wait.first, why, until=until, is_on_its_way=False)
    if first is None or not is_up(case.view, first):
        why = f"{wait.first}, which is {_doing(first)} (rule {wait.rule})"
        is_on_its_way = first is None or Remedy.make_room not in first.remedies
        return Hold(wait.first, why, until=until, is_on_its_way=is_on_its_way)
    ready_at = first.running_since + wait.delay_s
    if case.now < ready_at <= case.now + wait.delay_s + 1:
        why = f"{wait.first} to have run for {wait.delay_s} s (rule {wait.rule})"
        return Hold(wait.first, why, ready_at, until)
    return None


def _by_startup(case: Case, service: Service, since: int) -> Iterator[Hold]:
    """Until those before it in its batch are up, and for as long after that as they ask for."""
    until = since + STARTUP_S
    own = case.view.configs[case.sid].startup if case.sid in case.view.configs else Startup()
    for sid, startup in case.placing.batch(service.batch) if case.now < until else ():
        if startup.place >= own.place:
            return
        first = case.view.status.service_status[sid]
        if not _wants_running(case.view, sid, first) or first.state is State.error:
            continue
        if not is_up(case.view, first):
            yield Hold(sid, f"{sid}, which is {_doing(first)} (startup order {startup.order})", until=until)
        elif case.now < (ready_at := first.running_since + startup.up_s) <= case.now + startup.up_s + 1:
            yield Hold(sid, f"{sid} to have run for {startup.up_s} s (its startup option)", ready_at, until)


def _followers(case: Case) -> Iterator[tuple[Wait, Service]]:
    for wait in case.view.rules.orders.followers.get(case.sid, ()):
        follower = case.view.status.service_status.get(wait.then)
        if follower is not None:
            yield wait, follower


def _waiting(case: Case, service: Service, since: int, holds: Sequence[Hold], what: str) -> Service | None:
    holds = [hold for hold in holds if case.now < hold.until]
    if not holds:
        return None
    # It goes on when the last of them lets it, and something changes by itself when the first does.
    until = max(hold.until for hold in holds)
    look_at = min(min(hold.look_at, hold.until) for hold in holds)
    told = ", ".join(hold.why for hold in holds[:3]) + (f" and {len(holds) - 3} more" if len(holds) > 3 else "")
    most = f" {until - since} s at most" if until < _NEVER else ""
    stuck = any(not hold.is_on_its_way for hold in holds)
    return msgspec.structs.replace(
        service,
        cause=f"it waits{most}{what} {told}",
        remedies=(Remedy.wait,),
        is_stuck=stuck,
        waits_for=tuple(dict.fromkeys(hold.sid for hold in holds)),
        wait_since=since,
        wait_until=until if until < _NEVER else 0,
        retry_at=look_at if look_at < _NEVER else 0,
    )


def _wants_running(view: View, sid: Sid, service: Service | None) -> bool:
    if service is not None and is_stopping(service):
        return False
    if view.resources is None:
        return service is not None and service.request == Request.started
    resource = view.resources.get(Sid(sid))
    return resource is not None and resource.wants_running


def _is_resource(view: View, sid: Sid) -> bool:
    resource = (view.resources or {}).get(sid)
    return resource is not None and resource.request is not Request.ignored


def _lying(service: Service | None) -> str:
    if service is None:
        return "is new, and not to run"
    return "is in error" if service.state is State.error else f"is requested {service.request}"


def _doing(service: Service | None) -> str:
    if service is None:
        return "new"
    if service.state is State.started:
        return f"not running yet on {service.node}"
    return f"in {service.state}" + (f" on {service.node}" if service.node else "")
