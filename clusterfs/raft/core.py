"""What we take over from pysyncobj's SyncObj, and what every layer above needs: log, peers, configuration, quorum.

`Core` → `elections` → `replication` → `consensus` are one object in four files: a SyncObj (0.3.17, exactly) that keeps its state,
timers, commit rule and apply loop, with the parts replaced that `docs/internals/raft-changes.md` lists. Names that begin with
`_SyncObj__` are pysyncobj's private ones; a test pins the source they were read in. All of it runs in one thread, the
raft thread, and touches time, network and disk only through what it is given.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.node import Node

from kvorum import epochs

from . import membership
from .exchange import Exchange, Outgoing, node_named
from .journal import Log
from .membership import Change, Configuration, Configurations
from .messages import Introduction
from .snapshot import Point, SnapshotStore
from .values import Address, Options, StateMachine, StorageDamaged, Superseded

log = logging.getLogger(__name__)

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
# The first byte of a command.
REGULAR, NO_OP, MEMBERSHIP = b"\x00", b"\x01", b"\x02"

Callback = Callable[[object, int], None]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a replica is put into; the simulation brings its own."""

    uid: str
    log: Log
    snapshots: SnapshotStore
    machine: StateMachine
    exchange: Exchange
    options: Options
    stamp: Callable[[bytes], bytes]
    clock: Callable[[], float]
    # Runs something long beside the raft thread.
    spawn: Callable[[Callable[[], None]], None]
    # Whether an entry may wait a moment for others that may (`company`).
    may_wait: Callable[[bytes], bool] = lambda _entry: False
    # The lowest epoch to have to do with: of a node that starts with an empty log in a cluster that was recovered.
    epoch: int = 0


def spawn_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="raft-disk", daemon=True).start()


