"""The states of a resource, one function each: an entry in, the next one or the same out. Pure.

No state is a dead end: whatever cannot go on says why in `cause`, what a person can do in `remedies`, and is looked at again in
each round. Moving is in `moving`.
"""

import math
from collections.abc import Callable, Mapping

import msgspec

from ha.placement import Preference
from ha.resources import Request
from ha.status import Mode, Remedy, Result, Service, State

from . import moving, ordering
from .case import BACKOFF_MAX_S, Case, backoff_s, in_batch, is_stopping

# Transitions of one resource in one round; the longest chain is fence, recovery, request_start, started.
_MAX_STEPS = 8
# States in which a node that only restarts keeps its guests to itself.
_FREEZABLE = frozenset({State.request_start, State.started, State.request_stop, State.stopped})


def settle(case: Case, entry: Service | None) -> Service | None:
    """The entry after this round; None when there is none yet."""
    if case.view.status.is_disarmed:
        return rest(case, entry) if entry is not None else None
    service = entry if entry is not None else _new(case)
    if not service.node_uid and case.is_of_this_life(service) and (member := case.node(service.node)) is not None:
        # From before orders named their member; whoever has both its name and its life now is the one that was meant.
        service = msgspec.structs.replace(service, node_uid=member.uid)
    if service.request != case.resource.request:
        service = msgspec.structs.replace(service, request=str(case.resource.request))
    for _ in range(_MAX_STEPS):
        following = _next(case, service)
        if following == service:
            return service
        service = following
    return service


def leave(case: Case, service: Service) -> Service | None:
    """No resource any more. Its order is forgotten only when nothing can run away from where its file lies.

    Else the same guest, made a resource again, would be a new one that nobody knows to run anywhere.
    """
    place = case.place()
    if place and case.released(service) and service.carried_to not in ("", place):
        return case.order_release_there(service, place)
    # A migration under way comes to its end first: until then nobody knows who has the guest.
    is_carried = bool(service.carried_to) and service.state is State.migrate and case.is_of_this_life(service)
    if is_carried and place and case.result(service) is None and not case.is_lost(service):
        return rest(case, service) if case.view.status.is_disarmed else service
    if not place or place == service.node or case.released(service):
        return None
    if case.view.status.is_disarmed:
        return rest(case, service)
    if case.is_lost(service):
        return case.turn(service, State.fence, case.silence(service), remedies=(Remedy.wait,))
    if service.state is State.migrate and not service.cmd:
        return service
    return case.order_release(service, place)


def rest(case: Case, service: Service) -> Service:
    """While HA is disarmed nothing is done; the order stays, so that it is known who may run the guest."""
    if service.state in (State.freeze, State.stopped, State.error, State.fence, State.recovery):
        return service
    return case.turn(service, State.freeze, "HA is disarmed")


def _new(case: Case) -> Service:
    empty = Service(state=State.request_start, node="", uid="", incarnation=0)
    if not case.place():
        cause = f"there is no guest {case.sid} in the cluster"
        return case.turn(empty, State.error, cause, remedies=(Remedy.disable,))
    return case.order_as_requested(empty, "new resource", node=case.place())


def _next(case: Case, service: Service) -> Service:
    if is_stopping(service) and not case.resource.wants_running:
        # resources.cfg says so now; the order goes on as it is.
        service = msgspec.structs.replace(service, cmd=())
    if service.state in _FREEZABLE and case.mode(service.node) is Mode.restart and case.place() == service.node:
        return case.turn(service, State.freeze, f"{service.node} restarts and keeps it")
    return _STATES[service.state](case, service)


def request_start(case: Case, service: Service) -> Service:
    if not case.wants_running(service):
        return case.order_stop(service)
    if gone := case.elsewhere_or_lost(service):
        return gone
    lease = case.lease(service.node)
    if case.is_ready(service.node) and lease is not None:
        if case.mode(service.node) is not Mode.active:
            return moving.drain(case, service)
        waits = _held(case, service) or ordering.displaced(case, service)
        return waits or case.order(service, State.started, _shall_run(case, service))
    if lease is None or lease.is_resting:
        return case.explain_rest(service)
    return case.explain(
        service, f"{service.node} is not ready: it has no live lease, or does not guard it yet", Remedy.wait
    )


def _held(case: Case, service: Service) -> Service | None:
    """As it waits for others, under an order that its node can answer: that of an earlier life is void there."""
    held = ordering.held_start(case, service)
    if held is None or case.is_of_this_life(service):
        return held
    again = msgspec.structs.replace(case.order_start(service, held.cause), wait_since=held.wait_since)
    return ordering.held_start(case, again)


