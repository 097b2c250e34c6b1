"""The rules of Raft that pysyncobj 0.3.17 breaks, each shown with one replica and messages made by hand."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node
from raft_sim import Sim
from sim_disk import SimDisk, SimFiles

from clusterfs.raft.consensus import COMMAND_COST_BYTES, Command, Consensus
from clusterfs.raft.core import CANDIDATE, LEADER, NO_OP, REGULAR
from clusterfs.raft.membership import Configuration
from clusterfs.raft.messages import (
    AnyMessage,
    AppendEntries,
    AppendReply,
    ChangeMember,
    Forward,
    Forwarded,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
)
from clusterfs.raft.snapshot import Point, SnapshotStore
from clusterfs.raft.values import Address, ApplyFailed


class Alone:
    """The replica n1 of a cluster; the test speaks for the others."""

    def __init__(self, sim: Sim, size: int = 3) -> None:
        self.sim = sim
        self.uids = sim.found(size)
        for uid in self.uids[1:]:
            sim.crash(uid)
        node = sim.nodes["n1"]
        assert node.consensus is not None and node.exchange is not None and node.machine is not None
        self.raft: Consensus = node.consensus
        self.exchange, self.machine = node.exchange, node.machine
        for uid in self.uids[1:]:
            self.exchange.link(uid, up=True)
        self.base = size

    def say(self, uid: str, *messages: AnyMessage) -> list[Message]:
        """What n1 sends back to these, once it has done its duties; questions of its own aside."""
        self.exchange.sent.clear()
        for message in messages:
            self.raft._SyncObj__onMessageReceived(Node(uid), message)
        self.tick()
        return [m for target, m in self.exchange.sent if target == uid and not isinstance(m, PreVote)]

    def tick(self, seconds: float = 0.0) -> None:
        self.sim.now += seconds
        self.raft.doTick(0.0)

    def append(
        self, prev: int, entries: Iterable[tuple[bytes, int, int]], *, commit: int, term: int = 1
    ) -> AppendEntries:
        prev_term = 0 if prev <= self.base else 1
        return AppendEntries(term, commit, self.sim.now, 0.0, prev, prev_term, list(entries))

    def entries(self, first: int, last: int, term: int = 1) -> list[tuple[bytes, int, int]]:
        return [(REGULAR + b"e%d" % index, index, term) for index in range(first, last + 1)]

    def lead(self) -> int:
        """Make n1 the leader, by everybody's vote; its term."""
        while self.raft._SyncObj__raftState != CANDIDATE:
            self.exchange.sent.clear()
            self.tick(0.1)
            for target, message in list(self.exchange.sent):
                if isinstance(message, PreVote):
                    reply = PreVoteReply(self.raft.raftCurrentTerm, message.round, True)
                    self.raft._SyncObj__onMessageReceived(Node(target), reply)
        for uid in self.uids[1:]:
            self.say(uid, VoteReply(self.raft.raftCurrentTerm, True))
        assert self.raft._SyncObj__raftState == LEADER
        return int(self.raft.raftCurrentTerm)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(Sim(tmp_path, monkeypatch, seed=1))


@pytest.fixture
def one_of_five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(Sim(tmp_path, monkeypatch, seed=1), 5)


def test_a_late_or_doubled_append_cuts_nothing(alone: Alone) -> None:
    """T1: pysyncobj truncates everything after what an append brings, conflict or not."""
    alone.say("n2", alone.append(3, alone.entries(4, 10), commit=10))
    assert alone.raft.raftLastApplied == 10
    for late in (
        alone.append(5, alone.entries(6, 7), commit=7),
        alone.append(6, [], commit=6),
        alone.append(0, [], commit=0),
    ):
        alone.say("n2", late)
        assert (alone.raft.log.last_index, alone.raft.raftCommitIndex) == (10, 10)
    alone.say("n2", alone.append(10, alone.entries(11, 12), commit=10))
    alone.say("n2", alone.append(9, alone.entries(10, 11), commit=10))
    assert alone.raft.log.last_index == 12, "not even uncommitted entries go without a conflict"


def test_a_conflict_cuts_exactly_from_where_it_begins(alone: Alone) -> None:
    alone.say("n2", alone.append(3, alone.entries(4, 8), commit=5))
    other = [*alone.entries(6, 6), *alone.entries(7, 7, term=2)]
    replies = alone.say("n3", AppendEntries(2, 5, alone.sim.now, 0.0, 5, 1, other))
    assert list(alone.raft.log[7:]) == alone.entries(7, 7, term=2)
    assert [(r.ok, r.match) for r in replies if isinstance(r, AppendReply)] == [(True, 7)]


