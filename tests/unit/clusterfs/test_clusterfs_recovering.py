"""What stands against a recovery, and that it must be meant."""

from dataclasses import replace

import pytest

from clusterfs.membership import Member
from clusterfs.raft import Role, Status
from clusterfs.recovering import Plan, plan_of, require_meant
from clusterfs.state import State
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
    epoch=2,
)


def test_a_lost_majority_is_no_obstacle_and_the_epoch_counts_on() -> None:
    assert plan_of(ME, LOST, STATE) == Plan("home", 3, 88, 7, ("n2", "n3"), ())


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (replace(LOST, is_quorate=True), "quorum"),
        (replace(LOST, members={"u1": True, "u2": True, "u3": True}, missing=("u3",)), "n2 can be reached"),
        (replace(LOST, superseded_by=5), "rejoin"),
    ],
)
def test_whoever_lives_is_an_obstacle_that_only_force_overrules(status: Status, word: str) -> None:
    plan = plan_of(ME, status, STATE)
    assert word in " ".join(plan.obstacles)
    with pytest.raises(Refused, match=word):
        require_meant(plan, "home", force=False)
    require_meant(plan, "home", force=True)
    with pytest.raises(InvalidInput):
        require_meant(plan, "", force=True)
    assert plan.epoch > max(status.epoch, status.superseded_by)
