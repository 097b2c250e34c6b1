"""A model of kvorum-ha on one node: reads its replica into values, asks the cores, performs what comes back.

In rounds, at short random distances. One write of its status and one chain of the manager are under way at a time; each
is given up at a deadline, after which nobody knows whether it takes effect. A restart forgets everything but the store
and cancels the starts and stops that are under way in the agent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ha import lrm
from ha.balance import History
from ha.leases import Lease, Profile, Terms
from ha.load import NOTHING, Use
from ha.manager import (
    Action,
    Decision,
    FenceLease,
    ForgetCommand,
    MoveConfig,
    Quiet,
    RequestStopped,
    decide,
)
from ha.outage import Outage
from ha.resources import RESOURCES_CFG, Request
from ha.status import MANAGER_STATUS, ManagerStatus, lrm_status_path
from ha.view import Node, View
from kvorum.ids import NodeName, NodeUid

from .host import Host
from .reading import Reading, Readings
from .store import Answer, Command, Done, Fence, Move, Remove, Store, Write
from .store import Done as StoreDone

ROUND_S = (0.1, 0.5)
WRITE_S = 3.0


@dataclass(eq=False)
class Daemon:
    host: Host
    store: Store
    names: tuple[str, ...]
    # Mutations: what the manager goes by, whatever the leases say.
    own_terms: Terms | None = None
    goes_by_settings: bool = False
    # A status that is shown before it is committed.
    shows_uncommitted: bool = False
    foreseen: ManagerStatus | None = None
    # Shared by all that see the same files; and how large the nodes are.
    readings: Readings = field(default_factory=lambda: Readings(()))
    sizes: Mapping[str, Use] = field(default_factory=dict)
    # Wall clock minus virtual time; jumps.
    epoch: float = 1e9
    life: int = 0
    is_up: bool = False
    memory: lrm.Memory = field(default_factory=lambda: lrm.Memory(session=""))
    is_writing: bool = False
    is_managing: bool = False
    # The agent's: by source, sid, target.
    on_migrate: Callable[[str, str, str, Callable[[str], None]], None] = lambda _source, _sid, _target, _done: None
    shutdown: lrm.Shutdown | None = None
    on_rest: Callable[[], None] = lambda: None
    # Of balancing, of a time without a majority, and of a round that had nothing to do; gone with the process.
    history: History = field(default_factory=History)
    outage: Outage = field(default_factory=Outage)
    quiet: Quiet = field(default_factory=Quiet)

    def start(self) -> None:
        if self.is_up or not self.host.is_up:
            return
        self.life += 1
        self.is_up = True
        self.is_writing = self.is_managing = False
        self.shutdown = self.foreseen = None
        self.history, self.outage, self.quiet = History(), Outage(), Quiet()
        self.memory = lrm.Memory(session=f"{self.host.name}-{self.life}")
        self._again(self.life)

    def stop(self) -> None:
        """Its connection to the agent breaks, and with it end the calls that it has there."""
        self.is_up = False
        for sid in [sid for sid, process in self.host.processes.items() if process.is_starting]:
            del self.host.processes[sid]

    def _again(self, life: int) -> None:
        if not self.is_up or self.life != life:
            return
        self.round()
        self.host.after(self.host.random.uniform(*ROUND_S), partial(self._again, life))

    def round(self) -> None:
        self._serve()
        replica = self.store.replicas[self.host.name]
        if self.outage.is_of_use(is_quorate=replica.is_quorate):
            leases = [node.lease for node in self._nodes(self.reading()).values() if node.lease is not None]
            self.outage.look(leases, is_quorate=replica.is_quorate, now=self.host.clock())
        if not self.is_managing and replica.believes_to_lead:
            self._manage()

    def _propose(self, command: Command, then: "partial[None]") -> None:
        life = self.life

        def answered(answer: Answer) -> None:
            def run() -> None:
                if self.is_up and self.life == life:
                    then(answer)

            self.host.after(0.0, run)

        self.store.propose(self.host.name, command, answered, deadline_s=WRITE_S)

    # The local resource manager

    def reading(self) -> Reading:
        reading = self.readings.of(self.store.replicas[self.host.name].state)
        return replace(reading, status=self.foreseen) if self.foreseen is not None else reading

    def local_view(self) -> lrm.LocalView:
        host, reading = self.host, self.reading()
        _, registered, is_lease_wanted = host.guests_file
        own = reading.configs_on(host.name)
        running = frozenset(sid for sid in host.processes if sid in registered)
        return lrm.LocalView(
            node=NodeName(host.name),
            lease=host.published,
            status=reading.status,
            resources=reading.resources or {},
            configs=own,
            running=running,
            written=reading.lrm[host.name],
            registered=registered,
            is_lease_wanted=is_lease_wanted,
            options=reading.options,
            shutdown=self.shutdown,
            orders=reading.rules.orders,
            uid=host.name,
            strays=frozenset(
                sid for sid, config in reading.configs.items() if sid in running - own and not config.is_migrating
            ),
        )

    def _serve(self) -> None:
        view = self.local_view()
        self.host.watcher.status_shown(self.host, view.status)
        self.memory, steps = lrm.step(self.memory, view, self.host.clock())
        wanted = (self.host.guests_file[0], steps.register, steps.is_lease_wanted)
        profile = self.profile()
        if wanted != self.host.guests_file or profile != self.host.profile_file:
            self.host.guests_file = (wanted[0] + 1, *wanted[1:])
            self.host.profile_file = profile
        for action in steps.actions:
            self._act(action)
        if self.shutdown is not None and steps.is_at_rest:
            self.on_rest()
        if not self.is_writing and lrm.must_write(self.memory, steps.status, view.written):
            self.is_writing = True
            self.memory = lrm.writing(self.memory, steps.status)
            path = lrm_status_path(self.host.name)
            version = self.reading().versions.get(path, 0)
            self._propose(Write(path, steps.status, version), partial(self._written))

    def _written(self, answer: Answer) -> None:
        self.is_writing = False
        if isinstance(answer, StoreDone):
            self.memory = lrm.answered(self.memory)

    def _act(self, action: lrm.Action) -> None:
        life = self.life
        self.host.watcher.order_taken(self.host, action)
        is_start = isinstance(action, lrm.Start | lrm.Migrate)

        def ended(cause: str) -> None:
            if self.is_up and self.life == life:
                done = lrm.Done(action.sid, action.uid, is_start, cause)
                self.memory = lrm.finish(self.memory, done, self.host.clock())

        match action:
            case lrm.Start():
                self.host.start(action.sid, action.incarnation, ended)
            case lrm.Stop() | lrm.KillLeftover():
                self.host.stop(action.sid, ended)
            case lrm.Migrate():
                self.on_migrate(self.host.name, action.sid, action.target, ended)

    # The manager

    def view(self) -> View:
        name = self.host.name
        replica, reading = self.store.replicas[name], self.reading()
        return View(
            is_leader=self.store.is_leader(name),
            is_quorate=replica.is_quorate,
            self_node=NodeName(name),
            nodes=self._nodes(reading),
            resources=reading.resources,
            configs=reading.configs,
            status=reading.status,
            status_version=reading.versions.get(MANAGER_STATUS, 0),
            commands=reading.commands,
            rules=reading.rules,
            options=reading.options,
            history=self.history,
        )

    def _nodes(self, reading: Reading) -> dict[NodeName, Node]:
        replica, now = self.store.replicas[self.host.name], self.host.clock()
        nodes: dict[NodeName, Node] = {}
        for other in self.names:
            held = replica.state.leases.get(other)
            lease = None
            if held is not None:
                age_s = now - replica.renewed_at.get(other, now)
                terms = self.own_terms or (reading.profile.terms if self.goes_by_settings else held.terms)
                lease = Lease(held.incarnation, held.renewal, held.is_fenced, age_s, terms, held.is_resting)
            known = NodeName(other)
            nodes[known] = Node(known, NodeUid(other), lease, reading.lrm[other], self.sizes.get(other, NOTHING))
        return nodes

    def _manage(self) -> None:
        view = self.outage.excuse(self.view(), self.host.clock())
        revision, now = self.reading().revision, self.epoch + self.host.timeline.now
        if self.quiet.is_same(view, revision, now):
            return
        decision = decide(view, now)
        if decision.status is None:
            self.history = decision.history
            if decision.actions:
                self._perform(decision.actions)
            else:
                self.quiet.keep(view, revision, now)
            return
        self.is_managing = True
        self.host.watcher.deciding(decision.status, view)
        self.foreseen = decision.status if self.shows_uncommitted else None
        command = Write(MANAGER_STATUS, decision.status, view.status_version)
        self._propose(command, partial(self._decided, decision))

    def _decided(self, decision: Decision, answer: Answer) -> None:
        self.is_managing, self.foreseen = False, None
        if isinstance(answer, StoreDone):
            self.history = decision.history
            for line in decision.journal:
                self.host.watcher.tell(f"manager on {self.host.name}: {line}")
            self._perform(decision.actions)

    def _perform(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            self.is_managing = True
            if isinstance(action, MoveConfig) and action.unlock:
                # As the real one: the lock first, then the move of the file as it is then.
                unlock = Write(action.path, "", action.expected_version, self.host.name)
                self._propose(unlock, partial(self._unlocked, action))
                continue
            if (command := self._command(action)) is None:
                self.is_managing = False
                continue
            self._propose(command, partial(self._performed, action))

    def _unlocked(self, action: MoveConfig, answer: Answer) -> None:
        self.is_managing = False
        if isinstance(answer, StoreDone):
            self._perform((replace(action, expected_version=answer.number, unlock=""),))

    def _command(self, action: Action) -> Command | None:
        match action:
            case FenceLease():
                return Fence(action.uid, action.incarnation, action.renewal, by=self.host.name)
            case MoveConfig():
                return Move(action.path, action.new_path, action.expected_version, self.host.name)
            case ForgetCommand():
                return Remove(action.path, action.expected_version)
            case RequestStopped():
                reading = self.reading()
                held = reading.resources
                if held is None or action.sid not in held or not held[action.sid].wants_running:
                    return None
                stopped = replace(held[action.sid], request=Request.stopped)
                return Write(RESOURCES_CFG, {**held, action.sid: stopped}, reading.versions[RESOURCES_CFG])

    def _performed(self, action: Action, answer: Answer) -> None:
        self.is_managing = False
        if isinstance(answer, Done):
            match action:
                case FenceLease():
                    line = f"fenced {action.node} ({action.cause})"
                case MoveConfig():
                    line = f"{action.path} => {action.new_path}"
                case ForgetCommand():
                    line = f"forgets command {action.id}"
                case RequestStopped():
                    line = f"resources.cfg says stopped for {action.sid}"
            self.host.watcher.tell(f"manager on {self.host.name}: {line}")

    def profile(self) -> Profile:
        return self.reading().profile
