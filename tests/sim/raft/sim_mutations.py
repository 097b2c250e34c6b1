"""Deliberate faults in the real code: the simulation has to find each of them, or it would not find one of ours."""

from collections.abc import Callable

import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node
from sim_store_mutations import STORE_MUTATIONS

from clusterfs.raft.changes import READY
from clusterfs.raft.consensus import Consensus
from clusterfs.raft.core import Core
from clusterfs.raft.elections import Elections
from clusterfs.raft.journal import FileLog, Log
from clusterfs.raft.membership import Change, Configurations
from clusterfs.raft.messages import AppendEntries, AppendReply, RequestVote, SnapshotChunk
from clusterfs.raft.reads import Read
from clusterfs.raft.replication import Replication
from kvorum import epochs

Mutation = Callable[[pytest.MonkeyPatch], None]


def acknowledges_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    def flush(self: Replication) -> None:
        acks, self._acks = self._acks, {}
        for node, ack in acks.items():
            self.exchange.send(node, ack)

    patch.setattr(Replication, "_flush", flush)


def never_syncs_data(patch: pytest.MonkeyPatch) -> None:
    from sim_disk import SimFile

    patch.setattr(SimFile, "datasync", lambda _self: None)


def never_syncs_names(patch: pytest.MonkeyPatch) -> None:
    from sim_disk import SimFiles

    patch.setattr(SimFiles, "sync", lambda _self: None)


def cuts_without_a_conflict(patch: pytest.MonkeyPatch) -> None:
    """T1."""
    right = Replication._on_append_entries

    def wrong(self: Replication, node: Node, message: AppendEntries) -> None:
        right(self, node, message)
        end = message.prev_index + len(message.entries)
        if message.term == self.raftCurrentTerm and self.raftCommitIndex <= end < self.log.last_index:
            self.log.truncate(end + 1)

    patch.setattr(Replication, "_on_append_entries", wrong)


def votes_twice(patch: pytest.MonkeyPatch) -> None:
    right = Elections._on_request_vote

    def wrong(self: Elections, node: Node, message: RequestVote) -> None:
        self._SyncObj__votedForNodeId = None
        self.log._voted_for = None
        right(self, node, message)

    patch.setattr(Elections, "_on_request_vote", wrong)


def votes_before_it_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Log, term: int, voted_for: str | None) -> None:
        self._term, self._voted_for = term, voted_for

    patch.setattr(Log, "setCurrentTerm", wrong)


def votes_for_anybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Elections, "_is_up_to_date", lambda _self, _index, _term: True)


def leads_without_a_majority(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Elections, "_is_majority", lambda _self, _voters: True)


def stands_without_asking(patch: pytest.MonkeyPatch) -> None:
    """pysyncobj looks at the clock itself, and later: a slow disk may have let the deadline pass in between."""
    flush, right = Replication._flush, Elections._prepare_election
    begun: dict[str, float] = {}

    def slow(self: Replication) -> None:
        begun[self.uid] = self._now()
        flush(self)

    def wrong(self: Elections, now: float) -> None:
        right(self, begun.get(self.uid, now))

    patch.setattr(Replication, "_flush", slow)
    patch.setattr(Elections, "_prepare_election", wrong)
    patch.setattr(Elections, "_SyncObj__connectedToAnyone", lambda self: bool(self._SyncObj__connectedNodes))


def drops_the_tail_at_compaction(patch: pytest.MonkeyPatch) -> None:
    """T6."""
    right = Log.compact

    def wrong(self: Log, index: int) -> None:
        right(self, index)
        if self.last_index > index:
            self._entries.cut(index + 1)

    patch.setattr(Log, "compact", wrong)


def commits_entries_of_older_terms(patch: pytest.MonkeyPatch) -> None:
    """Raft's figure 8."""
    right = Core._SyncObj__getEntries  # type: ignore[attr-defined]

    def wrong(self: Core, first: int, count: int | None = None, size: int | None = None) -> list[object]:
        found = list(right(self, first, count, size))
        if count == 1 and self._isLeader():
            return [(command, index, self.raftCurrentTerm) for command, index, _ in found]
        return found

    patch.setattr(Core, "_SyncObj__getEntries", wrong)


