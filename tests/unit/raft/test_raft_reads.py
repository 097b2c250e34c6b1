"""Linearizable reads without a log entry: who may say that nothing newer was acknowledged, and from when on."""

from pathlib import Path

import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node
from raft_cluster import Cluster
from raft_sim import Sim
from test_raft_rules import Alone

from clusterfs.raft.consensus import Command
from clusterfs.raft.core import NO_OP, REGULAR
from clusterfs.raft.messages import AppendEntries, AppendReply, Message, ReadIndex, ReadIndexReply
from clusterfs.raft.reads import ASK_AGAIN_S, Read

Answers = list[tuple[object, int]]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(Sim(tmp_path, monkeypatch, seed=1))


def ask(alone: Alone) -> Answers:
    answers: Answers = []
    alone.raft.submit_read(Read(lambda value, reason: answers.append((value, reason)), lambda: None))
    return answers


def asked(alone: Alone, uid: str = "n2") -> AppendEntries:
    """The newest question of n1 as leader."""
    return [m for target, m in alone.exchange.sent if target == uid and isinstance(m, AppendEntries)][-1]


def answer(alone: Alone, uid: str, question: AppendEntries, *, match: int | None = None) -> list[Message]:
    match = question.prev_index + len(question.entries) if match is None else match
    return alone.say(uid, AppendReply(question.term, True, 0, match, 0, question.sent_at))


def lead(alone: Alone) -> int:
    """With the entry of its own term committed."""
    term = alone.lead()
    alone.tick(0.2)
    answer(alone, "n2", asked(alone), match=alone.raft.log.last_index)
    assert alone.raft.raftCommitIndex == alone.raft.log.last_index
    return term


def test_a_read_waits_for_answers_to_what_was_sent_after_it_came_in(alone: Alone) -> None:
    lead(alone)
    alone.tick(0.2)
    before = asked(alone)
    alone.tick(0.001)
    answers = ask(alone)
    alone.tick()
    alone.tick(0.001)
    after = asked(alone)
    assert after.sent_at > before.sent_at
    answer(alone, "n2", before)
    answer(alone, "n3", before)
    assert not answers, "both answered a question that is older than the read"
    answer(alone, "n3", after)
    assert answers == [(alone.raft.raftCommitIndex, FAIL_REASON.SUCCESS)]


def test_what_was_sent_at_the_very_moment_of_the_read_does_not_count(alone: Alone) -> None:
    lead(alone)
    alone.tick(0.2)
    question = asked(alone)
    answers = ask(alone)
    alone.tick()
    answer(alone, "n2", question)
    answer(alone, "n3", question)
    assert not answers


