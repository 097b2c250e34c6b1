"""What must hold at every moment of a simulation, and what after it has healed. A broken rule raises Violation.

The rules of safety, as the docs name them: S1, no guest runs on two nodes; S2, none starts without a live lease; S3, no
lease is taken over before T; S7, none starts but where its order is; S9, no move begins from or to a node that is being
fenced; S11, no decision breaks a strict rule; S13, what shall not run does not start; S16, no fence while HA is
disarmed; S20 (`orders`), nobody starts before those that it shall come after. They look at the truth of the simulation,
never at what a node believes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from ha.leases import DEFAULT
from ha.resources import RESOURCES_CFG, Request, Resource
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rules
from ha.status import MANAGER_STATUS, AnswerState, DisarmState, ManagerStatus, NodeState, Remedy, Service, State
from ha.view import COMMANDS_DIR, parse_config_path
from kvorum.ids import Sid

from .host import Host
from .orders import OrderChecks, is_held
from .store import Answer, Command, Done, Fence, File, Store, Write
from .timeline import Timeline

# A node that was cut off may follow an old wish as long as its lease may live, and that is a little more.
FORGIVEN_S = 60.0


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
    fenced: set[tuple[str, int]] = field(default_factory=set)
    rules: Rules = field(default_factory=Rules)
    # Since when a resource shall not run, or is none.
    unwanted_since: dict[str, float] = field(default_factory=dict)
    status: ManagerStatus = field(default_factory=ManagerStatus)
    orders: OrderChecks = field(default_factory=OrderChecks)

    def tell(self, line: str) -> None:
        self.story.append(f"{self.timeline.now:8.3f}  {line}")

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def fail(self, rule: str) -> None:
        self.tell(f"VIOLATION {rule}")
        raise Violation(rule)

    def guest_runs(self, sid: str) -> None:
        where = [name for name, host in self.hosts.items() if host.is_running(sid)]
        if len(where) > 1:
            self.fail(f"S1: {sid} runs on {' and '.join(where)}")

    def guest_started(self, host: Host, sid: str, incarnation: int) -> None:
        self.count("guests: started")
        assert self.store is not None
        lease = self.store.truth.leases.get(host.name)
        # A later incarnation may stand there by a call of the node's own that it gave up: harmless, it only counts anew.
        if lease is None or lease.incarnation < incarnation or (host.name, incarnation) in self.fenced:
            self.fail(f"S2: {host.name} started {sid} under lease {incarnation}, but the log says {lease}")
        if host.keeper is not None and sid not in host.keeper.sids:
            self.fail(f"S2: {host.name} started {sid}, which its keeper does not guard")
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
        if host.keeper is not None and sid not in host.keeper.sids:
            self.fail(f"S2: {host.name} resumed {sid}, which its keeper does not guard")

    def guest_touched(self, host: Host, sid: str) -> None:
        """A stop or a move by HA."""
        resource = self.resources().get(Sid(sid))
        since = self.unwanted_since.get(sid)
        is_ignored = resource is not None and resource.request is Request.ignored
        if is_ignored and since is not None and self.timeline.now - since > FORGIVEN_S and sid not in self.services():
            self.fail(f"S13: {host.name} touched {sid}, which is to be ignored")

    def committed(self, command: Command, answer: Answer) -> None:
        if not isinstance(answer, Done):
            return
        self.orders.look(self)
        match command:
            case Fence():
                self._fenced(command)
            case Write(path=path) if path == MANAGER_STATUS:
                after = cast(ManagerStatus, command.content)
                self._decided(self.status, after)
                self.status = after
            case Write(path=path) if path == RESOURCES_CFG and isinstance(command.content, dict):
                self._wanted(command.content)
                self.orders.changed_at = self.timeline.now

    def _fenced(self, command: Fence) -> None:
        self.count("nodes: fenced, confirmed by an agent" if command.is_confirmed else "nodes: fenced at T")
        self.fenced.add((command.node, command.incarnation))
        assert self.store is not None
        if command.is_confirmed:
            return  # it says that the host is off, which is for S1 to judge
        age_s = self.timeline.now - self.store.renewed_truly_at.get(command.node, 0.0)
        takeover_s = self.store.truth.leases[command.node].terms.takeover_after_s
        if age_s < takeover_s * (1 - DEFAULT.drift):
            self.fail(f"S3: {command.node} was fenced {age_s:.2f} s after its last renewal, T is {takeover_s:.2f} s")
        if self._is_disarmed():
            self.fail(f"S16: {command.node} was fenced while HA is disarmed")

    def _wanted(self, resources: Mapping[Sid, Resource]) -> None:
        known = {parse[0] for path in self._files() if (parse := parse_config_path(path))}
        unwanted = {sid for sid in known if sid not in resources or not resources[sid].wants_running}
        self.unwanted_since = {sid: self.unwanted_since.get(sid, self.timeline.now) for sid in sorted(unwanted)}

    def _decided(self, before: ManagerStatus, after: ManagerStatus) -> None:
        fencing = {name for name, state in after.node_status.items() if state is NodeState.fence}
        self._count(before, after)
        self.orders.decided(self, before, after)
        for sid, service in after.service_status.items():
            if before.service_status.get(sid) == service:
                continue
            is_new_move = service.cmd[:1] in (("migrate",), ("relocate",)) or service.state is State.recovery
            held = before.service_status.get(sid)
            if not is_new_move or not service.target or (held is not None and held.target == service.target):
                continue
            if service.cmd and fencing & {service.node, service.target}:
                self.fail(f"S9: {sid} moves from {service.node} to {service.target}, but {sorted(fencing)} are fenced")
            if self._is_disarmed():
                self.fail(f"S16: {sid} is sent to {service.target} while HA is disarmed")
            self._keeps_rules(sid, service, after)

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

    def _keeps_rules(self, sid: str, service: Service, after: ManagerStatus) -> None:
        resource = self.resources().get(Sid(sid))
        if resource is None or not resource.wants_running:
            return
        for rule in self.rules:
            if not rule.is_strict or sid not in rule.resources:
                continue
            if isinstance(rule, NodeAffinity) and service.target not in rule.nodes:
                self.fail(f"S11: {sid} is sent to {service.target}, against {rule.id}")
            if isinstance(rule, ResourceAffinity) and rule.affinity is Affinity.negative:
                for other in sorted(rule.resources - {sid}):
                    held = after.service_status.get(other)
                    if held is None or held.state in (State.stopped, State.error) or other not in self.resources():
                        continue
                    places = {held.target} if held.state is State.recovery else {held.node, held.target}
                    if service.target in places:
                        self.fail(f"S11: {sid} is sent to {service.target}, where {other} is, against {rule.id}")

    def services(self) -> Mapping[str, Service]:
        """The manager's entries, as committed."""
        assert self.store is not None
        return cast(ManagerStatus, _content(self.store.truth.files, MANAGER_STATUS) or ManagerStatus()).service_status

    def _is_disarmed(self) -> bool:
        return self.status.disarm is not None and self.status.disarm.state is DisarmState.disarmed

    def _files(self) -> Mapping[str, File]:
        assert self.store is not None
        return self.store.truth.files

    def resources(self) -> Mapping[Sid, Resource]:
        content = _content(self._files(), RESOURCES_CFG)
        return cast("dict[Sid, Resource]", content) if isinstance(content, dict) else {}

    def unsettled(self, away: str = "") -> list[str]:
        """What still keeps the cluster from rest; empty when every guest is where it shall be. `away`: a dead node."""
        resources, services = self.resources(), self.services()
        managed = {sid for sid, resource in resources.items() if resource.request is not Request.ignored}
        found = [
            f"{sid} is no resource any more"
            for sid, service in services.items()
            if sid not in managed and service.node != away
        ]
        if self.status.disarm is not None:
            found.append(f"HA is {self.status.disarm.state}: {self.status.disarm.cause}")
        found += [f"command {path} is not answered" for path in self._files() if path.startswith(f"{COMMANDS_DIR}/")]
        found += [
            f"command {id_} has no outcome: {answer.command}"
            for id_, answer in self.status.answers.items()
            if answer.state is AnswerState.accepted and services[answer.sid].node != away
        ]
        places = {place[0]: place[1] for path in self._files() if (place := parse_config_path(path))}
        for sid in sorted(managed):
            # Without a place its creation was lost on the way: there is no such guest.
            if sid in places and (why := self._unsettled(sid, resources[sid], services.get(sid), places[sid], away)):
                found.append(why)
        return found

    def _unsettled(self, sid: Sid, resource: Resource, service: Service | None, place: str, away: str) -> str:
        if service is None:
            return f"{sid} is unknown to the manager"
        assert self.store is not None
        running = [name for name, host in self.hosts.items() if host.is_running(sid)]
        told = f"{sid} is {service.state}@{service.node}, runs on {running} ({service.cause})"
        held = self.store.truth.leases.get(service.node)
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
        if self.rules.rules and Remedy.make_room in service.remedies and not running:
            # The rules leave it nowhere to go, and it says so.
            return ""
        if service.state is State.request_start and not running and is_held(self.services(), sid):
            return ""
        if resource.request is Request.started:
            is_well = service.state is State.started and service.running and running == [place]
            return "" if is_well else told
        # As in Proxmox VE, only `disabled` leaves an error.
        is_error = resource.request is Request.stopped and service.state is State.error
        return "" if is_error and not running else told


def _content(files: Mapping[str, File], path: str) -> object:
    file = files.get(path)
    return file.content if file is not None else None
