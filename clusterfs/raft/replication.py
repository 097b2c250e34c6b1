"""The log's way from the leader to the others, and back as acknowledgements; snapshots for those too far behind.

Written anew, because here lie pysyncobj's faults that lose entries: it cuts logs without a conflict, counts acknowledgements
of other terms, confirms snapshots that did not load. Rules kept: a log is cut only at an entry of another term
and never at a committed one; an acknowledgement carries the term and says up to where the logs are equal; it leaves after
the sync; the commit index never goes back.
"""

import logging

from pysyncobj.node import Node

from kvorum.errors import DiskFull

from .catchup import Receiving, Sending
from .core import FOLLOWER, LEADER, Surroundings
from .elections import Elections
from .membership import Members
from .messages import AppendEntries, AppendReply, Beat, Entry, SnapshotChunk, SnapshotReply
from .values import StorageDamaged

log = logging.getLogger(__name__)

# A follower that denies for so long, in seconds, what it confirmed.
FORGETFUL_S = 5.0


class Replication(Elections):
    def __init__(self, around: Surroundings, hints: Members) -> None:
        # Followers whose log's end is being looked for, one question (the next index) at a time, and when it was asked.
        self._probes: dict[Node, float] = {}
        self._sendings: dict[Node, Sending] = {}
        self._receiving = Receiving(around.snapshots.files)
        self._acks: dict[Node, AppendReply] = {}
        self._told_commit = self._replicated_index = 0
        # Something came in since the last tick that the next one has to do with.
        self._is_news = False
        self._told_age_s = 1e6
        self._forgetful: dict[Node, float] = {}
        # When this leader last sent to all, and when it sent what each has answered: the newest of both, in this term.
        self._round_at = float("-inf")
        self._answered_at: dict[str, float] = {}
        super().__init__(around, hints)

    # Leader.

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """pysyncobj asks for this several times a tick; one round at its end serves them all."""
        self._is_due = True

    def _state_changed(self, old: int, new: int) -> None:
        log.info("%s: %s in term %d", self.uid, ("follower", "candidate", "leader")[new], self.raftCurrentTerm)
        self._probes.clear()
        self._forgetful.clear()
        self._round_at = float("-inf")
        self._answered_at.clear()
        for sending in self._sendings.values():
            sending.close()
        self._sendings.clear()
        self._acks.clear()
        if new == LEADER:
            # What an earlier leader took of ours and lost is in no log any more; there may be no other entry to show it.
            self._fail_absent()

    def _advance_commit(self) -> None:
        """The newest entry that a majority has, if it is of this term. pysyncobj's own loop comes to the same, by one entry after
        the other."""
        match = self._SyncObj__raftMatchIndex
        held = sorted([self.log.last_index, *(match[node] for node in self._SyncObj__otherNodes)], reverse=True)
        index = held[len(held) // 2]
        if index > self.raftCommitIndex and self.log.term_at(index) == self.raftCurrentTerm:
            self.log.setRaftCommitIndex(index)
            self._SyncObj__raftCommitIndex = index
            if not self._commands and self.log.last_index == self._replicated_index:
                # Nothing will go out with it: told before it is applied and answered here, so that whoever hears of the answer
                # and looks on another node finds it there.
                self._replicate()

    def _replicate(self) -> None:
        now = self._now()
        is_notice = not self._is_due and self.log.last_index == self._replicated_index
        if not is_notice:
            self._SyncObj__newAppendEntriesTime = now + self.options.heartbeat_s
            self._round_at = now
        self._is_due = False
        self._told_commit, self._replicated_index = self.raftCommitIndex, self.log.last_index
        self._told_age_s = self._quorum_age(now)
        for node in sorted(self._SyncObj__otherNodes | self._SyncObj__readonlyNodes, key=str):
            if node not in self._SyncObj__connectedNodes:
                continue
            if self._SyncObj__raftNextIndex[node] <= self.log.base_index:
                self._send_snapshot(node, now)
            else:
                self._send_entries(node, now, is_notice=is_notice)

    def _send_entries(self, node: Node, now: float, *, is_notice: bool) -> None:
        if sending := self._sendings.pop(node, None):
            sending.close()
        asked_at = self._probes.get(node)
        if asked_at is not None and now - asked_at < self.options.heartbeat_s:
            return
        following = self._SyncObj__raftNextIndex[node]
        while True:
            entries = self._entries_for(node, following)
            is_quiet = is_notice and not entries and asked_at is None
            if not self.exchange.send(node, self._append_message(following, entries, now, is_quiet=is_quiet)):
                break
            if asked_at is not None:
                self._probes[node] = now
                break
            following += len(entries)
            self._SyncObj__raftNextIndex[node] = following
            if not entries or following > self.log.last_index:
                break

    def _entries_for(self, node: Node, following: int) -> list[Entry]:
        window = self._SyncObj__raftMatchIndex[node] + self.options.window_entries
        is_full = self._SyncObj__raftMatchIndex[node] and following > window
        if (
            following > self.log.last_index
            or is_full
            or self.exchange.backlog_bytes(node.id) > self.options.queue_bytes // 4
        ):
            return []
        return self.log.entries_from(following, count=self.options.batch_entries, size_bytes=self.options.batch_bytes)

    def _append_message(self, following: int, entries: list[Entry], now: float, *, is_quiet: bool) -> AppendEntries:
        term = self.log.term_at(following - 1)
        assert term is not None
        return AppendEntries(
            term=self.raftCurrentTerm,
            commit_index=self.raftCommitIndex,
            sent_at=now,
            quorum_age_s=self._told_age_s,
            prev_index=following - 1,
            prev_term=term,
            entries=entries,
            quiet=is_quiet,
        )

    def _quorum_age(self, now: float) -> float:
        return min(max(0.0, now - self._proof_at()), 1e6)

    def _send_snapshot(self, node: Node, now: float) -> None:
        sending = self._sendings.get(node)
        if sending is not None and self._SyncObj__raftMatchIndex[node] >= sending.point.index:
            # It has arrived, but the log was compacted further meanwhile.
            sending.close()
            sending = None
        if sending is None:
            sending = self._sendings[node] = Sending(self.snapshots.open(), self.point)
            log.info("%s: %s gets the snapshot at %d", self.uid, node.id, self.point.index)
        if self.exchange.backlog_bytes(node.id) > self.options.queue_bytes // 4:
            return
        pieces = sending.pieces(
            now, chunk_bytes=self.options.snapshot_chunk_bytes, window_bytes=self.options.snapshot_window_bytes
        )
        if not pieces and sending.is_beat_due(now, self.options.heartbeat_s):
            pieces = [(0, b"")]
        for offset, data in pieces:
            self.exchange.send(
                node,
                SnapshotChunk(
                    term=self.raftCurrentTerm,
                    commit_index=self.raftCommitIndex,
                    sent_at=now,
                    quorum_age_s=self._quorum_age(now),
                    index=sending.point.index,
                    snapshot_term=sending.point.term,
                    size=sending.size,
                    offset=offset,
                    data=data,
                ),
            )

    def _is_answer_of_now(self, node: Node, term: int, sent_at: float) -> bool:
        """An answer counts in the term it was given in, and for the time when its question was sent."""
        if self._observe(term) or term != self.raftCurrentTerm or not self._isLeader():
            return False
        if node not in self._SyncObj__raftNextIndex:
            return False
        if sent_at <= self._now():
            times = self._SyncObj__lastResponseTime
            times[node] = max(times.get(node, sent_at), sent_at)
            self._answered_at[node.id] = max(self._answered_at.get(node.id, sent_at), sent_at)
        return True

    def _on_append_reply(self, node: Node, message: AppendReply) -> None:
        if not self._is_answer_of_now(node, message.term, message.sent_at):
            return
        match = self._SyncObj__raftMatchIndex[node]
        if message.ok:
            if message.match > self.log.last_index:
                log.error("%s: %s confirms entry %d, which was never sent", self.uid, node.id, message.match)
                return
            self._SyncObj__raftMatchIndex[node] = max(match, message.match)
            self._is_news |= message.match > match
            following = self._SyncObj__raftNextIndex[node]
            if node in self._probes and message.match >= following - 1:
                del self._probes[node]
                self._is_due = True
            self._SyncObj__raftNextIndex[node] = max(following, message.match + 1)
            self._forgetful.pop(node, None)
            return
        if node in self._probes and message.prev != self._SyncObj__raftNextIndex[node] - 1:
            return
        if message.prev <= match:
            self._complain(node, match, message.hint)
            return
        # The hint skips a whole term, of which the logs may share the beginning.
        self._SyncObj__raftNextIndex[node] = min(max(message.hint, match + 1), self.log.last_index + 1)
        self._probes[node] = float("-inf")
        self._is_due = True

    def _complain(self, node: Node, match: int, hint: int) -> None:
        """A late answer looks like this for a moment. When it lasts, the node's disk has forgotten what it confirmed and what
        was counted: it must not be helped silently."""
        now = self._now()
        since = self._forgetful.setdefault(node, now)
        if now - since > FORGETFUL_S:
            log.error(
                "%s: %s confirmed entry %d and now lacks %d: remove it and join it anew", self.uid, node.id, match, hint
            )
            self._forgetful[node] = now

    def _on_snapshot_reply(self, node: Node, message: SnapshotReply) -> None:
        if not self._is_answer_of_now(node, message.term, message.sent_at):
            return
        sending = self._sendings.get(node)
        if sending is not None and sending.point.index == message.index:
            sending.acknowledge(message.offset, again=message.again, now=self._now())
            self._is_due = True

    # Follower.

    def _follow(self, node: Node, message: Beat) -> bool:
        """Take the sender as the leader. False, and an answer with our term, when it is one of the past."""
        if message.term < self.raftCurrentTerm:
            self.exchange.send(node, AppendReply(self.raftCurrentTerm, False, -1, 0, 0, message.sent_at))
            return False
        self._observe(message.term)
        assert self._SyncObj__raftState != LEADER, f"{node.id} and {self.uid} both lead in term {message.term}"
        self._SyncObj__setState(FOLLOWER)
        if self._getLeader() != node:
            self._SyncObj__onLeaderChanged()
            self._SyncObj__raftLeader = node
            self._fail_absent()
            log.info("%s: follows %s in term %d", self.uid, node.id, message.term)
        self._forsaken_by = None
        self._beat_at = self._now()
        self._quorum_at = self._beat_at - message.quorum_age_s
        self._SyncObj__leaderCommitIndex = message.commit_index
        if self._transfer_term != self.raftCurrentTerm + 1:
            self._may_stand = False
            self._restart_election_timer()
        return True

    def _on_append_entries(self, node: Node, message: AppendEntries) -> None:
        if not self._follow(node, message):
            return
        committed = self.raftCommitIndex
        prev, known = message.prev_index, self.log.term_at(message.prev_index)
        if prev <= committed:
            assert known in (None, message.prev_term), f"the committed entry {prev} differs from {node.id}'s"
        elif known != message.prev_term:
            hint = self.log.last_index + 1 if known is None else self._first_of_term(prev, known)
            self.exchange.send(node, AppendReply(self.raftCurrentTerm, False, prev, 0, hint, message.sent_at))
            return
        for position, (command, index, term) in enumerate(message.entries):
            assert index == prev + 1 + position
            known = self.log.term_at(index)
            if known == term or (known is None and index <= committed):
                continue
            if known is not None:
                self._cut(index)
            self._add(command, index, term)
        match = max(prev + len(message.entries), committed)
        self._SyncObj__raftCommitIndex = max(committed, min(message.commit_index, match))
        if not message.quiet:
            self._acknowledge(node, match, message.sent_at)

    def _first_of_term(self, index: int, term: int) -> int:
        """The first uncommitted entry of the term that conflicts at `index`: the leader may skip all of it."""
        while index - 1 > self.raftCommitIndex and self.log.term_at(index - 1) == term:
            index -= 1
        return index

    def _acknowledge(self, node: Node, match: int, sent_at: float) -> None:
        """Collected until `_flush`, so that one sync serves all that came in together."""
        before = self._acks.get(node)
        if before is not None and before.term == self.raftCurrentTerm:
            match = max(match, before.match)
        self._acks[node] = AppendReply(self.raftCurrentTerm, True, 0, match, 0, sent_at)

    def _flush(self) -> None:
        """Make durable what came in, and only then confirm it."""
        acks, self._acks = self._acks, {}
        if acks:
            self.log.sync()
        if self.raftCommitIndex > self.log.getRaftCommitIndex():
            self.log.setRaftCommitIndex(self.raftCommitIndex)
        for node, ack in acks.items():
            if ack.term == self.raftCurrentTerm:
                self.exchange.send(node, ack)

    def _on_snapshot_chunk(self, node: Node, message: SnapshotChunk) -> None:
        if not self._follow(node, message):
            return
        if message.index <= self.raftCommitIndex:
            self._receiving.forget()
            self._acknowledge(node, self.raftCommitIndex, message.sent_at)
            return
        held, again, is_whole = self._receiving.take(message)
        if is_whole:
            if self._install(message):
                self._acknowledge(node, message.index, message.sent_at)
                return
            held, again = 0, True
        self.exchange.send(node, SnapshotReply(self.raftCurrentTerm, message.index, held, again, message.sent_at))

    def _install(self, message: SnapshotChunk) -> bool:
        """Take over a received snapshot. False when it is damaged, and then nothing has changed.

        When the disk is full the log is behind it, which a restart would see and mend (`core._reconcile`)."""
        self._flush()
        full: DiskFull | None = None
        try:
            point = self.snapshots.adopt_incoming(self._receiving.name, message.index, message.snapshot_term)
        except StorageDamaged as error:
            log.error("%s: %s; it is fetched again", self.uid, error)
            self._receiving.forget()
            return False
        self._receiving.forget()
        self.point = point
        try:
            if self.log.term_at(point.index) == point.term:
                self.log.setRaftCommitIndex(point.index)
                self.log.compact(point.index)
            else:
                self.log.restart(point.index, point.term)
        except DiskFull as error:
            full = error
        self.machine.restore(point.index, self.snapshots.chunks())
        self._SyncObj__raftLastApplied = self._SyncObj__raftCommitIndex = point.index
        self.configurations = self._configurations_of_log()
        self._adopt_configuration()
        self._fail_waiting(up_to=point.index)
        # What followed in the log before is gone, and nothing else may ever come into its place.
        self._fail_absent()
        # Loading took time in which the leader could not be heard.
        self._beat_at = self._now()
        self._restart_election_timer()
        log.info("%s: continues from the snapshot at %d", self.uid, point.index)
        if full is not None:
            raise full
        return True
