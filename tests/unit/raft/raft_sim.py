"""Replicas under virtual time: the real consensus code with a clock, a network and a disk that the test owns.

One seed decides everything. The network loses, doubles, delays and reorders; disks forget what was not synced; clocks differ.
What strikes when is the caller's business (`tests/sim/raft`); what may never be is looked at in each step (`sim_checks`).
"""

import heapq
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pysyncobj.syncobj
import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node
from sim_checks import Applied, Checks, Durable, Ledger, Violation, require
from sim_disk import SimDisk, SimFiles

from clusterfs.raft import membership
from clusterfs.raft.consensus import Command, Consensus
from clusterfs.raft.core import CANDIDATE, LEADER, MEMBERSHIP, REGULAR, Surroundings
from clusterfs.raft.exchange import Exchange, Outgoing
from clusterfs.raft.files import Files
from clusterfs.raft.journal import FileLog
from clusterfs.raft.membership import Change
from clusterfs.raft.messages import AnyMessage, Forward, Forwarded, PreVoteReply, TimeoutNow, decode, encode
from clusterfs.raft.reads import Read
from clusterfs.raft.snapshot import SnapshotStore
from clusterfs.raft.values import Address, Options, StateMachine, Superseded
from kvorum.errors import DiskFull

STEP_S = 0.02
QUICK = Options(
    compact_entries=40, keep_entries=10, snapshot_chunk_bytes=200, snapshot_window_bytes=600, batch_entries=16
)
# A link on which nothing comes through in one direction is given up, as the real transport does.
LINK_TIMEOUT_S = 3.0
# The longest sync of a disk whose typical one is 1.
MAX_TAIL = 1000.0
# Some messages arrive when everybody has forgotten the question.
STRAGGLER_S = (0.2, 5.0)


def may_wait(entry: bytes) -> bool:
    """A fourth of them, wherever they come to (`clusterfs.raft.company`)."""
    return zlib.crc32(entry) % 4 == 0


class Crash(BaseException):
    """The node's process ends here. No Exception, for nobody may catch it."""


class SimLog(FileLog):
    """The real log, whose additions and syncs are looked at."""

    def __init__(self, files: Files, sim: "Sim", node: "SimNode") -> None:
        self._node = node
        super().__init__(
            files,
            uid=node.uid,
            segment_bytes=sim.segment_bytes,
            memory_bytes=sim.memory_bytes,
            spawn=lambda work: sim.spawn(node.uid, work),
        )
        self._checks = node.ledger.checks
        self._checks.boots(node.uid, node.durable, self)
        self._note()

    def take(self, ledger: Ledger) -> None:
        self._checks = ledger.checks

    def add(self, command: bytes, idx: int, term: int) -> None:
        super().add(command, idx, term)
        self._checks.added(self._node.uid, self, command, idx, term)

    def sync(self) -> None:
        super().sync()
        self._note()

    def _note(self) -> None:
        terms = [self._entries._base_term, *self._entries._terms]
        self._node.durable = Durable(self.base_index, terms, self._term, self._voted_for)


class SimExchange(Exchange):
    def __init__(self, sim: "Sim", uid: str) -> None:
        super().__init__()
        self._sim, self.uid = sim, uid
        self.peers: set[str] = set()
        self.heard: dict[str, float] = {}
        self.up: set[str] = set()
        self.sent: list[tuple[str, AnyMessage]] = []

    def transmit(self, uid: str, message: Outgoing) -> bool:
        if uid not in self.up:
            return False
        payload = encode(message)
        decoded = decode(payload)
        if self._sim.keeps_sent:
            self.sent.append((uid, decoded))
        node = self._sim.nodes[self.uid]
        node.ledger.checks.sends(self.uid, uid, decoded, node.durable)
        self._sim.carry(self.uid, uid, payload, decoded)
        return True

    def set_peers(self, peers: Mapping[str, Sequence[Address]]) -> None:
        self.peers = set(peers)

    def heard_at(self, uid: str) -> float | None:
        return self.heard.get(uid) if uid in self.up else None

    def backlog_bytes(self, uid: str) -> int:
        return 0

    def wake(self) -> None: ...

    def receive(self, uid: str, message: AnyMessage) -> None:
        self.heard[uid] = self._sim.clock_of(self.uid)
        self._onMessageReceived(Node(uid), message)

    def link(self, uid: str, *, up: bool) -> None:
        if up == (uid in self.up):
            return
        if up:
            self.up.add(uid)
            self.heard[uid] = self._sim.clock_of(self.uid)
            self._onNodeConnected(Node(uid))
        else:
            self.up.discard(uid)
            self._onNodeDisconnected(Node(uid))


