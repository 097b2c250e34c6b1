"""Who gets a vote, and what the leader does about a join or a removal that somebody left half done."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from clusterfs.membership import Member
from clusterfs.raft import Address, Role, Status
from clusterfs.state import State
from clusterfs.tending import PATIENCE_S, Tending
from clusterfs.voting import MAX_VOTERS, Forget, Learn, Move, Promote, next_step


def members(count: int, *, witness: str = "") -> dict[str, Member]:
    return {f"u{n}": Member(f"u{n}", f"n{n}", f"10.0.0.{n}", n, f"u{n}" == witness) for n in range(1, count + 1)}


def hosts(count: int) -> dict[str, str]:
    return {uid: member.address for uid, member in members(count).items()}


@pytest.mark.parametrize(
    ("count", "voters", "ready", "expected"),
    [
        (1, 1, [], None),
        (2, 1, ["u2"], Promote("u2")),
        (3, 2, ["u3"], Promote("u3")),
        (4, 3, ["u4"], None),
        (5, 3, ["u4", "u5"], Promote("u4")),
        (5, 3, ["u5"], None),
        (5, 4, ["u5"], Promote("u5")),
        (6, 5, ["u6"], None),
        (9, 6, ["u8"], Promote("u8")),
        (9, 7, ["u8", "u9"], None),
    ],
)
def test_three_to_seven_vote_by_an_odd_number(
    count: int, voters: int, ready: list[str], expected: Promote | None
) -> None:
    votes = [f"u{n}" for n in range(1, voters + 1)]
    assert next_step(members(count), hosts(count), votes, ready) == expected


@pytest.mark.parametrize("count", range(1, 12))
def test_with_all_of_them_up_it_ends_at_an_odd_number_or_at_two(count: int) -> None:
    votes = ["u1"]
    for _ in range(20):
        step = next_step(members(count), hosts(count), votes, [u for u in members(count) if u not in votes])
        if step is None:
            break
        assert isinstance(step, Promote)
        votes.append(step.uid)
    assert len(votes) == min(MAX_VOTERS, count if count < 3 or count % 2 else count - 1)


def test_a_witness_votes_before_others() -> None:
    assert next_step(members(5, witness="u5"), hosts(5), ["u1", "u2"], ["u3", "u4", "u5"]) == Promote("u5")


def test_consensus_follows_the_state() -> None:
    assert next_step({}, hosts(3), ["u1"], []) is None, "a cluster that is being founded is left alone"
    assert next_step(members(3), hosts(2), ["u1"], []) == Learn("u3")
    assert next_step(members(3), {**hosts(3), "u2": "10.9.9.9"}, ["u1"], []) == Move("u2")
    assert next_step(members(2), hosts(3), ["u1", "u2"], []) == Forget("u3")
    assert next_step(members(2), {**hosts(2), "x": "10.9.9.9"}, ["x"], []) is None, "the last voter stays"


def test_a_vote_is_given_before_one_is_taken_that_the_quorum_still_needs() -> None:
    """Of three voters one is down and another has left: without it there would be no majority, so it would stay for ever."""
    known = {uid: member for uid, member in members(4).items() if uid != "u3"}
    voters = ["u1", "u2", "u3"]
    assert next_step(known, hosts(4), voters, ["u4"]) == Promote("u4")
    assert next_step(known, hosts(4), [*voters, "u4"], []) == Forget("u3")
    full = [f"u{n}" for n in range(1, MAX_VOTERS + 1)]
    assert next_step({uid: m for uid, m in members(8).items() if uid != "u3"}, hosts(8), full, ["u8"]) == Forget("u3")


@dataclass
class Told:
    """Stands in for a replica: notes what it is told."""

    said: list[tuple[str, str]] = field(default_factory=list)

    def suggest(self, op: str, uid: str, host: str) -> None:
        self.said.append((op, uid))

    def hand_over(self) -> None:
        self.said.append(("hand over", ""))


class Leader:
    def __init__(self, uid: str = "u1") -> None:
        self.told = Told()
        self.now = 0.0
        self.tending = Tending(self.told, uid=uid, clock=lambda: self.now)  # type: ignore[arg-type]

    def round(self, known: Mapping[str, Member], **changes: object) -> list[tuple[str, str]]:
        status = Status(
            uid="u1",
            role=Role.leader,
            leader="u1",
            term=1,
            commit_index=1,
            applied_index=1,
            members={"u1": True, "u2": True},
            addresses={uid: Address(host, 1) for uid, host in hosts(3).items()},
            is_quorate=True,
            missing=(),
            caught_up=True,
        )
        self.told.said.clear()
        self.tending.round(State(members=known), replace(status, **changes))  # type: ignore[arg-type]
        return list(self.told.said)


def test_a_learner_with_the_log_is_promoted_at_once_and_only_by_the_leader() -> None:
    leader = Leader()
    assert leader.round(members(3), ready_learners=("u3",)) == [("add", "u3")]
    assert leader.round(members(3), ready_learners=("u3",), role=Role.follower) == []
    assert leader.round(members(3), ready_learners=("u3",), is_quorate=False) == []
    assert leader.round(members(3), ready_learners=("u3",)) == [("add", "u3")], "a step that takes longer is repeated"


def test_what_somebody_left_half_done_is_finished_after_a_while() -> None:
    leader = Leader()
    for known, expected in ((members(4), ("learn", "u4")), (members(2), ("remove", "u3"))):
        assert leader.round(known) == []
        leader.now += PATIENCE_S / 2
        assert leader.round(known) == []
        leader.now += PATIENCE_S
        assert leader.round(known) == [expected]


def test_a_witness_that_leads_hands_over_when_another_node_can_lead() -> None:
    witness = Leader("u1")
    known = members(3, witness="u1")
    assert witness.round(known) == [("hand over", "")]
    assert witness.round(known, members={"u1": True, "u2": False}) == []


def test_a_witness_that_cannot_hand_over_does_what_a_leader_has_to_do() -> None:
    """Or a learner would wait for its vote for as long as the other voter's disk is full."""
    witness = Leader("u1")
    assert witness.round(members(3, witness="u1"), ready_learners=("u3",)) == [("hand over", ""), ("add", "u3")]
