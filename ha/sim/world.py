"""One simulated cluster from one seed: first everything breaks, then everything heals and must come to rest.

What happens is a plan made from the seed (`plan`); faults and people are in `faults` and `operators`. This is the
ground they stand on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from random import Random
from typing import cast

from ha import lrm
from ha.leases import DEFAULT, Profile, Terms
from ha.load import Demand, Use
from ha.resources import RESOURCES_CFG, Resource
from ha.rules import RULES_CFG, Affinity, NodeAffinity, ResourceAffinity, Rule, Rules, StartOrder
from ha.settings import SETTINGS_CFG
from ha.view import Startup, config_path, parse_config_path
from kvorum.ids import NodeName, Sid

from . import aftermath, operators
from .checks import Checks, Violation
from .daemon import Daemon
from .faults import AGENTS, FAULTS, STALLS
from .host import MIGRATE_LOCK, Faults, Host
from .migration import Migration
from .operators import OPERATORS
from .plan import Planned, mild_plan, plan
from .progress import Progress
from .reading import Readings
from .rest import unbounded, unsettled
from .store import PERSISTENCE_S, Command, Guards, Store, Write
from .timeline import Timeline

REST_S = 500.0
FORGET_S = 15.0
# Share of seeds in which no stall is longer than the profile tolerates, and nothing may be lost.
MILD = 0.06
GIB = float(1 << 30)
# Relative drift of two clocks stays within the profile's.
DRIFT = DEFAULT.drift / 2 * 0.99
# After so long a host goes down whatever still runs on it.
SHUTDOWN_LIMIT_S = 150.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault built in on purpose; the simulation must find each."""

    counts_from_reply: bool = False
    rejoins_uncleared: bool = False
    # A keeper that was told a shorter profile says so, and lives by the longer one until somebody has heard it.
    lives_by_the_longer: bool = False
    # Managers go by the profile that is chosen now, not by what the leases say; or by terms of their own.
    goes_by_settings: bool = False
    terms: Terms | None = None
    # The agent starts and resumes without a look at the lease's incarnation.
    skips_generation: bool = False
    # A keeper feeds its watchdog on when there is nothing to guard.
    keeps_watchdog: bool = False
    # A daemon goes by what its manager has decided, committed or not.
    shows_uncommitted: bool = False
    # What the log does not refuse.
    guards: Guards = field(default_factory=Guards)


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    violation: str
    story: tuple[str, ...]
    # How often what happened.
    counts: dict[str, int]
    # Of virtual time: how long the cluster took to come to rest; and all of it.
    rest_s: float
    virtual_s: float
    events: tuple[Planned, ...] = ()

    @property
    def starts(self) -> int:
        return self.counts.get("guests: started", 0)

    @property
    def fences(self) -> int:
        return sum(count for what, count in self.counts.items() if what.startswith("nodes: fenced"))


