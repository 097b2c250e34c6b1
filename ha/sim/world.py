"""One simulated cluster from one seed: first everything breaks, then everything heals and must come to rest.

Each seed takes some of the faults and leaves others out, so that rare combinations are not drowned by common ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from ha.leases import DEFAULT, FAST, NORMAL, PATIENT, Terms
from ha.resources import RESOURCES_CFG, Request, Resource
from ha.settings import SETTINGS_CFG
from ha.view import config_path, parse_config_path
from kvorum.ids import Sid

from .checks import Checks, Violation
from .daemon import Daemon
from .host import Faults, Host
from .store import PERSISTENCE_S, Command, Move, Store, Write
from .timeline import Timeline

REST_S = 500.0
# Relative drift of two clocks stays within the profile's.
DRIFT = DEFAULT.drift / 2 * 0.99


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault built in on purpose; the simulation must find each."""

    counts_from_reply: bool = False
    rejoins_uncleared: bool = False
    unguarded_fence: bool = False
    # A keeper that was told a shorter profile says so, and lives by the longer one until somebody has heard it.
    lives_by_the_longer: bool = False
    # Managers go by the profile that is chosen now, not by what the leases say; or by terms of their own.
    goes_by_settings: bool = False
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    violation: str
    story: tuple[str, ...]
    starts: int
    fences: int
    # Of virtual time; how long the cluster took to come to rest.
    rest_s: float