class Machine(StateMachine, Protocol):
    def require_all(self, ledger: Ledger) -> None:
        """At the end, with everything well: what the ledger promises is there."""


class SimMachine:
    """Keeps what was applied, in order, and its digest. `bad` raises, as a faulty machine would."""

    def __init__(self, sim: "Sim", uid: str) -> None:
        self._checks, self._uid = sim.nodes[uid].ledger.checks, uid
        self.entries: list[tuple[int, str]] = []
        self.digest = b""

    def apply(self, index: int, entry: bytes) -> object:
        text = entry.decode()
        if text == "bad":
            raise ValueError("a faulty machine")
        require(not self.entries or self.entries[-1][0] < index, f"{self._uid} applies entry {index} twice")
        self.digest = self._checks.applies(self._uid, index, text, self.digest)
        self.entries.append((index, text))
        return index

    def settled(self) -> None:
        """Nobody watches."""

    def snapshot(self) -> Callable[[], Iterable[bytes]]:
        entries, digest = list(self.entries), self.digest
        return lambda: [digest.hex().encode(), *(f"{index} {text}".encode() for index, text in entries)]

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        digest, *rest = (chunk.decode() for chunk in chunks) if (chunks := list(chunks)) else ("",)
        pairs = [line.split(" ", 1) for line in rest]
        self.entries = [(int(at), text) for at, text in pairs]
        self.digest = bytes.fromhex(digest)
        if self.entries:
            at = self.entries[-1][0]
            require(self._checks.digests.get(at) == self.digest, f"{self._uid} restores another history up to {at}")

    def require_all(self, ledger: Ledger) -> None:
        held = dict(self.entries)
        for text, index in ledger.acknowledged.items():
            require(held.get(index) == text, f"{self._uid} lost {text}, which was acknowledged")
        ledger.require_none_denied(self._uid, set(held.values()))


class SimConsensus(Consensus):
    """The real one, whose elections are looked at."""

    def __init__(self, around: Surroundings, hints: membership.Members, sim: "Sim") -> None:
        self._sim = sim
        # Who would vote for it, by the round in which it asked; and has a leader asked it to stand?
        self._willing: dict[int, set[str]] = {}
        self._is_called = False
        super().__init__(around, hints)

    def _on_pre_vote_reply(self, node: Node, message: PreVoteReply) -> None:
        if message.granted:
            self._willing.setdefault(message.round, set()).add(node.id)
        super()._on_pre_vote_reply(node, message)

    def _on_timeout_now(self, node: Node, message: TimeoutNow) -> None:
        self._is_called = True
        super()._on_timeout_now(node, message)

    def _state_changed(self, old: int, new: int) -> None:
        super()._state_changed(old, new)
        if new == CANDIDATE:
            is_wanted = self._is_majority(set()) or any(self._is_majority(voters) for voters in self._willing.values())
            require(self._is_called or is_wanted, f"{self.uid} stands for election and nobody is willing")
            self._willing, self._is_called = {}, False
        if new == LEADER:
            self._sim.say(f"{self.uid} leads in term {self.raftCurrentTerm}")
            self._sim.nodes[self.uid].ledger.checks.leads(self.uid, self.raftCurrentTerm, self.log)


@dataclass
class SimNode:
    uid: str
    ledger: Ledger
    disk: SimDisk = field(default_factory=SimDisk)
    durable: Durable = field(default_factory=Durable)
    consensus: SimConsensus | None = None
    exchange: SimExchange | None = None
    machine: Machine | None = None
    # The lowest one that it listens to: what it learnt when it joined.
    epoch: int = 0
    # Whom it knows of without having a log; the founders when not said.
    hints: dict[str, Address] = field(default_factory=dict)
    life: int = 0
    commit_index: int = 0
    frozen_until: float = 0.0
    clock_rate: float = 1.0
    clock_offset: float = 0.0
    # Each sync takes up to this long or, with a tail, seldom much longer: most are quick, one in a hundred takes a hundred times.
    sync_s: float = 0.0
    has_tail: bool = False

    def clock(self, now: float) -> float:
        # A disk that takes its time lets it pass in the middle of a tick.
        return (self.frozen_until if self.frozen_until > now else now) * self.clock_rate + self.clock_offset


