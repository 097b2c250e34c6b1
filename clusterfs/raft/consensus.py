"""One replica's consensus: the tick, commands on their way in, entries on their way out, and the log's compaction.

The last of the four layers (see `core`). Everything runs in the raft thread except `submit` and `call_soon`, which hand
something to it. Blocking calls, deadlines and threads are `replica`'s.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node

from kvorum.errors import DiskFull

from . import company
from .core import CANDIDATE, FOLLOWER, LEADER, MEMBERSHIP, NO_OP, REGULAR, Callback, Surroundings
from .exchange import node_named
from .membership import Configuration, Members
from .messages import (
    AnyMessage,
    AppendEntries,
    AppendReply,
    ChangeMember,
    ChangeProgress,
    Forward,
    Forwarded,
    Introduction,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    Whisper,
)
from .reads import Reads
from .snapshot import Point
from .values import ApplyFailed, Role, Status

log = logging.getLogger(__name__)

# A peer that has more than this waiting to leave is not whispered to: consensus goes first.
WHISPER_BACKLOG_BYTES = 512 * 2**10
# What a command that waits costs beside its bytes.
COMMAND_COST_BYTES = 256
# After a snapshot that could not be written, in seconds.
SNAPSHOT_RETRY_S = 30.0
# Between two looks at whether there is quorum, in seconds: there are thousands of ticks a second.
QUORUM_LOOK_S = 0.01
# The log of so many snapshots is kept, at most, for a follower that is catching up.
HELD_SNAPSHOTS = 4
# How many entries are looked through for what is not applied yet.
UNAPPLIED_LOOK = 256
# And how much of each: what a command changes stands before what it writes.
UNAPPLIED_LOOK_BYTES = 8192
# Between two attempts to write what could not be written, in seconds.
SPACE_RETRY_S = 1.0


class Command(msgspec.Struct, frozen=True):
    """On its way to the log. `origin`: the follower that forwarded it and its request number."""

    command: bytes
    callback: Callback | None = None
    origin: tuple[Node, int] | None = None
    # For others that may, at the leader (`company`).
    may_wait: bool = False


class Consensus(Reads):
    def __init__(self, around: Surroundings, hints: Members) -> None:
        self._commands: deque[Command] = deque()
        # By uid of the follower: what its commands among them cost.
        self._forwarded_bytes: dict[str, int] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._stamp = around.stamp
        self._may_wait = around.may_wait
        # Since when all that waits for its place in the log may wait; None while it is not so.
        self._company_since: float | None = None
        self._writing: Point | None = None
        # Of the log, that was kept when it was cut the last time, beyond what is always kept: it makes no snapshot due.
        self._uncut_bytes = 0
        self._written: deque[Exception | None] = deque()
        self._no_snapshot_before = float("-inf")
        self._is_cut_off = False
        self._look_again_at = float("-inf")
        # Why nothing can be written, while that is so, and when to look again.
        self.full: DiskFull | None = None
        self._space_at = float("-inf")
        # Called in the raft thread, so they may only put something aside.
        self.on_whisper: Callable[[str, bytes], None] = lambda _uid, _payload: None
        self.on_links: Callable[[frozenset[str]], None] = lambda _connected: None
        self._told_links: frozenset[str] = frozenset()
        self._is_answered = False
        self._settled_index = 0
        # As pysyncobj's `raftLastApplied`, but counted before those who proposed an entry are told of it.
        self._done_index = 0
        super().__init__(around, hints)

    # From other threads.

    def submit(self, command: Command) -> None:
        """Into the log, by whoever leads. The callback gets (result, FAIL_REASON) in the raft thread and must not raise."""
        self._commands.append(command)
        self.exchange.wake()

    def fail_all(self) -> None:
        """At the end: nobody keeps waiting."""
        self._fail_waiting()
        while self._commands:
            command = self._next_command()
            if command.callback is not None:
                command.callback(None, FAIL_REASON.UNKNOWN_OUTCOME)

    def call_soon(self, work: Callable[[], None]) -> None:
        self._calls.append(work)
        self.exchange.wake()

    # The tick.

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N802, N803
        """Confirm what came in, then pysyncobj's tick: election, commit, apply, `_checkCommandsToApply`, wait for messages."""
        try:
            self._tick(timeToWait)
        except DiskFull as error:
            self._on_full_disk(error)

    def _tick(self, time_to_wait: float) -> None:
        self._require_epoch()
        if self.full is not None:
            self._look_for_space(self._now())
        if self.full is None:
            self._flush()
        while self._calls:
            self._calls.popleft()()
        # Not earlier: a slow disk may have taken its time.
        now = self._now()
        self._prepare_election(now)
        self._notice_quorum(now)
        self._end_farewells(now)
        if self.connected != self._told_links:
            self._told_links = self.connected
            self.on_links(self.connected)
        if self._isLeader():
            self._advance_commit()
        super()._onTick(time_to_wait)

    def wait(self, poll: Callable[[float], None], timeout_s: float) -> None:
        """Until something came in that a tick has to do with. The answers to a quiet leader's heartbeats are not: it notes
        them and waits on, or it would work three times as much for nothing."""
        now = self._now()
        until = now + min(timeout_s, self._until_due(now))
        while True:
            self._is_news, self._is_answered = False, False
            poll(max(0.0, until - self._now()))
            is_quiet = self._is_answered and not self._is_news and not self._is_due and self._isLeader()
            is_asked = self._are_commands_due() or self._calls or self._reads or self._confirming
            if not is_quiet or is_asked or self.connected != self._told_links or self._now() >= until:
                return

    def _until_due(self, now: float) -> float:
        """How long the raft thread may wait when nothing comes in: an idle node should not wake up to find that out."""
        if self._are_commands_due() or self._calls or self._reads:
            return 0.0
        is_busy = self._writing is not None or self._sendings or self._probes or self._wanted or self._questions
        if is_busy or self.full is not None:
            return self.options.tick_s
        is_leader = self._isLeader()
        due = self._SyncObj__newAppendEntriesTime if is_leader else self._SyncObj__raftElectionDeadline
        if self._company_since is not None:
            due = min(due, self._company_since + company.WINDOW_S)
        return max(self.options.tick_s / 4, due - now)

    def _notice_quorum(self, now: float) -> None:
        """When quorum is lost nobody is left waiting for what may never be decided."""
        if now < self._look_again_at:
            return
        self._look_again_at = now + QUORUM_LOOK_S
        before, self._is_cut_off = self._is_cut_off, self.is_out_of_reach(now)
        if self._is_cut_off and not before:
            self._fail_waiting()

    # A full disk. What is in memory and not on disk stays there, for whoever acknowledges nothing has promised nothing: so the
    # node falls silent, follows as far as it can without writing, and writes what waits as soon as there is space.

    def _on_full_disk(self, error: DiskFull) -> None:
        if self.full is None:
            log.error("%s: %s; this node only reads until there is space", self.uid, error)
            self._space_at = self._now() + SPACE_RETRY_S
            if self._isLeader():
                self._ask_to_take_over()
        self.full = error
        self.exchange.is_mute = True
        self._acks.clear()
        if self._SyncObj__raftState != FOLLOWER:
            if self._isLeader():
                # pysyncobj counts this node's own copy before that is durable.
                self._SyncObj__raftCommitIndex = self.log.getRaftCommitIndex()
            self._SyncObj__setState(FOLLOWER)
            self._SyncObj__raftLeader = None
        self._fail_waiting()

    def _ask_to_take_over(self) -> None:
        """Whoever has most of the log. pysyncobj's transfer wants one that has all of it, what could not be written included."""
        match = self._SyncObj__raftMatchIndex
        voters = [node for node in self._SyncObj__otherNodes if node in self._SyncObj__connectedNodes]
        if voters:
            best = max(voters, key=lambda node: (match.get(node, 0), node.id))
            self.exchange.send(best, TimeoutNow(self.raftCurrentTerm))

    def _look_for_space(self, now: float) -> None:
        self._acks.clear()
        # A candidate's own vote would have to be written.
        self._SyncObj__raftElectionDeadline = now + self.options.election_timeout_max_s
        if now < self._space_at:
            return
        self._space_at = now + SPACE_RETRY_S
        self.log.sync()
        log.warning("%s: there is space again", self.uid)
        self.full = None
        self.exchange.is_mute = False
        self._restart_election_timer()

    def _SyncObj__onMessageReceived(self, node: Node, message: AnyMessage) -> None:  # noqa: N802
        try:
            if self.full is not None and isinstance(message, AppendEntries):
                # There is room in memory for what has come already, not for more.
                message = msgspec.structs.replace(message, entries=[])
            self._on_message(node, message)
        except DiskFull as error:
            self._on_full_disk(error)

    def _on_message(self, node: Node, message: AnyMessage) -> None:
        match message:
            case AppendEntries():
                self._on_append_entries(node, message)
            case AppendReply():
                self._is_answered = True
                self._on_append_reply(node, message)
                return
            case Forward():
                self._on_forward(node, message)
            case Forwarded():
                self._on_forwarded(node, message)
            case SnapshotChunk():
                self._on_snapshot_chunk(node, message)
            case SnapshotReply():
                self._on_snapshot_reply(node, message)
            case PreVote():
                self._on_pre_vote(node, message)
            case PreVoteReply():
                self._on_pre_vote_reply(node, message)
            case RequestVote():
                self._on_request_vote(node, message)
            case VoteReply():
                self._on_vote_reply(node, message)
            case TimeoutNow():
                self._on_timeout_now(node, message)
            case ReadIndex():
                self._on_read_index(node, message)
            case ReadIndexReply():
                self._on_read_index_reply(node, message)
            case ChangeMember():
                self._on_change_member(node, message)
            case ChangeProgress():
                self._on_change_progress(message)
            case Introduction():
                self._on_introduction(node, message)
            case Whisper():
                self.on_whisper(node.id, message.payload)
        self._is_news = True

    def whisper(self, payload: bytes, uid: str | None) -> None:
        """To one peer, or to all that are connected; whoever is slow or away misses it."""
        for peer in self.connected if uid is None else {uid} & self.connected:
            if self.exchange.backlog_bytes(peer) <= WHISPER_BACKLOG_BYTES:
                self.exchange.send(node_named(peer), Whisper(payload))

    # Commands.

    def _are_commands_due(self) -> bool:
        """Whether any may go where they are to go; what waits for company stays a little longer."""
        if not self._commands:
            self._company_since = None
            return False
        if not self._isLeader() or not self._commands[0].may_wait:
            self._company_since = None
            return True
        now = self._now()
        since = self._company_since = now if self._company_since is None else self._company_since
        return company.left_s([command.may_wait for command in self._commands.copy()], since, now) == 0.0

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Everything that waits goes into the log together: one message to each follower, one sync, run side by side."""
        if self.full is not None:
            self._refuse_commands()
            self._fail_reads()
            self._settle()
            return
        self._take_reads(self._now())
        if self._isLeader():
            if self._are_commands_due():
                self._take_into_log()
            self._advance_changes(self._now())
            if (
                self._is_due
                or self.raftCommitIndex != self._told_commit
                or self.log.last_index != self._replicated_index
            ):
                self._replicate()
            self._settle()
            self.log.sync()
        else:
            self._pass_on()
            self._settle()
        self._serve_reads(self._now())
        self._compact_if_due(self._now())

    def _settle(self) -> None:
        """Those who watch are woken once for all that was applied, after those who proposed it and after what others wait for: a
        thread that is woken takes the interpreter from this one."""
        if self.raftLastApplied != self._settled_index:
            self._settled_index = self.raftLastApplied
            self.machine.settled()

    def _next_command(self) -> Command:
        command = self._commands.popleft()
        if command.origin is not None:
            uid = command.origin[0].id
            self._forwarded_bytes[uid] -= len(command.command) + COMMAND_COST_BYTES
            if not self._forwarded_bytes[uid]:
                del self._forwarded_bytes[uid]
        return command

    def _refuse_commands(self) -> None:
        while self._commands:
            command = self._next_command()
            if command.callback is not None:
                command.callback(None, FAIL_REASON.MISSING_LEADER)

    def _take_into_log(self) -> None:
        answers: dict[Node, Forwarded] = {}
        taken_bytes = taken = 0
        self._company_since = None
        while self._commands and taken < self.options.batch_entries and taken_bytes < self.options.batch_bytes:
            command = self._next_command()
            stamped = self._stamped(command.command)
            if stamped is not None:
                index = self._append(stamped, self.raftCurrentTerm)
                taken += 1
                taken_bytes += len(stamped)
            if command.origin is not None:
                node, request = command.origin
                answer = answers.setdefault(node, Forwarded([], []))
                if stamped is None:
                    answer.refused.append(request)
                else:
                    answer.accepted.append((request, index, self.raftCurrentTerm))
            elif command.callback is not None:
                if stamped is None:
                    command.callback(None, FAIL_REASON.REQUEST_DENIED)
                else:
                    self._SyncObj__commandsWaitingCommit[index].append((self.raftCurrentTerm, command.callback))
        for node, answer in answers.items():
            self.exchange.send(node, answer)

    def _stamped(self, command: bytes) -> bytes | None:
        if command[:1] != REGULAR:
            return command
        try:
            stamped = REGULAR + self._stamp(command[1:])
        except Exception:
            log.exception("%s: a command could not be stamped and is refused", self.uid)
            return None
        return stamped if len(stamped) <= self.options.max_entry_bytes + 2**12 else None

    def _pass_on(self) -> None:
        """To the leader, or back to the caller when there is none."""
        leader = self._getLeader()
        forward: list[tuple[int, bytes]] = []
        size = 0
        refused: dict[Node, Forwarded] = {}
        while self._commands and size < self.options.batch_bytes:
            command = self._next_command()
            if command.origin is not None:
                node, request = command.origin
                refused.setdefault(node, Forwarded([], [])).refused.append(request)
            elif leader is None or leader.id not in self.connected:
                if command.callback is not None:
                    command.callback(None, FAIL_REASON.MISSING_LEADER)
            else:
                self._requests += 1
                if command.callback is not None:
                    self._SyncObj__commandsWaitingReply[self._requests] = command.callback
                forward.append((self._requests, command.command))
                size += len(command.command)
        for node, answer in refused.items():
            self.exchange.send(node, answer)
        if forward and leader is not None and not self.exchange.send(leader, Forward(forward)):
            for request, _ in forward:
                if (callback := self._SyncObj__commandsWaitingReply.pop(request, None)) is not None:
                    callback(None, FAIL_REASON.NOT_LEADER)

    def _on_forward(self, node: Node, message: Forward) -> None:
        """Bounded for each follower: one that floods the leader must neither fill its memory nor crowd out the others. Of members
        only: a link is also there for a while to one that was removed, or is about to join."""
        held = self._forwarded_bytes.get(node.id, 0)
        answer = Forwarded([], [])
        is_member = self._is_member(node)
        for request, command in message.commands:
            cost = len(command) + COMMAND_COST_BYTES
            # A peer may bring commands; membership has its own, checked way.
            if not is_member or command[:1] != REGULAR or len(command) > self.options.max_entry_bytes + 1:
                answer.refused.append(request)
            elif held + cost > self.options.forwarded_bytes:
                answer.busy.append(request)
            else:
                held += cost
                may_wait = self._may_wait(command[1:])
                self._commands.append(Command(command, origin=(node, request), may_wait=may_wait))
        if held:
            self._forwarded_bytes[node.id] = held
        if answer.refused or answer.busy:
            self.exchange.send(node, answer)

    def _on_forwarded(self, _node: Node, message: Forwarded) -> None:
        waiting = self._SyncObj__commandsWaitingReply
        for request in message.busy:
            if (callback := waiting.pop(request, None)) is not None:
                callback(None, FAIL_REASON.QUEUE_FULL)
        for request in message.refused:
            if (callback := waiting.pop(request, None)) is not None:
                callback(None, FAIL_REASON.NOT_LEADER)
        for request, index, term in message.accepted:
            if (callback := waiting.pop(request, None)) is None:
                continue
            if index <= self.raftLastApplied or term != self.raftCurrentTerm:
                callback(None, FAIL_REASON.UNKNOWN_OUTCOME)
            else:
                self._SyncObj__commandsWaitingCommit[index].append((term, callback))

    def _SyncObj__doApplyCommand(self, command: bytes) -> object:  # noqa: N802
        """What an entry does here. A failing state machine must not stop the log for ever: the failure becomes the
        result. A broken invariant (AssertionError) does stop this replica, before it can do harm."""
        index: int = self.raftLastApplied + 1
        result: object = index
        if command[:1] == REGULAR:
            try:
                result = self.machine.apply(index, command[1:])
            except AssertionError:
                raise
            except Exception as error:
                log.exception("%s: entry %d could not be applied", self.uid, index)
                result = ApplyFailed(f"entry {index} could not be applied: {error}")
        self._done_index = index
        return result

    # Compaction.

    def _compact_if_due(self, now: float) -> None:
        if self._writing is not None:
            if self._written:
                self._finish_snapshot(self._writing, self._written.popleft(), now)
            return
        applied = self.raftLastApplied
        is_due = (
            applied - self.point.index >= self.options.compact_entries
            or self.log.size_bytes - self._uncut_bytes > self.options.compact_bytes
        )
        if is_due and applied > self.point.index and now >= self._no_snapshot_before:
            self._begin_snapshot(applied)

    def _begin_snapshot(self, index: int) -> None:
        term = self.log.term_at(index)
        assert term is not None
        point = self._writing = Point(index, term, self.configurations.at(index))
        serialise = self.machine.snapshot()

        def write() -> None:
            try:
                self.snapshots.write(point, serialise())
            except Exception as error:
                self._written.append(error)
            else:
                self._written.append(None)

        self._around.spawn(write)

    def _finish_snapshot(self, point: Point, failure: Exception | None, now: float) -> None:
        """Only here, in the raft thread, does a snapshot take its place: one received meanwhile may be newer."""
        self._writing = None
        if failure is not None:
            log.error("%s: the snapshot at %d could not be written: %s", self.uid, point.index, failure)
            self._no_snapshot_before = now + SNAPSHOT_RETRY_S
            return
        if point.index <= self.point.index:
            return
        self.snapshots.adopt_written()
        self.point = point
        self.configurations.compact(point.index)
        self.log.compact(self._keep_after(point.index))
        self._uncut_bytes = max(0, self.log.size_bytes - self.options.keep_bytes)
        log.info("%s: snapshot at %d, log from %d", self.uid, point.index, self.log.base_index)

    def _keep_after(self, index: int) -> int:
        """Where the log may be cut: some entries stay, for those who were away only shortly. And those that a follower lacks
        which is catching up: a snapshot may take longer to arrive than the next one takes to be due, and would be followed by
        another."""
        base = self.log.base_index
        kept, left = index, self.options.keep_bytes
        while kept > max(base, index - self.options.keep_entries):
            left -= self.log.size_at(kept)
            if left < 0:
                break
            kept -= 1
        if self._isLeader() and self.log.size_bytes <= HELD_SNAPSHOTS * self.options.compact_bytes:
            kept = min([kept, *map(self._lacks_after, self._SyncObj__connectedNodes)])
        return max(kept, base, index - max(HELD_SNAPSHOTS * self.options.compact_entries, self.options.keep_entries))

    def _lacks_after(self, node: Node) -> int:
        """The last entry that this follower has, or will have with the snapshot that it is being sent."""
        sending = self._sendings.get(node)
        held: int = self._SyncObj__raftMatchIndex.get(node, 0)
        if sending is not None:
            return max(held, sending.point.index)
        # Nothing is known of who has just connected.
        return held or self.log.last_index

    # What others see.

    def is_behind(self) -> bool:
        """The log holds entries that are not applied here. From any thread, as the next two."""
        last = self.log.last_index
        return last > self._done_index and last > self.applied_index

    @property
    def applied_index(self) -> int:
        """The state machine holds everything up to here, a snapshot that was taken over included."""
        last: int = self.raftLastApplied
        return max(self._done_index, last)

    def unapplied_with(self, needle: bytes) -> int:
        """An index by which every entry is applied that is in the log, is not applied here and holds `needle`; 0 when there is
        none. Of very many only the newest are looked at: a node that is far behind is not worth waiting for."""
        last = self.log.last_index
        count = min(last - self.applied_index, UNAPPLIED_LOOK)
        for back, command in enumerate(reversed(self.log.newest(count))):
            if command.find(needle, 0, UNAPPLIED_LOOK_BYTES) >= 0:
                return last - back
        return 0

    def applied_configuration(self) -> Configuration:
        """As far as it is applied here."""
        return self.configurations.at(max(self.raftLastApplied, self.point.index))

    def role(self) -> Role:
        if self._isLeader():
            return Role.leader
        if self.is_learner:
            return Role.learner
        return Role.candidate if self._SyncObj__raftState == CANDIDATE else Role.follower

    def status(self, now: float) -> Status:
        """From any thread: reads single values, each of which is replaced as a whole."""
        configuration = self.configurations.whole
        connected = self.connected | {self.uid}
        role, leader = self.role(), self._getLeader()
        told = self._SyncObj__noopIDx if role is Role.leader else self._SyncObj__leaderCommitIndex
        is_quorate = self.is_quorate(now)
        return Status(
            uid=self.uid,
            role=role,
            leader=leader.id if leader is not None else None,
            term=self.raftCurrentTerm,
            commit_index=self.raftCommitIndex,
            applied_index=self.raftLastApplied,
            members={uid: uid in connected for uid in sorted(configuration.voters)},
            learners={uid: uid in connected for uid in sorted(configuration.learners)},
            ready_learners=self.ready_learners(),
            addresses=configuration.everybody,
            epoch=self.epoch,
            is_quorate=is_quorate,
            missing=self.missing(now),
            disk_full=self.full is not None,
            caught_up=is_quorate and told is not None and self.raftLastApplied >= told,
        )


@dataclass(frozen=True, slots=True)
class Poller:
    """What pysyncobj ends its tick with, in place of its own."""

    consensus: Consensus
    source: Callable[[float], None]

    def poll(self, timeout_s: float) -> None:
        self.consensus.wait(self.source, timeout_s)


__all__ = ["LEADER", "MEMBERSHIP", "NO_OP", "REGULAR", "Command", "Consensus", "Poller"]