@dataclass(eq=False)
class World:
    seed: int
    mutation: Mutation = Mutation()
    random: Random = field(init=False)
    timeline: Timeline = field(default_factory=Timeline)
    checks: Checks = field(init=False)
    hosts: dict[str, Host] = field(default_factory=dict)
    daemons: dict[str, Daemon] = field(default_factory=dict)
    cuts: set[frozenset[str]] = field(default_factory=set)
    is_healing: bool = False

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
            is_fence_guarded=not self.mutation.unguarded_fence,
        )
        self.store.on_commit = self.checks.committed
        self.store.loss = self.random.choice((0, 0, 0.03, 0.15))
        self.store.slowness = self.random.choice((0, 0, 0.05))
        self.checks.hosts, self.checks.store = self.hosts, self.store
        for name, host in self.hosts.items():
            host.store = self.store
            self.daemons[name] = Daemon(host, self.store, names, self.mutation.terms, self.mutation.goes_by_settings)
            host.on_boot, host.on_off = partial(self._boot, name), partial(self._off, name)
            host.start_keeper()
            self.daemons[name].start()
        self.sids = [
            Sid(f"{'vm' if number % 2 else 'ct'}:{100 + number}") for number in range(self.random.randint(2, 5))
        ]

    def _faults(self) -> Faults:
        return Faults(
            start_fails=self.random.choice((0, 0, 0.1)),
            kill_hangs=self.random.choice((0, 0.2, 0.6)),
            reply_s=self.random.choice((0.01, 0.01, 0.6)),
            counts_from_reply=self.mutation.counts_from_reply,
            rejoins_uncleared=self.mutation.rejoins_uncleared,
            lives_by_the_longer=self.mutation.lives_by_the_longer,
        )

    def _host(self, name: str, faults: Faults) -> Host:
        return Host(
            name,
            self.timeline,
            self.random,
            self.checks,
            has_watchdog=self.random.random() < 0.5,
            faults=faults,
            offset=self.random.uniform(0, 1e5),
            rate=1 + self.random.uniform(-DRIFT, DRIFT),
        )

    def can_talk(self, one: str, other: str) -> bool:
        first, second = self.hosts[one], self.hosts[other]
        if not (first.is_up and second.is_up) or first.is_frozen or second.is_frozen:
            return False
        return not self.cuts or frozenset((one, other)) not in self.cuts

    def run(self) -> Outcome:
        violation = ""
        healed_at = 0.0
        try:
            self._found()
            self._break(self.random.uniform(40, 100))
            away = self._heal()
            healed_at = self.timeline.now
            self._rest(away)
        except Violation as error:
            violation = str(error)
        return Outcome(
            self.seed,
            violation,
            tuple(self.checks.story),
            self.checks.starts,
            self.checks.fences,
            self.timeline.now - healed_at,
        )

    def _found(self) -> None:
        self.timeline.run_until(3.0)
        self._choose_profile()
        for sid in self.sids:
            place = self.random.choice(sorted(self.hosts))
            self._propose(Write(config_path(sid, place), "", 0))
            if self.random.random() < 0.3:
                # Not HA's yet, and running.
                self.hosts[place].start(sid, None, lambda _cause: None)
        self.timeline.run_until(6.0)
        self._edit(lambda held: held | {sid: Resource(sid) for sid in self.sids if self.random.random() < 0.6})
        self.timeline.run_until(8.0 + self.random.uniform(0, 8))

    def _break(self, span_s: float) -> None:
        every: list[Callable[[], None]] = [
            self._cut, self._cut, self._join, self._power, self._power, self._freeze, self._freeze, self._freeze_at_answer,
            self._kill_keeper, self._restart_daemon, self._crash_guest, self._spoil, self._jump,
        ]  # fmt: skip
        operators = [
            self._add,
            self._add_and_cut,
            self._add_and_cut,
            self._remove,
            self._toggle,
            self._move_by_hand,
            self._garble,
            self._choose_profile,
        ]
        faults = [fault for fault in every if self.random.random() < 0.7] + operators
        pace = self.random.choice((2.0, 5.0, 10.0))
        end = self.timeline.now + span_s
        while self.timeline.now < end:
            self.random.choice(faults)()
            self.timeline.run_until(self.timeline.now + self.random.expovariate(1 / pace))

    def _heal(self) -> str:
        """Returns the name of a node that stays dead, or nothing."""
        self.checks.tell("everything heals")
        self.is_healing = True
        self.cuts.clear()
        self.store.loss = self.store.slowness = 0.0
        away = self.random.choice(sorted(self.hosts)) if self.random.random() < 0.3 else ""
        for name, host in self.hosts.items():
            host.bad_starts.clear()
            host.faults = Faults(
                counts_from_reply=self.mutation.counts_from_reply,
                rejoins_uncleared=self.mutation.rejoins_uncleared,
                lives_by_the_longer=self.mutation.lives_by_the_longer,
            )
            host.thaw()
            if name == away:
                host.power_off("for good")
            else:
                host.power_on()
                host.start_keeper()
                self.daemons[name].start()
            host.freeze_at_answer_s = 0.0
        # What operators said before may still be on its way.
        self.timeline.run_until(self.timeline.now + PERSISTENCE_S + 1.0)
        while not isinstance(self._content(RESOURCES_CFG), dict):
            self._edit(lambda held: held)
            self.timeline.run_until(self.timeline.now + 1.0)
        return away

    def _rest(self, away: str) -> None:
        end = self.timeline.now + REST_S
        self.timeline.run_until(self.timeline.now + 5.0)
        while left := self.checks.unsettled(away):
            if self.timeline.now > end:
                self.checks.fail(f"liveness: {'; '.join(left)}")
            self.timeline.run_until(self.timeline.now + 2.0)

    # What breaks

    def _host_by_chance(self) -> Host:
        return self.hosts[self.random.choice(sorted(self.hosts))]

    def _cut(self) -> None:
        names = sorted(self.hosts)
        kind = self.random.random()
        if kind < 0.75:
            lonely = self.random.sample(names, self.random.randint(1, len(names) // 2))
            edges = {frozenset((one, other)) for one in lonely for other in names if other not in lonely}
        else:
            edges = {frozenset(self.random.sample(names, 2))}
        self._cut_edges(edges, self.random.choice((1.0, 4.0, 12.0, 20.0)))

    def _cut_edges(self, edges: set[frozenset[str]], span_s: float) -> None:
        self.cuts |= edges
        self.checks.tell(f"cut for {span_s:.0f} s: {sorted('-'.join(sorted(cut)) for cut in edges)}")

        def join() -> None:
            self.cuts -= edges

        self.timeline.after(span_s, join)

    def _join(self) -> None:
        if self.cuts:
            self.checks.tell("the network is whole")
            self.cuts.clear()

    def _power(self) -> None:
        host = self._host_by_chance()
        host.power_off("power cut")
        self.timeline.after(self.random.uniform(1, 25), partial(self._unless_healing, host.power_on))

    def _unless_healing(self, what: Callable[[], None]) -> None:
        if not self.is_healing:
            what()

    def _freeze(self) -> None:
        host = self._host_by_chance()
        host.freeze()
        self.timeline.after(self.random.choice((0.5, 2, 4, 8, 11, 15, 20)) * self.random.uniform(0.8, 1.2), host.thaw)

    def _freeze_at_answer(self) -> None:
        self._host_by_chance().freeze_at_answer_s = self.random.uniform(4, 25)

    def _kill_keeper(self) -> None:
        host = self._host_by_chance()
        if host.keeper is not None and not host.is_frozen:
            host.kill_keeper()
            # Without a device nothing replaces a keeper that stays dead: a gap that the docs name.
            host.after(self.random.uniform(0.1, 8.0 if host.has_watchdog else 2.0), host.start_keeper)

    def _restart_daemon(self) -> None:
        daemon = self.daemons[self.random.choice(sorted(self.daemons))]
        self.checks.tell(f"{daemon.host.name}: kvorum-ha restarts")
        daemon.stop()
        daemon.host.after(self.random.uniform(0.1, 6.0), daemon.start)

    def _crash_guest(self) -> None:
        self._host_by_chance().crash_guest(self.random.choice(self.sids))

    def _spoil(self) -> None:
        host, sid = self._host_by_chance(), self.random.choice(self.sids)
        self.checks.tell(f"{host.name}: {sid} will not start here")
        host.bad_starts ^= {sid}

    def _jump(self) -> None:
        self.daemons[self.random.choice(sorted(self.daemons))].epoch += self.random.choice((-1e6, -100, 100, 1e6))

    # Operators

    def _add(self) -> None:
        sid = self.random.choice(self.sids)
        self._edit(lambda held: held if sid in held else held | {sid: Resource(sid)})

    def _add_and_cut(self) -> None:
        """A guest that runs already comes under HA just as its node goes silent."""
        sid = self.random.choice(self.sids)
        place = self._place(sid)
        if not place or sid in self._resources():
            return
        if not any(sid in host.processes for host in self.hosts.values()):
            self.hosts[place].start(sid, None, lambda _cause: None)
            self.timeline.run_until(self.timeline.now + 2.0)
        self._edit(lambda held: held if sid in held else held | {sid: Resource(sid)})
        self.timeline.run_until(self.timeline.now + self.random.uniform(0.0, 0.6))
        edges = {frozenset((place, other)) for other in self.hosts if other != place}
        self._cut_edges(edges, self.random.uniform(5, 25))

    def _remove(self) -> None:
        sid = self.random.choice(self.sids)
        self._edit(lambda held: {key: value for key, value in held.items() if key != sid})

    def _toggle(self) -> None:
        sid = self.random.choice(self.sids)

        def toggled(held: dict[Sid, Resource]) -> dict[Sid, Resource]:
            if sid not in held:
                return held
            wanted = Request.stopped if held[sid].request is Request.started else Request.started
            return held | {sid: Resource(sid, wanted)}

        self._edit(toggled)

    def _move_by_hand(self) -> None:
        """Somebody moves the file of a guest that HA looks after, wherever it runs."""
        sid, new = self.random.choice(self.sids), self._host_by_chance().name
        place = self._place(sid)
        if not place or place == new or sid not in self.checks.services():
            return
        path = config_path(sid, place)
        self.checks.tell(f"somebody moves the file of {sid} from {place} to {new}")
        self._propose(Move(path, config_path(sid, new), self.store.truth.files[path].version))

    def _garble(self) -> None:
        """resources.cfg does not parse for a while."""
        held = self.store.truth.files.get(RESOURCES_CFG)
        if held is None or held.content is None:
            return
        self.checks.tell("resources.cfg is garbled")
        before = held.content
        self._propose(Write(RESOURCES_CFG, None, held.version))
        self.timeline.run_until(self.timeline.now + self.random.uniform(0.5, 4))
        self._write_resources(before)

    def _choose_profile(self) -> None:
        profile = self.random.choice((FAST, FAST, FAST, NORMAL, NORMAL, PATIENT))
        self.checks.tell(f"the profile is {profile.name}")
        held = self.store.truth.files.get(SETTINGS_CFG)
        self._propose(Write(SETTINGS_CFG, profile, held.version if held is not None else 0))

    def _place(self, sid: str) -> str:
        for path in self.store.truth.files:
            if (found := parse_config_path(path)) and found[0] == sid:
                return found[1]
        return ""

    def _resources(self) -> dict[Sid, Resource]:
        content = self._content(RESOURCES_CFG)
        return dict(content) if isinstance(content, dict) else {}

    def _content(self, path: str) -> object:
        held = self.store.truth.files.get(path)
        return held.content if held is not None else None

    def _edit(self, change: Callable[[dict[Sid, Resource]], dict[Sid, Resource]]) -> None:
        before = self._resources()
        after = change(dict(before))
        self.checks.tell(f"resources: {[f'{sid} {resource.request}' for sid, resource in after.items()]}")
        self._write_resources(after)

    def _write_resources(self, content: object) -> None:
        held = self.store.truth.files.get(RESOURCES_CFG)
        self._propose(Write(RESOURCES_CFG, content, held.version if held is not None else 0))

    def _propose(self, command: Command) -> None:
        origin = self._host_by_chance().name
        self.store.propose(origin, command, lambda _answer: None, deadline_s=5.0)

    # Hosts come and go

    def _boot(self, name: str) -> None:
        self.hosts[name].after(self.random.uniform(0.1, 2.0), self.daemons[name].start)

    def _off(self, name: str) -> None:
        self.daemons[name].is_up = False


def simulate(seed: int, mutation: Mutation = Mutation()) -> Outcome:
    return World(seed, mutation).run()