def commits_what_the_leader_has_not_confirmed(patch: pytest.MonkeyPatch) -> None:
    right = Replication._on_append_entries

    def wrong(self: Replication, node: Node, message: AppendEntries) -> None:
        right(self, node, message)
        if message.term == self.raftCurrentTerm:
            last = min(message.commit_index, self.log.last_index)
            self._SyncObj__raftCommitIndex = max(self.raftCommitIndex, last)

    patch.setattr(Replication, "_on_append_entries", wrong)


def reads_without_asking_anybody(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Consensus, read: Read) -> None:
        read.on_taken()
        read.callback(self.raftLastApplied, FAIL_REASON.SUCCESS)

    patch.setattr(Consensus, "submit_read", wrong)


def keeps_a_configuration_whose_entry_was_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Configurations, "truncate", lambda _self, _index: False)


def gives_a_vote_to_who_has_no_log_yet(patch: pytest.MonkeyPatch) -> None:
    """A snapshot's configuration is taken for the newest."""
    patch.setattr(Configurations, "current", property(lambda self: self._history[0][1].voters))


def forgets_the_end_of_a_torn_log_too_early(patch: pytest.MonkeyPatch) -> None:
    """The last whole batch goes with the torn one."""
    right = FileLog._repair

    def wrong(self: FileLog, last: object) -> None:
        right(self, last)  # type: ignore[arg-type]
        if self.last_index > max(self.base_index, self._commit_index):
            self._entries.cut(self.last_index)

    patch.setattr(FileLog, "_repair", wrong)


def takes_an_old_snapshot(patch: pytest.MonkeyPatch) -> None:
    """One that is behind what is committed here already, as a straggler brings it."""
    right = Replication._on_snapshot_chunk

    def wrong(self: Replication, node: Node, message: SnapshotChunk) -> None:
        committed = self._SyncObj__raftCommitIndex
        if message.term >= self.raftCurrentTerm and self.point.index < message.index <= committed:
            self._SyncObj__raftCommitIndex = message.index - 1
            try:
                right(self, node, message)
            finally:
                self._SyncObj__raftCommitIndex = max(self._SyncObj__raftCommitIndex, message.index - 1)
            return
        right(self, node, message)

    patch.setattr(Replication, "_on_snapshot_chunk", wrong)


def reads_at_a_leader_that_asks_nobody(patch: pytest.MonkeyPatch) -> None:
    """ReadIndex without its round: a deposed leader believes in itself for a while."""
    patch.setattr(Core, "_majority_at", lambda self, _times: self._now() + 1)


def reads_before_the_terms_first_commit(patch: pytest.MonkeyPatch) -> None:
    """A new leader does not know yet how far its predecessor had committed."""
    right = Consensus._confirm_reads

    def wrong(self: Consensus) -> None:
        first, self._SyncObj__noopIDx = self._SyncObj__noopIDx, 0
        right(self)
        self._SyncObj__noopIDx = first

    patch.setattr(Consensus, "_confirm_reads", wrong)


def counts_its_own_copy_before_it_is_synced(patch: pytest.MonkeyPatch) -> None:
    """The leader's own; only what a full segment forces out is synced."""
    right = Consensus._checkCommandsToApply

    def wrong(self: Consensus) -> None:
        sync = self.log.sync
        if self._isLeader():
            self.log.sync = lambda: None  # type: ignore[method-assign]
        try:
            right(self)
        finally:
            self.log.sync = sync  # type: ignore[method-assign]

    patch.setattr(Consensus, "_checkCommandsToApply", wrong)


