"""The order of strikes."""

import random
from collections import Counter

from ha_strikes import order
from ha_verdict import Kind, plan


def test_what_is_planned_is_what_was_asked_for_in_a_mixture_that_a_seed_tells() -> None:
    asked = plan(10, "both")
    planned = order(asked, random.Random(7))
    assert Counter((one.profile, one.kind) for one in planned) == asked
    assert [one.profile for one in planned] == ["fast"] * 40 + ["normal"] * 40
    assert planned == order(asked, random.Random(7)) != order(asked, random.Random(8))
    assert len({one.kind for one in planned[:8]}) > 2


def test_the_moments_of_each_kind_are_from_all_over_the_time_between_two_renewals() -> None:
    planned = order(plan(8, "fast"), random.Random(3))
    for kind in Kind:
        phases = [int(one.phase * 8) for one in planned if one.kind is kind]
        assert sorted(phases) == list(range(8))