def test_a_read_costs_no_entry_and_no_sync_and_many_share_a_round(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(alone)
    last, records = alone.raft.log.last_index, []
    monkeypatch.setattr(alone.raft.log, "_record", records.append)
    many = [ask(alone) for _ in range(50)]
    alone.tick(0.001)
    alone.exchange.sent.clear()
    for _ in range(5):
        alone.tick(0.001)
    questions = [m for target, m in alone.exchange.sent if target == "n2"]
    assert len(questions) == 1
    answer(alone, "n2", asked(alone))
    assert all(answers == [(last, FAIL_REASON.SUCCESS)] for answers in many)
    assert (alone.raft.log.last_index, records) == (last, [])


def test_a_new_leader_serves_no_read_before_an_entry_of_its_term_is_committed(alone: Alone) -> None:
    """It may not know yet what its predecessor had acknowledged."""
    alone.lead()
    answers = ask(alone)
    alone.tick(0.2)
    alone.tick(0.001)
    question = asked(alone)
    answer(alone, "n2", question, match=alone.base)
    answer(alone, "n3", question, match=alone.base)
    assert not answers
    answer(alone, "n2", question, match=alone.raft.log.last_index)
    assert answers == [(alone.raft.log.last_index, FAIL_REASON.SUCCESS)]


def test_a_deposed_leader_serves_no_read(alone: Alone) -> None:
    term = lead(alone)
    answers = ask(alone)
    alone.tick(0.001)
    question = asked(alone)
    alone.say("n3", AppendReply(term + 1, False, -1, 0, 0, question.sent_at))
    answer(alone, "n2", question)
    assert [reason for _, reason in answers] == [FAIL_REASON.NOT_LEADER]


def test_a_leader_that_was_frozen_serves_no_read_from_what_it_knew_before(alone: Alone) -> None:
    lead(alone)
    alone.tick(0.2)
    old = asked(alone)
    alone.sim.now += 30
    answers = ask(alone)
    answer(alone, "n2", old)
    answer(alone, "n3", old)
    assert [value for value, reason in answers if reason == FAIL_REASON.SUCCESS] == []


def test_a_new_voter_that_never_answered_confirms_nothing(alone: Alone) -> None:
    """pysyncobj notes a time of answer for a member when it is added."""
    lead(alone)
    answers = ask(alone)
    alone.tick(0.001)
    alone.raft._SyncObj__lastResponseTime.update(dict.fromkeys(alone.raft._SyncObj__otherNodes, alone.sim.now + 1))
    alone.tick(0.001)
    assert not answers


def test_a_follower_asks_the_leader_and_waits_until_it_has_applied_so_far(alone: Alone) -> None:
    alone.say("n2", alone.append(3, alone.entries(4, 6), commit=5))
    answers, others = ask(alone), ask(alone)
    alone.exchange.sent.clear()
    alone.tick()
    (question,) = [m for target, m in alone.exchange.sent if target == "n2" and isinstance(m, ReadIndex)]
    alone.say("n2", ReadIndexReply(question.request, 6))
    assert not answers, "entry 6 is not applied here"
    alone.say("n2", alone.append(6, [], commit=6))
    assert answers == others == [(6, FAIL_REASON.SUCCESS)]


def test_only_the_leader_that_was_asked_answers_for_itself(alone: Alone) -> None:
    alone.say("n2", alone.append(3, alone.entries(4, 6), commit=6))
    answers = ask(alone)
    alone.exchange.sent.clear()
    alone.tick()
    (question,) = [m for _, m in alone.exchange.sent if isinstance(m, ReadIndex)]
    alone.say("n3", ReadIndexReply(question.request, 4))
    assert [value for value, reason in answers if reason == FAIL_REASON.SUCCESS] == []


@pytest.mark.parametrize("why", ["late", "new leader", "closed", "refused"])
def test_a_follower_that_gets_no_answer_says_so_instead_of_waiting(alone: Alone, why: str) -> None:
    alone.say("n2", alone.append(3, alone.entries(4, 6), commit=6))
    answers = ask(alone)
    alone.exchange.sent.clear()
    alone.tick()
    (question,) = [m for _, m in alone.exchange.sent if isinstance(m, ReadIndex)]
    match why:
        case "late":
            alone.tick(ASK_AGAIN_S * 1.1)
        case "new leader":
            alone.say("n3", AppendEntries(2, 6, alone.sim.now, 0.0, 6, 1, []))
        case "closed":
            alone.exchange.link("n2", up=False)
            alone.tick()
        case "refused":
            alone.say("n2", ReadIndexReply(question.request, 0, ok=False))
    assert answers == [(None, FAIL_REASON.NOT_LEADER)]


def test_who_does_not_lead_refuses_and_who_leads_answers_others_by_the_same_rule(alone: Alone) -> None:
    assert alone.say("n2", ReadIndex(5)) == [ReadIndexReply(5, 0, ok=False)]
    lead(alone)
    alone.tick(0.001)
    old = asked(alone)
    alone.say("n3", ReadIndex(6))
    alone.tick(0.001)
    alone.tick(0.001)
    question = asked(alone)
    assert question.sent_at > old.sent_at
    alone.exchange.sent.clear()
    alone.raft._SyncObj__onMessageReceived(Node("n2"), AppendReply(old.term, True, 0, old.prev_index, 0, old.sent_at))
    alone.tick()
    assert not [m for _, m in alone.exchange.sent if isinstance(m, ReadIndexReply)]
    alone.raft._SyncObj__onMessageReceived(
        Node("n2"), AppendReply(question.term, True, 0, question.prev_index, 0, question.sent_at)
    )
    alone.tick()
    assert [m for _, m in alone.exchange.sent if isinstance(m, ReadIndexReply)] == [
        ReadIndexReply(6, alone.raft.raftCommitIndex)
    ]


def test_a_notice_of_a_commit_is_not_answered_and_an_entry_is(alone: Alone) -> None:
    term = lead(alone)
    alone.raft.submit(Command(REGULAR + b"x"))
    alone.exchange.sent.clear()
    alone.tick(0.001)
    assert not asked(alone).quiet
    answer(alone, "n2", asked(alone))
    notice = asked(alone)
    assert notice.quiet and notice.commit_index == alone.raft.raftCommitIndex
    last = alone.raft.log.last_index
    other = AppendEntries(term + 1, last, alone.sim.now, 0.0, last, term, [(NO_OP, last + 1, term + 1)])
    assert [r.match for r in alone.say("n3", other) if isinstance(r, AppendReply)] == [last + 1]
    quiet = AppendEntries(term + 1, last + 1, alone.sim.now, 0.0, last + 1, term + 1, [], quiet=True)
    assert alone.say("n3", quiet) == []
    assert alone.raft.raftCommitIndex == last + 1


def test_reads_on_every_replica_leave_no_entry_behind(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    cluster.replicas[leader].propose(b"x", deadline_s=5)
    last = cluster.replicas[leader].status().commit_index
    for uid in uids:
        assert cluster.replicas[uid].barrier(deadline_s=5) == last
        assert cluster.machines[uid].entries == ["x"]
    assert cluster.replicas[leader].status().commit_index == last
