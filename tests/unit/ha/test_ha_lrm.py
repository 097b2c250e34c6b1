"""The local resource manager: what it does about an order, and what it answers."""

from dataclasses import replace

import pytest

from ha.lease_state import LIVE, PAUSED, LeaseState
from ha.lrm import Done, KillLeftover, LocalView, Memory, Start, Steps, Stop, finish, is_news, step
from ha.resources import Resource
from ha.status import LrmStatus, ManagerStatus, Service, State
from kvorum.ids import NodeName, Sid

SID = Sid("vm:100")
HELD = LeaseState(phase=LIVE, incarnation=3, valid_until_boottime=1e6, sids=(SID,))


def _view(state: State, *, incarnation: int = 3, here: bool = True, runs: bool = False, **more: object) -> LocalView:
    order = Service(state=state, node="n1", uid="o1", incarnation=incarnation)
    view = LocalView(
        node=NodeName("n1"),
        lease=HELD,
        status=ManagerStatus(service_status={SID: order}),
        resources={SID: Resource(SID)},
        configs=frozenset({SID} if here else ()),
        running=frozenset({SID} if runs else ()),
        written=LrmStatus(incarnation=3, session="s"),
        registered=(SID,),
        is_lease_wanted=True,
    )
    return replace(view, **more)  # type: ignore[arg-type]


def _step(view: LocalView, now: float = 50.0, memory: Memory | None = None) -> tuple[Memory, Steps]:
    return step(memory or Memory(session="s"), view, now)


def _code(steps: Steps) -> int | None:
    result = steps.status.results.get("o1")
    return result.exit_code if result is not None else None


def test_an_order_to_start_starts() -> None:
    memory, steps = _step(_view(State.started))
    assert steps.actions == (Start(SID, "o1", 3),)
    assert _step(_view(State.started), memory=memory)[1].actions == (), "one action at a time"


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(_view(State.started, incarnation=2), id="the order is of an earlier life"),
        pytest.param(_view(State.started, here=False), id="the file lies elsewhere"),
        pytest.param(_view(State.started, lease=LeaseState(phase=PAUSED, incarnation=3)), id="no live lease"),
        pytest.param(
            _view(State.started, lease=LeaseState(phase=LIVE, incarnation=3, valid_until_boottime=1e6)),
            id="the keeper does not guard it",
        ),
        pytest.param(_view(State.started, written=LrmStatus(session="before")), id="an earlier daemon may still act"),
        pytest.param(_view(State.request_start), id="the order is not given yet"),
        pytest.param(_view(State.fence), id="its node is being fenced"),
        pytest.param(_view(State.recovery), id="it is on its way elsewhere"),
        pytest.param(_view(State.error), id="it failed"),
        pytest.param(_view(State.migrate), id="the file is back"),
    ],
)
def test_nothing_is_done_or_answered_when(view: LocalView) -> None:
    _, steps = _step(view)
    assert steps.actions == ()
    assert _code(steps) is None


def test_a_running_guest_is_the_answer() -> None:
    assert _code(_step(_view(State.started, runs=True))[1]) == 0


def test_a_guest_that_will_not_start_is_tried_again_and_then_given_up_for_good() -> None:
    memory, now = Memory(session="s"), 50.0
    for _ in range(2):
        memory, steps = _step(_view(State.started), now, memory)
        assert len(steps.actions) == 1
        memory = finish(memory, Done(SID, "o1", is_start=True, cause="no space"), now)
        now += 10.0
    memory, steps = _step(_view(State.started), now, memory)
    assert steps.actions == ()
    assert _code(steps) == 1
    assert steps.status.results["o1"].cause == "no space"
    later = _view(State.started, written=steps.status)
    assert _step(later, now + 999)[1].actions == (), "nor after a restart of the daemon"


def test_a_guest_that_ended_starts_again_at_once() -> None:
    memory, _ = _step(_view(State.started, runs=True), 50.0)
    memory, steps = _step(_view(State.started), 60.0, memory)
    assert steps.actions == (Start(SID, "o1", 3),)


def test_a_stop_order_stops_and_then_answers() -> None:
    assert _step(_view(State.request_stop, runs=True))[1].actions == (Stop(SID, "o1"),)
    assert _code(_step(_view(State.request_stop))[1]) == 0


def test_what_runs_of_a_guest_that_lies_elsewhere_is_killed() -> None:
    assert _step(_view(State.request_stop, runs=True, here=False))[1].actions == (KillLeftover(SID, "o1"),)


def test_a_migrated_guest_has_a_while_to_end_by_itself() -> None:
    view = _view(State.migrate, runs=True, here=False)
    memory, steps = _step(view, 50.0)
    assert steps.actions == ()
    assert _step(view, 60.0, memory)[1].actions == (KillLeftover(SID, "o1"),)
    assert _code(_step(_view(State.migrate, here=False))[1]) == 0


def test_of_an_unregistered_guest_nobody_knows_that_it_does_not_run() -> None:
    for state in (State.request_stop, State.migrate):
        assert _code(_step(_view(state, here=False, registered=()))[1]) is None


def test_only_what_the_keeper_guards_is_acknowledged() -> None:
    assert _step(_view(State.started))[1].status.tracked == (SID,)
    unguarded = LeaseState(phase=LIVE, incarnation=3, valid_until_boottime=1e6)
    steps = _step(_view(State.started, lease=unguarded))[1]
    assert steps.status.tracked == ()
    assert steps.register == (SID,), "but asked for"


def test_what_was_acknowledged_stays_registered_until_the_store_says_otherwise() -> None:
    view = _view(State.started, status=ManagerStatus(), resources={}, written=LrmStatus(tracked=(SID,), session="s"))
    steps = _step(view)[1]
    assert (steps.status.tracked, steps.register) == ((), (SID,))


def test_a_guest_that_may_run_already_is_guarded_from_the_lease_on() -> None:
    idle = _view(State.request_start, lease=LeaseState(), registered=(), written=LrmStatus(session="s"))
    steps = _step(idle)[1]
    assert (steps.register, steps.is_lease_wanted) == ((), True), "without a lease the keeper would end it"
    steps = _step(replace(idle, lease=HELD))[1]
    assert steps.register == (SID,)
    guarded = _step(_view(State.started, lease=LeaseState()))[1]
    assert guarded.register == (SID,), "what was guarded stays so when the lease is lost"


def test_answers_to_old_orders_are_dropped() -> None:
    _, steps = _step(_view(State.started, runs=True))
    view = _view(State.started, status=ManagerStatus(), written=steps.status)
    assert _step(view)[1].status.results == {}


def test_a_timestamp_is_no_news() -> None:
    assert not is_news(LrmStatus(timestamp=1), LrmStatus(timestamp=2))
    assert is_news(LrmStatus(session="a"), LrmStatus())
