"""The keeper's mind, in dialogues: an event at a time, and what it does."""

import math
from dataclasses import replace
from typing import Any

import pytest

from ha.keeper.core import (
    Acquire,
    Acquired,
    Action,
    Event,
    Failed,
    GuestsLoaded,
    Kill,
    Left,
    Pause,
    PetWatchdog,
    Refused,
    Renew,
    Renewed,
    ResetHost,
    Rest,
    Rested,
    Resume,
    State,
    Tick,
    due_in_s,
    initial,
    may_load,
    published,
    step,
)
from ha.lease_state import KILLED, LIVE, NONE, PAUSED, LeaseState
from ha.leases import FAST, MARGIN_S, PATIENT, PROFILES, Profile

LIVES_FAST: dict[str, Any] = {"profile": FAST, "spoken": FAST, "wanted": FAST}


class Dialogue:
    def __init__(self, state: State) -> None:
        self.state = state

    def at(self, now: float, event: Event) -> tuple[Action, ...]:
        self.state, actions = step(self.state, event, now)
        return actions


def _live(anchor: float = 100.0) -> Dialogue:
    return Dialogue(
        State(
            phase=LIVE,
            incarnation=7,
            anchor=anchor,
            next_call_at=anchor + 1,
            guests_revision=1,
            sids=("vm:100",),
            **LIVES_FAST,
        )
    )


def _started() -> Dialogue:
    """A keeper at its start, with a guest to guard."""
    keeper = Dialogue(initial(LeaseState(profile=FAST), 10.0, uid="u"))
    keeper.at(10.0, GuestsLoaded(1, ("vm:100",)))
    return keeper


def test_a_keeper_that_finds_nothing_running_takes_a_lease() -> None:
    keeper = _started()
    assert keeper.state.phase == KILLED
    assert keeper.at(10.0, Tick(is_running=False)) == (Kill(), PetWatchdog(), Acquire(FAST))
    assert keeper.at(10.1, Acquired(10.0, 1)) == ()
    assert (keeper.state.phase, keeper.state.incarnation, keeper.state.anchor) == (LIVE, 1, 10.0)


def test_a_keeper_that_finds_guests_without_a_lease_kills_them_first() -> None:
    keeper = _started()
    assert keeper.at(10.0, Tick(is_running=True)) == (Kill(),)
    assert keeper.at(10.1, Tick(is_running=None)) == (Kill(),), "nobody looked, so they may run"
    assert Acquire(FAST) in keeper.at(10.2, Tick(is_running=False))


def test_a_restarted_keeper_goes_on_with_a_lease_that_is_still_good() -> None:
    previous = published(_live().state, boot_id="b", uid="u")
    state = initial(previous, 103.4, uid="u")
    assert (state.phase, state.incarnation, state.anchor) == (LIVE, 7, 100.0)
    assert initial(previous, 103.5, uid="u").phase == KILLED
    assert initial(previous, 101.0, uid="another node").phase == KILLED


def test_it_renews_each_second_and_one_call_at_a_time() -> None:
    keeper = _live()
    assert keeper.at(100.5, Tick()) == (PetWatchdog(),)
    assert keeper.at(101.0, Tick()) == (PetWatchdog(), Renew(7, FAST))
    assert keeper.at(102.5, Tick()) == (PetWatchdog(),), "the call is under way"
    assert keeper.at(102.6, Renewed(101.0, 7)) == (Renew(7, FAST),)
    assert keeper.state.anchor == 101.0, "the age counts from the sending"


@pytest.mark.parametrize(
    ("hint_s", "after_s"),
    [
        (0.8, 0.8),
        (0.5, 0.5),
        (0.2, 0.5),
        (1.0, 1.0),
        (7.0, 1.0),
        (0.0, 1.0),
        (-1.0, 1.0),
        (math.inf, 1.0),
        (math.nan, 1.0),
    ],
)
def test_a_hint_brings_a_renewal_forward_by_half_the_period_at_most(hint_s: float, after_s: float) -> None:
    keeper = _live()
    keeper.at(101.0, Tick())
    assert due_in_s(keeper.state, 101.1) == math.inf, "one is under way"
    assert keeper.at(101.2, Renewed(101.0, 7, hint_s)) == ()
    assert due_in_s(keeper.state, 101.25) == pytest.approx(after_s - 0.25)
    assert keeper.at(100.99 + after_s, Tick()) == (PetWatchdog(),)
    assert keeper.at(101.0 + after_s, Tick()) == (PetWatchdog(), Renew(7, FAST))