class Core(SyncObj):  # type: ignore[misc]
    _SyncObj__raftState: int
    _SyncObj__raftCurrentTerm: int
    _SyncObj__votedForNodeId: str | None
    _SyncObj__raftLeader: Node | None
    _SyncObj__raftElectionDeadline: float
    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLastApplied: int
    _SyncObj__leaderCommitIndex: int | None
    _SyncObj__noopIDx: int | None
    _SyncObj__newAppendEntriesTime: float
    _SyncObj__otherNodes: set[Node]
    _SyncObj__readonlyNodes: set[Node]
    _SyncObj__connectedNodes: set[Node]
    _SyncObj__raftNextIndex: dict[Node, int]
    _SyncObj__raftMatchIndex: dict[Node, int]
    _SyncObj__lastResponseTime: dict[Node, float]
    _SyncObj__commandsWaitingCommit: dict[int, list[tuple[int, Callback]]]
    _SyncObj__commandsWaitingReply: dict[int, Callback]

    def __init__(self, around: Surroundings, hints: membership.Members) -> None:
        """`hints`: members known from elsewhere, who may be met as long as the log does not name this node as a member."""
        self.uid = around.uid
        self.log = around.log
        self.machine = around.machine
        self.exchange = around.exchange
        self.snapshots = around.snapshots
        self.options = options = around.options
        self._around = around
        self._now = around.clock
        self._started_at = around.clock()
        self._hints = dict(hints)
        self._adopted = Configuration()
        self._allowed: dict[str, Address] = {}
        self._introduced: tuple[int, dict[str, Address]] = (0, {})
        self._farewells: dict[str, tuple[Address, float]] = {}
        self.connected: frozenset[str] = frozenset()
        # When a majority was last proven to follow the leader, and when that leader last spoke.
        self._quorum_at = self._beat_at = float("-inf")
        self._is_due = False
        self._is_unsettled = False
        self.point = self._reconcile()
        self.configurations = self._configurations_of_log()
        conf = SyncObjConf(
            autoTick=False,
            autoTickPeriod=options.tick_s,
            raftMinTimeout=options.election_timeout_min_s,
            raftMaxTimeout=options.election_timeout_max_s,
            appendEntriesPeriod=options.heartbeat_s,
            leaderFallbackTimeout=options.leader_quorum_s,
            connectionTimeout=options.election_timeout_max_s,
            journalFile=self.log,
            onStateChanged=self._state_changed,
            # Snapshots and compaction are ours (consensus.py); these keep pysyncobj from making its own.
            logCompactionMinEntries=2**62,
            logCompactionMinTime=2**62,
        )
        super().__init__(node_named(self.uid), [], conf=conf, transport=self.exchange)
        self.exchange.setOnNodeConnectedCallback(self._peer_connected)
        self.exchange.setOnNodeDisconnectedCallback(self._peer_disconnected)
        self.exchange.amend = self._amend
        self._SyncObj__raftLastApplied = self.point.index
        if self.log.getRaftCommitIndex() < self.point.index:
            self.log.setRaftCommitIndex(self.point.index)
        self._SyncObj__raftCommitIndex = self.log.getRaftCommitIndex()
        self._adopt_configuration()
        if set(self.configurations.current) == {self.uid} and not self.is_learner:
            self._SyncObj__raftElectionDeadline = 0.0

    # Log and snapshot.

    def _reconcile(self) -> Point:
        """Load the snapshot into the state machine and make sure that the log goes on where it ends."""
        point = reconcile(self.log, self.snapshots.current())
        if point.index:
            self.machine.restore(point.index, self.snapshots.chunks())
        return point

    def _configurations_of_log(self) -> Configurations:
        return configurations_of(self.log, self.point)

    def _append(self, command: bytes, term: int) -> int:
        """Add an entry at the end, and what it changes in the configuration."""
        index = self.log.last_index + 1
        self._add(command, index, term)
        return index

    def _add(self, command: bytes, index: int, term: int) -> None:
        self.log.add(command, index, term)
        if command[:1] == MEMBERSHIP:
            self.configurations.append(index, membership.decode(command[1:]))
            self._adopt_configuration()

    def _cut(self, index: int) -> None:
        """Take back entries from `index` on, which conflict with the leader's; never committed ones."""
        assert index > self.raftCommitIndex, f"entry {index} conflicts, but {self.raftCommitIndex} is committed"
        self.log.truncate(index)
        self._fail_absent()
        if self.configurations.truncate(index):
            self._adopt_configuration()

    # Peers.

    @property
    def is_learner(self) -> bool:
        """Does not vote: one of the learners, in no configuration at all, or still in the past."""
        return self.uid not in self.configurations.current or self._is_of_the_past

    @property
    def _is_of_the_past(self) -> bool:
        """Began anew in a cluster that was recovered, and has not got the recovery yet. Its log is the beginning of one in which
        it had a vote once, perhaps the only one: it could elect itself, or another such node, past all that came later."""
        return self.configurations.whole.epoch < self._around.epoch

    @property
    def _is_outside(self) -> bool:
        return self.uid not in self.configurations.whole.everybody or self._is_of_the_past

    @property
    def epoch(self) -> int:
        return max(self._around.epoch, self.configurations.whole.epoch)

    def _is_member(self, node: Node) -> bool:
        return node.id in self.configurations.whole.everybody

    def _require_epoch(self) -> None:
        """Raises Superseded once a peer has shown a higher epoch: what this replica holds is of the past."""
        found = self.exchange.superseded_by
        if found is None or found[1] <= self.epoch:
            return
        theirs, ours = epochs.text(found[1]), epochs.text(self.epoch)
        rejoin = "run 'kvorum cluster rejoin' on this node; what it holds is put aside, not lost"
        if epochs.are_rivals(found[1], self.epoch):
            raise Superseded(
                f"the cluster was recovered twice: {found[0]} belongs to the recovery {theirs}, this replica to "
                f"the recovery {ours}. Nothing of the two is mixed, and this one stops",
                remedy=f"to go on with {theirs}, {rejoin}; to go on with {ours} instead, run "
                "'kvorum cluster recover --from-this-node --force' here and 'kvorum cluster rejoin' on the others",
                details={"epoch": str(found[1])},
            )
        raise Superseded(
            f"{found[0]} belongs to epoch {theirs} of this cluster and this replica to epoch {ours}: the "
            "cluster was recovered without it",
            remedy=rejoin,
            details={"epoch": str(found[1])},
        )

    def allow(self, uid: str, address: Address) -> None:
        if uid != self.uid and self._allowed.get(uid) != address:
            self._allowed[uid] = address
            self._update_peers()

    def _adopt_configuration(self) -> None:
        before, self._adopted = self._adopted, self.configurations.whole
        self.exchange.epoch = self.epoch
        nodes = {node_named(uid) for uid in self._adopted.voters if uid != self.uid}
        outvoted = self._SyncObj__otherNodes - nodes
        self._SyncObj__readonlyNodes -= nodes
        self._SyncObj__updateClusterConfiguration(nodes)
        for node in nodes:
            # pysyncobj's commit and step-down rules read these of every member.
            self._SyncObj__raftNextIndex.setdefault(node, self.log.last_index + 1)
            self._SyncObj__raftMatchIndex.setdefault(node, 0)
            self._SyncObj__lastResponseTime.setdefault(node, self._now())
        for node in outvoted:
            self._SyncObj__lastResponseTime.pop(node, None)
            if node in self._SyncObj__connectedNodes:
                self._make_learner(node)
        for uid in before.everybody.keys() - self._adopted.everybody.keys() - {self.uid}:
            self._allowed.pop(uid, None)
            if self._isLeader():
                self._farewells[uid] = (before.everybody[uid], self._now() + self.options.farewell_s)
        self._update_peers()
        for node in self._SyncObj__connectedNodes:
            self._introduce(node)
        log.info(
            "%s: voters are now %s; learners: %s",
            self.uid,
            ", ".join(sorted(self._adopted.voters)) or "not known yet",
            ", ".join(sorted(self._adopted.learners)) or "none",
        )

    def _introduce(self, node: Node) -> None:
        members = {uid: (address.host, address.port) for uid, address in self.configurations.whole.everybody.items()}
        self.exchange.send(node, Introduction(self.configurations.changed_at, members))

    def _on_introduction(self, node: Node, message: Introduction) -> None:
        """Without this, a node that was away while others joined would turn away the very leader that could tell it so."""
        is_known = node.id in self.configurations.whole.everybody or self._is_outside
        if is_known and message.index > max(self.configurations.changed_at, self._introduced[0]):
            self._introduced = message.index, {uid: Address(*place) for uid, place in message.members.items()}
            self._update_peers()

    def _update_peers(self) -> None:
        members = self.configurations.whole.everybody
        sources = [members, self._allowed, {uid: address for uid, (address, _) in self._farewells.items()}]
        if self._introduced[0] > self.configurations.changed_at:
            sources.append(self._introduced[1])
        if self._is_outside:
            sources.append(self._hints)
        # Whom an entry removes that is not committed may yet turn out to be the leader that takes that entry back.
        self._is_unsettled = self.configurations.changed_at > self.raftCommitIndex
        if self._is_unsettled:
            sources.append(self.configurations.at(self.raftCommitIndex).everybody)
        uids = {uid for source in sources for uid in source} - {self.uid}
        self.exchange.set_peers(
            {
                uid: tuple(
                    dict.fromkeys(a for s in (*sources, self._hints) if (a := s.get(uid)) is not None and a.port)
                )
                for uid in uids
            }
        )

    def _end_farewells(self, now: float) -> None:
        over = [uid for uid, (_, until) in self._farewells.items() if until < now]
        for uid in over:
            del self._farewells[uid]
        if over or (self._is_unsettled and self.configurations.changed_at <= self.raftCommitIndex):
            self._update_peers()

    def _make_learner(self, node: Node) -> None:
        self._SyncObj__readonlyNodes.add(node)
        self._SyncObj__raftNextIndex[node] = self.log.last_index + 1
        self._SyncObj__raftMatchIndex[node] = 0

    def _peer_connected(self, node: Node) -> None:
        self._SyncObj__connectedNodes.add(node)
        if node not in self._SyncObj__otherNodes:
            self._make_learner(node)
        else:
            # What was on its way when the connection broke is lost.
            match = self._SyncObj__raftMatchIndex[node]
            self._SyncObj__raftNextIndex[node] = (match or self.log.last_index) + 1
        self._note_connections()
        self._introduce(node)
        self._is_due = True

    def _peer_disconnected(self, node: Node) -> None:
        self._SyncObj__connectedNodes.discard(node)
        if node in self._SyncObj__readonlyNodes:
            self._SyncObj__readonlyNodes.discard(node)
            self._SyncObj__raftNextIndex.pop(node, None)
            self._SyncObj__raftMatchIndex.pop(node, None)
        if node == self._getLeader():
            # Answers that were on their way are lost.
            self._SyncObj__onLeaderChanged()
        self._note_connections()

    def _note_connections(self) -> None:
        self.connected = frozenset(node.id for node in self._SyncObj__connectedNodes)

    # Quorum.

    def _majority_at(self, times: Sequence[float]) -> float:
        """The newest moment that a majority of the members reaches; `times` has one value for each other member."""
        if self.is_learner:
            return float("-inf")
        ordered = sorted([*times, float("inf")], reverse=True)
        return ordered[(len(times) + 1) // 2]

    def _proof_at(self) -> float:
        """When (on our clock) a majority was last known to follow the present leader."""
        if not self._isLeader():
            return self._quorum_at
        # A copy, for `status` comes from other threads; by name, for pysyncobj's nodes are dear to hash and to compare.
        answers = {node.id: at for node, at in list(self._SyncObj__lastResponseTime.items())}
        return self._majority_at([answers.get(u, float("-inf")) for u in self.configurations.current if u != self.uid])

    def is_quorate(self, now: float) -> bool:
        if self._isLeader():
            return now - self._proof_at() < self.options.leader_quorum_s
        limit = self.options.follower_quorum_s
        return self._getLeader() is not None and now - self._beat_at < limit and now - self._quorum_at < limit

    def missing(self, now: float) -> tuple[str, ...]:
        """Members that were not heard of lately."""
        found = []
        for uid in self.configurations.current:
            heard = self.exchange.heard_at(uid) if uid != self.uid else now
            if heard is None or now - heard > self.options.follower_quorum_s:
                found.append(uid)
        return tuple(sorted(found))

    def is_out_of_reach(self, now: float) -> bool:
        """No leader proves a quorum and too few members are heard to elect one: nothing can be written.

        Right after the start nobody was heard yet, which proves nothing."""
        if now - self._started_at < self.options.follower_quorum_s:
            return False
        members = len(self.configurations.current)
        return not self.is_quorate(now) and (members - len(self.missing(now))) * 2 <= members

    # Hooks of the layers above.

    def _amend(self, message: Outgoing) -> Outgoing:
        return message

    def _state_changed(self, old: int, new: int) -> None:
        raise NotImplementedError

    def _fail_waiting(self, up_to: int | None = None) -> None:
        """Tell callers that nobody will know what became of their entries (those up to an index, or all)."""
        waiting = self._SyncObj__commandsWaitingCommit
        for index in sorted(waiting):
            if up_to is None or index <= up_to:
                for _, callback in waiting.pop(index):
                    callback(None, FAIL_REASON.UNKNOWN_OUTCOME)
        if up_to is None:
            self._SyncObj__onLeaderChanged()

    def _fail_absent(self) -> None:
        """Likewise of those that the log does not hold (any more). pysyncobj tells only when another entry is applied in
        their place, which may take for ever."""
        waiting = self._SyncObj__commandsWaitingCommit
        for index in sorted(waiting):
            term = self.log.term_at(index)
            absent = [callback for wanted, callback in waiting[index] if wanted != term]
            if index > self.raftLastApplied and absent:
                kept = [item for item in waiting.pop(index) if item[0] == term]
                if kept:
                    waiting[index] = kept
                for callback in absent:
                    callback(None, FAIL_REASON.UNKNOWN_OUTCOME)

    def _observe(self, term: int) -> bool:
        """A higher term ends whatever this node was in the old one. True when it did."""
        if term <= self.raftCurrentTerm:
            return False
        # In this order: on a full disk the term is not durable, and a leader of it would still speak for it.
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None
        self._SyncObj__setCurrentTerm(term, None)
        return True

    def _restart_election_timer(self) -> None:
        self._SyncObj__raftElectionDeadline = self._now() + self._SyncObj__generateRaftTimeout()


def reconcile(held: Log, point: Point | None) -> Point:
    """Make the log go on where the snapshot ends.

    A crash between taking over a received snapshot and restarting the log leaves a log that is behind it or in conflict
    with it. What a snapshot holds is committed, so such a log has nothing to add. A log that begins *after* the
    snapshot has lost entries: refused.
    """
    if point is None:
        if held.base_index:
            raise StorageDamaged("the Raft log begins after a snapshot that is not there")
        return Point(0, 0, Configuration())
    if held.base_index > point.index:
        raise StorageDamaged(f"the log begins after {held.base_index}, the snapshot ends at {point.index}")
    if held.term_at(point.index) != point.term:
        if held.getRaftCommitIndex() > point.index:
            raise StorageDamaged(f"log and snapshot disagree on the committed entry {point.index}")
        log.warning("the log restarts after the snapshot at %d", point.index)
        held.restart(point.index, point.term)
    return point


def configurations_of(held: Log, point: Point) -> Configurations:
    """The snapshot's configuration and what the log after it makes of it; entries count as soon as they are there."""
    configurations = Configurations(point.index, point.configuration)
    for command, index, _ in held[max(1, point.index - held.base_index + 1) :]:
        if command[:1] == MEMBERSHIP:
            configurations.append(index, membership.decode(command[1:]))
    return configurations


monotonic: Callable[[], float] = pysyncobj.syncobj.monotonicTime

__all__ = [
    "CANDIDATE",
    "FOLLOWER",
    "LEADER",
    "MEMBERSHIP",
    "NO_OP",
    "REGULAR",
    "Callback",
    "Change",
    "Core",
    "Surroundings",
]