class Sim:
    def __init__(
        self,
        directory: Path | None,
        monkeypatch: pytest.MonkeyPatch,
        *,
        seed: int,
        options: Options = QUICK,
        keeps_sent: bool = True,
    ) -> None:
        """`directory` is not used: disks are in memory."""
        self.random = random.Random(seed)
        random.seed(seed)
        # One source a link and a disk: pysyncobj walks sets, whose order differs from process to process.
        self._luck: dict[str, random.Random] = {}
        self._seed = seed
        self.keeps_sent = keeps_sent
        monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", lambda: self.clock_of(self._running))
        # The same as pysyncobj's, which are a sixth of all that is done here.
        monkeypatch.setattr(Node, "__eq__", lambda one, other: isinstance(other, Node) and one._id == other._id)
        monkeypatch.setattr(Node, "__hash__", lambda node: hash(node._id))
        self.now = 100.0
        self._running = ""
        self.options = options
        self.segment_bytes, self.memory_bytes = 4096, 2048
        # Of the cluster that lives on; a recovery begins another one.
        self.ledger = Ledger()
        # What is replicated; the entries' texts and nothing else, unless another is brought.
        self.make_machine: Callable[[Sim, str], Machine] = SimMachine
        self.stamp: Callable[[str, bytes], bytes] = lambda _uid, entry: entry
        self.nodes: dict[str, SimNode] = {}
        # Of `ledger`.
        self.epoch = 0
        self.founders: dict[str, Address] = {}
        self.joined: list[str] = []
        self.waiting: set[str] = set()
        self.reads = 0
        self.crashes = 0
        self.cuts: set[frozenset[str]] = set()
        # From one to another nothing comes through, since when.
        self.deaf: dict[tuple[str, str], float] = {}
        self.loss = self.doubling = self.straggling = self.crash_chance = 0.0
        self.delay_s = (0.001, 0.005)
        self.told: list[str] | None = None
        self._queue: list[tuple[float, int, str, str, AnyMessage, Ledger]] = []
        self._sequence = 0
        self._work: list[tuple[float, int, str, int, Callable[[], None]]] = []

    @property
    def checks(self) -> Checks:
        return self.ledger.checks

    @property
    def acknowledged(self) -> dict[str, int]:
        return self.ledger.acknowledged

    def say(self, text: str) -> None:
        if self.told is not None:
            self.told.append(f"{self.now - 100:8.2f}  {text}")

    # The world.

    def found(self, size: int) -> list[str]:
        uids = [f"n{number}" for number in range(1, size + 1)]
        self.founders = {uid: Address(uid, 1) for uid in uids}
        for uid in uids:
            self.add(uid)
            self.write_first_configuration(uid)
            self.boot(uid)
        return uids

    def add(self, uid: str) -> SimNode:
        node = self.nodes[uid] = SimNode(uid, self.ledger, epoch=self.epoch)
        return node

    def write_first_configuration(self, uid: str) -> None:
        node = self.nodes[uid]
        fresh = SimLog(SimFiles(node.disk, lambda *_: None), self, node)
        for index, (member, address) in enumerate(sorted(self.founders.items()), 1):
            change = Change("add", member, address.host, address.port)
            command = MEMBERSHIP + membership.encode(change)
            fresh.add(command, index, 0)
            self.checks.committed[index] = (0, command)
        fresh.sync()
        self.checks.last_committed = len(self.founders)

    def boot(self, uid: str) -> Consensus:
        node = self.nodes[uid]
        node.life += 1
        node.commit_index = 0
        node.machine = self.make_machine(self, uid)
        node.exchange = SimExchange(self, uid)
        files = SimFiles(node.disk, lambda operation, name, is_done: self._on_disk(uid, operation, is_done))
        before, self._running = self._running, uid
        try:
            around = Surroundings(
                uid=uid,
                log=SimLog(files, self, node),
                snapshots=SnapshotStore(files),
                machine=node.machine,
                exchange=node.exchange,
                options=self.options,
                stamp=lambda entry: self.stamp(uid, entry),
                clock=lambda: node.clock(self.now),
                spawn=lambda work: self.spawn(uid, work),
                may_wait=may_wait,
                epoch=node.epoch,
            )
            node.consensus = SimConsensus(around, node.hints or self.founders, self)
        finally:
            self._running = before
        return node.consensus

    def spawn(self, uid: str, work: Callable[[], None]) -> None:
        """Later and all at once, unless the node has crashed by then."""
        when = self.now + self._luck_of(f"{uid} spawn").uniform(0, 0.5)
        self._work.append((when, len(self._work), uid, self.nodes[uid].life, work))

    def try_boot(self, uid: str) -> None:
        """A start during which the power may fail again, or the disk be full."""
        try:
            self.boot(uid)
        except (Crash, OSError, DiskFull):
            self.crash(uid)

    def clock_of(self, uid: str) -> float:
        node = self.nodes.get(uid)
        return self.now if node is None else node.clock(self.now)

    def _luck_of(self, what: str) -> random.Random:
        luck = self._luck.get(what)
        if luck is None:
            luck = self._luck[what] = random.Random(f"{self._seed} {what}")
        return luck

    def _on_disk(self, uid: str, operation: str, is_done: bool) -> None:
        node = self.nodes[uid]
        if not self.crash_chance and not node.sync_s:
            return
        luck = self._luck_of(uid)
        if luck.random() < self.crash_chance:
            self.say(f"{uid} ends {'after' if is_done else 'before'} {operation}")
            raise Crash
        if node.sync_s and operation == "datasync" and is_done:
            took = node.sync_s * (min(luck.paretovariate(1.0), MAX_TAIL) if node.has_tail else luck.random())
            node.frozen_until = max(self.now, node.frozen_until) + took

    def crash(self, uid: str, *, power: bool | None = None) -> None:
        """`power`: the disk forgets what was not synced. Left to chance when not said."""
        node = self.nodes[uid]
        luck = self._luck_of(uid)
        if luck.random() < 0.5 if power is None else power:
            node.disk.lose_power(luck)
        node.consensus = node.exchange = node.machine = None
        node.frozen_until = 0.0
        self.crashes += 1
        for other in self.alive():
            assert other.exchange is not None
            self._guarded(other, lambda e=other.exchange: e.link(uid, up=False))

    def alive(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.consensus is not None]

    def carry(self, source: str, target: str, payload: bytes, message: AnyMessage) -> None:
        luck = self._luck_of(f"{source}>{target}")
        # Commands rely on TCP: one is lost or doubled only together with the link, and then their sender is told.
        is_command = isinstance(message, Forward | Forwarded)
        is_lost = luck.random() < self.loss and not is_command
        if is_lost or frozenset((source, target)) in self.cuts or (source, target) in self.deaf:
            return
        leaves = max(self.now, self.nodes[source].frozen_until)
        for copy in range(2 if not is_command and luck.random() < self.doubling else 1):
            self._sequence += 1
            is_straggler = self.straggling and not is_command and luck.random() < self.straggling
            at = leaves + luck.uniform(*(STRAGGLER_S if is_straggler else self.delay_s))
            carried = decode(payload) if copy else message
            heapq.heappush(self._queue, (at, self._sequence, source, target, carried, self.nodes[source].ledger))

    # Time.

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()

    def run_until(self, condition: Callable[[], bool], *, limit_s: float = 60.0, what: str = "it") -> None:
        end = self.now + limit_s
        while not condition():
            require(self.now < end, f"{what} does not happen within {limit_s:g} s of rest")
            self.step()

    def step(self) -> None:
        self.now += STEP_S
        self._connect()
        while self._queue and self._queue[0][0] <= self.now:
            _, _, source, target, message, ledger = heapq.heappop(self._queue)
            node = self.nodes[target]
            if node.frozen_until > self.now:
                self._sequence += 1
                heapq.heappush(self._queue, (node.frozen_until, self._sequence, source, target, message, ledger))
            # What was sent over a link before a recovery ends with that link.
            elif node.exchange is not None and source in node.exchange.up and ledger is node.ledger:
                self._guarded(node, lambda e=node.exchange, s=source, m=message: e.receive(s, m))
        due, self._work = [w for w in self._work if w[0] <= self.now], [w for w in self._work if w[0] > self.now]
        for _, _, uid, life, work in due:
            node = self.nodes[uid]
            if node.life == life and node.consensus is not None:
                self._guarded(node, work)
        for node in self.alive():
            if node.frozen_until <= self.now and node.consensus is not None:
                self._guarded(node, lambda c=node.consensus: c.doTick(0.0))
        self._check()

    def _guarded(self, node: SimNode, work: Callable[[], None]) -> None:
        before, self._running = self._running, node.uid
        try:
            work()
        except Crash:
            self.crash(node.uid)
        except Superseded:
            self.say(f"{node.uid} learns that the cluster was recovered without it")
            self.crash(node.uid, power=False)
        except (OSError, DiskFull) as error:
            self.say(f"{node.uid} stops by itself: {error}")
            self.crash(node.uid, power=False)
        finally:
            self._running = before

    def _connect(self) -> None:
        for node in self.alive():
            for uid, other in self.nodes.items():
                if uid == node.uid or node.exchange is None:
                    continue
                up = (
                    other.exchange is not None
                    and uid in node.exchange.peers
                    and node.uid in other.exchange.peers
                    and not (self.cuts and frozenset((uid, node.uid)) in self.cuts)
                    and not (self.deaf and self._is_given_up(uid, node.uid))
                )
                if up and other.exchange is not None and other.exchange.epoch != node.exchange.epoch:
                    up = False
                    if other.exchange.epoch > node.exchange.epoch:
                        node.exchange.superseded_by = (uid, other.exchange.epoch)
                if up != (uid in node.exchange.up):
                    require(
                        not up or node.ledger is other.ledger,
                        f"{node.uid} and {uid} talk to each other, and one was recovered without the other",
                    )
                    self._guarded(node, lambda e=node.exchange, u=uid, up=up: e.link(u, up=up))
                if up and other.frozen_until <= self.now and (uid, node.uid) not in self.deaf and node.exchange:
                    node.exchange.heard[uid] = self.clock_of(node.uid)

    def _is_given_up(self, one: str, other: str) -> bool:
        since = [self.deaf[pair] for pair in ((one, other), (other, one)) if pair in self.deaf]
        return bool(since) and self.now - min(since) > LINK_TIMEOUT_S

    def _check(self) -> None:
        for node in self.alive():
            consensus = node.consensus
            assert consensus is not None
            commit = consensus.raftCommitIndex
            require(commit >= node.commit_index, f"{node.uid}'s commit index goes back")
            require(consensus.raftLastApplied <= commit, f"{node.uid} applies what is not committed")
            self._check_beliefs(node.uid, consensus)
            if commit == node.commit_index:
                continue
            before, node.commit_index = node.commit_index, commit
            if (
                node.ledger.checks.commits(node.uid, consensus.raftCurrentTerm, before, commit, consensus.log)
                and consensus._isLeader()
            ):
                self._check_new_commit(node.ledger, consensus, commit)

    def _check_beliefs(self, uid: str, consensus: Consensus) -> None:
        """What a leader thinks of the others' disks is true, and the configuration in force is the log's."""
        if consensus._isLeader():
            for node, match in consensus._SyncObj__raftMatchIndex.items():
                term = consensus.log.term_at(match)
                disk = self.nodes[node.id].durable
                # A later leader may have had it cut away since.
                is_of_now = term is not None and match > 0 and disk.term <= consensus.raftCurrentTerm
                is_of_now = is_of_now and self.nodes[node.id].ledger is self.nodes[uid].ledger
                is_there = not is_of_now or disk.holds(match, term or 0)
                require(is_there, f"{uid} believes that {node.id} has entry {match}, which its disk has not")
        changed_at = consensus.configurations.changed_at
        if changed_at > consensus.point.index:
            position = changed_at - consensus.log.base_index
            is_there = position < len(consensus.log) and consensus.log[position][0][:1] == MEMBERSHIP
            require(is_there, f"{uid} goes by the members of entry {changed_at}, which is not in its log")

    def _check_new_commit(self, ledger: Ledger, consensus: Consensus, commit: int) -> None:
        disks = {uid: node.durable if node.ledger is ledger else Durable() for uid, node in self.nodes.items()}
        configurations = consensus.configurations
        ledger.checks.is_durable(commit, disks, (configurations.current, configurations.at(commit).voters))
        for other in self.alive():
            if other.ledger is not ledger:
                continue
            assert other.consensus is not None
            if other.consensus._isLeader() and other.consensus.raftCurrentTerm > consensus.raftCurrentTerm:
                ledger.checks.require_committed(other.uid, other.consensus.raftCurrentTerm, other.consensus.log)

    # Clients.

    def propose(self, uid: str, text: str) -> None:
        self.send(uid, text, text.encode())

    def send(
        self,
        uid: str,
        key: str,
        entry: bytes,
        *,
        on_unknown: Callable[[], None] = lambda: None,
        on_answer: Callable[[Applied], None] = lambda _: None,
    ) -> None:
        """Have an entry committed. The same key again is another copy of the same command."""
        node = self.nodes[uid]
        ledger, consensus = node.ledger, node.consensus
        assert consensus is not None
        newest = ledger.newest_acknowledged

        def done(value: object, reason: int) -> None:
            self.waiting.discard(key)
            if reason == FAIL_REASON.SUCCESS:
                index = value
                if isinstance(value, Applied):
                    index = value.index
                    on_answer(value)
                assert isinstance(index, int)
                require(index > newest, f"{key} got index {index}, after {newest} had been acknowledged")
                ledger.acknowledges(key, index)
            elif reason in (FAIL_REASON.DISCARDED, FAIL_REASON.NOT_LEADER, FAIL_REASON.MISSING_LEADER):
                ledger.denies(key)
            else:
                ledger.unknown.add(key)
                on_unknown()

        self.waiting.add(key)
        ledger.sends(key)
        consensus.submit(Command(REGULAR + entry, done, may_wait=may_wait(entry)))

    def read(self, uid: str) -> None:
        """Linearizable: what was acknowledged anywhere before is applied here when it is answered."""
        consensus = self.nodes[uid].consensus
        assert consensus is not None
        newest = self.nodes[uid].ledger.newest_acknowledged

        def done(value: object, reason: int) -> None:
            if reason == FAIL_REASON.SUCCESS:
                assert isinstance(value, int)
                self.reads += 1
                applied = consensus.raftLastApplied
                require(
                    newest <= value <= applied, f"{uid} reads {value} with {applied}, after {newest} was acknowledged"
                )

        consensus.submit_read(Read(done, lambda: None))

    def leader(self) -> str | None:
        """Who leads with a quorum."""
        found = [
            n.uid
            for n in self.alive()
            if n.ledger is self.ledger
            and n.consensus
            and n.consensus._isLeader()
            and n.consensus.is_quorate(self.clock_of(n.uid))
        ]
        return found[0] if len(found) == 1 else None

    def members(self) -> list[str]:
        """Who votes, as the leader has it; nobody without one."""
        leader = self.leader()
        consensus = self.nodes[leader].consensus if leader else None
        return sorted(consensus.configurations.current) if consensus else []

    def everybody(self) -> list[str]:
        """Learners too."""
        leader = self.leader()
        consensus = self.nodes[leader].consensus if leader else None
        return sorted(consensus.configurations.whole.everybody) if consensus else []

    def heal(self) -> None:
        self.loss = self.doubling = self.straggling = self.crash_chance = 0.0
        self.delay_s = (0.001, 0.005)
        self.cuts.clear()
        self.deaf.clear()
        for node in self.nodes.values():
            node.frozen_until = node.sync_s = 0.0
            node.disk.is_full = False
            if node.consensus is None:
                self.boot(node.uid)

    def require_nothing_lost(self) -> None:
        """Everybody agrees in the end; what was acknowledged is there, and what was denied is not."""
        living = [node for node in self.alive() if node.ledger is self.ledger]
        last = max(node.consensus.raftCommitIndex for node in living if node.consensus)
        self.run_until(lambda: self.leader() is not None, what="an election")

        def is_level() -> bool:
            members = self.everybody()
            nodes = [self.nodes[uid].consensus for uid in members]
            # What was on its way may be acknowledged only now.
            wanted = max([last, *self.acknowledged.values()])
            return bool(nodes) and all(c is not None and c.raftLastApplied >= wanted for c in nodes)

        self.run_until(is_level, what="that all have all")
        for uid in self.everybody():
            machine = self.nodes[uid].machine
            assert machine is not None
            machine.require_all(self.ledger)


__all__ = ["QUICK", "Crash", "Sim", "SimNode", "Violation"]