def test_an_answer_that_comes_after_the_hint_sends_the_next_one_at_once() -> None:
    keeper = _live()
    keeper.at(101.0, Tick())
    assert keeper.at(101.7, Renewed(101.0, 7, 0.6)) == (Renew(7, FAST),)


def test_a_keeper_whose_renewal_was_not_answered_follows_no_hint() -> None:
    keeper = _live()
    keeper.at(101.0, Tick())
    keeper.at(101.2, Renewed(101.0, 7, 0.5))
    assert Renew(7, FAST) in keeper.at(101.5, Tick())
    keeper.at(102.3, Failed("lost"))
    assert Renew(7, FAST) in keeper.at(102.8, Tick()), "half a second after the failure, as ever"


def test_a_keeper_without_a_lease_has_nothing_due() -> None:
    assert due_in_s(_started().state, 10.0) == math.inf


def test_a_stalled_lease_pauses_then_resumes_the_guests() -> None:
    keeper = _live()
    assert Pause() in keeper.at(103.6, Tick())
    assert keeper.state.phase == PAUSED
    assert PetWatchdog() not in keeper.at(103.7, Tick())
    assert Resume() in keeper.at(104.0, Renewed(103.6, 7))
    assert keeper.state.phase == LIVE


def test_an_answer_that_was_sent_too_long_ago_resumes_nothing() -> None:
    keeper = _live()
    keeper.at(103.6, Tick())
    assert Resume() not in keeper.at(104.4, Renewed(100.5, 7))
    assert keeper.state.phase == PAUSED


def test_an_answer_from_before_a_freeze_finds_the_lease_over() -> None:
    keeper = _live()
    assert keeper.at(120.0, Renewed(101.0, 7)) == (Kill(),)
    assert keeper.state.phase == KILLED


def test_a_lease_that_ran_out_is_never_renewed_again() -> None:
    keeper = _live()
    assert Kill() in keeper.at(105.6, Tick())
    keeper.at(105.7, Renewed(105.5, 7))
    assert keeper.state.phase == KILLED
    assert Acquire(FAST) in keeper.at(107.0, Tick(is_running=False))
    assert keeper.state.phase == NONE


def test_a_fenced_lease_kills_at_once() -> None:
    keeper = _live()
    actions = keeper.at(101.0, Refused(100.9, 7))
    assert actions[0] == Kill()
    assert keeper.state.phase == KILLED


def test_a_refusal_of_another_incarnation_means_nothing() -> None:
    keeper = _live()
    assert keeper.at(100.5, Refused(100.1, 6)) == ()
    assert keeper.state.phase == LIVE


def test_a_failed_call_waits_a_little_and_changes_nothing_else() -> None:
    keeper = _live()
    keeper.at(101.0, Tick())
    keeper.at(101.8, Failed("no answer"))
    assert (keeper.state.phase, keeper.state.anchor) == (LIVE, 100.0)
    assert Renew(7, FAST) not in keeper.at(101.9, Tick())
    assert Renew(7, FAST) in keeper.at(102.0, Tick())


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_a_stall_that_the_profile_tolerates_ends_no_guest_whenever_it_begins(profile: Profile) -> None:
    """The store says at once that it has no quorum, also for a moment after the stall."""
    for begin in range(100, 100 + math.ceil(profile.renew_period_s) + 1):
        lives: dict[str, Any] = {"profile": profile, "spoken": profile, "wanted": profile}
        keeper = Dialogue(State(phase=LIVE, incarnation=7, anchor=100.0, next_call_at=100.0, sids=("vm:100",), **lives))
        now = 100.0
        while now < begin + 3 * profile.kill_after_s:
            actions = keeper.at(now, Tick(is_running=True))
            assert Kill() not in actions, f"at {now:.2f}, of a stall from {begin}"
            if Renew(7, profile) in actions:
                is_stalled = begin < now < begin + profile.tolerates_s + MARGIN_S / 2
                keeper.at(now + 0.01, Failed("no quorum") if is_stalled else Renewed(now, 7))
            now += 0.02
        assert keeper.state.phase == LIVE


