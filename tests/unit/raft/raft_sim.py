"""Replicas under virtual time: the real consensus code with a clock, a network and a disk that the test owns.

One seed decides everything. A crash loses what was not synced; the network loses, doubles, delays and reorders.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pysyncobj.syncobj
import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node

from clusterfs.raft import membership
from clusterfs.raft.consensus import Command, Consensus
from clusterfs.raft.core import LEADER, MEMBERSHIP, REGULAR, Surroundings
from clusterfs.raft.entries import Entries
from clusterfs.raft.exchange import Exchange, Outgoing
from clusterfs.raft.files import LocalFile, LocalFiles
from clusterfs.raft.journal import Log
from clusterfs.raft.membership import Change
from clusterfs.raft.messages import AnyMessage, Entry, Forward, Forwarded, decode, encode
from clusterfs.raft.records import Record
from clusterfs.raft.snapshot import SnapshotStore
from clusterfs.raft.values import Address, Options

STEP_S = 0.02
QUICK = Options(
    compact_entries=40, keep_entries=10, snapshot_chunk_bytes=200, snapshot_window_bytes=600, batch_entries=16
)


class Crash(Exception):
    """The node's power fails here."""


@dataclass
class Disk:
    """What survives: the log as it was at the last sync."""

    entries: list[Entry] = field(default_factory=lambda: [(b"\x01", 0, 0)])
    term: int = 0
    voted_for: str | None = None
    commit_index: int = 0


class SimLog(Log):
    def __init__(self, disk: Disk, fate: Callable[[], str]) -> None:
        _, index, term = disk.entries[0]
        super().__init__(Entries(index=index, term=term))
        for command, _, its_term in disk.entries[1:]:
            self._entries.append(command, its_term)
        self._disk, self._fate = disk, fate
        self._term, self._voted_for = disk.term, disk.voted_for
        self._commit_index = self._stored_commit_index = disk.commit_index
        self._is_dirty = False

    def _record(self, record: Record) -> None:
        self._is_dirty = True

    def sync(self) -> None:
        if self._is_dirty:
            self._rewrite()

    def _rewrite(self) -> None:
        fate = self._fate()
        if fate == "before":
            raise Crash
        self._disk.entries = list(self[:])
        self._disk.term, self._disk.voted_for = self._term, self._voted_for
        self._disk.commit_index = self._commit_index
        self._is_dirty = False
        if fate == "after":
            raise Crash


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
        self.sent.append((uid, decode(payload)))
        self._sim.carry(self.uid, uid, payload)
        return True

    def set_peers(self, peers: Mapping[str, Sequence[Address]]) -> None:
        self.peers = set(peers)

    def heard_at(self, uid: str) -> float | None:
        return self.heard.get(uid) if uid in self.up else None

    def backlog_bytes(self, uid: str) -> int:
        return 0

    def wake(self) -> None: ...

    def receive(self, uid: str, message: AnyMessage) -> None:
        self.heard[uid] = self._sim.now
        self._onMessageReceived(Node(uid), message)

    def link(self, uid: str, *, up: bool) -> None:
        if up == (uid in self.up):
            return
        if up:
            self.up.add(uid)
            self.heard[uid] = self._sim.now
            self._onNodeConnected(Node(uid))
        else:
            self.up.discard(uid)
            self._onNodeDisconnected(Node(uid))


class SimMachine:
    """Checks at each entry that all replicas apply the same."""

    def __init__(self, sim: "Sim") -> None:
        self._sim = sim
        self.entries: list[tuple[int, str]] = []

    def apply(self, index: int, entry: bytes) -> object:
        text = entry.decode()
        if text == "bad":
            raise ValueError("a faulty machine")
        assert not self.entries or self.entries[-1][0] < index, "an entry is applied twice"
        assert self._sim.history.setdefault(index, text) == text, f"entry {index} differs"
        self.entries.append((index, text))
        return index

    def snapshot(self) -> Callable[[], Iterable[bytes]]:
        entries = list(self.entries)
        return lambda: [f"{index} {text}".encode() for index, text in entries]

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        pairs = [chunk.decode().split(" ", 1) for chunk in chunks]
        self.entries = [(int(at), text) for at, text in pairs]
        assert all(self._sim.history[at] == text for at, text in self.entries)


