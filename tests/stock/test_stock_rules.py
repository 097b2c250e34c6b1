"""The faults of pysyncobj 0.3.17 in its rules, each made to show; ours, with the same scenario, is named beside it.

These tests prove that the tests of ours can fail. `docs/internals/raft-changes.md` has the table of both.
"""

import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.node import Node
from stock_node import NO_OP, Entry, Stock, no_ops


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Stock:
    return Stock(monkeypatch)


def test_stock_t1_a_late_append_cuts_applied_entries_and_the_commit_index_goes_back(stock: Stock) -> None:
    stock.append("n2", 1, no_ops(2, 10), commit=10)
    stock.tick()
    assert (stock.raft.raftLastApplied, stock.raft.raftCommitIndex) == (10, 10)
    stock.append("n2", 3, no_ops(4, 5), commit=5)
    assert (stock.last_index, stock.raft.raftCommitIndex) == (5, 5)


def test_stock_t2_an_acknowledgement_of_what_was_never_sent_commits(stock: Stock) -> None:
    stock.lead()
    for number in range(6):
        stock.raft.put(f"v{number}")
    stock.tick()
    before = stock.raft.raftCommitIndex
    stock.say("n2", type="next_node_idx", reset=False, next_node_idx=99, success=True)
    stock.tick()
    assert stock.raft.raftCommitIndex == stock.last_index == before + 7


def test_stock_t2b_one_peer_voting_twice_is_two_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Stock(monkeypatch, size=5)
    stock.tick(10.0)
    for _ in range(2):
        stock.say("n2", type="response_vote", term=stock.raft.raftCurrentTerm)
    assert stock.raft._isLeader()


def test_stock_t3_an_entry_that_raises_stops_the_log_for_ever(stock: Stock) -> None:
    answers: list[object] = []
    stock.lead()
    for value in ("bad", "good"):
        stock.raft.put(value, callback=lambda value, reason: answers.append((value, reason)))
    stock.tick()
    stock.say("n2", type="next_node_idx", reset=False, next_node_idx=stock.last_index + 1, success=True)
    for _ in range(5):
        with pytest.raises(ValueError, match="faulty"):
            stock.tick()
    assert stock.raft.values == [] and answers == []
    assert stock.raft.raftLastApplied < stock.last_index - 1


def test_stock_t4_an_entry_of_an_unknown_version_is_skipped_and_a_later_one_applied_twice(stock: Stock) -> None:
    stock.raft._SyncObj__selfCodeVersion = 7
    stock.raft.setCodeVersion(7)
    of_version_seven, _ = stock.raft._SyncObj__commandsQueue.get_nowait()
    stock.raft._SyncObj__selfCodeVersion = 0
    commands = [stock.command("a"), of_version_seven, stock.command("b")]
    entries: list[Entry] = [(command, index, 1) for index, command in enumerate(commands, 2)]
    stock.append("n2", 1, entries, commit=4)
    for _ in range(3):
        stock.tick()
    assert stock.raft.values == ["a", "b", "b"]


def test_stock_t5_a_callback_that_raises_applies_its_entry_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Stock(monkeypatch, size=1)

    def fail(_value: object, _reason: object) -> None:
        raise RuntimeError("a caller's fault")

    stock.tick(10.0)
    stock.raft.put("x", callback=fail)
    for _ in range(4):
        try:
            stock.tick(1.0)
        except RuntimeError:
            continue
    assert stock.raft.values == ["x", "x"]


def test_stock_t11_a_stale_leader_and_a_stale_candidate_get_no_answer(stock: Stock) -> None:
    stock.append("n2", 1, [], commit=1, term=5)
    assert stock.append("n3", 1, [], commit=1, term=4) == []
    assert stock.say("n3", type="request_vote", term=4, last_log_index=99, last_log_term=4) == []


def test_stock_t12_a_stale_node_with_a_high_term_deposes_a_healthy_leader(stock: Stock) -> None:
    term = stock.lead()
    stock.raft.put("x")
    stock.tick()
    stock.say("n3", type="request_vote", term=term + 8, last_log_index=1, last_log_term=0)
    assert not stock.raft._isLeader() and stock.raft.raftCurrentTerm == term + 8


def test_stock_t13_a_long_entry_is_finished_twice(stock: Stock) -> None:
    stock.lead()
    stock.raft.put("x" * (2 * 2**16 - 40))
    stock.wire.sent.clear()
    for _ in range(2):
        stock.tick(1.0)
    pieces = [m["transmission"] for uid, m in stock.wire.sent if uid == "n2" and "transmission" in m]
    assert pieces.count("finish") == 2


def test_stock_a_leader_without_a_quorum_believes_in_itself_for_half_a_minute(stock: Stock) -> None:
    stock.lead()
    for _ in range(29):
        stock.tick(1.0)
    assert stock.raft._isLeader()


def test_stock_a_leader_cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Stock(monkeypatch, dynamicMembershipChange=True)
    stock.lead()
    stock.say("n2", type="next_node_idx", reset=False, next_node_idx=3, success=True)
    stock.tick()
    reasons: list[object] = []
    stock.raft.removeNodeFromCluster(Node("n1"), callback=lambda _value, reason: reasons.append(reason))
    stock.tick()
    assert reasons == [FAIL_REASON.REQUEST_DENIED]


def test_stock_a_caller_whose_entry_is_cut_away_waits_without_an_end(stock: Stock) -> None:
    answers: list[object] = []
    term = stock.lead()
    stock.raft.put("x", callback=lambda _value, reason: answers.append(reason))
    stock.tick()
    stock.append("n3", 1, [(NO_OP, 2, term + 1)], commit=2, term=term + 1)
    for _ in range(60):
        stock.append("n3", 2, [], commit=2, term=term + 1)
        stock.tick(1.0)
    assert answers == []
