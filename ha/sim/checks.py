"""What must hold at every moment of a simulation. A broken rule raises Violation.

The rules of safety, as the docs name them: S1, no guest runs on two nodes; S2, none starts without a live lease; S3, no lease
is taken over before T; S4, nothing is begun after A, nothing runs after A + K but where the watchdog starves, nothing at all
after T; S5, no watchdog is closed over a guest; S6, what is decided follows from what is committed, and once; S7, none starts
but where its order is; S8, a node takes no lease while it runs what it guards, and no old lease is renewed; S9, no move from
or to a node that is being fenced; S10, locks that are taken off had lost their holder; S11, no decision breaks a strict rule;
S12, nor promises memory twice; S13, what shall not run does not start; S14, an error is left for a reason; S15, nobody is
fenced but who holds up a guest; S16, disarmed, nothing is fenced, moved or armed; S18, nobody sees a status that is not
committed; S20 (`orders`), nobody starts before those that it shall come after. They look at the truth of the simulation,
never at what a node believes.

What must hold at the end is in `rest`. Here decisions are left to `decisions`, hosts to `holders`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from ha import lrm
from ha.options import DATACENTER_CFG, Options
from ha.resources import RESOURCES_CFG, Request, Resource
from ha.rules import Rules
from ha.status import MANAGER_STATUS, LrmStatus, ManagerStatus, Service, State, lrm_status_path
from ha.view import View, parse_config_path
from kvorum.ids import Sid

from . import decisions
from .holders import AUDIT_S, Holders
from .host import MIGRATE_LOCK, Host
from .orders import OrderChecks
from .progress import Progress
from .reading import LOCK, parse_path
from .store import Acquire, Answer, Command, Done, Fence, File, Move, Renew, Store, Write
from .store import State as Truth
from .timeline import Timeline

# A node that was cut off may follow an old wish as long as its lease may live, and that is a little more.
FORGIVEN_S = 60.0
# Whose holder is gone with its host; what else holds a guest is for a person. A migration's says by its version whose it is.
LOCKS_OF_TASKS = frozenset({"backup", "snapshot"})


# What must not happen where no stall is longer than the profile tolerates.
_LOSSES = frozenset(
    {"keepers: killed", "keepers: reset by the watchdog", "keepers: reset the host", "nodes: fenced at T"}
)


class Violation(Exception):
    """A rule is broken; the seed tells the rest."""


@dataclass(eq=False)
class Checks:
    timeline: Timeline
    hosts: Mapping[str, Host] = field(default_factory=dict)
    store: Store | None = None
    story: list[str] = field(default_factory=list)
    # How often what happened, "group: what": a simulation in which nothing does proves nothing.
    counts: Counter[str] = field(default_factory=Counter)
    rules: Rules = field(default_factory=Rules)
    # In bytes; empty: the simulation knows no sizes.
    demands: Mapping[str, float] = field(default_factory=dict)
    capacities: Mapping[str, float] = field(default_factory=dict)
    # Since when a resource shall not run, or is none.
    unwanted_since: dict[str, float] = field(default_factory=dict)
    # The last committed one, and all of them, by identity.
    status: ManagerStatus = field(default_factory=ManagerStatus)
    _committed: dict[int, ManagerStatus] = field(default_factory=dict)
    # What decisions that may yet be committed were made on.
    _views: dict[int, tuple[ManagerStatus, View]] = field(default_factory=dict)
    # What committed entries have asked for: fences, by node; moves, by guest, source and target.
    _fences_meant: set[str] = field(default_factory=set)
    _moves_meant: set[tuple[str, str, str]] = field(default_factory=set)
    # Of guests, by whoever took them: the lock, the task's host, and that host's boot.
    locks: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    is_mild: bool = False
    # The node that stays dead when all else has healed.
    away: str = ""
    orders: OrderChecks = field(default_factory=OrderChecks)
    _holders: Holders | None = None
    progress: Progress | None = None
    # Who looks at each committed status, and the one before.
    on_status: Callable[[ManagerStatus, ManagerStatus], None] = lambda _before, _after: None
    # What the world does when a guest has come by live migration: sid, node.
    on_arrival: Callable[[str, str], None] = lambda _sid, _node: None

    def tell(self, line: str) -> None:
        self.story.append(f"{self.timeline.now:8.3f}  {line}")

    def count(self, what: str) -> None:
        self.counts[what] += 1
        if self.is_mild and what in _LOSSES:
            self.fail(f"L11: no stall is longer than the profile tolerates, but: {what}")

    def fail(self, rule: str) -> None:
        self.tell(f"VIOLATION {rule}")
        raise Violation(rule)

    @property
    def holders(self) -> Holders:
        if self._holders is None:
            assert self.store is not None
            self._holders = Holders(self.timeline, self.store, self.hosts, self.fail)
        return self._holders

    def assume(self, status: ManagerStatus) -> None:
        """It was committed before anything began."""
        self.status = self._committed[id(status)] = status

    def watch(self) -> None:
        """From now on, again and again."""
        self.holders.audit()
        if self.progress is not None:
            self.progress.audit()
        self.timeline.after(AUDIT_S, self.watch)

    # What hosts and daemons report

    def guest_runs(self, sid: str) -> None:
        where = [name for name, host in self.hosts.items() if host.is_running(sid)]
        if len(where) > 1:
            self.fail(f"S1: {sid} runs on {' and '.join(where)}")

    def guest_started(self, host: Host, sid: str, incarnation: int) -> None:
        self.count("guests: started")
        self.holders.started(host, sid, incarnation)
        entry = self.status.service_status.get(sid)
        if entry is not None and entry.node != host.name:
            self.fail(f"S7: {host.name} started {sid}, but its order is {entry.state}@{entry.node}")
        since = self.unwanted_since.get(sid)
        if since is not None and self.timeline.now - since > FORGIVEN_S:
            self.fail(
                f"S13: {host.name} started {sid}, which has not been wanted for {self.timeline.now - since:.0f} s"
            )

    def guest_arrived(self, host: Host, sid: str) -> None:
        self.count("guests: migrated live")
        self.holders.guarded(host, sid, "resumed")
        self.on_arrival(sid, host.name)

    def order_taken(self, host: Host, action: lrm.Action) -> None:
        match action:
            case lrm.Start():
                status = self.lrm_status(lrm_status_path(host.name))
                said = status.results.get(action.uid) if status is not None else None
                if said is not None and said.state == State.started and said.exit_code != 0:
                    self.fail(f"S6: {host.name} starts {action.sid} under an order that it has answered: it failed")
            case lrm.Migrate():
                self.holders.in_time(host, f"sends {action.sid} away")
                self._touched(host, action.sid)
            case _:
                self._touched(host, action.sid)

    def _touched(self, host: Host, sid: Sid) -> None:
        """A stop or a move by HA."""
        resource = self.resources().get(sid)
        since = self.unwanted_since.get(sid)
        is_ignored = resource is not None and resource.request is Request.ignored
        if is_ignored and since is not None and self.timeline.now - since > FORGIVEN_S and sid not in self.services():
            self.fail(f"S13: {host.name} touched {sid}, which is to be ignored")

    def lease_taken(self, host: Host) -> None:
        self.holders.lease_taken(host)

    def watchdog_closed(self, host: Host) -> None:
        self.holders.watchdog_closed(host)

    def deciding(self, after: ManagerStatus, view: View) -> None:
        self._views[id(after)] = (after, view)

    def status_shown(self, host: Host, status: ManagerStatus) -> None:
        if id(status) not in self._committed and status != ManagerStatus():
            self.fail(f"S18: {host.name} shows a status that is not committed")

    # What the log says

    def committed(self, command: Command, answer: Answer) -> None:
        if not isinstance(answer, Done):
            return
        self.orders.look(self)
        match command:
            case Renew() | Acquire():
                self.holders.renewed(command, answer.number)
            case Fence():
                self._fenced(command)
            case Move() if command.by:
                self._moved(command)
            case Write(path=path) if path == MANAGER_STATUS:
                self._decided(cast(ManagerStatus, command.content))
            case Write(path=path) if (found := parse_path(path)) is not None:
                self._locked(found[0], found[1], command)
            case Write(path=path) if path == RESOURCES_CFG and isinstance(command.content, dict):
                self._wanted(command.content)
                self.orders.changed_at = self.timeline.now

    def _fenced(self, command: Fence) -> None:
        self.count("nodes: fenced, confirmed by an agent" if command.is_confirmed else "nodes: fenced at T")
        self.holders.fenced_at(command)
        if command.is_confirmed:
            return
        if decisions.is_disarmed(self.status):
            self.fail(f"S16: {command.node} was fenced while HA is disarmed")
        if command.by and command.node not in self._fences_meant:
            self.fail(f"S15: {command.by} fenced {command.node}, for which no committed entry waits")

    def _moved(self, command: Move) -> None:
        old, new = parse_config_path(command.path), parse_config_path(command.new_path)
        assert old is not None and new is not None
        self.count("guests: moved for a new start")
        if (old[0], old[1], new[1]) not in self._moves_meant:
            self.fail(f"S6: {command.by} moved {command.path} to {new[1]}, which no committed entry asks for")

    def _locked(self, sid: str, node: str, command: Write) -> None:
        """Or unlocked. A manager may do that when whoever held the guest is gone, and was a task that ends with its host."""
        lock = str(command.content).removeprefix(LOCK)
        held, holder, boot = self.locks.pop(sid, ("", "", 0))
        if lock and command.content != MIGRATE_LOCK:
            self.locks[sid] = (lock, node, self.hosts[node].boot)
        if not command.by or not held:
            return
        self.count("guests: unlocked for a recovery")
        if held not in LOCKS_OF_TASKS:
            self.fail(f"S10: {command.by} took the lock {held} off {sid}, which is for a person to do")
        if self.hosts[holder].is_up and self.hosts[holder].boot == boot:
            lease = self.store_truth().leases.get(holder)
            if lease is None or not lease.is_fenced:
                self.fail(f"S10: {command.by} took the lock {held} off {sid}, whose holder lives on {holder}")

    def _wanted(self, resources: Mapping[Sid, Resource]) -> None:
        unwanted = {sid for sid in self.places() if sid not in resources or not resources[Sid(sid)].wants_running}
        self.unwanted_since = {sid: self.unwanted_since.get(sid, self.timeline.now) for sid in sorted(unwanted)}

    def _decided(self, after: ManagerStatus) -> None:
        before, view = self.status, self._views.pop(id(after), (after, None))[1]
        self._count(before, after)
        self.orders.decided(self, before, after)
        facts = decisions.Facts(
            # What was read is what counts, as long as it was committed.
            self.resources() if view is None else view.resources or {},
            self.rules,
            self.places() if view is None else {sid: config.node for sid, config in view.configs.items()},
            self.demands,
            self.capacities,
        )
        if found := decisions.broken(before, after, view, facts):
            self.fail(found)
        self.status = self._committed[id(after)] = after
        self.on_status(before, after)
        for sid, service in after.service_status.items():
            if service.state is State.fence:
                self._fences_meant.add(service.node)
            if service.state in (State.recovery, State.relocate) and service.target:
                self._moves_meant.add((sid, service.node, service.target))
        if decisions.is_disarmed(after):
            self.holders.disarmed()

    def _count(self, before: ManagerStatus, after: ManagerStatus) -> None:
        if before.master_node != after.master_node:
            self.count("nodes: became manager")
        for sid, service in after.service_status.items():
            held = before.service_status.get(sid)
            if held is None or held.state is not service.state:
                self.count(f"states: {service.state}")
        for id_, answer in after.answers.items():
            known = before.answers.get(id_)
            if known is None or (known.version, known.state) != (answer.version, answer.state):
                self.count(f"commands: {answer.state}")
        if (before.disarm and before.disarm.state) != (after.disarm and after.disarm.state):
            self.count(f"cluster: {after.disarm.state if after.disarm is not None else 'armed again'}")

    # The truth

    def services(self) -> Mapping[str, Service]:
        """The manager's entries, as committed."""
        return cast(ManagerStatus, _content(self.files(), MANAGER_STATUS) or ManagerStatus()).service_status

    def resources(self) -> Mapping[Sid, Resource]:
        content = _content(self.files(), RESOURCES_CFG)
        return cast("dict[Sid, Resource]", content) if isinstance(content, dict) else {}

    def places(self) -> Mapping[str, str]:
        """Of config files."""
        return {found[0]: found[1] for path in self.files() if (found := parse_path(path))}

    def lrm_status(self, path: str) -> LrmStatus | None:
        return cast("LrmStatus | None", _content(self.files(), path))

    def options(self) -> Options:
        return cast(Options, _content(self.files(), DATACENTER_CFG) or Options())

    def files(self) -> Mapping[str, File]:
        return self.store_truth().files

    def store_truth(self) -> Truth:
        assert self.store is not None
        return self.store.truth


def _content(files: Mapping[str, File], path: str) -> object:
    file = files.get(path)
    return file.content if file is not None else None