def test_an_acquisition_that_was_answered_too_late_is_not_used() -> None:
    keeper = Dialogue(State(phase=NONE, calling_since=10.0, next_call_at=11.0, **LIVES_FAST))
    keeper.at(13.5, Acquired(10.0, 3))
    assert keeper.state.phase == NONE


def test_what_came_up_during_an_acquisition_belongs_to_no_lease() -> None:
    keeper = Dialogue(State(phase=NONE, calling_since=10.0, next_call_at=11.0, sids=("vm:100",)))
    assert Kill() in keeper.at(10.3, Tick(is_running=True))
    keeper.at(10.4, Acquired(10.0, 3))
    assert keeper.state.phase == KILLED


def test_guests_that_do_not_die_reset_the_host_before_anybody_may_take_over() -> None:
    keeper = _live()
    keeper.at(104.6, Tick(is_running=True))
    assert not any(isinstance(action, ResetHost) for action in keeper.at(108.4, Tick(is_running=True)))
    last = keeper.at(108.6, Tick(is_running=True))
    assert isinstance(last[-1], ResetHost)
    assert PetWatchdog() not in last
    assert 108.6 + FAST.reset_s < 100.0 + FAST.takeover_after_s


def test_the_watchdog_starves_while_a_guest_is_not_proven_gone() -> None:
    keeper = _live()
    for tenth in range(37, 80):
        assert PetWatchdog() not in keeper.at(100 + tenth / 10, Tick(is_running=True))


def test_a_loaded_list_is_what_is_published() -> None:
    keeper = _live()
    keeper.at(100.2, GuestsLoaded(2, ("ct:101", "vm:100")))
    state = published(keeper.state, boot_id="b", uid="u")
    assert (state.guests_revision, state.sids, state.valid_until_boottime) == (2, ("ct:101", "vm:100"), 103.5)


def test_without_a_live_lease_nothing_is_valid() -> None:
    keeper = _live()
    keeper.at(103.6, Tick())
    assert published(keeper.state, boot_id="b", uid="u").valid_until_boottime == 0.0


def test_a_keeper_of_a_node_that_has_left_ends_its_guests_and_takes_no_lease_again() -> None:
    keeper = _live()
    assert keeper.at(100.2, Left()) == (Kill(),)
    assert keeper.at(100.3, Renewed(100.1, 7)) == (Kill(),), "whatever is answered still"
    assert keeper.at(100.4, Tick(is_running=True)) == (Kill(),)
    assert keeper.at(100.5, Tick(is_running=False)) == (Kill(), PetWatchdog())
    assert keeper.state.phase == NONE
    assert keeper.at(105.0, Tick(is_running=False)) == (PetWatchdog(),)
    keeper.at(105.1, Acquired(105.0, 8))
    assert keeper.state.phase == NONE, "an acquisition that was under way"


def test_a_node_that_has_left_is_reset_when_its_guests_do_not_end() -> None:
    keeper = _live()
    keeper.at(100.2, Left())
    (killed, reset) = keeper.at(100.3 + FAST.watchdog_s, Tick(is_running=True))
    assert killed == Kill()
    assert isinstance(reset, ResetHost)


def test_without_a_guest_to_guard_no_lease_is_taken() -> None:
    keeper = Dialogue(initial(LeaseState(profile=FAST), 10.0, uid="u"))
    assert keeper.at(10.0, Tick(is_running=False)) == (Kill(), PetWatchdog())
    assert keeper.at(20.0, Tick(is_running=False)) == (PetWatchdog(),)
    assert keeper.at(20.1, GuestsLoaded(1, (), is_lease_wanted=True)) == (Acquire(FAST),)


def test_the_first_guest_is_guarded_once_there_is_a_lease_and_may_run_already() -> None:
    keeper = Dialogue(initial(LeaseState(profile=FAST), 10.0, uid="u"))
    keeper.at(10.0, Tick(is_running=False))
    assert keeper.at(10.1, GuestsLoaded(1, (), is_lease_wanted=True)) == (Acquire(FAST),)
    assert keeper.at(10.2, Tick(is_running=False)) == (PetWatchdog(),)
    assert keeper.at(10.3, Acquired(10.1, 1)) == ()
    assert keeper.at(10.4, GuestsLoaded(2, ("vm:100",), is_lease_wanted=True)) == ()
    assert (keeper.state.phase, keeper.state.sids) == (LIVE, ("vm:100",))


