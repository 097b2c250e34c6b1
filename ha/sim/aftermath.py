"""Trials of a cluster that has come to rest: it must do what it promises, in its time, now that nothing else happens.

L1 and L9: the leader's node dies, another one leads, and the guests run again within T and a few seconds. L5 and L7: a node is
drained, and its guests come back once. L6: balancing comes to an end, lowers the sum of all strains with each move, and
undoes none. L8: after a disarm everything is guarded again. Which of them a seed goes through is its own chance.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ha.balance import Budget
from ha.load import Mode
from ha.options import DATACENTER_CFG, Options
from ha.placement import Policy
from ha.resources import Request
from ha.rules import StartOrder
from ha.status import ManagerStatus, Remedy, Service, State, lrm_status_path
from ha.status import Mode as LrmMode
from kvorum.ids import Sid

from . import operators
from .rest import feasible, unsettled

if TYPE_CHECKING:
    from .world import World

# Two elections, and a look around.
LEADER_S = 6.0
# From a fence that may come to the guest that runs: two commits, the move of its file, the order, the start; and that twice,
# should the start fail once for want of a lock.
RESTART_S = 12.0
DRAIN_S = 90.0
BALANCE_S = 240.0
QUIET_S = 80.0
ARMING_S = 60.0


def drain(world: "World") -> None:
    """Everything leaves, or says why it does not; and comes back once."""
    name = world.random.choice(_living(world))
    _say_until(world, f"enable-node-maintenance {name}", lambda status: status.is_drained(name))
    _wait(world, DRAIN_S, lambda: _not_drained(world, name), f"L5: {name} is not drained")
    away = {sid for sid, service in world.checks.services().items() if service.maintenance_node == name}
    log = _Moves(world)
    _say_until(world, f"disable-node-maintenance {name}", lambda status: not status.is_drained(name))
    _wait(world, DRAIN_S, lambda: unsettled(world.checks, world.away), "L5: after maintenance there is no rest")
    world.timeline.run_until(world.timeline.now + 30.0)
    for sid in sorted(away):
        is_free = not any(sid in rule.resources for rule in world.rules)
        if is_free and log.of(sid) > 1 and not log.is_disturbed and not log.for_balance:
            world.checks.fail(f"L7: {sid} moved {log.of(sid)} times after the maintenance of {name}")
        service, resource = world.checks.services().get(sid), world.resources().get(Sid(sid))
        is_owed = service is not None and service.state is State.started and service.maintenance_node == name
        if is_owed and resource is not None and resource.failback and name in feasible(world.checks, Sid(sid)):
            world.checks.fail(
                f"L7: {sid} does not come back to {name}, which is free for it ({service and service.cause})"
            )


def balance(world: "World") -> None:
    log = _Moves(world)
    budget = Budget(is_enabled=True, threshold=0.2, hold_s=10.0, cooldown_s=120.0)
    # Where rules speak too, not every move is for balance.
    is_free = not world.rules.rules
    options = Options(policy=Policy(mode=Mode.static), budget=budget)
    world.put(DATACENTER_CFG, options)
    strain = _strain(world)
    end = world.timeline.now + BALANCE_S
    while world.timeline.now < end:
        before = log.total
        world.timeline.run_until(world.timeline.now + 1.0)
        if log.total > before and not any(service.target for service in world.checks.services().values()):
            now = _strain(world)
            if log.for_balance and is_free and not log.is_disturbed and now > strain + 1e-9:
                world.checks.fail(f"L6: moves for balance raised the strain from {strain:.4f} to {now:.4f}")
            strain = now
    for sid, places in log.places.items():
        if log.for_balance and is_free and not log.is_disturbed and len(places) != len(set(places)):
            world.checks.fail(f"L6: {sid} went to and fro for balance: {', '.join(places)}")
    settled = log.total
    world.timeline.run_until(world.timeline.now + QUIET_S)
    if log.total != settled and not log.is_disturbed:
        world.checks.fail(f"L6: guests still move for balance {BALANCE_S:.0f} s after it began")


def rearm(world: "World") -> None:
    _say_until(world, f"disarm-ha freeze {world.random.randint(8, 20)}", lambda status: status.disarm is not None)
    _wait(world, ARMING_S, lambda: world.checks.status.disarm, "L8: HA does not arm itself again")
    _wait(world, ARMING_S, lambda: unsettled(world.checks, world.away) or _unguarded(world), "L8: after a disarm")


def lose_leader(world: "World") -> None:
    """And see the others take over."""
    checks, name = world.checks, world.store.leader
    # A host that was told to go down as everything healed may not be back yet.
    if name is None or len(world.hosts) < 3 or not all(host.is_up for host in world.hosts.values()):
        return
    lease = world.store.truth.leases.get(name)
    is_guarding = lease is not None and not lease.is_resting and not lease.is_fenced
    longest_s = max((held.terms.takeover_after_s for held in world.store.truth.leases.values()), default=0.0)
    owed = [
        sid
        for sid, service in checks.services().items()
        if service.node == name and service.state is State.started and service.running
        and (resource := world.resources().get(Sid(sid))) is not None and resource.request is Request.started
        and sid in checks.holders.acknowledged(name)
    ]  # fmt: skip
    world.away = name
    world.hosts[name].power_off("the leader's node dies")
    _wait(world, LEADER_S, lambda: world.store.leader in (None, name), "L9: nobody leads")
    if not is_guarding:
        return
    is_ordered = bool(world.readings.startups) or any(isinstance(rule, StartOrder) for rule in world.rules)
    # Who leads now may have applied the last renewal a moment after it died, and has a clock of its own.
    world.timeline.run_until(world.timeline.now + longest_s * 1.001 + RESTART_S)
    for sid in owed if not is_ordered else ():
        service = checks.services().get(sid)
        waits = service is not None and Remedy.make_room in service.remedies and not feasible(checks, Sid(sid))
        if not waits and not any(host.is_running(sid) for host in world.hosts.values()):
            told = f"{service.state}@{service.node}, {service.cause}" if service is not None else "unknown"
            checks.fail(f"L1: {sid} does not run {longest_s + RESTART_S:.0f} s after its node died: {told}")
    _wait(world, DRAIN_S, lambda: unsettled(checks, name), "L4: the others do not come to rest")


TRIALS: Mapping[str, Callable[["World"], None]] = {
    "drain": drain,
    "balance": balance,
    "rearm": rearm,
    "lose leader": lose_leader,
}


def run(world: "World") -> None:
    """One of them; not while a guest is down, which may be for a person to mend."""
    name = world.trial or world.random.choice(sorted(TRIALS))
    world.checks.tell(f"a trial: {name}")
    world.checks.count(f"trials: {name}")
    if not any(resource.request is Request.started for resource in world.resources().values()):
        return  # nothing is guarded, so nothing can be lost
    for sid, resource in world.resources().items():
        if resource.request is Request.started and world.checks.services()[sid].state is not State.started:
            world.checks.tell(f"no trial: {sid} is not well")
            return
    TRIALS[name](world)


class _Moves:
    """Of guests to other nodes, as committed from now on."""

    def __init__(self, world: "World") -> None:
        self.places: dict[str, list[str]] = {sid: [one.node] for sid, one in world.checks.services().items()}
        self.total = 0
        self.for_balance = False
        # The node that stays dead had a guest, and lost it: that is another matter.
        self.is_disturbed = False
        world.checks.on_status = self._see

    def _see(self, before: ManagerStatus, after: ManagerStatus) -> None:
        for sid, service in after.service_status.items():
            self.is_disturbed |= service.state is State.fence
            self.for_balance |= service.cause.startswith("for balance")
            held = before.service_status.get(sid)
            if held is not None and service.node != held.node:
                self.total += 1
                self.places.setdefault(sid, [held.node]).append(service.node)

    def of(self, sid: str) -> int:
        return len(self.places.get(sid, [""])) - 1


def _living(world: "World") -> list[str]:
    return [name for name in sorted(world.hosts) if name != world.away]


def _say_until(world: "World", text: str, is_heard: Callable[[ManagerStatus], bool]) -> None:
    for _ in range(5):
        operators.say(world, text)
        until = world.timeline.now + 6.0
        while world.timeline.now < until:
            if is_heard(world.checks.status):
                return
            world.timeline.run_until(world.timeline.now + 0.25)
    world.checks.fail(f"L3: nobody does what an operator says: {text}")


def _wait(world: "World", longest_s: float, left: Callable[[], object], rule: str) -> None:
    end = world.timeline.now + longest_s
    while found := left():
        if world.timeline.now > end:
            world.checks.fail(f"{rule}: {found}")
        if int(world.timeline.now) % 5 == 0:
            world.free_the_locked()
        world.timeline.run_until(world.timeline.now + 0.5)


def _not_drained(world: "World", name: str) -> list[str]:
    def stays(service: Service) -> bool:
        return service.node == name and service.state not in (State.stopped, State.error) and not _is_explained(service)

    return [
        f"{sid} is {service.state} ({service.cause})"
        for sid, service in world.checks.services().items()
        if stays(service)
    ]


def _is_explained(service: Service) -> bool:
    return Remedy.make_room in service.remedies and "cannot move" in service.cause


def _unguarded(world: "World") -> list[str]:
    """Nodes that do not say that they guard every resource, under a lease that is renewed."""
    managed = {sid for sid, one in world.resources().items() if one.request is not Request.ignored}
    found = []
    for name in _living(world):
        lease = world.store.truth.leases.get(name)
        lrm = world.checks.lrm_status(lrm_status_path(name))
        is_well = lease is not None and not lease.is_resting and not lease.is_fenced
        is_active = lrm is not None and lrm.mode is LrmMode.active and set(lrm.tracked) >= managed
        is_fresh = lease is not None and world.checks.holders.silent_s(name) < lease.terms.pause_after_s
        if managed and not (is_well and is_active and is_fresh):
            found.append(f"{name} does not guard everything")
    return found


def _strain(world: "World") -> float:
    """The sum that balancing is to lower, counted anew: cpu² + 5 memory², in shares of each node."""
    total = 0.0
    for name, size in world.sizes.items():
        there = [
            sid
            for sid, one in world.checks.services().items()
            if one.node == name and one.state not in (State.stopped, State.error)
        ]
        memory = sum(world.checks.demands.get(sid, 0.0) for sid in there) / size.memory_bytes
        total += (len(there) / size.cores) ** 2 + 5.0 * memory**2
    return total
