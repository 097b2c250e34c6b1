"""A trial that shows nothing, or that shows something bad, does not pass; and the table says what was measured."""

from dataclasses import replace

import pytest
from ha_verdict import (
    HARMLESS,
    MOVING,
    Kind,
    Sample,
    Strike,
    faults,
    missed_bars,
    percentile_of,
    plan,
    stall_limits_s,
    table,
)

from ha.leases import FAST, NORMAL

SIDS = ("vm:100", "ct:102")


def strike(kind: Kind = Kind.node_killed, profile: str = "fast", time_s: float = 10.0) -> Strike:
    running = time_s if kind in MOVING else None
    return Strike(kind, profile, "n1", tuple(Sample(sid, running, time_s + 1) for sid in SIDS))


ASKED = {("fast", Kind.node_killed): 2, ("fast", Kind.storage_cut): 1}
WELL = [strike(), strike(Kind.storage_cut), strike()]


def test_all_that_was_asked_for_and_was_well_passes() -> None:
    assert faults(WELL, ASKED, SIDS) == []


@pytest.mark.parametrize("left_out", range(3))
def test_a_strike_too_few_does_not_pass(left_out: int) -> None:
    assert faults([one for number, one in enumerate(WELL) if number != left_out], ASKED, SIDS)


def test_nothing_asked_for_and_nothing_struck_does_not_pass() -> None:
    assert faults([], {}, SIDS) == ["nothing was asked for"]
    assert plan(0, "both") == {}
    assert len(faults([], plan(1, "fast"), SIDS)) == len(Kind)


def test_the_right_number_in_another_profile_or_of_another_kind_does_not_pass() -> None:
    assert faults([strike(), strike(profile="normal"), strike(Kind.storage_cut)], ASKED, SIDS)
    assert faults([strike(), strike(Kind.node_frozen), strike(Kind.storage_cut)], ASKED, SIDS)


@pytest.mark.parametrize(
    "change",
    [
        {"doubles": ("vm:100 ran on n1 and n2 at 3.00 s",)},
        {"lost": ("vm:100",)},
        {"needless": ("n3",)},
        {"faults": ("the cut stopped no packet",)},
        {"samples": ()},
        {"samples": (Sample("vm:100", 10.0, 11.0),)},
        {"samples": (Sample("vm:100", 10.0, 11.0), Sample("ct:102", None, 11.0))},
        {"samples": (Sample("vm:100", 10.0, None), Sample("ct:102", 10.0, 11.0))},
    ],
)
def test_one_bad_strike_among_good_ones_does_not_pass(change: dict[str, tuple[str, ...]]) -> None:
    bad = replace(strike(), **change)  # type: ignore[arg-type]
    (first, *_) = faults([strike(), strike(Kind.storage_cut), bad], ASKED, SIDS)
    assert first.startswith("strike 3 (node killed, fast): ")


def test_a_guest_that_is_to_stay_is_not_looked_for_elsewhere_but_must_stamp_again() -> None:
    assert faults([strike(kind) for kind in HARMLESS], {("fast", kind): 1 for kind in HARMLESS}, SIDS) == []
    silent = replace(strike(Kind.storage_cut), samples=tuple(Sample(sid, None, None) for sid in SIDS))
    assert len(faults([silent], {("fast", Kind.storage_cut): 1}, SIDS)) == len(SIDS)


def test_half_of_the_rounds_are_of_each_profile() -> None:
    asked = plan(10, "both")
    assert len(asked) == 2 * len(Kind) and set(asked.values()) == {5}
    assert plan(1, "both") == {("fast", kind): 1 for kind in Kind}
    assert sum(plan(3, "both").values()) == 3 * len(Kind)
    assert plan(4, "normal") == {("normal", kind): 4 for kind in Kind}


def test_a_harmless_stall_is_one_that_the_profile_tolerates() -> None:
    for profile in (FAST, NORMAL):
        for kind in HARMLESS:
            least, most = stall_limits_s(kind, profile)
            assert 0 < least < most
            assert kind == Kind.storage_cut or most < profile.tolerates_s
        assert stall_limits_s(Kind.storage_cut, profile)[1] > profile.takeover_after_s


def test_p99_of_a_few_is_the_largest() -> None:
    assert percentile_of([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile_of([float(number) for number in range(1, 201)], 0.99) == 198.0
    assert percentile_of([5.0], 0.5) == 5.0


def test_the_table_has_a_row_for_each_kind_and_profile_that_struck() -> None:
    lines = table([strike(), strike(time_s=11.0), strike(Kind.storage_cut), strike(profile="normal", time_s=20.0)])
    assert len(lines) == 5
    assert " ".join(lines[1].split()) == "fast node killed 2 4 10.5 11.0 11.5 12.0 0 0 0 12 / 20: met"
    assert " ".join(lines[2].split()) == "fast storage cut 1 2 - - 11.0 11.0 0 0 0"
    assert lines[3].endswith("22 / 30: met")


def test_a_bar_is_missed_by_the_median_by_the_largest_and_by_what_a_leader_costs_more() -> None:
    assert missed_bars([strike(time_s=12.1)])
    assert missed_bars([strike(), strike(), strike(time_s=20.1)])
    assert not missed_bars([strike(time_s=9.0), strike(Kind.leader_killed, time_s=10.9)])
    assert missed_bars([strike(time_s=9.0), strike(Kind.leader_killed, time_s=11.1)])
    assert not missed_bars([strike(profile="normal", time_s=22.0)])
    assert not missed_bars([strike(Kind.storage_cut, time_s=50.0)])
