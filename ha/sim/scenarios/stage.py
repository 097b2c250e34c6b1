"""A cluster that does what a script says, second by second; keepers, daemons, store and migrations are the simulation's own.

Two things are simpler than in the seeds: no message is lost, and clocks run alike. Two are more: guests that fail by design, and
nodes and guests with sizes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from ha import lrm
from ha.leases import DEFAULT
from ha.load import Use, total
from ha.manager import MoveConfig
from ha.options import DATACENTER_CFG
from ha.resources import RESOURCES_CFG, Request, Resource, parse_request
from ha.rules import RULES_CFG, Rules, compile_rules
from ha.sim.checks import Violation
from ha.sim.daemon import Daemon
from ha.sim.host import Host, Process
from ha.sim.migration import Migration
from ha.sim.reading import Readings
from ha.sim.store import Answer, Command, Done, Entry, Lease, Move, Store, Write
from ha.sim.timeline import Timeline
from ha.status import MANAGER_STATUS, LrmStatus, ManagerStatus, NodeState, Service, State, lrm_status_path
from ha.view import View, command_path, config_path, parse_config_path
from kvorum.ids import NodeName, Sid

from .recorder import Event, Recorder
from .script import Command as Spoken
from .script import Failings, Script

REBOOT_S = 15.0
DAEMON_BREAK_S = 2.0
RETRY_S = 1.0
# Beyond the deadline that the daemon keeps by itself.
SHUTDOWN_SLACK_S = 120.0


@dataclass(eq=False)
class StagedHost(Host):
    """Starts and stops fail as the script says, and what ends is recorded."""

    stage: "Stage" = field(init=False)

    def power_off(self, why: str) -> None:
        was_up = self.is_up
        super().power_off(why)
        if was_up and not self.stage.is_commanding:
            self.stage.recorder.note("effect", cause=why, cmd={"op": "power", "node": self.name, "value": "off"})

    def power_on(self) -> None:
        was_up = self.is_up
        super().power_on()
        if not was_up and not self.stage.is_commanding:
            self.stage.recorder.note("effect", cause="reboot", cmd={"op": "power", "node": self.name, "value": "on"})

    def _reset(self, why: str) -> None:
        self.stage.recorder.note("watchdog-reset", node=self.name, why=why)
        super()._reset(why)

    def _let_run(self, sid: str, process: Process, incarnation: int | None, done: Callable[[str], None]) -> None:
        if self.stage.lets_start(sid, self.name):
            self.bad_starts.discard(sid)
        else:
            self.bad_starts.add(sid)
        super()._let_run(sid, process, incarnation, done)

    def start(self, sid: str, incarnation: int | None, done: Callable[[str], None]) -> None:
        if lock := self.stage.locks.get(sid):
            self.after(0.05, partial(done, f"it is locked ({lock})"))
            return
        super().start(sid, incarnation, done)

    def stop(self, sid: str, done: Callable[[str], None]) -> None:
        if self.stage.failings(sid).never_stops:
            self.after(DAEMON_BREAK_S, partial(done, "it does not stop"))
            return
        super().stop(sid, done)

    def _gone(self, sid: str, process: Process) -> None:
        if self.processes.get(sid) is process and not process.is_starting and not process.is_incoming:
            self.stage.recorder.guest_ended(self, sid, "keeper" if process.is_dying else "lrm")
        super()._gone(sid, process)


@dataclass(eq=False)
class StagedDaemon(Daemon):
    """Knows sizes, and the locks that people put on guests."""

    stage: "Stage" = field(init=False)

    def view(self) -> View:
        return self.stage.with_sizes(super().view())

    def _unlocked(self, action: MoveConfig, answer: Answer) -> None:
        if isinstance(answer, Done):
            self.stage.locks.pop(action.sid, None)
        super()._unlocked(action, answer)


class Stage:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.random = Random(script.name)  # noqa: S311 (it has to be repeatable)
        self.timeline = Timeline()
        self.recorder = Recorder(self.timeline, script=script)
        self.locks: dict[str, str] = {}
        self.demands = dict(script.demands)
        self.is_commanding = False
        self.cut_off: set[str] = {str(name) for name in script.nodes if name not in script.up}
        self._failed_starts: dict[str, int] = {}
        self._failed_moves: dict[str, int] = {}
        self._commands = 0
        names = tuple(script.nodes)
        self.hosts = {name: self._host(name) for name in names}
        self.store = Store(
            self.timeline,
            self.random,
            names,
            can_talk=self.can_talk,
            clock=lambda name: self.hosts[NodeName(name)].clock(),
        )
        self.readings = Readings(tuple(map(str, names)))
        self.daemons = {name: self._daemon(name, names) for name in names}
        self.recorder.hosts = {str(name): host for name, host in self.hosts.items()}
        self.recorder.store = self.store
        self.store.on_commit = self.recorder.committed
        self._set_the_scene()

    def play(self) -> list[Event]:
        for name in sorted(self.script.up):
            self.hosts[name].power_on()
        for cue in self.script.cues:
            self.timeline.after(cue.at_s, partial(self._perform, cue.command, cue.raw))
        try:
            self.timeline.run_until(self.script.end_s)
        except Violation as error:
            self.recorder.note("violation", why=str(error))
        return self.recorder.events

    # The scene

    def _host(self, name: NodeName) -> StagedHost:
        host = StagedHost(name, self.timeline, self.random, self.recorder, has_watchdog=True)
        host.stage = self
        host.is_up = False
        host.on_boot, host.on_off = partial(self._boot, name), partial(self._off, name)
        return host

    def _daemon(self, name: NodeName, names: tuple[NodeName, ...]) -> StagedDaemon:
        daemon = StagedDaemon(self.hosts[name], self.store, names, readings=self.readings)
        daemon.stage = self
        daemon.on_migrate = self._migrate
        self.hosts[name].store = self.store
        return daemon

    def _set_the_scene(self) -> None:
        """What the store held before the first second."""
        script = self.script
        compiled = compile_rules(script.rules, tuple(script.resources), tuple(script.nodes))
        for conflict in compiled.conflicts:
            # The format's word for a rule that is not in force. Here it is a wish from then on.
            self.recorder.note("rule-dropped", cmd=conflict.yields, why=str(conflict))
        yielding = {conflict.yields for conflict in compiled.conflicts}
        self.recorder.rules = Rules(tuple(rule for rule in script.rules if rule.id not in yielding and rule.is_enabled))
        for sid, node in script.places.items():
            self._seed(Write(config_path(sid, node), "", 0))
        self._seed(Write(RESOURCES_CFG, dict(script.resources), 0))
        self._seed(Write(RULES_CFG, script.rules, 0))
        self._seed(Write(DATACENTER_CFG, script.options, 0))
        if script.held:
            self._seed_status()

    def _seed_status(self) -> None:
        """Nodes of which an earlier manager wrote have lived once, and guarded everything; what is recovered was fenced."""
        fenced = {held.node for held in self.script.held.values() if held.state == State.recovery}
        guarded = tuple(sorted({*self.script.resources, *self.script.held}))
        for name in self.script.nodes:
            self._seed(Write(lrm_status_path(name), LrmStatus(incarnation=1, tracked=guarded), 0))
            for state in (self.store.truth, *(replica.state for replica in self.store.replicas.values())):
                state.leases[name] = Lease(1, DEFAULT.terms, is_fenced=name in fenced)
        services = {
            str(sid): Service(
                state=State(held.state),
                node=held.node,
                uid=f"earlier-{sid}",
                incarnation=1,
                target=held.target,
                cmd=(held.state, held.target) if held.target else (),
                cause="an earlier manager wrote so",
                # Long over: no pause of an earlier manager's is known.
                retry_at=1 if held.state == State.error else 0,
            )
            for sid, held in self.script.held.items()
        }
        states = {name: NodeState(state) for name, state in self.script.held_nodes.items()}
        status = ManagerStatus(node_status=states, service_status=services)
        self._seed(Write(MANAGER_STATUS, status, 0))
        self.recorder.seen = status
        self.recorder.assume(status)

    def _seed(self, command: Write) -> None:
        self.store.log.append(Entry(command, next(iter(self.script.nodes)), 0))
        for state in (self.store.truth, *(replica.state for replica in self.store.replicas.values())):
            state.apply(command)
        if command.path == RESOURCES_CFG:
            self.recorder.committed(command, Done(0))

    # What the hosts ask

    def can_talk(self, one: str, other: str) -> bool:
        first, second = self.hosts[NodeName(one)], self.hosts[NodeName(other)]
        if not (first.is_up and second.is_up):
            return False
        return one == other or not (self.cut_off & {one, other})

    def failings(self, sid: str) -> Failings:
        return self.script.failings.get(Sid(sid), Failings())

    def lets_start(self, sid: str, node: str) -> bool:
        failings = self.failings(sid)
        is_elsewhere = bool(failings.node) and failings.node != node
        if is_elsewhere or self._failed_starts.get(sid, 0) >= failings.starts:
            return True
        self._failed_starts[sid] = self._failed_starts.get(sid, 0) + 1
        self.recorder.note("start-failed", by=node, daemon="lrm", sid=sid)
        return False

    def with_sizes(self, view: View) -> View:
        running: dict[str, list[Use]] = {name: [] for name in view.nodes}
        for name, host in self.hosts.items():
            for sid in sorted(host.processes):
                demand = self.demands.get(Sid(sid))
                if demand is not None and demand.measured is not None and host.is_running(sid):
                    running[name].append(demand.measured)
        nodes = {
            name: replace(node, capacity=self.script.nodes[name], measured=total(running[name]))
            for name, node in view.nodes.items()
        }
        configs = {
            sid: replace(config, demand=self.demands.get(sid, config.demand), lock=self.locks.get(sid, ""))
            for sid, config in view.configs.items()
        }
        return replace(view, nodes=nodes, configs=configs)

    def _migrate(self, source: str, sid: str, target: str, done: Callable[[str], None]) -> None:
        self.recorder.note("move-begin", by=source, daemon="lrm", sid=sid, how="migrate", dst=target)
        fails = self._failed_moves.get(sid, 0) < self.failings(sid).moves
        if fails:
            self._failed_moves[sid] = self._failed_moves.get(sid, 0) + 1
        if sid in self.locks:
            done(f"it is locked ({self.locks[sid]})")
            return
        Migration(
            self.timeline,
            self.random,
            sid,
            self.hosts[NodeName(source)],
            self.hosts[NodeName(target)],
            self.can_talk,
            done,
            fails=1.0 if fails else 0.0,
        ).begin()

    def _boot(self, name: NodeName) -> None:
        self.store.restart(name)
        self.hosts[name].after(self.random.uniform(0.5, 1.5), self.daemons[name].start)

    def _off(self, name: NodeName) -> None:
        self.daemons[name].is_up = False

    # What the script says

    def _perform(self, command: Spoken, raw: str) -> None:
        told = {**command, "sid": self.script.told(command["sid"])} if "sid" in command else dict(command)
        self.recorder.note("input", cause="cmdlist", cmd=told, raw=raw)
        self.is_commanding = True
        _COMMANDS.get(command["op"], _pass)(self, command)
        self.is_commanding = False

    def say(self, text: str) -> None:
        self._commands += 1
        self.put(command_path(f"{self._commands:04}"), lambda _held: text)

    def edit(self, change: Callable[[Mapping[Sid, Resource]], Mapping[Sid, Resource]]) -> None:
        def changed(held: object) -> object:
            return dict(change(held if isinstance(held, dict) else {}))

        self.put(RESOURCES_CFG, changed)

    def put(self, path: str, change: Callable[[object], object]) -> None:
        """Again until it is done: people do not give up."""
        held = self.store.truth.files.get(path)
        content = change(held.content if held is not None else None)
        self.insist(Write(path, content, held.version if held is not None else 0), partial(self.put, path, change))

    def insist(self, command: Command, again: Callable[[], None]) -> None:
        able = [name for name in self.hosts if self.store.has_majority(name)]

        def answered(answer: Answer) -> None:
            if not isinstance(answer, Done):
                self.timeline.after(RETRY_S, again)

        if able:
            self.store.propose(able[0], command, answered, deadline_s=5.0)
        else:
            self.timeline.after(RETRY_S, again)

    def place(self, sid: str) -> str:
        for path in self.store.truth.files:
            if (found := parse_config_path(path)) and found[0] == sid:
                return found[1]
        return ""

    def go_down(self, name: NodeName, *, is_reboot: bool) -> None:
        host, daemon = self.hosts[name], self.daemons[name]
        if not host.is_up or daemon.shutdown is not None:
            return
        boot = host.boot

        def off() -> None:
            if host.boot == boot:
                host.power_off("reboot" if is_reboot else "shutdown")
                if is_reboot:
                    self.timeline.after(REBOOT_S, host.power_on)

        daemon.shutdown = lrm.Shutdown(is_reboot, host.clock())
        daemon.on_rest = partial(host.after, 0.1, off)
        self.timeline.after(self.script.options.shutdown_deadline_s + SHUTDOWN_SLACK_S, off)

    def carry_by_hand(self, sid: Sid, target: NodeName) -> None:
        """By somebody, past HA."""
        source = self.place(sid)
        held = self.store.truth.files.get(config_path(sid, source)) if source else None
        if held is None or source == target:
            return
        move = Move(config_path(sid, source), config_path(sid, target), held.version)
        process = self.hosts[NodeName(source)].processes.pop(sid, None)
        self.insist(move, partial(self.carry_by_hand, sid, target))
        if process is not None:
            self.hosts[target].processes[sid] = process
            self.recorder.note("start-ok", by=target, daemon="hand", sid=sid)


def _pass(_stage: Stage, _command: Spoken) -> None:
    """Waits, and what has no counterpart here: versions of nodes, rounds that are left out."""


def _power(stage: Stage, command: Spoken) -> None:
    name = NodeName(command["node"])
    if command["value"] == "on":
        stage.cut_off.discard(name)
        stage.hosts[name].power_on()
    else:
        stage.cut_off.add(name)
        stage.hosts[name].power_off("power cut")


def _network(stage: Stage, command: Spoken) -> None:
    (stage.cut_off.discard if command["value"] == "on" else stage.cut_off.add)(command["node"])


def _files(stage: Stage, command: Spoken) -> None:
    """The mount does not work for the daemon, while leases are renewed."""
    daemon = stage.daemons[NodeName(command["node"])]
    if command["value"] == "fail":
        daemon.stop()
    else:
        daemon.start()


def _restart_daemon(stage: Stage, command: Spoken) -> None:
    daemon = stage.daemons[NodeName(command["node"])]
    daemon.stop()
    daemon.host.after(DAEMON_BREAK_S, daemon.start)


def _go_down(stage: Stage, command: Spoken) -> None:
    stage.go_down(NodeName(command["node"]), is_reboot=command["op"] == "reboot")


def _request(stage: Stage, command: Spoken) -> None:
    sid, wanted = Sid(command["sid"]), parse_request(command["state"])
    stage.edit(lambda held: {**held, sid: replace(held[sid], request=wanted)} if sid in held else held)


def _add(stage: Stage, command: Spoken) -> None:
    sid, node = Sid(command["sid"]), NodeName(command["node"])
    if not stage.place(sid):
        stage.put(config_path(sid, node), lambda _held: "")
    if command.get("running"):
        stage.hosts[node].start(sid, None, lambda _cause: None)
    resource = Resource(sid, parse_request(command.get("state") or Request.started))
    stage.edit(lambda held: {**held, sid: resource})


def _delete(stage: Stage, command: Spoken) -> None:
    stage.edit(lambda held: {sid: resource for sid, resource in held.items() if sid != command["sid"]})


def _move(stage: Stage, command: Spoken) -> None:
    stage.say(f"{command['op'].removeprefix('service-')} {command['sid']} {command['target']}")


def _stop(stage: Stage, command: Spoken) -> None:
    stage.say(f"stop {command['sid']} {command['timeout']}")


def _lock(stage: Stage, command: Spoken) -> None:
    if command["op"] == "service-lock":
        stage.locks[command["sid"]] = command.get("lock") or "backup"
    else:
        stage.locks.pop(command["sid"], None)


def _size(stage: Stage, command: Spoken) -> None:
    sid, stats = Sid(command["sid"]), command["stats"]
    demand = stage.demands[sid]
    if command["op"] == "service-set-static-stats":
        most = Use(stats.get("maxcpu", demand.most.cores), stats.get("maxmem", demand.most.memory_bytes))
        stage.demands[sid] = replace(demand, most=most)
    elif demand.measured is not None:
        before = demand.measured
        after = Use(stats.get("cpu", before.cores), stats.get("mem", before.memory_bytes))
        stage.demands[sid] = replace(demand, measured=after)


def _verb(stage: Stage, command: Spoken) -> None:
    verb = command["op"].removeprefix("crm-")
    if verb.endswith("-maintenance"):
        stage.say(f"{verb} {command['node']}")
    elif verb == "disarm-ha":
        stage.say(f"disarm-ha {command['mode']}")
    elif verb == "arm-ha":
        stage.say("arm-ha")


_COMMANDS: Mapping[str, Callable[[Stage, Spoken], None]] = {
    "power": _power,
    "network": _network,
    "cfs": _files,
    "restart-lrm": _restart_daemon,
    "reboot": _go_down,
    "shutdown": _go_down,
    "service-request": _request,
    "service-add": _add,
    "service-delete": _delete,
    "service-migrate": _move,
    "service-relocate": _move,
    "service-stop": _stop,
    "service-lock": _lock,
    "service-unlock": _lock,
    "service-manual-migrate": lambda stage, command: stage.carry_by_hand(command["sid"], NodeName(command["target"])),
    "service-set-static-stats": _size,
    "service-set-dynamic-stats": _size,
    "crm-enable-node-maintenance": _verb,
    "crm-disable-node-maintenance": _verb,
    "crm-disarm-ha": _verb,
    "crm-arm-ha": _verb,
}
