"""Moving a guest on purpose: for an operator, for maintenance, for a rule, back home, for balance. Pure.

`migrate` orders the node that has the guest to carry it to another one, live; the agents move the config file at the
switch-over, and the order ends when that node has let go. `relocate` orders it to stop the guest; then the file is
moved for it, then it starts. Either way the next order goes to another node only when this one has released the guest,
so a fence of source or target at any moment leaves one owner: where the file is.
"""

import msgspec

from ha.placement import Choice, Preference
from ha.status import CAME_BACK, Mode, Remedy, Service, State

from . import ordering
from .case import Case, backoff_s, in_batch

MOVE_RETRY_FIRST_S = 30
MOVE_RETRY_MAX_S = 600

MIGRATE, RELOCATE = "migrate", "relocate"


def begin(case: Case, service: Service, verb: str, target: str, cause: str, *, command: str = "") -> Service:
    """For a guest on a node that is ready, or one that is stopped. A container stops for it."""
    live = verb == MIGRATE and case.can_migrate and service.state is State.started
    if service.state is State.stopped:
        entry = case.turn(service, State.relocate, cause, target=target)
        return msgspec.structs.replace(entry, cmd=(RELOCATE, target), command=command)
    entry = case.order(
        service,
        State.migrate if live else State.relocate,
        cause,
        target=target,
        cmd=(MIGRATE if live else RELOCATE, target),
        command=command,
    )
    return msgspec.structs.replace(entry, carried_to=target) if live else entry


def held(lock: str) -> str:
    return (
        f"a task holds it (lock {lock}); it goes on when that has ended, or when a lock that nobody holds is taken off"
    )


def while_running(case: Case, service: Service) -> Service:
    """Whether a guest that runs well had better be elsewhere."""
    here = service.node
    if not case.is_ready(here):
        # Its renewal is late. Nobody knows how the guest is, so nothing is better; it may be a matter of a second.
        return service
    if case.mode(here) is not Mode.active:
        return drain(case, service)
    if service.maintenance_node == here:
        service = msgspec.structs.replace(service, maintenance_node="")
    if case.view.status.disarm is not None:
        return case.explain(service, f"{here} runs it; nothing moves while HA is being disarmed", Remedy.wait)
    if case.placing.is_free(case.sid) and not service.maintenance_node:
        return case.explain(service, f"{here} runs it")
    choice = case.choose(Preference.none, current=here, maintenance_node=service.maintenance_node)
    if not choice.node:
        return case.explain(service, f"{here} runs it, against the rules: {choice.why}", Remedy.make_room, Remedy.wait)
    if choice.node == here:
        return case.explain(service, f"{here} runs it")
    if waits := _waits(case, service, f"{choice.node} would be better"):
        return waits
    return begin(case, service, MIGRATE, choice.node, f"{choice.node} is better: {choice.why}")


def drain(case: Case, service: Service) -> Service:
    """Its node shall keep no guests. What cannot go says why, and stays until it can or the node goes down."""
    here = service.node
    is_going_down = case.mode(here) is Mode.shutdown
    choice = case.choose(current=here, avoid=(here,))
    if is_going_down:
        if stays := ordering.held_leave(case, service):
            return stays
        return in_batch(service, begin(case, service, RELOCATE, choice.node, f"{here} goes down; {choice.why}"))
    running = f"{here} runs it" if service.state is State.started else "it waits"
    if not choice.node:
        return case.explain(
            service,
            f"{running}, but shall not keep it; it cannot move: {choice.why}",
            Remedy.make_room,
            Remedy.wait,
        )
    if waits := _waits(case, service, f"it leaves {here} for maintenance"):
        return waits
    entry = msgspec.structs.replace(service, maintenance_node=service.maintenance_node or here)
    return begin(case, entry, MIGRATE, choice.node, f"it leaves {here} for maintenance; {choice.why}")


def start_place(case: Case, service: Service, place: str) -> Choice:
    """Where a guest that runs nowhere shall start: here unless rules or the policy for starts say otherwise."""
    if case.placing.rebalances_on_start:
        choice = case.choose(is_new=True)
    else:
        choice = case.choose(Preference.none, current=place, is_new=True, is_idle=True)
    if choice.node:
        return choice
    # Nobody is ready to take it: it waits for the node where it lies, if it may run there and there is room.
    is_full = bool(case.placing.lacks_room(case.sid, place, is_new=True))
    return Choice(place, choice.why) if case.placing.is_allowed(case.sid, place) and not is_full else choice


