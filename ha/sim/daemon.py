"""A model of kvorum-ha on one node: reads its replica into values, asks the cores, performs what comes back.

In rounds, at short random distances. One write of its status and one chain of the manager are under way at a time; each
is given up at a deadline, after which nobody knows whether it takes effect. A restart forgets everything but the store
and cancels the starts and stops that are under way in the agent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import cast

from ha import lrm
from ha.balance import History
from ha.leases import DEFAULT, Lease, Profile, Terms
from ha.manager import Action, FenceLease, ForgetCommand, MoveConfig, RequestStopped, decide
from ha.options import DATACENTER_CFG, Options
from ha.resources import RESOURCES_CFG, Request, Resource
from ha.rules import RULES_CFG, RuleCache, Rules
from ha.settings import SETTINGS_CFG
from ha.status import MANAGER_STATUS, LrmStatus, ManagerStatus, lrm_status_path
from ha.view import COMMANDS_DIR, Config, Node, View, parse_config_path
from ha.view import Command as OperatorCommand
from kvorum.ids import NodeName, NodeUid, Sid

from .host import Host
from .store import Answer, Command, Done, Fence, Move, Remove, Store, Write
from .store import Done as StoreDone

ROUND_S = (0.1, 0.5)
WRITE_S = 3.0

# A simulation asks for the same few paths over and over.
_parse_path = cache(parse_config_path)


@dataclass(eq=False)
class Daemon:
    host: Host
    store: Store
    names: tuple[str, ...]
    # Mutations: what the manager goes by, whatever the leases say.
    own_terms: Terms | None = None
    goes_by_settings: bool = False
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
    rules: RuleCache = field(default_factory=RuleCache)
    # Of balancing; gone with the process.
    history: History = field(default_factory=History)

    def start(self) -> None:
        if self.is_up or not self.host.is_up:
            return
        self.life += 1
        self.is_up = True
        self.is_writing = self.is_managing = False
        self.shutdown = None
        self.history = History()
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
        if not self.is_managing and self.store.replicas[self.host.name].believes_to_lead:
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

    def local_view(self) -> lrm.LocalView:
        host, files = self.host, self.store.replicas[self.host.name].state.files
        registered = host.guests_file[1]
        return lrm.LocalView(
            node=NodeName(host.name),
            lease=host.published,
            status=self._manager_status(),
            resources=self._resources() or {},
            configs=frozenset(found[0] for path in files if (found := _parse_path(path)) and found[1] == host.name),
            running=frozenset(sid for sid in host.processes if sid in registered),
            written=self._lrm_status(host.name),
            registered=registered,
            is_lease_wanted=host.guests_file[2],
            options=self._options(),
            shutdown=self.shutdown,
        )

    def _serve(self) -> None:
        view = self.local_view()
        self.memory, steps = lrm.step(self.memory, view, self.host.clock())
        wanted = (steps.register, steps.is_lease_wanted, self.profile())
        if wanted != (*self.host.guests_file[1:], self.host.profile_file):
            self.host.guests_file = (self.host.guests_file[0] + 1, *wanted[:2])
            self.host.profile_file = wanted[2]
        for action in steps.actions:
            self._act(action)
        if self.shutdown is not None and steps.is_at_rest:
            self.on_rest()
        if not self.is_writing and lrm.is_news(steps.status, view.written):
            self.is_writing = True
            path = lrm_status_path(self.host.name)
            self._propose(Write(path, steps.status, self._version(path)), partial(self._written))

    def _written(self, _answer: Answer) -> None:
        self.is_writing = False

    def _act(self, action: lrm.Action) -> None:
        life = self.life
        is_start = isinstance(action, lrm.Start | lrm.Migrate)

        def ended(cause: str) -> None:
            if self.is_up and self.life == life:
                done = lrm.Done(action.sid, action.uid, is_start, cause)
                self.memory = lrm.finish(self.memory, done, self.host.clock())

        match action:
            case lrm.Start():
                self.host.start(action.sid, action.incarnation, ended)
            case lrm.Stop() | lrm.KillLeftover():
                self.host.watcher.guest_touched(self.host, action.sid)
                self.host.stop(action.sid, ended)
            case lrm.Migrate():
                self.host.watcher.guest_touched(self.host, action.sid)
                self.on_migrate(self.host.name, action.sid, action.target, ended)

    # The manager

    def view(self) -> View:
        name = self.host.name
        replica = self.store.replicas[name]
        now = self.host.clock()
        nodes: dict[NodeName, Node] = {}
        for other in self.names:
            held = replica.state.leases.get(other)
            lease = None
            if held is not None:
                age_s = now - replica.renewed_at.get(other, now)
                terms = self.own_terms or (self.profile().terms if self.goes_by_settings else held.terms)
                lease = Lease(held.incarnation, held.renewal, held.is_fenced, age_s, terms, held.is_resting)
            nodes[NodeName(other)] = Node(NodeName(other), NodeUid(other), lease, self._lrm_status(other))
        configs = {}
        for path, file in replica.state.files.items():
            if found := _parse_path(path):
                configs[found[0]] = Config(found[1], file.version)
        resources = self._resources()
        status = self._manager_status()
        known = resources if resources is not None else [Sid(sid) for sid in status.service_status]
        rules = cast("Rules | None", self._content(RULES_CFG)) or Rules()
        return View(
            is_leader=self.store.is_leader(name),
            is_quorate=replica.is_quorate,
            self_node=NodeName(name),
            nodes=nodes,
            resources=resources,
            configs=configs,
            status=status,
            status_version=self._version(MANAGER_STATUS),
            commands=self._commands(),
            rules=self.rules.compile(rules, frozenset(known), frozenset(nodes)),
            options=self._options(),
            history=self.history,
        )

    def _manage(self) -> None:
        view = self.view()
        decision = decide(view, self.epoch + self.host.timeline.now)
        self.history = decision.history
        if decision.status is None:
            self._perform(decision.actions)
            return
        self.is_managing = True
        command = Write(MANAGER_STATUS, decision.status, view.status_version)
        self._propose(command, partial(self._decided, decision.actions, decision.journal))

    def _decided(self, actions: tuple[Action, ...], journal: tuple[str, ...], answer: Answer) -> None:
        self.is_managing = False
        if isinstance(answer, StoreDone):
            for line in journal:
                self.host.watcher.tell(f"manager on {self.host.name}: {line}")
            self._perform(actions)

    def _perform(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            self.is_managing = True
            if (command := self._command(action)) is None:
                self.is_managing = False
                continue
            self._propose(command, partial(self._performed, action))

    def _command(self, action: Action) -> Command | None:
        match action:
            case FenceLease():
                return Fence(action.uid, action.incarnation, action.renewal)
            case MoveConfig():
                return Move(action.path, action.new_path, action.expected_version)
            case ForgetCommand():
                return Remove(action.path, action.expected_version)
            case RequestStopped():
                held = self._resources()
                if held is None or action.sid not in held or not held[action.sid].wants_running:
                    return None
                stopped = replace(held[action.sid], request=Request.stopped)
                return Write(RESOURCES_CFG, held | {action.sid: stopped}, self._version(RESOURCES_CFG))

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

    # What its replica has

    def _content(self, path: str) -> object:
        file = self.store.replicas[self.host.name].state.files.get(path)
        return file.content if file is not None else None

    def _version(self, path: str) -> int:
        file = self.store.replicas[self.host.name].state.files.get(path)
        return file.version if file is not None else 0

    def _manager_status(self) -> ManagerStatus:
        return cast(ManagerStatus, self._content(MANAGER_STATUS) or ManagerStatus())

    def profile(self) -> Profile:
        return cast(Profile, self._content(SETTINGS_CFG) or DEFAULT)

    def _lrm_status(self, name: str) -> LrmStatus:
        return cast(LrmStatus, self._content(lrm_status_path(name)) or LrmStatus())

    def _options(self) -> Options:
        return cast(Options, self._content(DATACENTER_CFG) or Options())

    def _commands(self) -> tuple[OperatorCommand, ...]:
        files = self.store.replicas[self.host.name].state.files
        return tuple(
            OperatorCommand(path.rpartition("/")[2], file.version, str(file.content))
            for path, file in sorted(files.items())
            if path.startswith(f"{COMMANDS_DIR}/")
        )

    def _resources(self) -> dict[Sid, Resource] | None:
        """None while the file does not parse."""
        return cast("dict[Sid, Resource] | None", self._content(RESOURCES_CFG))