@dataclass
class SimNode:
    uid: str
    directory: Path
    disk: Disk = field(default_factory=Disk)
    consensus: Consensus | None = None
    exchange: SimExchange | None = None
    machine: SimMachine | None = None
    life: int = 0
    commit_index: int = 0
    frozen_until: float = 0.0


class Sim:
    def __init__(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int, options: Options = QUICK
    ) -> None:
        self.random = random.Random(seed)
        random.seed(seed)
        # One source a link and a disk: pysyncobj walks sets, whose order differs from process to process.
        self._luck: dict[str, random.Random] = {}
        self._seed = seed
        monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", lambda: self.now)
        monkeypatch.setattr(LocalFiles, "sync", lambda _files: None)
        monkeypatch.setattr(LocalFile, "datasync", lambda _file: None)
        self.now = 100.0
        self.options = options
        self.directory = directory
        self.nodes: dict[str, SimNode] = {}
        self.founders: dict[str, Address] = {}
        self.history: dict[int, str] = {}
        self.leaders: dict[int, str] = {}
        self.joined: list[str] = []
        self.acknowledged: dict[str, int] = {}
        self.denied: set[str] = set()
        # Sent, and neither acknowledged nor denied.
        self.unknown: set[str] = set()
        self.waiting: set[str] = set()
        self.cuts: set[frozenset[str]] = set()
        self.loss = self.doubling = self.crash_chance = 0.0
        self.delay_s = (0.001, 0.005)
        self._queue: list[tuple[float, int, str, str, bytes]] = []
        self._sequence = 0
        self._work: list[tuple[float, int, str, int, Callable[[], None]]] = []

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
        directory = self.directory / uid
        directory.mkdir()
        node = self.nodes[uid] = SimNode(uid, directory)
        return node

    def write_first_configuration(self, uid: str) -> None:
        fresh = SimLog(self.nodes[uid].disk, lambda: "")
        for index, (member, address) in enumerate(sorted(self.founders.items()), 1):
            change = Change("add", member, address.host, address.port)
            fresh.add(MEMBERSHIP + membership.encode(change), index, 0)
        fresh.sync()

    def boot(self, uid: str) -> Consensus:
        node = self.nodes[uid]
        node.life += 1
        node.commit_index = 0
        node.machine = SimMachine(self)
        node.exchange = SimExchange(self, uid)
        life = node.life
        around = Surroundings(
            uid=uid,
            log=SimLog(node.disk, lambda: self._fate(uid)),
            snapshots=SnapshotStore(LocalFiles(node.directory)),
            machine=node.machine,
            exchange=node.exchange,
            options=self.options,
            stamp=lambda entry: entry,
            clock=lambda: self.now,
            spawn=lambda work: self._work.append(
                (self.now + self.random.uniform(0, 0.5), len(self._work), uid, life, work)
            ),
        )
        node.consensus = Consensus(around, self.founders)
        return node.consensus

    def _luck_of(self, what: str) -> random.Random:
        return self._luck.setdefault(what, random.Random(f"{self._seed} {what}"))

    def _fate(self, uid: str) -> str:
        luck = self._luck_of(uid)
        return luck.choice(["before", "after"]) if luck.random() < self.crash_chance else ""

    def crash(self, uid: str) -> None:
        node = self.nodes[uid]
        node.consensus = node.exchange = node.machine = None
        for other in self.alive():
            assert other.exchange is not None
            other.exchange.link(uid, up=False)

    def alive(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.consensus is not None]

    def carry(self, source: str, target: str, payload: bytes) -> None:
        luck = self._luck_of(f"{source}>{target}")
        # Commands rely on TCP: one is lost or doubled only together with the link, and then their sender is told.
        is_command = isinstance(decode(payload), Forward | Forwarded)
        is_lost = luck.random() < self.loss and not is_command
        if is_lost or frozenset((source, target)) in self.cuts:
            return
        for _ in range(2 if not is_command and luck.random() < self.doubling else 1):
            self._sequence += 1
            at = self.now + luck.uniform(*self.delay_s)
            heapq.heappush(self._queue, (at, self._sequence, source, target, payload))

    # Time.

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()

    def run_until(self, condition: Callable[[], bool], *, limit_s: float = 60.0) -> None:
        end = self.now + limit_s
        while not condition():
            assert self.now < end, "it never happens"
            self.step()

    def step(self) -> None:
        self.now += STEP_S
        self._connect()
        while self._queue and self._queue[0][0] <= self.now:
            _, _, source, target, payload = heapq.heappop(self._queue)
            node = self.nodes[target]
            if node.frozen_until > self.now:
                heapq.heappush(self._queue, (node.frozen_until, self._sequence, source, target, payload))
                self._sequence += 1
            elif node.exchange is not None and source in node.exchange.up:
                self._guarded(node, lambda n=node, s=source, p=payload: n.exchange.receive(s, decode(p)))  # type: ignore[union-attr]
        due, self._work = [w for w in self._work if w[0] <= self.now], [w for w in self._work if w[0] > self.now]
        for _, _, uid, life, work in due:
            if self.nodes[uid].life == life and self.nodes[uid].consensus is not None:
                work()
        for node in self.alive():
            if node.frozen_until <= self.now:
                self._guarded(node, lambda n=node: n.consensus.doTick(0.0))  # type: ignore[union-attr]
        self._check()

    def _guarded(self, node: SimNode, work: Callable[[], None]) -> None:
        try:
            work()
        except Crash:
            self.crash(node.uid)

    def _connect(self) -> None:
        for node in self.alive():
            assert node.exchange is not None
            for uid, other in self.nodes.items():
                if uid == node.uid:
                    continue
                up = (
                    other.exchange is not None
                    and uid in node.exchange.peers
                    and node.uid in other.exchange.peers
                    and frozenset((uid, node.uid)) not in self.cuts
                )
                node.exchange.link(uid, up=up)
                if up and other.frozen_until <= self.now:
                    node.exchange.heard[uid] = self.now

    def _check(self) -> None:
        for node in self.alive():
            assert node.consensus is not None
            term = node.consensus.raftCurrentTerm
            if node.consensus._SyncObj__raftState == LEADER:
                assert self.leaders.setdefault(term, node.uid) == node.uid, f"two leaders in term {term}"
            assert node.consensus.raftCommitIndex >= node.commit_index, "the commit index went back"
            node.commit_index = node.consensus.raftCommitIndex
            assert node.consensus.raftLastApplied <= node.consensus.raftCommitIndex

    # Clients.

    def propose(self, uid: str, text: str) -> None:
        consensus = self.nodes[uid].consensus
        assert consensus is not None

        def done(value: object, reason: int) -> None:
            self.waiting.discard(text)
            if reason == FAIL_REASON.SUCCESS:
                assert isinstance(value, int)
                self.acknowledged[text] = value
            elif reason in (FAIL_REASON.DISCARDED, FAIL_REASON.NOT_LEADER, FAIL_REASON.MISSING_LEADER):
                self.denied.add(text)
            else:
                self.unknown.add(text)

        self.waiting.add(text)
        consensus.submit(Command(REGULAR + text.encode(), done))

    def leader(self) -> str | None:
        """Who leads with a quorum."""
        found = [
            n.uid for n in self.alive() if n.consensus and n.consensus._isLeader() and n.consensus.is_quorate(self.now)
        ]
        return found[0] if len(found) == 1 else None

    def members(self) -> list[str]:
        """As the leader has them; nobody without one."""
        leader = self.leader()
        consensus = self.nodes[leader].consensus if leader else None
        return sorted(consensus.configurations.current) if consensus else []

    def heal(self) -> None:
        self.loss = self.doubling = self.crash_chance = 0.0
        self.cuts.clear()
        for node in self.nodes.values():
            node.frozen_until = 0.0
            if node.consensus is None:
                self.boot(node.uid)

    def require_nothing_lost(self) -> None:
        """Everybody agrees in the end; what was acknowledged is there, and what was denied is not."""
        last = max(node.consensus.raftCommitIndex for node in self.alive() if node.consensus)
        self.run_until(lambda: self.leader() is not None)

        def is_level() -> bool:
            members = self.members()
            nodes = [self.nodes[uid].consensus for uid in members]
            return bool(nodes) and all(c is not None and c.raftLastApplied >= last for c in nodes)

        self.run_until(is_level)
        for node in (self.nodes[uid] for uid in self.members()):
            assert node.machine is not None
            held = dict(node.machine.entries)
            for text, index in self.acknowledged.items():
                assert held.get(index) == text, f"{node.uid} lost {text}"
            assert not self.denied & set(held.values())