def migrate(case: Case, service: Service) -> Service:
    place = case.place()
    if not place:
        return case.explain(service, "its config file is gone", Remedy.disable)
    if how := case.released(service):
        # Not when it was only to let go of a copy: that came of a move that failed, perhaps.
        entry = msgspec.structs.replace(service, moves_failed=0, move_after=0) if service.cmd else service
        return case.order_as_requested(entry, f"it has moved to {place}, and {how}", node=place)
    if place == service.node:
        if service.cmd:
            return _under_way(case, service)
        return case.order_as_requested(service, f"its config file is back on {place}")
    if service.cmd and place == service.target:
        service = case.explain(service, f"it has moved to {place}; {service.node} lets go of it", Remedy.wait)
    elif place != service.target:
        return case.order_release(service, place)
    if case.is_lost(service):
        return case.turn(service, State.fence, case.silence(service), remedies=(Remedy.wait,))
    return case.explain_rest(service) if case.is_resting(service.node) else service


def _under_way(case: Case, service: Service) -> Service:
    """The file is here still: it has not gone yet, or it did not work."""
    if gone := case.elsewhere_or_lost(service):
        return gone
    if not case.is_of_this_life(service):
        return case.order_as_requested(
            service, f"{service.node} is back in a new life; the migration ended with the old"
        )
    result = case.result(service)
    if result is not None and result.exit_code == CAME_BACK:
        return case.order_release_there(_carried(service), service.node)
    if result is not None and result.exit_code != 0:
        entry = failed(case, service)
        if _is_of_old_version(case, service):
            # There "failed" may mean that the guest has left, and only its file is here again.
            return case.order_release_there(_carried(entry), service.node)
        return case.order_as_requested(entry, f"it stays on {service.node}: {result.cause or 'the migration failed'}")
    return case.explain_rest(service) if case.is_resting(service.node) else service


def _carried(service: Service) -> Service:
    """An order from before that was written down went nowhere but to its target."""
    return msgspec.structs.replace(service, carried_to=service.carried_to or service.target)


def _is_of_old_version(case: Case, service: Service) -> bool:
    """Its node's local resource manager has not named the member that it writes for, as later ones do."""
    node = case.node(service.node)
    return node is None or not node.lrm.uid


def failed(case: Case, service: Service) -> Service:
    """Not tried again by itself for a while."""
    delay_s = backoff_s(service.moves_failed, first_s=MOVE_RETRY_FIRST_S, longest_s=MOVE_RETRY_MAX_S)
    return msgspec.structs.replace(service, moves_failed=service.moves_failed + 1, move_after=int(case.now) + delay_s)


def relocate(case: Case, service: Service) -> Service:
    place = case.place()
    if not place:
        return case.explain(service, "its config file is gone", Remedy.disable)
    if how := case.released(service):
        if place != service.node:
            entry = msgspec.structs.replace(service, moves_failed=0, move_after=0)
            if case.wants_running(service) and not case.placing.is_allowed(case.sid, place):
                # Who is there by now must not have it: from `stopped` it goes on to where it may be.
                return case.order_stop(entry, f"its config file lies on {place}, where it may not run", node=place)
            return case.order_as_requested(entry, f"its config file lies on {place}, and {how}", node=place)
        if lock := case.held_by(service):
            return case.explain(service, held(lock), Remedy.wait, Remedy.mend)
        if case.is_open(service.target):
            return case.explain(service, f"it stopped on {service.node} and moves to {service.target}", Remedy.wait)
        where = f"; {service.target} cannot take it any more" if service.target else ""
        return case.turn(service, State.recovery, f"it stopped on {service.node}{where}")
    if gone := case.elsewhere_or_lost(service):
        return gone
    if case.is_ready(service.node) and not case.is_of_this_life(service):
        return case.order_as_requested(
            service, f"{service.node} is back in a new life; the relocation ended with the old"
        )
    return case.explain_rest(service) if case.is_resting(service.node) else service


def _waits(case: Case, service: Service, what: str) -> Service | None:
    if lock := case.held_by(service):
        return case.explain(service, f"{service.node} runs it; {what}, but {held(lock)}", Remedy.wait, Remedy.mend)
    if not case.is_waiting(service.move_after, MOVE_RETRY_MAX_S):
        return None
    return case.explain(
        service,
        f"{service.node} runs it; {what}, but the last try failed ({service.moves_failed} so far)",
        Remedy.wait,
        Remedy.mend,
    )