def _shall_run(case: Case, service: Service) -> str:
    """Somebody who waited for another one, and no longer does though it is not up, is told why."""
    late = [sid for sid in service.waits_for if not ordering.is_up(case.view, case.view.status.service_status.get(sid))]
    if not late or not 0 < service.wait_until <= case.now:
        return f"{service.node} shall run it"
    return f"{service.node} shall run it; it has waited long enough for {', '.join(late)}"


def started(case: Case, service: Service) -> Service:
    if not case.wants_running(service):
        is_asked_for = case.resource.request is not Request.disabled and not is_stopping(service)
        held = ordering.held_stop(case, service) if is_asked_for else None
        return (case.elsewhere_or_lost(service) or held) if held else case.order_stop(service)
    if gone := case.elsewhere_or_lost(service):
        return gone
    lease = case.lease(service.node)
    if lease is not None and lease.incarnation != service.incarnation:
        if case.is_ready(service.node):
            cause = f"{service.node} is back in a new life and shall run it again"
            again = in_batch(service, case.order_start(service, cause))
            return ordering.held_start(case, again) or in_batch(service, case.order(service, State.started, cause))
        return case.explain(service, f"{service.node} is back and clears up", Remedy.wait)
    if lease is not None and lease.is_resting:
        return case.explain_rest(service)
    result = case.result(service)
    if result is None:
        return service
    if result.exit_code != 0:
        return start_failed(case, service, result)
    entry = msgspec.structs.replace(
        service,
        running=1,
        # Rounded up: who waits for it to have run for a while waits that long at least.
        running_since=service.running_since or (0 if service.running else math.ceil(case.now)),
        failed_nodes=(),
        failures=0,
        retry_at=0,
        remedies=(),
    )
    if case.mode(service.node) is not Mode.shutdown:
        # While its node goes down it may wait for those that stop before it, since when it first did.
        entry = msgspec.structs.replace(entry, waits_for=(), wait_since=0, wait_until=0)
    return moving.while_running(case, entry)


def start_failed(case: Case, service: Service, result: Result) -> Service:
    """Another node up to max_relocate times, then a pause that doubles, then from the beginning."""
    failed = (*service.failed_nodes, service.node)
    why = f"it did not start on {service.node}: {result.cause or 'no reason given'}"
    if len(failed) <= case.resource.max_relocate:
        choice = case.choose(Preference.try_next, current=service.node, failed=failed, avoid=failed)
        if choice.node:
            entry = msgspec.structs.replace(service, failed_nodes=failed)
            return case.turn(entry, State.recovery, f"{why}; {choice.why}", target=choice.node)
    delay_s = backoff_s(service.failures)
    remedies = (Remedy.wait, Remedy.mend, Remedy.disable)
    entry = case.turn(service, State.error, f"{why}; it is tried again after {delay_s} s", remedies=remedies)
    return msgspec.structs.replace(
        entry, failed_nodes=(), failures=service.failures + 1, retry_at=int(case.now) + delay_s
    )


def request_stop(case: Case, service: Service) -> Service:
    # A start that is wanted meanwhile waits: only what is known to be stopped may be started anywhere.
    if how := case.released(service):
        # The operator's stop stays until resources.cfg agrees.
        entry = case.turn(service, State.stopped, f"stop requested, and {how}")
        return msgspec.structs.replace(entry, cmd=service.cmd)
    if gone := case.elsewhere_or_lost(service):
        return gone
    lease = case.lease(service.node)
    if case.is_ready(service.node) and lease is not None and lease.incarnation != service.incarnation:
        return case.order_stop(service)
    return case.explain_rest(service) if case.is_resting(service.node) else service


def stopped(case: Case, service: Service) -> Service:
    place = case.place()
    if case.wants_running(service):
        if not place:
            return case.explain(service, "its config file is gone", Remedy.disable)
        choice = moving.start_place(case, service, place)
        if choice.node == place:
            return case.order_start(service, "start requested", node=place)
        if not choice.node:
            return case.explain(service, f"it waits to be started: {choice.why}", Remedy.make_room, Remedy.wait)
        if place == service.node:
            return moving.begin(case, service, moving.RELOCATE, choice.node, f"start requested; {choice.why}")
    if place and place != service.node:
        # The released order stays as it is; only what people see follows the file.
        return case.order_stop(service, f"its config file lies on {place} now", node=place)
    if place and not case.is_given_up and case.is_lost(service) and not case.placing.is_drained(service.node):
        return case.turn(service, State.fence, case.silence(service), remedies=(Remedy.wait,))
    return service