def test_a_conflict_with_a_committed_entry_stops_the_replica(alone: Alone) -> None:
    alone.say("n2", alone.append(3, alone.entries(4, 8), commit=8))
    with pytest.raises(AssertionError, match="committed"):
        alone.say("n3", AppendEntries(2, 8, alone.sim.now, 0.0, 7, 2, []))


def test_an_acknowledgement_says_up_to_where_the_logs_are_known_to_be_equal(alone: Alone) -> None:
    """A follower may hold more, of which this leader has said nothing."""
    alone.say("n2", alone.append(3, alone.entries(4, 9), commit=4))
    (reply,) = alone.say("n3", AppendEntries(2, 4, alone.sim.now, 0.0, 4, 1, alone.entries(5, 6)))
    assert isinstance(reply, AppendReply) and reply.match == 6
    assert alone.raft.raftCommitIndex == 4


def test_the_commit_index_covers_only_what_the_leader_has_confirmed(alone: Alone) -> None:
    alone.say("n2", alone.append(3, alone.entries(4, 9), commit=4))
    alone.say("n3", AppendEntries(2, 9, alone.sim.now, 0.0, 4, 1, []))
    assert alone.raft.raftCommitIndex == 4


@pytest.mark.parametrize("difference", [-1, 1])
def test_an_acknowledgement_of_another_term_does_not_count(alone: Alone, difference: int) -> None:
    """T2: pysyncobj's acknowledgements carry no term."""
    term = alone.lead()
    alone.raft.submit(Command(REGULAR + b"x"))
    alone.tick()
    before = alone.raft.raftCommitIndex
    alone.say("n2", AppendReply(term + difference, True, 0, alone.raft.log.last_index, 0, alone.sim.now))
    assert alone.raft.raftCommitIndex == before
    assert (alone.raft._SyncObj__raftState == LEADER) == (difference < 0)


def test_an_acknowledgement_of_what_was_never_sent_does_not_count(alone: Alone) -> None:
    term = alone.lead()
    before = alone.raft.raftCommitIndex
    alone.say("n2", AppendReply(term, True, 0, 98, 0, alone.sim.now))
    assert alone.raft.raftCommitIndex == before


def test_a_hint_below_what_is_confirmed_is_no_denial_of_it(alone: Alone) -> None:
    """Found by seed 407 of the simulation: the logs share the beginning of the term that the hint skips. The leader took it for a
    disk that had forgotten, and asked about the same point for ever."""
    term = alone.lead()
    for text in (b"x", b"y"):
        alone.raft.submit(Command(REGULAR + text))
        alone.tick()
    last = alone.raft.log.last_index
    alone.say("n2", AppendReply(term, True, 0, last - 1, 0, alone.sim.now))
    found = alone.say("n2", AppendReply(term, False, last, 0, last - 1, alone.sim.now))
    appends = [message for message in found if isinstance(message, AppendEntries)]
    assert [(message.prev_index, len(message.entries)) for message in appends] == [(last - 1, 1)]


def test_one_peer_voting_twice_is_one_vote(one_of_five: Alone) -> None:
    """T2b: pysyncobj counts votes, not voters."""
    raft = one_of_five.raft
    while raft._SyncObj__raftState != CANDIDATE:
        one_of_five.exchange.sent.clear()
        one_of_five.tick(0.1)
        for target, message in list(one_of_five.exchange.sent):
            if isinstance(message, PreVote):
                one_of_five.raft._SyncObj__onMessageReceived(Node(target), PreVoteReply(0, message.round, True))
    reply = VoteReply(raft.raftCurrentTerm, True)
    one_of_five.say("n2", reply, reply, reply)
    one_of_five.say("stranger", reply)
    assert raft._SyncObj__raftState == CANDIDATE
    one_of_five.say("n3", reply)
    assert raft._SyncObj__raftState == LEADER


def test_a_replica_stands_only_when_a_majority_is_willing(alone: Alone) -> None:
    for _ in range(100):
        alone.tick(0.1)
    assert alone.raft.raftCurrentTerm == 0, "cut off, it counts no terms up"
    assert any(isinstance(message, PreVote) for _, message in alone.exchange.sent)


