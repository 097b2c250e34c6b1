"""The local resource manager: what it does about an order, and what it answers."""

from dataclasses import replace

import pytest

from ha.lease_state import KILLED, LIVE, PAUSED, LeaseState
from ha.lrm import (
    FOLLOWERS_S,
    Done,
    KillLeftover,
    LocalView,
    Memory,
    Migrate,
    Shutdown,
    Start,
    Steps,
    Stop,
    answered,
    finish,
    hold,
    is_news,
    let_go_on,
    must_write,
    step,
    writing,
)
from ha.manager import has_released
from ha.options import Options, ShutdownPolicy
from ha.resources import Request, Resource
from ha.rules import StartOrder, compile_rules
from ha.status import CAME_BACK, Disarm, DisarmState, LrmStatus, ManagerStatus, Mode, NodeState, Service, State
from ha.view import Node
from kvorum.ids import NodeName, NodeUid, Sid

SID = Sid("vm:100")
HELD = LeaseState(phase=LIVE, incarnation=3, valid_until_boottime=1e6, sids=(SID,))
RAN_OUT = LeaseState(phase=LIVE, incarnation=3, valid_until_boottime=49.9, sids=(SID,))
LATER = LeaseState(phase=LIVE, incarnation=4, valid_until_boottime=1e6, sids=(SID,))


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


def test_one_that_shall_wait_for_others_and_runs_already_says_so_and_lets_nothing_go() -> None:
    waits = Service(state=State.request_start, node="n1", uid="o1", incarnation=3, waits_for=("vm:9",))
    view = _view(State.request_start, status=ManagerStatus(service_status={SID: waits}))
    assert _code(_step(view)[1]) is None
    _, steps = _step(replace(view, running=frozenset({SID})))
    assert (_code(steps), steps.actions) == (0, ())
    node = Node(NodeName("n1"), NodeUid("u1"), None, steps.status)
    assert has_released(node, SID, waits) == ""
    for wrong in ({"configs": frozenset()}, {"lease": LATER}):
        assert _code(_step(replace(view, running=frozenset({SID}), **wrong))[1]) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [State.started, State.request_stop, State.stopped, State.relocate, State.migrate])
def test_of_one_that_still_starts_for_an_earlier_life_nothing_is_said_before_that_has_ended(state: State) -> None:
    """A stop order, say: "it does not run" would send it elsewhere, and then it comes up here."""
    view = _view(state, here=state is not State.migrate)
    memory, steps = _step(view, memory=hold(Memory(session="s"), frozenset({SID})))
    assert (steps.actions, _code(steps), steps.is_at_rest) == ((), None, False)
    memory, steps = _step(view, memory=let_go_on(memory, SID))
    assert steps.actions or _code(steps) is not None


def test_a_shutdown_that_keeps_them_here_stops_them_in_reverse() -> None:
    web = Sid("vm:101")
    orders = compile_rules([StartOrder("web", frozenset({web}), frozenset({SID}))], (SID, web), ()).orders
    services = {sid: Service(state=State.freeze, node="n1", uid=f"o-{sid}", incarnation=3) for sid in (SID, web)}
    both = frozenset({SID, web})
    view = _view(
        State.freeze,
        status=ManagerStatus(service_status=services),
        configs=both,
        running=both,
        registered=(SID, web),
        options=Options(ShutdownPolicy.freeze),
        shutdown=Shutdown(is_reboot=True, since=50.0),
        orders=orders,
    )
    assert _step(view, 51.0)[1].actions == (Stop(web, f"o-{web}"),)
    assert _step(replace(view, running=frozenset({SID})), 52.0)[1].actions == (Stop(SID, f"o-{SID}"),)
    assert len(_step(view, 50.0 + FOLLOWERS_S)[1].actions) == 2


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


def _stray(*, strays: tuple[Sid, ...] = (SID,), disarm: Disarm | None = None, **more: str) -> LocalView:
    order = Service(**{"state": State.started, "node": "n2", "uid": "o2", "incarnation": 1, **more})  # type: ignore[arg-type]
    status = ManagerStatus(service_status={SID: order}, disarm=disarm)
    return _view(State.started, status=status, here=False, runs=True, strays=frozenset(strays))


def test_a_late_start_of_what_is_anothers_by_now_is_killed_at_once() -> None:
    memory, steps = _step(_stray())
    assert (steps.actions, steps.is_at_rest) == ((KillLeftover(SID, "o2"),), False)
    assert _step(_stray(), memory=memory)[1].actions == (), "one action at a time"
    memory = finish(memory, Done(SID, "o2", is_start=False, cause="it hangs"), 60.0)
    assert _step(_stray(), 60.0, memory)[1].actions == (KillLeftover(SID, "o2"),), "and again while it is there"