def counts_learners(patch: pytest.MonkeyPatch) -> None:
    """What a learner confirms counts like a voter's copy."""
    right = Replication._on_append_reply

    def wrong(self: Replication, node: Node, message: AppendReply) -> None:
        right(self, node, message)
        voters = [n for n in self._SyncObj__otherNodes if n in self._SyncObj__raftMatchIndex]
        if node in self._SyncObj__readonlyNodes and message.ok and voters:
            slowest = min(voters, key=lambda n: (self._SyncObj__raftMatchIndex[n], n.id))
            match = self._SyncObj__raftMatchIndex
            match[slowest] = max(match[slowest], min(message.match, self.log.last_index))

    patch.setattr(Replication, "_on_append_reply", wrong)


def changes_members_before_the_last_change_is_committed(patch: pytest.MonkeyPatch) -> None:
    right = Consensus._obstacle

    def wrong(self: Consensus, change: Change) -> str:
        found = right(self, change)
        return READY if found == "another change to be committed" else found

    patch.setattr(Consensus, "_obstacle", wrong)


def prefers_the_longer_log(patch: pytest.MonkeyPatch) -> None:
    """To the one whose last entry is of a newer term."""
    patch.setattr(Elections, "_is_up_to_date", lambda self, index, _term: index >= self.log.last_index)


def puts_later_members_into_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    """Those of the moment, whose entry may still be cut away."""
    patch.setattr(Configurations, "at", lambda self, _index: self.whole)


def confirms_what_another_leader_had_sent(patch: pytest.MonkeyPatch) -> None:
    """A follower answers with the end of its log, and not with how far it is the leader's."""
    right = Replication._acknowledge

    def wrong(self: Replication, node: Node, _match: int, sent_at: float) -> None:
        right(self, node, self.log.last_index, sent_at)

    patch.setattr(Replication, "_acknowledge", wrong)


def cuts_what_is_committed(patch: pytest.MonkeyPatch) -> None:
    """A late message of the same leader takes back what came after it, committed or not."""
    right = Replication._on_append_entries

    def wrong(self: Replication, node: Node, message: AppendEntries) -> None:
        right(self, node, message)
        end = message.prev_index + len(message.entries)
        if message.term == self.raftCurrentTerm and message.entries and self.log.base_index < end < self.log.last_index:
            self.log.truncate(end + 1)

    patch.setattr(Replication, "_on_append_entries", wrong)


def takes_part_in_every_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "epoch", property(lambda _self: 0))


def numbers_recoveries_and_marks_none(patch: pytest.MonkeyPatch) -> None:
    """Two of the same cluster look alike then."""
    patch.setattr(epochs, "following", lambda epoch, _mark: epoch + 1)


def goes_on_under_the_old_epoch(patch: pytest.MonkeyPatch) -> None:
    """A recovery that only takes the others' votes."""
    patch.setattr(epochs, "following", lambda epoch, _mark: epoch)


# A mutation and within how many seeds it has to be caught.
MUTATIONS: dict[Mutation, int] = {
    acknowledges_before_the_sync: 20,
    never_syncs_data: 20,
    never_syncs_names: 60,
    cuts_without_a_conflict: 60,
    votes_twice: 60,
    votes_before_it_is_on_disk: 20,
    votes_for_anybody: 60,
    leads_without_a_majority: 20,
    stands_without_asking: 60,
    drops_the_tail_at_compaction: 20,
    commits_entries_of_older_terms: 300,
    commits_what_the_leader_has_not_confirmed: 120,
    reads_without_asking_anybody: 20,
    keeps_a_configuration_whose_entry_was_cut: 60,
    gives_a_vote_to_who_has_no_log_yet: 20,
    forgets_the_end_of_a_torn_log_too_early: 60,
    takes_an_old_snapshot: 300,
    reads_at_a_leader_that_asks_nobody: 240,
    reads_before_the_terms_first_commit: 300,
    counts_its_own_copy_before_it_is_synced: 120,
    counts_learners: 60,
    changes_members_before_the_last_change_is_committed: 300,
    prefers_the_longer_log: 240,
    puts_later_members_into_a_snapshot: 300,
    confirms_what_another_leader_had_sent: 120,
    cuts_what_is_committed: 60,
    takes_part_in_every_epoch: 60,
    numbers_recoveries_and_marks_none: 120,
    goes_on_under_the_old_epoch: 60,
    **STORE_MUTATIONS,
}