@pytest.mark.parametrize("message", ["pre_vote", "request_vote"])
def test_who_hears_a_leader_votes_for_nobody_else(alone: Alone, message: str) -> None:
    """T12: a stale node with a higher term deposes pysyncobj's leaders."""
    alone.say("n2", alone.append(3, [], commit=3))
    question = PreVote(9, 1, 99, 8) if message == "pre_vote" else RequestVote(9, 99, 8)
    (reply,) = alone.say("n3", question)
    assert isinstance(reply, PreVoteReply | VoteReply) and not reply.granted
    assert alone.raft.raftCurrentTerm == 1
    alone.sim.now += 5
    (reply,) = alone.say("n3", question)
    assert isinstance(reply, PreVoteReply | VoteReply) and reply.granted


def test_a_vote_that_the_leader_asked_for_counts_although_it_lives(alone: Alone) -> None:
    alone.say("n2", alone.append(3, [], commit=3))
    (reply,) = alone.say("n3", RequestVote(2, 99, 1, transfer=True))
    assert reply == VoteReply(2, True)


def test_a_handover_is_taken_from_the_leader_only(alone: Alone) -> None:
    alone.say("n2", alone.append(3, [], commit=3))
    alone.say("n3", TimeoutNow(1))
    assert alone.raft._SyncObj__raftState != CANDIDATE
    replies = alone.say("n2", TimeoutNow(1))
    assert RequestVote(2, 3, 0, transfer=True) in replies


def test_a_vote_is_given_once_in_a_term_and_to_no_one_with_less(alone: Alone) -> None:
    alone.say("n2", alone.append(3, alone.entries(4, 6), commit=4))
    alone.sim.now += 5
    assert alone.say("n3", RequestVote(2, 5, 1)) == [VoteReply(2, False)]
    assert alone.say("n3", RequestVote(2, 6, 1)) == [VoteReply(2, True)]
    assert alone.say("n3", RequestVote(2, 6, 1)) == [VoteReply(2, True)]
    assert alone.say("n2", RequestVote(2, 60, 1)) == [VoteReply(2, False)]
    assert alone.sim.nodes["n1"].durable.voted_for == "n3"


def test_a_stale_leader_is_told_the_term(alone: Alone) -> None:
    """T11: pysyncobj leaves it without an answer."""
    alone.say("n2", alone.append(3, [], commit=3, term=5))
    (reply,) = alone.say("n3", alone.append(3, [], commit=3, term=4))
    assert isinstance(reply, AppendReply) and not reply.ok and reply.term == 5


def test_a_leader_that_hears_of_a_higher_term_follows(alone: Alone) -> None:
    term = alone.lead()
    alone.say("n2", AppendReply(term + 3, False, -1, 0, 0, alone.sim.now))
    assert alone.raft._SyncObj__raftState != LEADER and alone.raft.raftCurrentTerm == term + 3


def test_a_leader_without_answers_steps_down_within_a_second(alone: Alone) -> None:
    alone.lead()
    begin = alone.sim.now
    while alone.raft._SyncObj__raftState == LEADER:
        alone.tick(0.05)
    assert alone.sim.now - begin <= alone.sim.options.leader_quorum_s + 0.1


def test_an_answer_counts_from_when_its_question_was_sent(alone: Alone) -> None:
    """A frozen leader that wakes up with old answers in its queue has no quorum by them."""
    term = alone.lead()
    asked = alone.sim.now
    alone.sim.now += 5
    alone.raft._SyncObj__onMessageReceived(Node("n2"), AppendReply(term, True, 0, 3, 0, asked))
    assert not alone.raft.is_quorate(alone.sim.now)


def test_a_command_that_the_machine_cannot_apply_does_not_stop_the_log(alone: Alone) -> None:
    """T3: with pysyncobj all later writes time out, for ever, on every node."""
    answers: list[object] = []
    term = alone.lead()
    for text in (b"bad", b"good"):
        alone.raft.submit(Command(REGULAR + text, lambda value, reason: answers.append(value)))
    alone.tick()
    alone.say("n2", AppendReply(term, True, 0, alone.raft.log.last_index, 0, alone.sim.now))
    assert isinstance(answers[0], ApplyFailed) and answers[1] == alone.raft.raftLastApplied
    assert alone.raft.raftLastApplied == alone.raft.log.last_index


def test_an_entry_is_applied_once(alone: Alone) -> None:
    """T5: in pysyncobj an exception in a caller's callback applies it again; ours only set a result."""
    alone.say("n2", alone.append(3, alone.entries(4, 6), commit=6))
    for _ in range(3):
        alone.tick(0.05)
    assert [text for _, text in alone.machine.entries] == ["e4", "e5", "e6"]