def fence(case: Case, service: Service) -> Service:
    lease = case.lease(service.node)
    if how := case.released(service):
        # Only of a node that is fenced is it sure that what held the guest there (a backup, say) is gone too.
        after_fence = int(lease is not None and lease.is_fenced)
        entry = in_batch(service, case.turn(service, State.recovery, how))
        return msgspec.structs.replace(entry, after_fence=after_fence)
    if not case.is_lost(service) and lease is not None:
        # It renewed before the fence, or begins a new life. Only the same node is asked, so nothing runs twice.
        return case.order_as_requested(service, f"{service.node} answers again")
    if lease is not None and lease.is_fenced:
        return case.explain(
            service,
            f"{service.node} is fenced, but it never confirmed that it guards {case.sid}, so it may still run there; "
            f"make sure that {service.node} is off and remove it from the cluster, or bring it back",
            Remedy.revive_node,
            Remedy.remove_node,
        )
    return service


def recovery(case: Case, service: Service) -> Service:
    """Free to be anywhere: what is to run is started elsewhere, what is to be stopped moves to a node that lives."""
    place = case.place()
    if not place:
        return case.explain(service, "its config file is gone", Remedy.disable)
    # Moved already: by us, by the manager before us, or by a person.
    if place != service.node:
        return case.order_as_requested(service, f"its config file lies on {place}", node=place)
    if (lock := case.held_by(service)) and not case.is_given_up:
        return case.turn(service, State.recovery, moving.held(lock), remedies=(Remedy.wait, Remedy.mend))
    if service.target and case.is_open(service.target):
        return service
    # Where its file lies is as good as any, should that node be back in a new life.
    choice = case.choose(Preference.none, current=place, failed=service.failed_nodes, is_idle=True)
    if not choice.node and service.failed_nodes:
        choice = case.choose(Preference.none, current=place, is_idle=True)
    if not choice.node:
        if case.is_given_up:
            return case.turn(service, State.stopped, f"disabled, and {choice.why}")
        return case.turn(service, State.recovery, choice.why, remedies=(Remedy.wait, Remedy.make_room, Remedy.disable))
    if choice.node == place:
        return case.order_as_requested(service, choice.why, node=place)
    return case.turn(
        service, State.recovery, f"it is free to start elsewhere; {choice.why}", target=choice.node,
        remedies=(Remedy.wait,),
    )  # fmt: skip


def error(case: Case, service: Service) -> Service:
    place = case.place()
    if not service.node:
        return case.order_as_requested(service, "its config file is there now", node=place) if place else service
    if case.is_given_up:
        entry = msgspec.structs.replace(service, failed_nodes=(), failures=0)
        return case.order_stop(entry, "disabled, which clears the error")
    if gone := case.elsewhere_or_lost(service):
        return gone
    if not case.wants_running(service):
        # As in Proxmox VE: only `disabled` forgets what went wrong.
        return service
    if not case.is_waiting(service.retry_at, BACKOFF_MAX_S):
        if case.released(service):
            return case.turn(service, State.recovery, "it is tried again after a failure")
        return case.order_start(service, "it is tried again after a failure")
    return service


def freeze(case: Case, service: Service) -> Service:
    """Its node restarts and keeps it, or HA was disarmed and is armed again. The same node goes on with it."""
    node, lease = case.node(service.node), case.lease(service.node)
    if case.mode(service.node) is Mode.restart and node is not None and case.place() == service.node:
        return case.explain(
            service, f"{service.node} restarts and keeps it; it goes on there", Remedy.wait, Remedy.revive_node
        )
    if gone := case.elsewhere_or_lost(service):
        return gone
    if lease is not None and case.is_ready(service.node):
        entry = case.order_as_requested(service, f"{service.node} goes on with it")
        return in_batch(service, entry) if entry.state is State.request_start else entry
    if lease is not None and lease.is_resting:
        return case.explain_rest(service)
    return case.explain(service, f"{service.node} is not ready to go on with it", Remedy.wait)


def request_of(service: Service) -> Request:
    """While resources.cfg does not parse: what it said before."""
    return Request(service.request) if service.request in set(Request) else Request.stopped


_STATES: Mapping[State, Callable[[Case, Service], Service]] = {
    State.request_start: request_start,
    State.started: started,
    State.request_stop: request_stop,
    State.stopped: stopped,
    State.migrate: moving.migrate,
    State.relocate: moving.relocate,
    State.freeze: freeze,
    State.fence: fence,
    State.recovery: recovery,
    State.error: error,
}