@dataclass(eq=False)
class World:
    seed: int
    mutation: Mutation = Mutation()
    random: Random = field(init=False)
    rules: Rules = field(init=False)
    timeline: Timeline = field(default_factory=Timeline)
    checks: Checks = field(init=False)
    hosts: dict[str, Host] = field(default_factory=dict)
    daemons: dict[str, Daemon] = field(default_factory=dict)
    cuts: set[frozenset[str]] = field(default_factory=set)
    sizes: dict[str, Use] = field(default_factory=dict)
    is_healing: bool = False
    # None: the plan of the seed.
    events: tuple[Planned, ...] | None = None
    commands: int = 0
    # The next guest that arrives by a live migration has its file moved by somebody within so long.
    snatch_s: float = 0.0
    # The node that stays dead after everything has healed.
    away: str = ""

    # What it goes through after it has come to rest; empty: one by chance.
    trial: str = ""
    # Seconds since the epoch as the hosts' wall clocks have it at the beginning.
    epoch: float = 1e9

    def __post_init__(self) -> None:
        self.random = Random(self.seed)  # noqa: S311 (it has to be repeatable)
        self.checks = Checks(self.timeline)
        names = tuple(f"n{number + 1}" for number in range(self.random.choice((3, 3, 4, 5))))
        faults = self._faults()
        for name in names:
            self.hosts[name] = self._host(name, faults)
        self.store = Store(
            self.timeline,
            self.random,
            names,
            can_talk=self.can_talk,
            clock=lambda name: self.hosts[name].clock(),
            guards=self.mutation.guards,
        )
        self.store.on_commit = self.checks.committed
        self.store.loss = self.random.choice((0, 0, 0.03, 0.15))
        self.store.slowness = self.random.choice((0, 0, 0.05))
        self.checks.hosts, self.checks.store = self.hosts, self.store
        self.checks.on_arrival = self._arrived
        self.checks.progress = Progress(self.checks, self.store, self.undisturbed_manager)
        readings = self.readings = Readings(names)
        for name, host in self.hosts.items():
            host.store = self.store
            self.daemons[name] = Daemon(
                host,
                self.store,
                names,
                self.mutation.terms,
                self.mutation.goes_by_settings,
                self.mutation.shows_uncommitted,
                readings=readings,
                sizes=self.sizes,
                epoch=self.epoch,
            )
            self.daemons[name].on_migrate = self._migrate
            host.on_power = partial(self.power_on, name)
            host.on_boot, host.on_off = partial(self._boot, name), partial(self._off, name)
            host.start_keeper()
            self.daemons[name].start()
        self.sids = [
            Sid(f"{'vm' if number % 2 else 'ct'}:{100 + number}") for number in range(self.random.randint(2, 5))
        ]
        self.rules = Rules((*self._rules().rules, *self._orders()))
        readings.startups.update(self._startups())
        self._choose_sizes()
        self.checks.watch()
        mildness = Random(f"mild {self.seed}")  # noqa: S311
        if self.events is None:
            is_mild = mildness.random() < MILD
            self.events = mild_plan(mildness) if is_mild else plan(Random(f"plan {self.seed}"))  # noqa: S311
        if {event.kind for event in self.events} and {event.kind for event in self.events} <= set(STALLS):
            self.checks.is_mild = self.store.forgets_nothing = True
            self.store.loss = self.store.slowness = 0.0
            for host in self.hosts.values():
                host.faults = replace(host.faults, reply_s=0.01)

    def _faults(self) -> Faults:
        return Faults(
            start_fails=self.random.choice((0, 0, 0.1)),
            kill_hangs=self.random.choice((0, 0.2, 0.6)),
            migration_fails=self.random.choice((0, 0, 0.05)),
            reply_s=self.random.choice((0.01, 0.01, 0.6)),
            counts_from_reply=self.mutation.counts_from_reply,
            rejoins_uncleared=self.mutation.rejoins_uncleared,
            lives_by_the_longer=self.mutation.lives_by_the_longer,
            skips_generation=self.mutation.skips_generation,
            keeps_watchdog=self.mutation.keeps_watchdog,
        )

    def _choose_sizes(self) -> None:
        """Of nodes and guests. In some seeds there is room for everybody; in others hardly, and never for all on one node."""
        is_tight = self.random.random() < 0.5
        most = {sid: self.random.choice((1, 1, 2, 3)) * GIB for sid in self.sids}
        # Two nodes that are left bear all guests, if they are spread well.
        needed = max(*most.values(), 0.5 * sum(most.values()))
        for name in self.hosts:
            bytes_ = needed * self.random.uniform(1.05, 1.4) if is_tight else 64 * GIB
            self.sizes[name] = Use(self.random.choice((4.0, 8.0)), bytes_)
        self.readings.demands = {sid: Demand(Use(1.0, bytes_)) for sid, bytes_ in most.items()}
        self.checks.demands = {str(sid): bytes_ for sid, bytes_ in most.items()}
        self.checks.capacities = {name: size.memory_bytes for name, size in self.sizes.items()}

    def _rules(self) -> Rules:
        """None, or one or two that can be kept as long as all but one node are there."""
        names, sids = sorted(self.hosts), frozenset(self.sids[:2])
        allowed = dict.fromkeys(map(NodeName, self.random.sample(names, len(names) - 1)), 0)
        first = NodeName(self.random.choice(names))
        every: list[Rule] = [
            ResourceAffinity("apart", sids, Affinity.negative),
            ResourceAffinity("together", sids, Affinity.positive),
            ResourceAffinity("rather-apart", sids, Affinity.negative, is_strict=False),
            NodeAffinity("only-there", frozenset(self.sids[-1:]), allowed, is_strict=True),
            NodeAffinity("rather-there", frozenset(self.sids[-1:]), {first: 1}),
        ]
        if self.random.random() < 0.5:
            return Rules()
        chosen = self.random.sample(every, self.random.randint(1, 2))
        if {"apart", "together"} <= {rule.id for rule in chosen}:
            chosen = chosen[:1]
        return Rules(tuple(chosen))

    def _orders(self) -> tuple[StartOrder, ...]:
        """None, one, or a chain of two; from a source of their own, so that all else of a seed is as it was without them."""
        random = Random(f"orders {self.seed}")  # noqa: S311
        if random.random() < 0.5:
            return ()
        links = list(pairwise(random.sample(self.sids, len(self.sids))))[: random.randint(1, 2)]
        found = []
        for number, (first, then) in enumerate(links):
            is_strict = random.random() < 0.5
            deadline_s = None if is_strict else random.choice((None, 20, 60))
            pair = frozenset({then}), frozenset({first})
            found.append(StartOrder(f"order-{number}", *pair, random.choice((0, 0, 5)), deadline_s, is_strict))
        return tuple(found)

    def _startups(self) -> Mapping[Sid, Startup]:
        """Of half of the seeds: what the guests' files say about their place among those that start together."""
        random = Random(f"startups {self.seed}")  # noqa: S311
        if random.random() < 0.5:
            return {}
        return {sid: Startup(random.choice((None, 1, 2)), random.choice((0, 0, 3, 30))) for sid in self.sids}

    def _host(self, name: str, faults: Faults) -> Host:
        host = Host(
            name,
            self.timeline,
            self.random,
            self.checks,
            has_watchdog=self.random.random() < 0.5,
            faults=faults,
            offset=self.random.uniform(0, 1e5),
            rate=1 + self.random.uniform(-DRIFT, DRIFT),
        )
        # Faults that are built in are looked for without: their seeds need coincidences that were found so.
        if self.mutation == Mutation():
            host.hints = Random(host.offset)  # noqa: S311
        return host

    def can_talk(self, one: str, other: str) -> bool:
        first, second = self.hosts[one], self.hosts[other]
        if not (first.is_up and second.is_up) or first.is_frozen or second.is_frozen:
            return False
        return not self.cuts or frozenset((one, other)) not in self.cuts

    def run(self) -> Outcome:
        violation = ""
        healed_at = rest_s = 0.0
        assert self.events is not None
        try:
            self._found()
            self._break(self.events)
            away = self._heal()
            healed_at = self.timeline.now
            self._rest(away)
            rest_s = self.timeline.now - healed_at
            self._forget()
            aftermath.run(self)
        except Violation as error:
            violation = str(error)
        return Outcome(
            self.seed,
            violation,
            tuple(self.checks.story),
            dict(self.checks.counts),
            rest_s,
            self.timeline.now,
            self.events,
        )

    def _found(self) -> None:
        self.timeline.run_until(3.0)
        operators.choose_profile(self, self.random)
        if self.rules.rules:
            self.checks.tell(f"rules: {', '.join(rule.id for rule in self.rules)}")
            while RULES_CFG not in self.store.truth.files:
                self.put(RULES_CFG, self.rules)
                self.timeline.run_until(self.timeline.now + 1.0)
            self.checks.rules = self.rules
        for sid in self.sids:
            place = self.random.choice(sorted(self.hosts))
            self.propose(Write(config_path(sid, place), "", 0))
            if self.random.random() < 0.3:
                # Not HA's yet, and running.
                self.hosts[place].start(sid, None, lambda _cause: None)
        self.timeline.run_until(self.timeline.now + 3.0)
        self.edit(lambda held: held | {sid: Resource(sid) for sid in self.sids if self.random.random() < 0.6})
        self.timeline.run_until(self.timeline.now + 2.0 + self.random.uniform(0, 8))

    def _break(self, events: tuple[Planned, ...]) -> None:
        every = {**FAULTS, **AGENTS, **STALLS, **OPERATORS}
        began = self.timeline.now
        for event in events:
            self.timeline.run_until(began + event.at_s)
            self.checks.count(f"events: {event.kind.removesuffix('-again')}")
            every[event.kind](self, Random(event.seed))  # noqa: S311

    def _heal(self) -> str:
        """Returns the name of a node that stays dead, or nothing."""
        self.checks.tell("everything heals")
        self.is_healing, self.checks.is_mild = True, False
        self.cuts.clear()
        self.store.loss = self.store.slowness = 0.0
        away = self.away = self.checks.away = (
            self.random.choice(sorted(self.hosts)) if self.random.random() < 0.3 else ""
        )
        for name, host in self.hosts.items():
            host.bad_starts.clear()
            host.faults = replace(host.faults, start_fails=0.0, kill_hangs=0.0, migration_fails=0.0, reply_s=0.01)
            host.thaw()
            host.release_hung()
            if name == away:
                host.power_off("for good")
            else:
                host.power_on()
                host.start_keeper()
                self.daemons[name].start()
            host.freeze_at_answer_s = host.freeze_at_start_s = 0.0
            host.freeze_at_fork_s = host.dies_young_s = 0.0
        # What operators said before may still be on its way.
        self.timeline.run_until(self.timeline.now + PERSISTENCE_S + 1.0)
        while not isinstance(self.content(RESOURCES_CFG), dict):
            self.edit(lambda held: held)
            self.timeline.run_until(self.timeline.now + 1.0)
        return away

    def _rest(self, away: str) -> None:
        end = self.timeline.now + REST_S
        self.timeline.run_until(self.timeline.now + 5.0)
        for name in sorted(self.checks.status.node_request):
            operators.say(self, f"disable-node-maintenance {name}")
        self.timeline.run_until(self.timeline.now + 3.0)
        self.free_the_locked()
        while left := unsettled(self.checks, away):
            if self.timeline.now > end:
                self.checks.fail(f"liveness: {'; '.join(left)}")
            self.free_the_locked()
            # Maintenance has no end of its own, as a disarm has. Said again when it was lost on its way.
            for name in sorted(self.checks.status.node_request):
                operators.say(self, f"disable-node-maintenance {name}")
            self.timeline.run_until(self.timeline.now + 3.0)

    def _forget(self) -> None:
        """What is over is forgotten within a few rounds."""
        end = self.timeline.now + FORGET_S
        while grown := unbounded(self.checks):
            if self.timeline.now > end:
                self.checks.fail(f"L10: {'; '.join(grown)}")
            self.timeline.run_until(self.timeline.now + 0.5)

    def free_the_locked(self) -> None:
        """People take off the locks of tasks that ended with their hosts."""
        for sid in self.sids:
            path = config_path(sid, self.place(sid)) if self.place(sid) else ""
            if str(self.content(path) or "") not in ("", MIGRATE_LOCK):
                self.put(path, "")

    # What events stand on

    def power_on(self, name: str) -> None:
        """Also while everything heals: a host may only then have gone down that was told to before."""
        if name != self.away:
            self.hosts[name].power_on()

    def unless_healing(self, what: Callable[[], None]) -> None:
        if not self.is_healing:
            what()

    def cut_edges(self, edges: set[frozenset[str]], span_s: float) -> None:
        self.cuts |= edges
        self.checks.tell(f"cut for {span_s:.0f} s: {sorted('-'.join(sorted(cut)) for cut in edges)}")

        def join() -> None:
            self.cuts -= edges

        self.timeline.after(span_s, join)

    def profile(self) -> Profile:
        return cast(Profile, self.content(SETTINGS_CFG) or DEFAULT)

    def undisturbed_manager(self) -> tuple[str, int, int] | None:
        """Its name, and the lives of its host and its daemon."""
        name = self.store.leader
        if name is None or self.store.loss or self.store.slowness:
            return None
        host, daemon = self.hosts[name], self.daemons[name]
        is_well = host.is_up and not host.is_frozen and daemon.is_up
        if not is_well or not self.store.is_leader(name) or not self.store.has_majority(name):
            return None
        if daemon.outage.is_excusing(host.clock()):
            return None  # after a time without a majority it waits on purpose
        return name, host.boot, daemon.life

    def place(self, sid: str) -> str:
        for path in self.store.truth.files:
            if (found := parse_config_path(path)) and found[0] == sid:
                return found[1]
        return ""

    def resources(self) -> dict[Sid, Resource]:
        content = self.content(RESOURCES_CFG)
        return dict(content) if isinstance(content, dict) else {}

    def content(self, path: str) -> object:
        held = self.store.truth.files.get(path)
        return held.content if held is not None else None

    def edit(self, change: Callable[[dict[Sid, Resource]], dict[Sid, Resource]]) -> None:
        after = change(self.resources())
        self.checks.tell(f"resources: {[f'{sid} {resource.request}' for sid, resource in after.items()]}")
        self.put(RESOURCES_CFG, after)

    def mend(self, content: object) -> None:
        """resources.cfg as it was, if it still does not parse."""
        held = self.store.truth.files.get(RESOURCES_CFG)
        if held is not None and held.content is None:
            self.put(RESOURCES_CFG, content)

    def put(self, path: str, content: object) -> None:
        held = self.store.truth.files.get(path)
        self.propose(Write(path, content, held.version if held is not None else 0))

    def propose(self, command: Command) -> None:
        # People use whichever node they like; in the end one that is there.
        able = [name for name in sorted(self.hosts) if not self.is_healing or self.hosts[name].is_up]
        origin = self.random.choice(able)
        self.store.propose(origin, command, lambda _answer: None, deadline_s=5.0)

    def shut_down(self, name: str, *, is_reboot: bool, off_s: float) -> None:
        host, daemon = self.hosts[name], self.daemons[name]
        if not host.is_up or host.is_frozen or not daemon.is_up or daemon.shutdown is not None:
            return
        self.checks.tell(f"{name}: goes down for a {'reboot' if is_reboot else 'while'}")
        boot = host.boot

        def off(why: str) -> None:
            if host.boot == boot:
                host.power_off(why)
                self.timeline.after(off_s, lambda: None if name == self.away else host.power_on())

        daemon.shutdown = lrm.Shutdown(is_reboot, host.clock())
        daemon.on_rest = partial(host.after, 0.1, partial(off, "shut down"))
        self.timeline.after(SHUTDOWN_LIMIT_S, partial(off, "shut down, with guests on it"))

    def _migrate(self, source: str, sid: str, target: str, done: Callable[[str], None]) -> None:
        self.checks.tell(f"{source}: {sid} begins to move to {target}")
        Migration(
            self.timeline,
            self.random,
            sid,
            self.hosts[source],
            self.hosts[target],
            self.can_talk,
            done,
            fails=self.hosts[source].faults.migration_fails,
        ).begin()

    def _arrived(self, sid: str, name: str) -> None:
        """Live, and somebody may be after its file."""
        if self.snatch_s and not self.is_healing:
            other = self.random.choice([other for other in sorted(self.hosts) if other != name])
            self.timeline.after(self.random.uniform(0.0, self.snatch_s), partial(operators.carry, self, sid, other))
            self.snatch_s = 0.0

    # Hosts come and go

    def _boot(self, name: str) -> None:
        self.hosts[name].after(self.random.uniform(0.1, 2.0), self.daemons[name].start)

    def _off(self, name: str) -> None:
        self.daemons[name].is_up = False


def simulate(
    seed: int,
    mutation: Mutation = Mutation(),
    events: tuple[Planned, ...] | None = None,
    *,
    trial: str = "",
    epoch: float = 1e9,
) -> Outcome:
    return World(seed, mutation, events=events, trial=trial, epoch=epoch).run()
