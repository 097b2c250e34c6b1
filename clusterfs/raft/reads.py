"""Linearizable reads without the log (ReadIndex, Ongaro's thesis 6.4): no entry, no disk, one round of answers.

The leader remembers its commit index and waits until a majority has answered what it sent *after* the read came in: so nobody
else led when the read began, and nothing that was acknowledged before is missing. It must have committed an entry of its own
term by then, for until that it does not know how far its predecessors committed. A follower asks the leader for the index, and
whoever asked waits until it is applied here. All reads of one moment share a round.

An answer counts by the leader's clock at the sending of the question (`sent_at`), so a node that was frozen anywhere on the way
can only delay a read, and a deposed leader never gets its majority.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pysyncobj import FAIL_REASON
from pysyncobj.node import Node

from .changes import MembershipChanges
from .core import Callback, Surroundings
from .membership import Members
from .messages import ReadIndex, ReadIndexReply

# A question that nobody has answered for so long, in seconds, is asked anew by whoever still waits.
ASK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Read:
    """`on_taken`: from now on it is too late to join this one."""

    callback: Callback
    on_taken: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Confirming:
    """At the leader, since `at`; for itself, or for the request of another node."""

    at: float
    callback: Callback | None = None
    origin: tuple[Node, int] | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    """What a follower has asked the leader of a term."""

    leader: Node
    term: int
    until: float
    callbacks: tuple[Callback, ...]


class Reads(MembershipChanges):
    def __init__(self, around: Surroundings, hints: Members) -> None:
        # Not from zero: an answer meant for the process before this one must find nobody.
        self._requests = random.getrandbits(48)
        self._reads: deque[Read] = deque()
        self._confirming: list[_Confirming] = []
        self._questions: dict[int, _Question] = {}
        # Index that has to be applied here first.
        self._unapplied: list[tuple[int, Callback]] = []
        super().__init__(around, hints)

    def submit_read(self, read: Read) -> None:
        """From any thread. The callback gets (applied index, FAIL_REASON) in the raft thread and must not raise."""
        self._reads.append(read)
        self.exchange.wake()

    def _take_reads(self, now: float) -> None:
        """Before messages leave: what waits for a round makes one due, unless one was sent since."""
        callbacks = []
        for _ in range(len(self._reads)):
            read = self._reads.popleft()
            read.on_taken()
            callbacks.append(read.callback)
        if self._isLeader():
            self._confirming += [_Confirming(now, callback) for callback in callbacks]
            if self._confirming and self._confirming[-1].at >= self._round_at:
                self._is_due = True
        elif callbacks:
            self._ask_leader(now, tuple(callbacks))

    def _ask_leader(self, now: float, callbacks: tuple[Callback, ...]) -> None:
        leader = self._getLeader()
        self._requests += 1
        if leader is None or not self.exchange.send(leader, ReadIndex(self._requests)):
            for callback in callbacks:
                callback(None, FAIL_REASON.MISSING_LEADER)
            return
        self._questions[self._requests] = _Question(leader, self.raftCurrentTerm, now + ASK_AGAIN_S, callbacks)

    def _on_read_index(self, node: Node, message: ReadIndex) -> None:
        if self._isLeader():
            self._confirming.append(_Confirming(self._now(), origin=(node, message.request)))
        else:
            self.exchange.send(node, ReadIndexReply(message.request, 0, ok=False))

    def _on_read_index_reply(self, node: Node, message: ReadIndexReply) -> None:
        question = self._questions.pop(message.request, None)
        if question is None or question.leader != node:
            return
        for callback in question.callbacks:
            if message.ok:
                self._unapplied.append((message.index, callback))
            else:
                callback(None, FAIL_REASON.NOT_LEADER)

    def _serve_reads(self, now: float) -> None:
        if self._confirming:
            self._confirm_reads()
        if self._questions:
            self._drop_questions(now)
        if self._unapplied:
            applied = self.raftLastApplied
            ready = [callback for index, callback in self._unapplied if index <= applied]
            self._unapplied = [item for item in self._unapplied if item[0] > applied]
            for callback in ready:
                callback(applied, FAIL_REASON.SUCCESS)

    def _confirm_reads(self) -> None:
        if not self._isLeader():
            self._fail_confirming()
            return
        if self.raftCommitIndex < self._SyncObj__noopIDx:
            return
        confirmed_at = self._majority_at(
            [self._answered_at.get(uid, float("-inf")) for uid in self.configurations.current if uid != self.uid]
        )
        # Not at the same moment: what was sent then may have left before the read came in.
        done = [read for read in self._confirming if read.at < confirmed_at]
        self._confirming = [read for read in self._confirming if read.at >= confirmed_at]
        for read in done:
            if read.callback is not None:
                self._unapplied.append((self.raftCommitIndex, read.callback))
            elif read.origin is not None:
                node, request = read.origin
                self.exchange.send(node, ReadIndexReply(request, self.raftCommitIndex))

    def _drop_questions(self, now: float) -> None:
        """Those that will not be answered any more."""
        leader = self._getLeader()
        for request, question in list(self._questions.items()):
            is_alive = leader == question.leader and leader.id in self.connected
            if not is_alive or question.term != self.raftCurrentTerm or now > question.until:
                del self._questions[request]
                for callback in question.callbacks:
                    callback(None, FAIL_REASON.NOT_LEADER)

    def _fail_confirming(self) -> None:
        failed, self._confirming = self._confirming, []
        for read in failed:
            if read.callback is not None:
                read.callback(None, FAIL_REASON.NOT_LEADER)
            elif read.origin is not None:
                node, request = read.origin
                self.exchange.send(node, ReadIndexReply(request, 0, ok=False))

    def _state_changed(self, old: int, new: int) -> None:
        self._fail_confirming()
        super()._state_changed(old, new)

    def _fail_waiting(self, up_to: int | None = None) -> None:
        super()._fail_waiting(up_to)
        if up_to is None:
            self._fail_reads()

    def _fail_reads(self) -> None:
        self._fail_confirming()
        while self._reads:
            read = self._reads.popleft()
            read.on_taken()
            read.callback(None, FAIL_REASON.NOT_LEADER)
        callbacks = [callback for question in self._questions.values() for callback in question.callbacks]
        callbacks += [callback for _, callback in self._unapplied]
        self._questions, self._unapplied = {}, []
        for callback in callbacks:
            callback(None, FAIL_REASON.NOT_LEADER)