def test_with_the_last_guest_the_lease_goes_back_once() -> None:
    keeper = _live()
    assert keeper.at(100.2, GuestsLoaded(2, ())) == (Rest(7),)
    assert keeper.state.phase == NONE, "from here on nothing starts, whenever the store hears of it"
    assert keeper.at(101.5, Failed("no quorum")) == ()
    assert keeper.at(102.5, Tick(is_running=False)) == (PetWatchdog(), Rest(7)), "asked again until it is known"
    assert keeper.at(102.6, Rested(7)) == ()
    assert keeper.at(110.0, Tick(is_running=False)) == (PetWatchdog(),)


def test_a_guest_that_comes_while_the_lease_goes_back_gets_a_new_one() -> None:
    keeper = _live()
    assert keeper.at(100.2, GuestsLoaded(2, ())) == (Rest(7),)
    assert keeper.at(100.3, GuestsLoaded(3, (), is_lease_wanted=True)) == ()
    assert keeper.at(101.3, Rested(7)) == (Acquire(FAST),)
    keeper.at(101.4, Acquired(101.3, 8))
    assert (keeper.state.phase, keeper.state.incarnation) == (LIVE, 8)


def test_a_lease_that_arrives_when_nothing_is_left_to_guard_goes_back() -> None:
    keeper = _started()
    keeper.at(10.0, Tick(is_running=False))
    assert keeper.at(10.05, GuestsLoaded(2, ())) == ()
    assert keeper.at(10.1, Acquired(10.0, 1)) == (Rest(1),)
    assert keeper.state.phase == NONE


def _told(keeper: Dialogue, profile: Profile, now: float = 100.2) -> None:
    keeper.at(now, GuestsLoaded(2, ("vm:100",), profile=profile))


def test_a_longer_profile_is_said_at_the_next_renewal_and_lived_by_when_that_is_answered() -> None:
    keeper = _live()
    _told(keeper, PATIENT)
    assert keeper.at(101.0, Tick())[-1] == Renew(7, FAST)
    assert keeper.at(101.1, Renewed(101.0, 7)) == (Renew(7, PATIENT),)
    assert Pause() in keeper.at(104.6, Tick()), "nobody may have heard it"
    keeper.at(104.7, Renewed(101.1, 7))
    assert keeper.state.phase == LIVE
    assert keeper.at(120.0, Renewed(101.1, 7)) == (Renew(7, PATIENT),)
    assert (keeper.state.phase, keeper.state.profile) == (LIVE, PATIENT)


def test_a_shorter_profile_is_lived_by_from_the_moment_it_is_said() -> None:
    keeper = _live()
    keeper.state = replace(keeper.state, profile=PATIENT, spoken=PATIENT, wanted=PATIENT)
    _told(keeper, FAST)
    assert keeper.state.profile == PATIENT
    keeper.at(101.0, Tick())
    assert keeper.at(101.1, Renewed(101.0, 7)) == (Renew(7, FAST),)
    assert keeper.state.profile.kill_after_s == FAST.kill_after_s, "others may go by it, answered or not"
    assert Pause() in keeper.at(104.6, Tick())
    assert Kill() in keeper.at(106.6, Tick())


def test_a_keeper_that_takes_over_lives_by_what_the_one_before_lived_by() -> None:
    before = _live()
    before.state = replace(before.state, profile=PATIENT, spoken=PATIENT, wanted=PATIENT)
    state = initial(published(before.state, boot_id="b", uid="u"), 120.0, uid="u")
    assert (state.phase, state.anchor, state.profile) == (LIVE, 100.0, PATIENT)


def test_a_new_lease_is_taken_with_the_profile_that_is_wanted() -> None:
    keeper = _started()
    keeper.at(10.0, GuestsLoaded(2, ("vm:100",), profile=PATIENT))
    assert keeper.at(10.1, Tick(is_running=False))[-1] == Acquire(PATIENT)
    keeper.at(10.2, Acquired(10.1, 1))
    assert keeper.state.profile == PATIENT


def test_while_guests_are_stopped_or_being_ended_no_other_list_is_taken_up() -> None:
    for phase in (PAUSED, KILLED):
        assert not may_load(State(phase=phase, sids=("vm:100",)))
        assert may_load(State(phase=phase)), "there is nobody to be woken or ended"
    assert may_load(State(phase=LIVE, sids=("vm:100",)))
