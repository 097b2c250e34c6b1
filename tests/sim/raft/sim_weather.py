"""One seed, one cluster, one story: which faults this cluster lives through, and what must hold when they end.

Each seed draws the kinds of faults it has at all and how often they strike, so that a thousand seeds are a thousand different
climates and not one average (swarm testing). Everything after that follows from the seed as well.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from pysyncobj.node import Node
from raft_sim import QUICK, Sim, SimNode, Violation
from sim_checks import require
from sim_clients import StoreClients
from sim_epochs import recover, rejoin

from clusterfs.raft.membership import Change, Operation
from clusterfs.raft.values import Options

STEPS = 700
# So many of the seeds replicate the production state machine, the others texts, which is faster.
STORES = 1 / 3
# In so many of them one node or two go on alone.
RECOVERED = 0.15
# What the network does all the time, by its name there.
NETWORK = ("loss", "doubling", "straggling", "crash_chance")
# Nodes of the past live on for a while, meet the recovered one, and join it anew: so often a step.
REJOINS = 0.005
# Elections twice as often as a LAN would want them, so that more happens in as many steps.
HURRIED = replace(
    QUICK, election_timeout_min_s=0.3, election_timeout_max_s=0.6, heartbeat_s=0.06, leader_quorum_s=0.4,
    follower_quorum_s=0.6,
)  # fmt: skip


@dataclass
class Outcome:
    seed: int
    violation: str = ""
    steps: int = 0
    seconds: float = 0.0
    terms: int = 0
    crashes: int = 0
    acknowledged: int = 0
    denied: int = 0
    unknown: int = 0
    reads: int = 0
    changes: int = 0
    # One when the production state machine was replicated.
    stores: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)


class Weather:
    def __init__(
        self, sim: Sim, luck: random.Random, clients: StoreClients | None, without: frozenset[str] = frozenset()
    ) -> None:
        """`without`: faults that do not strike when their time comes, to find out which of them a failure needs."""
        self.sim, self.luck, self.clients, self.without = sim, luck, clients, without
        self.struck: dict[str, int] = {}
        self.wanted: Change | None = None
        self.writes, self.reads = luck.choice((0.05, 0.3, 0.6)), luck.choice((0, 0.02, 0.1, 0.4))
        self.restart = luck.choice((0.01, 0.03, 0.1))
        self.pace = luck.choice((60, 120, 250, 500))
        self.has_changes = luck.random() < 0.35
        self.recoveries = luck.sample(range(100, STEPS), luck.choice((1, 1, 2))) if luck.random() < RECOVERED else []
        every: tuple[tuple[str, Callable[[], None]], ...] = (
            ("split", self.split),
            ("pair cut", self.cut_pair),
            ("one-way cut", self.deafen),
            ("leader cut off", self.isolate_leader),
            ("crash", self.crash_any),
            ("leader crash", self.crash_leader),
            ("power loss of all", self.crash_all),
            ("freeze", self.freeze),
            ("leader freeze", self.freeze_leader),
            ("slow disk", self.slow_disk),
            ("stuttering disk", self.stuttering_disk),
            ("full disk", self.full_disk),
            ("hand-over", self.hand_over),
        )
        self.faults = [fault for fault in every if luck.random() < 0.5] or [every[4]]
        sim.segment_bytes = luck.choice((1024, 4096, 65536))
        sim.memory_bytes = luck.choice((0, 500, 2**20))
        sim.found(luck.choice((3, 3, 3, 3, 4, 5, 5, 5)))
        sim.loss = luck.choice((0, 0, 0.02, 0.2))
        sim.doubling = luck.choice((0, 0, 0.1))
        sim.straggling = luck.choice((0, 0, 0.01, 0.2))
        sim.crash_chance = luck.choice((0, 0, 0.0005, 0.003))
        sim.delay_s = luck.choice(((0.001, 0.005), (0.001, 0.005), (0.0, 0.06), (0.0, 0.2)))
        drift = luck.choice((0, 0, 0.01, 0.1))
        for node in sim.nodes.values():
            self.set_clock(node, drift)
        self.drift = drift
        for name in NETWORK:
            if name in without:
                setattr(sim, name, 0.0)

    def set_clock(self, node: SimNode, drift: float) -> None:
        node.clock_rate, node.clock_offset = (
            1 + self.luck.uniform(-drift, drift),
            self.luck.uniform(0, 1000) * (drift > 0),
        )

    def step(self, number: int) -> None:
        sim, luck = self.sim, self.luck
        alive = [node for node in sim.alive() if node.frozen_until <= sim.now]
        if alive and luck.random() < self.writes:
            self.write(luck.choice(alive), number)
        if alive and luck.random() < self.reads:
            # Rather at one that believes to lead: there a read may be answered without asking anybody.
            leaders = [node for node in alive if node.consensus is not None and node.consensus._isLeader()]
            sim.read(luck.choice(leaders if leaders and luck.random() < 0.5 else alive).uid)
        if self.clients is not None:
            self.clients.step(number)
        if self.has_changes:
            self.change(number)
        if luck.randrange(self.pace) == 0:
            name, strike = luck.choice(self.faults)
            before = sim.told and len(sim.told)
            if name not in self.without:
                self.struck[name] = self.struck.get(name, 0) + 1
                strike()
            if sim.told is not None and before == len(sim.told) and name not in self.without:
                sim.say(name)
        if number in self.recoveries and "recovery" not in self.without:
            self.recover()
        if sim.epoch:
            self.rejoin_some()
        if luck.randrange(self.pace) == 0:
            self.calm()
        for uid, node in list(sim.nodes.items()):
            if node.consensus is None and luck.random() < self.restart:
                sim.say(f"{uid} starts")
                sim.try_boot(uid)

    def write(self, node: SimNode, number: int) -> None:
        if self.clients is not None:
            self.clients.write(node, number)
        else:
            padding = "x" * (self.luck.randrange(8) == 0) * self.luck.randrange(400)
            self.sim.propose(node.uid, f"e{number}{padding}")

    def write_now(self, uid: str, text: str) -> str:
        """What it is called."""
        if self.clients is not None:
            return self.clients.make(self.sim.nodes[uid], text)
        self.sim.propose(uid, text)
        return text

    # Faults.

    def some(self) -> SimNode:
        return self.sim.nodes[self.luck.choice(sorted(self.sim.nodes))]

    def leading(self) -> SimNode:
        return self.sim.nodes[self.sim.leader() or self.some().uid]

    def split(self) -> None:
        uids = sorted(self.sim.nodes)
        one = set(self.luck.sample(uids, self.luck.randint(1, len(uids) - 1)))
        others = [uid for uid in uids if uid not in one]
        self.sim.cuts.clear()
        how = self.part(sorted(one), others)
        self.sim.say(f"{', '.join(sorted(one))} | {', '.join(others)}{how}")

    def part(self, some: list[str], others: list[str]) -> str:
        """As a closed port does it, which both ends learn at once, or as a dead switch does: links seem to live, and what is on
        its way still comes."""
        pairs = [(one, other) for one in some for other in others]
        if self.luck.random() < 0.5:
            self.sim.cuts |= {frozenset(pair) for pair in pairs}
            return ""
        for one, other in pairs:
            self.sim.deaf.setdefault((one, other), self.sim.now)
            self.sim.deaf.setdefault((other, one), self.sim.now)
        return ", silently"

    def cut_pair(self) -> None:
        pair = self.luck.sample(sorted(self.sim.nodes), 2)
        self.sim.cuts.add(frozenset(pair))
        self.sim.say(f"{pair[0]} | {pair[1]}")

    def deafen(self) -> None:
        one, other = self.luck.sample(sorted(self.sim.nodes), 2)
        self.sim.deaf.setdefault((one, other), self.sim.now)
        self.sim.say(f"{other} does not hear {one}")

    def isolate_leader(self) -> None:
        leader = self.leading().uid
        how = self.part([leader], [uid for uid in sorted(self.sim.nodes) if uid != leader])
        self.sim.say(f"{leader} is cut off{how}")

    def calm(self) -> None:
        self.sim.cuts.clear()
        self.sim.deaf.clear()
        for node in self.sim.nodes.values():
            node.disk.is_full, node.sync_s = False, 0.0
        self.sim.say("the network is whole, the disks are well")

    def crash_any(self) -> None:
        self.crash(self.some())

    def crash_leader(self) -> None:
        self.crash(self.leading())

    def crash_all(self) -> None:
        for node in self.sim.alive():
            self.crash(node, power=True)

    def crash(self, node: SimNode, power: bool | None = None) -> None:
        if node.consensus is not None:
            self.sim.say(f"{node.uid} crashes")
            self.sim.crash(node.uid, power=power)

    def freeze(self) -> None:
        self.freeze_one(self.some())

    def freeze_leader(self) -> None:
        self.freeze_one(self.leading())

    def freeze_one(self, node: SimNode) -> None:
        seconds = self.luck.choice((0.2, 1.0, 4.0)) * self.luck.uniform(0.5, 1)
        node.frozen_until = self.sim.now + seconds
        self.sim.say(f"{node.uid} freezes for {seconds:.1f} s")

    def slow_disk(self) -> None:
        node = self.some()
        node.sync_s, node.has_tail = self.luck.choice((0.02, 0.1, 0.6, 2.0)), False
        self.sim.say(f"{node.uid}'s disk takes up to {node.sync_s} s")

    def stuttering_disk(self) -> None:
        node = self.luck.choice((self.leading(), self.some()))
        node.sync_s, node.has_tail = self.luck.choice((0.001, 0.004, 0.02)), True
        self.sim.say(f"{node.uid}'s disk takes {node.sync_s} s, and seldom up to a thousand times as long")

    def full_disk(self) -> None:
        node = self.some()
        node.disk.is_full = True
        self.sim.say(f"{node.uid}'s disk is full")

    def hand_over(self) -> None:
        leader = self.leading()
        if leader.consensus is not None and leader.consensus._isLeader():
            target = self.luck.choice([None, *(uid for uid in sorted(self.sim.nodes) if uid != leader.uid)])
            self.sim.say(f"{leader.uid} hands over to {target or 'anybody'}")
            consensus = leader.consensus
            self.sim._guarded(leader, lambda: consensus.transferLeadership(Node(target) if target else None))

    def recover(self) -> None:
        """Somebody takes the majority for lost, rightly or not, and perhaps another one elsewhere does so too."""
        for _ in range(self.luck.choice((1, 1, 2))):
            node = self.some()
            if recover(self.sim, node.uid, mark=self.luck.getrandbits(32)):
                self.struck["recovery"] = self.struck.get("recovery", 0) + 1
                self.sim.try_boot(node.uid)

    def rejoin_some(self) -> None:
        for uid, node in list(self.sim.nodes.items()):
            if node.ledger is not self.sim.ledger and self.luck.random() < REJOINS:
                rejoin(self.sim, uid)

    # Members.

    def change(self, number: int) -> None:
        sim, luck = self.sim, self.luck
        if number % 60 == 0:
            self.wanted = next_change(sim, self.drift, self)
        alive = sim.alive()
        if number % 10 == 0 and self.wanted is not None and alive:
            node, wanted = luck.choice(alive), self.wanted
            assert node.consensus is not None
            sim._guarded(node, lambda c=node.consensus: c.want_change(wanted))


def next_change(sim: Sim, drift: float, weather: Weather) -> Change | None:
    """A newcomer, as a voter or a learner; or one member fewer, without its vote, or elsewhere."""
    leader = sim.nodes[sim.leader() or ""].consensus if sim.leader() else None
    if leader is None:
        return None
    members, voters = sim.everybody(), sim.members()
    luck = weather.luck
    if luck.random() < 0.2:
        return Change("move", luck.choice(members), f"place {luck.randrange(9)}", 1)
    if len(voters) > 3 and luck.random() < 0.6:
        return (
            Change("remove", luck.choice(voters))
            if luck.random() < 0.7
            else Change("learn", luck.choice(voters), "x", 1)
        )
    op: Operation = luck.choice(("add", "add", "learn"))
    uid = f"n{len(sim.nodes) + 1}"
    if len(sim.nodes) < 8:
        weather.set_clock(sim.add(uid), drift)
        sim.try_boot(uid)
        sim.joined.append(uid)
        sim.say(f"{uid} wants to join")
        return Change(op, uid, uid, 1)
    outside = [uid for uid in sim.nodes if uid not in voters]
    return Change(op, luck.choice(outside), "again", 1) if outside else None


def require_write(sim: Sim, uid: str, weather: Weather | None = None) -> None:
    """A node can write, within a few tries, and each try is answered."""
    for attempt in range(5):
        text = f"last {uid} {attempt}"
        if uid not in sim.everybody():
            return
        if weather is not None:
            text = weather.write_now(uid, text)
        else:
            sim.propose(uid, text)
        sim.run_until(lambda t=text: t not in sim.waiting, limit_s=30, what=f"an answer to {text}")  # type: ignore[misc]
        if text in sim.acknowledged:
            return
        sim.run(1.0)
    raise Violation(f"{uid} cannot write, with everything well again")


def live(sim: Sim, steps: int, luck: random.Random, clients: StoreClients | None, without: frozenset[str]) -> Weather:
    weather = Weather(sim, luck, clients, without)
    for number in range(steps):
        weather.step(number)
        sim.step()
    sim.say("everything is well again")
    for uid, node in sim.nodes.items():
        if node.ledger is not sim.ledger:
            rejoin(sim, uid)
    sim.heal()
    sim.run_until(lambda: sim.leader() is not None, what="an election")
    for uid in sim.everybody():
        require_write(sim, uid, weather)
    sim.require_nothing_lost()
    require(bool(sim.acknowledged), "nothing was ever acknowledged")
    return weather


class _Told(logging.Handler):
    def __init__(self, sim: Sim) -> None:
        super().__init__()
        self._sim = sim

    def emit(self, record: logging.LogRecord) -> None:
        self._sim.say(f"    {record.getMessage()}")


def options_of(luck: random.Random, *, has_store: bool) -> Options:
    options: Options = luck.choice((QUICK, HURRIED, HURRIED))
    # A whole state is more than the texts are, and is to arrive in as many pieces.
    piece = luck.choice((300, 3000)) * (5 if has_store else 1)
    return replace(
        options,
        compact_entries=luck.choice((5, 20, 40, 400)),
        keep_entries=luck.choice((0, 3, 10)),
        promote_lag_entries=luck.choice((3, 50, 200)),
        batch_entries=luck.choice((1, 16, 1024)),
        snapshot_chunk_bytes=piece,
        snapshot_window_bytes=piece * 8,
        # That a leader without answers steps down is comfort: whether anything is lost or read too late must not rest on it.
        leader_quorum_s=(patience := luck.choice((options.leader_quorum_s, options.leader_quorum_s, 5.0))),
        follower_quorum_s=max(options.follower_quorum_s, patience),
    )


def simulate(
    seed: int,
    *,
    steps: int = STEPS,
    without: frozenset[str] = frozenset(),
    has_story: bool = False,
    patch: pytest.MonkeyPatch | None = None,
) -> Outcome:
    """Never raises for what the replicas do: that is the outcome's `violation`."""
    luck, chance = random.Random(f"weather {seed}"), random.Random(f"store {seed}")
    has_store = chance.random() < STORES
    outcome = Outcome(seed)
    with pytest.MonkeyPatch.context() as own:
        options = options_of(luck, has_store=has_store)
        sim = Sim(None, patch or own, seed=seed, options=options, keeps_sent=False)
        clients = StoreClients(sim, chance) if has_store else None
        logger, told = logging.getLogger("clusterfs"), _Told(sim)
        level, propagates = logger.level, logger.propagate
        logger.propagate = False
        logger.setLevel(logging.INFO if has_story else logging.CRITICAL + 1)
        if has_story:
            sim.told = outcome.story
            logger.addHandler(told)
        try:
            outcome.faults = live(sim, steps, luck, clients, without).struck
        except Exception as error:
            outcome.violation = f"{type(error).__name__}: {error}".strip()
            sim.say(outcome.violation)
            if has_story and not isinstance(error, Violation):
                logging.getLogger(__name__).exception("seed %d", seed)
        finally:
            logger.removeHandler(told)
            logger.setLevel(level)
            logger.propagate = propagates
    outcome.steps, outcome.seconds = steps, sim.now - 100
    outcome.stores, outcome.terms = int(has_store), len(sim.checks.leaders)
    outcome.crashes, outcome.reads, outcome.changes = sim.crashes, sim.reads, len(sim.joined)
    outcome.acknowledged, outcome.denied = len(sim.acknowledged), len(sim.ledger.denied)
    outcome.unknown = len(sim.ledger.unknown)
    return outcome
