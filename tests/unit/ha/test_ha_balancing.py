"""The manager evens out the load, within its budget, of guests that run undisturbed."""

from dataclasses import replace

import msgspec

from ha.balance import Budget, History
from ha.leases import FAST, Lease
from ha.load import Demand, Mode, Use
from ha.manager import decide
from ha.options import Options
from ha.placement import Policy
from ha.resources import Resource
from ha.status import Disarm, DisarmState, LrmStatus, ManagerStatus, NodeState, Result, Service, State
from ha.view import Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
SIDS = tuple(Sid(f"vm:{100 + number}") for number in range(6))
GIB = 1 << 30


def _crowded() -> View:
    """Six guests on n1, none elsewhere."""
    results = {f"o-{sid}": Result(sid=sid, state="started", exit_code=0) for sid in SIDS}
    nodes = {
        name: Node(
            name,
            NodeUid(f"u-{name}"),
            Lease(1, 9, False, 0.5, FAST.terms),
            LrmStatus(incarnation=1, tracked=SIDS, results=results),
            capacity=Use(8.0, 16.0 * GIB),
        )
        for name in (N1, N2, N3)
    }
    services: dict[str, Service] = {
        sid: Service(state=State.started, node="n1", uid=f"o-{sid}", incarnation=1, running=1) for sid in SIDS
    }
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=N1,
        nodes=nodes,
        resources={sid: Resource(sid) for sid in SIDS},
        configs={sid: Config(N1, 5, demand=Demand(Use(1.0, 2.0 * GIB))) for sid in SIDS},
        status=ManagerStatus(
            master_node="n1", service_status=services, node_status=dict.fromkeys(nodes, NodeState.online)
        ),
        status_version=17,
        options=Options(policy=Policy(Mode.static), budget=Budget(hold_s=30.0, max_moves=2)),
        history=History(over_since=960.0),
    )


def test_an_imbalance_that_lasts_is_evened_out_two_moves_at_a_time() -> None:
    decision = decide(_crowded(), 1000.0)
    assert decision.status is not None
    moving = [entry for entry in decision.status.service_status.values() if entry.state is State.migrate]
    assert len(moving) == 2
    assert all("balance" in entry.cause for entry in moving)
    assert decision.history.is_balancing


def test_one_that_has_not_lasted_is_waited_for() -> None:
    decision = decide(replace(_crowded(), history=History()), 1000.0)
    assert decision.status is not None, "the causes are told anew"
    assert {entry.state for entry in decision.status.service_status.values()} == {State.started}
    assert decision.history.over_since == 1000.0


def test_nothing_is_evened_out_when_it_is_off_or_while_disarming() -> None:
    view = _crowded()
    off = replace(view, options=Options())
    disarming = Disarm(mode="freeze", state=DisarmState.disarming, since=990, for_s=60)
    about_to = replace(view, status=msgspec.structs.replace(view.status, disarm=disarming))
    for other in (off, about_to):
        status = decide(other, 1000.0).status
        assert status is not None
        assert State.migrate not in {entry.state for entry in status.service_status.values()}


def test_what_has_just_failed_to_move_is_left_alone() -> None:
    view = _crowded()
    held = {sid: msgspec.structs.replace(entry, move_after=1100) for sid, entry in view.status.service_status.items()}
    view = replace(view, status=msgspec.structs.replace(view.status, service_status=held))
    status = decide(view, 1000.0).status
    assert status is not None
    assert State.migrate not in {entry.state for entry in status.service_status.values()}


def test_who_comes_first_gets_the_room_that_is_left() -> None:
    """n1 is fenced; on n2 and n3 there is room for one each."""
    view = _crowded()
    dead = replace(view.nodes[N1], lease=Lease(1, 9, True, 500.0, FAST.terms))
    small = {name: replace(view.nodes[name], capacity=Use(8.0, 2.5 * GIB)) for name in (N2, N3)}
    fencing = {
        sid: msgspec.structs.replace(entry, state=State.fence) for sid, entry in view.status.service_status.items()
    }
    resources = {sid: Resource(sid, priority=int(sid in SIDS[4:])) for sid in SIDS}
    view = replace(
        view,
        nodes={N1: dead, **small},
        resources=resources,
        options=Options(policy=Policy(Mode.static)),
        status=msgspec.structs.replace(view.status, service_status=fencing),
    )
    status = decide(view, 1000.0).status
    assert status is not None
    assert sorted(sid for sid, entry in status.service_status.items() if entry.target) == list(SIDS[4:])
    waiting = status.service_status[SIDS[0]]
    assert (waiting.state, "no room" in waiting.cause, waiting.remedies[-1]) == (State.recovery, True, "disable")