DISARMED = Disarm(mode="freeze", state=DisarmState.disarmed, since=0, for_s=60)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(_stray(strays=()), id="its file is here, on its way, or held by a migration"),
        pytest.param(_stray(target="n1"), id="it is coming"),
        pytest.param(_stray(carried_to="n1"), id="its copy came with an earlier order, and may be the guest"),
        pytest.param(_stray(node="n1"), id="the order is ours"),
        pytest.param(replace(_stray(), status=ManagerStatus()), id="it is not HA's"),
        pytest.param(_stray(disarm=DISARMED), id="disarmed"),
    ],
)
def test_what_runs_here_is_no_stray_when(view: LocalView) -> None:
    assert _step(view)[1].actions == ()


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


# Moving away


def _leaving(**more: object) -> LocalView:
    view = _view(State.migrate, runs=True)
    order = Service(state=State.migrate, node="n1", uid="o1", incarnation=3, target="n2", cmd=("migrate", "n2"))
    return replace(view, **{"status": ManagerStatus(service_status={SID: order}), **more})  # type: ignore[arg-type]


def test_an_ordered_migration_is_tried_once_and_its_failure_is_the_answer() -> None:
    memory, steps = _step(_leaving())
    assert steps.actions == (Migrate(SID, "o1", "n2"),)
    memory = finish(memory, Done(SID, "o1", is_start=True, cause="no bandwidth"), 51.0)
    memory, steps = _step(_leaving(), 52.0, memory)
    assert (steps.actions, _code(steps)) == ((), 1)
    assert steps.status.results["o1"].cause == "no bandwidth"
    assert _step(_leaving(written=steps.status), 999.0)[1].actions == (), "nor after a restart of the daemon"


def test_a_migration_that_went_well_is_answered_when_the_file_has_moved() -> None:
    memory, _ = _step(_leaving())
    memory = finish(memory, Done(SID, "o1", is_start=True), 51.0)
    memory, steps = _step(_leaving(running=frozenset()), 52.0, memory)
    assert (steps.actions, _code(steps)) == ((), None), "the file's move is on its way"
    memory, steps = _step(_leaving(running=frozenset(), configs=frozenset()), 53.0, memory)
    assert (steps.actions, _code(steps)) == ((), 0)


def test_a_file_that_is_here_long_after_a_migration_means_that_it_stays() -> None:
    memory, _ = _step(_leaving())
    memory = finish(memory, Done(SID, "o1", is_start=True), 51.0)
    assert _code(_step(_leaving(), 62.0, memory)[1]) == CAME_BACK, "its copy may run where it went"


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"lease": LeaseState(phase=PAUSED, incarnation=3)}, id="no live lease"),
        pytest.param({"lease": LATER}, id="the order is of an earlier life"),
        pytest.param({"lease": RAN_OUT}, id="it ran out, and a dead keeper does not say so"),
    ],
)
def test_no_migration_begins_without_the_orders_lease(more: dict[str, object]) -> None:
    assert _step(_leaving(**more))[1].actions == ()


def test_no_migration_begins_to_a_node_that_is_being_fenced() -> None:
    view = _leaving()
    fenced = ManagerStatus(service_status=view.status.service_status, node_status={"n2": NodeState.fence})
    _, steps = _step(replace(view, status=fenced))
    assert (steps.actions, _code(steps)) == ((), 1)


def test_relocation_stops_the_guest_and_says_so() -> None:
    assert _step(_view(State.relocate, runs=True))[1].actions == (Stop(SID, "o1"),)
    assert _code(_step(_view(State.relocate))[1]) == 0


def test_an_operators_patience_goes_along_with_the_stop() -> None:
    view = _view(State.request_stop, runs=True)
    order = Service(state=State.request_stop, node="n1", uid="o1", incarnation=3, timeout=0)
    _, steps = _step(replace(view, status=ManagerStatus(service_status={SID: order})))
    assert steps.actions == (Stop(SID, "o1", 0),)


# Going down

REBOOT = Shutdown(is_reboot=True, since=50.0)


@pytest.mark.parametrize(
    ("policy", "is_reboot", "after_s", "mode"),
    [
        ("conditional", True, 0, Mode.restart),
        ("conditional", False, 0, Mode.shutdown),
        ("freeze", False, 0, Mode.restart),
        ("failover", True, 0, Mode.shutdown),
        ("migrate", True, 0, Mode.maintenance),
        ("migrate", True, 29, Mode.maintenance),
        ("migrate", True, 30, Mode.shutdown),
    ],
)
def test_the_policy_says_what_becomes_of_the_guests_and_for_how_long(
    policy: str, is_reboot: bool, after_s: float, mode: Mode
) -> None:
    options = Options(shutdown_policy=ShutdownPolicy(policy), shutdown_deadline_s=30)
    view = _view(State.started, runs=True, options=options, shutdown=Shutdown(is_reboot, 50.0))
    assert _step(view, 50.0 + after_s)[1].status.mode is mode


