"""The arithmetic of single ownership, and what the keeper's file lets start."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from ha.lease_state import KILLED, LIVE, NONE, PAUSED, LeaseState, may_start, read
from ha.leases import (
    FAST,
    LONGEST_TAKEOVER_S,
    NORMAL,
    PATIENT,
    PROFILES,
    Lease,
    Profile,
    derive_takeover_s,
    is_fresh,
    may_fence,
    named,
    strictest,
    validate,
)
from kvorum.errors import Fenced, InvalidInput

HELD = LeaseState(phase=LIVE, incarnation=4, valid_until_boottime=100.0, sids=("vm:100",), boot_id="b", uid="u")


def test_the_fast_profile_takes_over_after_nine_and_a_half_seconds() -> None:
    assert FAST.takeover_after_s == pytest.approx((3.5 + 5.0 + 0.5) * 1.001 + 0.5)
    assert FAST.kill_after_s == 5.5
    assert FAST.reset_after_s == 8.5


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_the_holder_has_ended_its_guests_before_anybody_takes_over_on_the_fastest_clock(profile: Profile) -> None:
    gone_by_watchdog_s = profile.reset_after_s + profile.reset_s
    assert gone_by_watchdog_s * (1 + profile.drift) < profile.takeover_after_s
    assert profile.kill_after_s < gone_by_watchdog_s


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_a_stall_within_the_tolerance_kills_nothing_whenever_it_begins(profile: Profile) -> None:
    oldest_s = profile.renew_period_s + profile.tolerates_s
    assert oldest_s < profile.kill_after_s
    assert profile.tolerates_s < profile.watchdog_s


def test_the_profiles_are_what_the_documentation_says() -> None:
    assert [(name, profile.tolerates_s) for name, profile in PROFILES.items()] == [
        ("fast", 3.0), ("normal", 8.0), ("patient", 25.0)
    ]  # fmt: skip
    assert NORMAL.takeover_after_s == pytest.approx((8.0 + 9.0 + 0.5) * 1.001 + 0.5)
    assert PATIENT.takeover_after_s == pytest.approx((26.0 + 26.0 + 0.5) * 1.001 + 0.5)
    assert max(profile.takeover_after_s for profile in PROFILES.values()) < LONGEST_TAKEOVER_S


def test_hosts_with_a_slow_watchdog_make_for_a_later_takeover() -> None:
    slow = named("fast", 20.0)
    assert (slow.name, slow.watchdog_s) == ("fast", 20.0)
    assert slow.takeover_after_s == pytest.approx((3.5 + 20.0 + 0.5) * 1.001 + 0.5)


@pytest.mark.parametrize(("name", "watchdog_s"), [("swift", 0), ("fast", 3.0), ("normal", 8.0), ("patient", 61.0)])
def test_a_profile_that_is_not_safe_is_refused_with_a_remedy(name: str, watchdog_s: float) -> None:
    with pytest.raises(InvalidInput) as refused:
        named(name, watchdog_s)
    assert refused.value.remedy


@pytest.mark.parametrize("one", [*PROFILES.values(), named("fast", 40.0), named("normal", 10.0)], ids=str)
@pytest.mark.parametrize("other", PROFILES.values(), ids=str)
def test_what_a_holder_lives_by_ends_before_either_of_what_it_may_have_said(one: Profile, other: Profile) -> None:
    both = strictest(one, other)
    for said in (one, other):
        assert both.pause_after_s <= said.pause_after_s
        assert both.kill_after_s <= said.kill_after_s
        assert both.reset_after_s <= said.reset_after_s
        assert both.takeover_after_s <= said.takeover_after_s


@pytest.mark.parametrize(
    "changes",
    [
        {"renew_period_s": 0.0},
        {"watchdog_s": -1.0},
        {"reset_s": float("nan")},
        {"drift": 0.2},
        {"drift": -0.1},
        {"call_deadline_s": 1.0},
        {"pause_after_s": 2.7},
        {"kill_grace_s": 5.0},
        {"takeover_after_s": 9.4},
    ],
    ids=str,
)
def test_a_profile_that_could_run_a_guest_twice_or_pauses_for_nothing_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Profile(**changes)


def test_a_longer_watchdog_makes_for_a_later_takeover() -> None:
    patient = Profile(watchdog_s=10.0)
    assert patient.takeover_after_s > FAST.takeover_after_s
    validate(patient)
    assert derive_takeover_s(patient) == patient.takeover_after_s


@pytest.mark.parametrize(
    ("age_s", "is_fenced", "fresh", "fenceable"),
    [
        (0.0, False, True, False),
        (3.4, False, True, False),
        (3.5, False, False, False),
        (FAST.takeover_after_s, False, False, False),
        (FAST.takeover_after_s + 0.01, False, False, True),
        (0.0, True, False, False),
        (99.0, True, False, False),
    ],
)
def test_a_lease_is_fresh_then_doubtful_then_to_be_fenced(
    age_s: float, is_fenced: bool, fresh: bool, fenceable: bool
) -> None:
    lease = Lease(1, 1, is_fenced, age_s, FAST.terms)
    assert is_fresh(lease) is fresh
    assert may_fence(lease) is fenceable


def test_a_guarded_guest_starts_under_a_live_lease() -> None:
    may_start(HELD, 99.9, "vm:100")
    may_start(HELD, 99.9, "vm:100", incarnation=4)


@pytest.mark.parametrize(
    ("state", "now", "sid", "incarnation"),
    [
        pytest.param(HELD, 100.0, "vm:100", None, id="the lease has just run out"),
        pytest.param(HELD, 0.0, "vm:101", None, id="the keeper does not guard it"),
        pytest.param(HELD, 0.0, "vm:100", 3, id="the order is of an earlier life"),
        pytest.param(HELD, 0.0, "vm:100", 5, id="the order is of a life that has not begun here"),
        pytest.param(msgspec.structs.replace(HELD, phase=PAUSED), 0.0, "vm:100", None, id="paused"),
        pytest.param(msgspec.structs.replace(HELD, phase=KILLED), 0.0, "vm:100", None, id="killed"),
        pytest.param(msgspec.structs.replace(HELD, phase=NONE), 0.0, "vm:100", None, id="no lease"),
    ],
)
def test_a_guest_does_not_start(state: LeaseState, now: float, sid: str, incarnation: int | None) -> None:
    with pytest.raises(Fenced):
        may_start(state, now, sid, incarnation=incarnation)


def test_a_state_of_this_boot_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(msgspec.json.encode(HELD))
    assert read(path, boot="b") == HELD


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"phase": 3}', b"\xff\xfe"])
def test_a_damaged_state_is_no_lease(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    assert read(path, boot="b").phase == NONE


def test_a_missing_state_or_one_of_another_boot_is_no_lease(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert read(path, boot="b").phase == NONE
    path.write_bytes(msgspec.json.encode(HELD))
    assert read(path, boot="c").phase == NONE


def test_a_profile_is_a_value() -> None:
    assert replace(FAST) == Profile()
