"""What stands against a recovery, and that it must be meant."""

from dataclasses import replace

import pytest

from clusterfs.commands import Envelope, MemberPut, MemberRename, Write, encode
from clusterfs.membership import Member
from clusterfs.raft import Role, Status
from clusterfs.recovering import Plan, names_of, plan_of, require_meant
from clusterfs.state import State
from kvorum import epochs
from kvorum.errors import InvalidInput, Refused
from kvorum.node import Identity

ME = Identity(uid="u1", name="n1", address="10.0.0.1", cluster_name="home")
STATE = State(members={f"u{n}": Member(f"u{n}", f"n{n}", f"10.0.0.{n}", n) for n in (1, 2, 3)}, clock_ms=7)
LOST = Status(
    uid="u1",
    role=Role.follower,
    leader=None,
    term=4,
    commit_index=90,
    applied_index=88,
    members={"u1": True, "u2": False, "u3": False},
    addresses={},
    is_quorate=False,
    missing=("u2", "u3"),
    caught_up=False,
    epoch=epochs.following(epochs.following(0, 7), 9),
)
NAMES = {uid: member.name for uid, member in STATE.members.items()}


def test_a_lost_majority_is_no_obstacle_and_the_epoch_counts_on() -> None:
    assert plan_of(ME, LOST, STATE, NAMES) == Plan("home", 3 << 32, 88, 7, ("n2", "n3"), ())


def test_learners_are_given_up_as_well_and_are_no_obstacle() -> None:
    plan = plan_of(ME, replace(LOST, learners={"u4": True}), STATE, {**NAMES, "u4": "n4"})
    assert (plan.lost, plan.obstacles) == (("n2", "n3", "n4"), ())


def test_names_that_are_not_applied_yet_are_in_the_log_or_in_the_seed() -> None:
    unapplied = [
        encode(Envelope(MemberPut("u3", "n3", "10.0.0.3"))),
        encode(Envelope(Write("datacenter.cfg", b"x"))),
        b"\x02no command",
        b"\xffof a newer program",
        encode(Envelope(MemberRename("u2", "n2b"))),
    ]
    seeded = [Member("u2", "n2", "10.0.0.2", 2), Member("u4", "n4", "10.0.0.4", 4)]
    assert names_of(seeded, State(members={"u1": STATE.members["u1"]}), unapplied) == {
        "u1": "n1",
        "u2": "n2b",
        "u3": "n3",
        "u4": "n4",
    }


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (replace(LOST, is_quorate=True), "quorum"),
        (replace(LOST, members={"u1": True, "u2": True, "u3": True}, missing=("u3",)), "n2 can be reached"),
        (replace(LOST, superseded_by=5), "rejoin"),
    ],
)
def test_whoever_lives_is_an_obstacle_that_only_force_overrules(status: Status, word: str) -> None:
    plan = plan_of(ME, status, STATE, NAMES)
    assert word in " ".join(plan.obstacles)
    with pytest.raises(Refused, match=word):
        require_meant(plan, "home", force=False)
    require_meant(plan, "home", force=True)
    with pytest.raises(InvalidInput):
        require_meant(plan, "", force=True)
    assert plan.epoch > max(status.epoch, status.superseded_by)
