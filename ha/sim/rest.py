"""What must be true of a cluster that has come to rest. `unsettled` says what keeps it from that, in sentences."""

from ha.resources import Request, Resource
from ha.rules import Affinity, NodeAffinity, ResourceAffinity
from ha.status import AnswerState, Remedy, Service, State, lrm_status_path
from ha.view import COMMANDS_DIR
from kvorum.ids import NodeName, Sid

from .checks import Checks
from .decisions import takes
from .orders import is_held

# From a host's start to the first words of its daemon.
BOOT_S = 10.0


def unsettled(checks: Checks, away: str = "") -> list[str]:
    """Empty when every guest is where it shall be. `away`: a node that is dead."""
    resources, services = checks.resources(), checks.services()
    managed = {sid for sid, resource in resources.items() if resource.request is not Request.ignored}
    found = [
        f"{sid} is no resource any more"
        for sid, service in services.items()
        if sid not in managed and service.node != away
    ]
    if checks.status.disarm is not None:
        found.append(f"HA is {checks.status.disarm.state}: {checks.status.disarm.cause}")
    found += [f"command {path} is not answered" for path in checks.files() if path.startswith(f"{COMMANDS_DIR}/")]
    found += [
        f"command {id_} has no outcome: {answer.command}"
        for id_, answer in checks.status.answers.items()
        if answer.state is AnswerState.accepted and services[answer.sid].node != away
    ]
    places = checks.places()
    for sid in sorted(managed):
        # Without a place its creation was lost on the way: there is no such guest.
        if sid in places and (why := _unsettled(checks, resources[sid], services.get(sid), places[sid], away)):
            found.append(why)
    return found


def _unsettled(checks: Checks, resource: Resource, service: Service | None, place: str, away: str) -> str:
    sid = resource.sid
    if service is None:
        return f"{sid} is unknown to the manager"
    assert checks.store is not None
    running = [name for name, host in checks.hosts.items() if host.is_running(sid)]
    told = f"{sid} is {service.state}@{service.node}, runs on {running} ({service.cause})"
    held = checks.store.truth.leases.get(service.node)
    if not resource.wants_running and service.state is State.stopped:
        return told if running else ""
    if service.node == away and service.state is State.fence:
        # It was never acknowledged there: a person has to say that the node is off. Explained, not forgotten.
        return "" if "never confirmed" in service.cause else f"without a reason: {told}"
    if service.node == away and service.state is State.freeze and "keeps it" in service.cause:
        return ""
    if service.node == away and (held is None or held.is_resting):
        # Likewise: it never guarded anything, or went to rest without guarding this guest, and never woke.
        return "" if "has not taken a new one" in service.cause else f"without a reason: {told}"
    if Remedy.make_room in service.remedies and not running:
        # It has nowhere to go, and says so; which had better be true.
        able = feasible(checks, sid)
        return f"{told}, although {' or '.join(able)} could take it" if able else ""
    if service.state is State.request_start and not running and is_held(checks.services(), sid):
        return ""
    if resource.request is Request.started:
        is_well = service.state is State.started and service.running and running == [place]
        return "" if is_well else told
    # As in Proxmox VE, only `disabled` leaves an error.
    is_error = resource.request is Request.stopped and service.state is State.error
    return "" if is_error and not running else told


def unbounded(checks: Checks, answers: int = 250) -> list[str]:
    """L10: what grows without an end. Answers to orders are forgotten with the orders, those to operators after a while."""
    services = checks.services()
    uids = {service.uid for service in services.values()}
    found = [f"{len(checks.status.answers)} answers to operators"] if len(checks.status.answers) > answers else []
    for name, host in checks.hosts.items():
        if not host.is_up or checks.timeline.now - host.awake_since < BOOT_S:
            continue
        written = checks.lrm_status(lrm_status_path(name))
        old = sorted(set(written.results) - uids) if written is not None else []
        if old:
            found.append(f"{name} still has answers to {len(old)} orders that are over: {', '.join(old[:3])}")
    return found


def feasible(checks: Checks, sid: Sid) -> list[str]:
    """Nodes that live, that no strict rule forbids, and that have the memory. Of guests that must be together nothing is
    said: whether there is room for all of them is more than one guest's matter."""
    if checks.options().policy.reserve_nodes:
        return []  # what is held back for the loss of nodes is not for everybody
    strict = [rule for rule in checks.rules if rule.is_strict and sid in rule.resources]
    if any(isinstance(rule, ResourceAffinity) and rule.affinity is Affinity.positive for rule in strict):
        return []
    services = checks.services()
    found = []
    for name, host in sorted(checks.hosts.items()):
        others = [other for other, service in services.items() if other != sid and name in takes(service)]
        if not host.is_up or checks.status.is_drained(name):
            continue
        if any(isinstance(rule, NodeAffinity) and NodeName(name) not in rule.nodes for rule in strict):
            continue
        if any(isinstance(rule, ResourceAffinity) and rule.resources & set(others) for rule in strict):
            continue
        limit = checks.capacities.get(name, 0.0) * checks.options().policy.memory_limit
        if limit and sum(checks.demands.get(one, 0.0) for one in (sid, *others)) > limit:
            continue
        found.append(name)
    return found
