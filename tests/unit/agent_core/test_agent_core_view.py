"""When a node that joins has as much of a vote as it is going to get."""

import pytest

from agent.membership.view import Member, View


@pytest.mark.parametrize(
    ("voters", "online_learners", "offline_learners", "expected"),
    [
        (1, 1, 0, False),
        (2, 1, 0, False),
        (3, 1, 0, True),
        (3, 2, 0, False),
        (3, 1, 4, True),
        (4, 1, 0, False),
        (5, 1, 1, True),
        (7, 3, 0, True),
    ],
)
def test_a_newcomer_waits_for_its_vote_only_where_it_is_to_get_one(
    voters: int, online_learners: int, offline_learners: int, expected: bool
) -> None:
    kinds = [(True, True)] * voters + [(False, True)] * online_learners + [(False, False)] * offline_learners
    members = tuple(
        Member(f"u{n}", f"n{n}", f"10.0.0.{n}", is_up, n, is_voter) for n, (is_voter, is_up) in enumerate(kinds, 1)
    )
    view = View(self_uid="u1", members=members)
    assert view.is_settled(f"u{voters + 1}") is expected
    assert view.is_settled("u1")
    assert not view.is_settled("nobody")