def test_maintenance_goes_before_the_policy() -> None:
    view = _view(State.started, runs=True, shutdown=REBOOT)
    drained = ManagerStatus(service_status=view.status.service_status, node_request={"n1": {"maintenance": 1}})
    assert _step(replace(view, status=drained))[1].status.mode is Mode.maintenance
    assert _step(replace(view, status=drained, shutdown=None))[1].status.mode is Mode.maintenance


def test_a_frozen_guest_is_stopped_for_the_reboot_and_nothing_is_answered() -> None:
    view = _view(State.freeze, runs=True, shutdown=REBOOT)
    _, steps = _step(view)
    assert (steps.actions, _code(steps), steps.is_at_rest) == ((Stop(SID, "o1"),), None, False)
    _, steps = _step(_view(State.freeze, shutdown=REBOOT))
    assert (steps.actions, _code(steps), steps.is_at_rest) == ((), None, True)
    assert _step(_view(State.freeze, runs=True))[1].actions == (), "frozen for another reason, it runs on"


def test_a_guest_that_was_ended_for_the_shutdown_does_not_come_up_again() -> None:
    assert _step(_view(State.started, shutdown=REBOOT))[1].actions == ()


@pytest.mark.parametrize(("policy", "patience_s"), [("freeze", 10.0), ("failover", 60.0), ("migrate", 90.0)])
def test_a_manager_that_says_nothing_holds_up_no_shutdown_for_ever(policy: str, patience_s: float) -> None:
    options = Options(shutdown_policy=ShutdownPolicy(policy), shutdown_deadline_s=30)
    view = _view(State.started, runs=True, options=options, shutdown=REBOOT)
    assert _step(view, 50.0 + patience_s - 0.1)[1].actions == ()
    assert _step(view, 50.0 + patience_s)[1].actions == (Stop(SID, "o1"),)


# Disarmed


def test_disarmed_nothing_is_done_and_the_lease_is_given_back_after_the_acknowledgements() -> None:
    view = _view(State.started)
    disarmed = ManagerStatus(
        service_status=view.status.service_status,
        disarm=Disarm(mode="freeze", state=DisarmState.disarmed, since=0, for_s=60),
    )
    view = replace(view, status=disarmed, written=LrmStatus(incarnation=3, session="s", tracked=(SID,)))
    _, steps = _step(view)
    assert (steps.actions, steps.status.tracked, steps.is_lease_wanted) == ((), (), False)
    assert steps.register == (SID,), "guarded as long as the store says that it is"
    assert _step(replace(view, written=steps.status))[1].register == ()


def test_an_ignored_resource_is_neither_guarded_nor_does_it_want_a_lease() -> None:
    ignored = {SID: Resource(SID, Request.ignored)}
    view = _view(State.started, status=ManagerStatus(), resources=ignored, registered=())
    _, steps = _step(view)
    assert (steps.register, steps.is_lease_wanted) == ((), False)


def test_whom_the_keeper_has_stopped_stays_on_its_list_until_it_goes_on_or_is_gone() -> None:
    view = _view(State.started, status=ManagerStatus(), resources={}, written=LrmStatus(session="s"))
    for phase in (PAUSED, KILLED):
        assert _step(replace(view, lease=LeaseState(phase=phase, incarnation=3)))[1].register == (SID,)
    assert _step(replace(view, lease=LeaseState()))[1].register == ()


def test_an_order_to_a_machine_that_had_our_name_before_us_is_not_ours() -> None:
    """Even when our lease counts as its did: both begin with 1."""
    order = Service(state=State.started, node="n1", node_uid="u-before", uid="o1", incarnation=3)
    status = ManagerStatus(service_status={SID: order})
    _, steps = _step(_view(State.started, status=status, uid="u-now"))
    assert steps.actions == () and _code(steps) is None
    assert steps.status.uid == "u-now"
    assert _step(_view(State.started, status=status, uid="u-before"))[1].actions == (Start(SID, "o1", 3),)


def test_what_an_unanswered_write_may_acknowledge_stays_on_the_list_until_a_later_one_has_taken_effect() -> None:
    """The resource is removed meanwhile; taken off at once, it would be acknowledged unguarded when the write comes late."""
    memory, steps = _step(_view(State.started, runs=True))
    assert steps.status.tracked == (SID,)
    memory = writing(memory, steps.status)
    removed = _view(State.started, resources={}, status=ManagerStatus())
    memory, steps = _step(removed, memory=memory)
    assert steps.register == (SID,) and steps.status.tracked == ()
    assert must_write(memory, steps.status, steps.status), "only so is the earlier one shut out"
    memory = answered(writing(memory, steps.status))
    memory, steps = _step(removed, memory=memory)
    assert steps.register == () and not must_write(memory, steps.status, steps.status)


def test_a_new_life_takes_nothing_off_the_list_before_its_first_write_has_shut_out_the_earlier() -> None:
    removed = _view(State.started, resources={}, status=ManagerStatus(), written=LrmStatus(session="before"))
    assert _step(removed)[1].register == (SID,)
    assert _step(replace(removed, written=LrmStatus(session="s")))[1].register == ()