def test_entries_are_acknowledged_after_the_sync_and_with_one_for_all(alone: Alone) -> None:
    log = alone.raft.log
    synced: list[int] = []
    sync = log.sync
    log.sync = lambda: (synced.append(len(alone.exchange.sent)), sync())[1]  # type: ignore[method-assign]
    alone.say("n2", *(alone.append(at, alone.entries(at + 1, at + 1), commit=3) for at in range(3, 9)))
    replies = [message for _, message in alone.exchange.sent if isinstance(message, AppendReply)]
    assert [(reply.ok, reply.match) for reply in replies] == [(True, 9)]
    assert synced[0] == 0 and alone.sim.nodes["n1"].durable.last_index == 9


def test_a_follower_refuses_membership_that_comes_as_a_command(alone: Alone) -> None:
    alone.lead()
    (reply,) = [m for m in alone.say("n2", Forward([(7, b"\x02anything")])) if isinstance(m, Forwarded)]
    assert reply.refused == [7]
    last = alone.raft.log.last_index
    alone.tick()
    assert alone.raft.log.last_index == last


def test_all_that_waits_goes_out_in_one_message_a_follower(alone: Alone) -> None:
    alone.lead()
    alone.say("n2", AppendReply(alone.raft.raftCurrentTerm, True, 0, alone.raft.log.last_index, 0, alone.sim.now))
    alone.exchange.sent.clear()
    for number in range(10):
        alone.raft.submit(Command(REGULAR + b"c%d" % number))
    alone.tick()
    appends = [
        message for target, message in alone.exchange.sent if target == "n2" and isinstance(message, AppendEntries)
    ]
    assert [len(message.entries) for message in appends] == [10]


def test_callers_of_entries_that_are_cut_away_are_told(alone: Alone) -> None:
    answers: list[int] = []
    alone.lead()
    alone.raft.submit(Command(REGULAR + b"x", lambda _value, reason: answers.append(reason)))
    alone.tick()
    term = alone.raft.raftCurrentTerm + 1
    alone.say("n3", AppendEntries(term, 3, alone.sim.now, 0.0, 3, 0, [(NO_OP, 4, term)]))
    assert len(answers) == 1


def test_a_damaged_snapshot_changes_nothing_and_is_not_acknowledged(alone: Alone) -> None:
    """T10: pysyncobj logs the failure and confirms it, after it has replaced the good one."""
    alone.say("n2", alone.append(3, alone.entries(4, 6), commit=6))
    data = b"no snapshot at all, but of the right length" * 9
    chunk = SnapshotChunk(1, 50, alone.sim.now, 0.0, 50, 1, len(data), 0, data)
    (reply,) = alone.say("n2", chunk)
    assert reply == SnapshotReply(1, 50, 0, True, alone.sim.now)
    assert (alone.raft.raftLastApplied, alone.raft.log.last_index) == (6, 6)
    assert not alone.raft.snapshots.is_there()


def test_a_snapshot_transfer_goes_on_after_a_restart_and_with_another_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T10: pysyncobj's begins anew, or does not and is corrupt."""
    sim = Sim(tmp_path, monkeypatch, seed=1)
    alone = Alone(sim)
    files = SimFiles(SimDisk(), lambda *_: None)
    source = SnapshotStore(files)
    members = {uid: Address(uid, 1) for uid in alone.uids}
    sim.checks.digests[50] = b"d"
    source.write(Point(50, 1, Configuration(members)), [b"d".hex().encode(), b"7 x", b"50 y"])
    source.adopt_written()
    data = files.open("snapshot").read(2**20, at=0)

    def piece(uid: str, term: int, offset: int, size: int) -> Message:
        chunk = SnapshotChunk(term, 50, sim.now, 0.0, 50, 1, len(data), offset, data[offset : offset + size])
        return alone.say(uid, chunk)[-1]

    assert piece("n2", 1, 0, 30) == SnapshotReply(1, 50, 30, False, sim.now)
    assert piece("n3", 2, 0, 30) == SnapshotReply(2, 50, 30, True, sim.now), "it has that already"
    assert piece("n3", 2, 30, 30) == SnapshotReply(2, 50, 60, False, sim.now)
    sim.crash("n1", power=False)
    sim.boot("n1")
    node = sim.nodes["n1"]
    assert node.consensus is not None and node.exchange is not None and node.machine is not None
    alone.raft, alone.exchange, alone.machine = node.consensus, node.exchange, node.machine
    alone.exchange.link("n3", up=True)
    assert piece("n3", 2, 0, 30) == SnapshotReply(2, 50, 60, True, sim.now)
    assert isinstance(piece("n3", 2, 60, len(data)), AppendReply)
    assert (alone.raft.raftLastApplied, alone.machine.entries) == (50, [(7, "x"), (50, "y")])
    assert not [name for name in node.disk.names if name.startswith("snapshot.incoming")]


def test_a_piece_of_a_snapshot_that_does_not_fit_is_asked_for_again(alone: Alone) -> None:
    """A reconnect in mid-transfer corrupts pysyncobj's copy."""

    def piece(offset: int, data: bytes) -> SnapshotReply:
        (reply,) = alone.say("n2", SnapshotChunk(1, 50, alone.sim.now, 0.0, 50, 1, 100, offset, data))
        assert isinstance(reply, SnapshotReply)
        return reply

    assert piece(0, b"a" * 30).offset == 30
    skipped = piece(60, b"c" * 30)
    assert (skipped.offset, skipped.again) == (30, True)
    doubled = piece(0, b"a" * 30)
    assert (doubled.offset, doubled.again) == (30, True)
    assert piece(30, b"b" * 30).offset == 60


def test_a_flood_of_forwarded_commands_is_refused_beyond_a_bound_and_harms_nobody_else(alone: Alone) -> None:
    raft, limit = alone.raft, alone.raft.options.forwarded_bytes
    flood = Forward([(number, REGULAR + b"x" * 2**16) for number in range(100)])
    busy: list[int] = []
    for _ in range(20):
        alone.exchange.sent.clear()
        raft._SyncObj__onMessageReceived(Node("n2"), flood)
        busy += [request for _, m in alone.exchange.sent if isinstance(m, Forwarded) for request in m.busy]
    assert len(raft._commands) * 2**16 <= limit
    assert len(raft._commands) + len(busy) == 2000
    # Many small ones cost too.
    raft._SyncObj__onMessageReceived(Node("n2"), Forward([(number, REGULAR) for number in range(2**17)]))
    assert len(raft._commands) * COMMAND_COST_BYTES <= limit
    # The others are heard as before.
    alone.exchange.sent.clear()
    raft._SyncObj__onMessageReceived(Node("n3"), Forward([(7, REGULAR + b"y")]))
    assert not any(isinstance(m, Forwarded) and m.busy for _, m in alone.exchange.sent)
    assert raft._commands[-1].origin == (Node("n3"), 7)
    # Once they are dealt with (refused, for this one does not lead) there is room again.
    while raft._commands:
        alone.tick()
    assert raft._forwarded_bytes == {}
    answers = alone.say("n2", Forward([(8, REGULAR + b"z")]))
    assert [m.busy for m in answers if isinstance(m, Forwarded)] == [[]]


def test_whoever_is_refused_for_being_too_many_hears_that(alone: Alone) -> None:
    reasons: list[int] = []
    alone.raft._SyncObj__commandsWaitingReply[5] = lambda _value, reason: reasons.append(reason)
    alone.say("n2", Forwarded([], [], [5, 6]))
    assert reasons == [FAIL_REASON.QUEUE_FULL]


def test_whoever_is_no_member_neither_writes_nor_says_who_is_one(alone: Alone) -> None:
    """One that was removed stays linked for some seconds, to hear of it."""
    term = alone.lead()
    alone.say("n2", AppendReply(term, True, 0, alone.raft.log.last_index, 0, alone.sim.now))
    last, members = alone.raft.log.last_index, alone.raft.configurations.whole
    stranger = "n9"
    alone.exchange.link(stranger, up=True)
    answers = alone.say(
        stranger,
        Forward([(1, REGULAR + b"x")]),
        ChangeMember("learn", stranger, "10.0.0.9", 1),
        ChangeMember("remove", "n3", "", 0),
    )
    assert [m.refused for m in answers if isinstance(m, Forwarded)] == [[1]]
    for _ in range(5):
        alone.tick(0.02)
    assert (alone.raft.log.last_index, alone.raft.configurations.whole) == (last, members)
    # A member is heard.
    alone.say("n2", Forward([(2, REGULAR + b"y")]))
    assert alone.raft.log.last_index == last + 1
