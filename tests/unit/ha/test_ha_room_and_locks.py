"""What keeps a guest from starting or moving that is not its node: no memory, and a task that works on it."""

from dataclasses import replace

import msgspec
import pytest

from ha.leases import FAST, Lease
from ha.load import Demand, Use
from ha.manager import MoveConfig, decide
from ha.resources import Request, Resource
from ha.status import AnswerState, LrmStatus, ManagerStatus, Remedy, Result, Service, State
from ha.view import Command, Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

A, B = Sid("vm:100"), Sid("vm:101")
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
GIB = float(1 << 30)
NOW = 1000.0


def cluster(
    state: State = State.started, *, lock: str = "", size: float = 6.0, drained: str = "", **more: object
) -> View:
    """Nodes of 8 GiB. `vm:101` (4 GiB) runs on n2. `vm:100` lies on n1, in the given state; n1 has nothing else."""
    own = Service(
        state=state, node=N1, uid="u-a", incarnation=1, node_uid=f"id-{N1}", running=int(state is State.started)
    )
    services = {str(A): msgspec.structs.replace(own, **more)}
    services[str(B)] = Service(state=State.started, node=N2, uid="u-b", incarnation=1, running=1)
    done = {"u-b": Result(sid=B, state="started", exit_code=0)}
    done["u-a"] = Result(sid=A, state=state if state is State.relocate else "started", exit_code=0)
    lrm = LrmStatus(incarnation=1, tracked=(A, B), results=done)
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=N3,
        nodes={
            name: Node(
                name, NodeUid(f"id-{name}"), Lease(1, 9, False, 0.5, FAST.terms), lrm, capacity=Use(8.0, 8 * GIB)
            )
            for name in (N1, N2, N3)
        },
        resources={A: Resource(A), B: Resource(B)},
        configs={
            A: Config(N1, 5, lock, Demand(Use(1.0, size * GIB))),
            B: Config(N2, 6, demand=Demand(Use(1.0, 4 * GIB))),
        },
        status=ManagerStatus(service_status=services, node_request={drained: {"maintenance": 1}} if drained else {}),
        status_version=17,
    )


def entry(view: View, sid: Sid = A) -> Service:
    status = decide(view, NOW).status
    return (status or view.status).service_status[sid]


def answered(view: View, text: str) -> tuple[AnswerState, str]:
    status = decide(replace(view, commands=(Command("c0", 20, text),)), NOW).status
    assert status is not None
    return status.answers["c0"].state, status.answers["c0"].cause


@pytest.mark.parametrize("state", [State.stopped, State.recovery])
def test_a_guest_that_does_not_run_starts_where_it_lies_only_if_there_is_room(state: State) -> None:
    view = cluster(state)
    assert entry(view).node == "n1"
    # Another guest has taken the memory of n1 meanwhile, and n3 is full as well.
    other, third = Sid("vm:102"), Sid("vm:103")
    services = dict(view.status.service_status)
    done = dict(view.nodes[N1].lrm.results)
    for sid, node in ((other, N1), (third, N3)):
        services[sid] = Service(state=State.started, node=node, uid=f"u-{sid}", incarnation=1, running=1)
        done[f"u-{sid}"] = Result(sid=sid, state="started", exit_code=0)
    full = replace(
        view,
        nodes={
            name: replace(node, lrm=LrmStatus(incarnation=1, tracked=(A, B, other, third), results=done))
            for name, node in view.nodes.items()
        },
        resources={sid: Resource(sid) for sid in (A, B, other, third)},
        configs={
            **view.configs,
            other: Config(N1, 7, demand=Demand(Use(1.0, 4 * GIB))),
            third: Config(N3, 8, demand=Demand(Use(1.0, 4 * GIB))),
        },
        status=msgspec.structs.replace(view.status, service_status=services),
    )
    waiting = entry(full)
    assert (waiting.state, waiting.target) == (state, "")
    assert "no room" in waiting.cause
    assert Remedy.make_room in waiting.remedies


def test_an_operator_does_not_send_a_guest_to_where_no_room_is() -> None:
    assert answered(cluster(), "migrate vm:100 n3")[0] is AnswerState.accepted
    state, cause = answered(cluster(), "migrate vm:100 n2")
    assert state is AnswerState.refused
    assert "n2 has no room" in cause
    # What is stopped needs none.
    stopped = cluster(State.stopped)
    stopped = replace(stopped, resources={A: Resource(A, Request.stopped), B: Resource(B)})
    assert answered(stopped, "relocate vm:100 n2")[0] is AnswerState.accepted


def test_what_a_task_holds_is_not_moved() -> None:
    state, cause = answered(cluster(lock="backup"), "migrate vm:100 n3")
    assert (state, "a task holds vm:100" in cause) == (AnswerState.refused, True)
    assert answered(cluster(lock="migrate"), "migrate vm:100 n3")[0] is AnswerState.accepted
    drained = entry(cluster(lock="backup", drained="n1"))
    assert (drained.state, "a task holds it" in drained.cause) == (State.started, True)
    assert entry(cluster(drained="n1")).state is State.migrate


@pytest.mark.parametrize("state", [State.relocate, State.recovery])
def test_the_file_of_a_guest_that_a_task_holds_stays_where_it_is(state: State) -> None:
    def moves(view: View) -> list[MoveConfig]:
        status = decide(view, NOW).status or view.status
        committed = replace(view, status=status)
        return [action for action in decide(committed, NOW).actions if isinstance(action, MoveConfig)]

    cmd = ("relocate", "n3") if state is State.relocate else ()
    assert [move.new_path for move in moves(cluster(state, target="n3", cmd=cmd))] == ["nodes/n3/qemu-server/100.conf"]
    held = cluster(state, lock="backup", target="n3", cmd=cmd)
    assert moves(held) == []
    assert "a task holds it (lock backup)" in entry(held).cause


def test_a_lock_whose_holder_is_fenced_goes_first_unless_the_node_is_back() -> None:
    view = cluster(State.recovery, lock="backup", target="n3", after_fence=1)
    fenced = replace(view.nodes[N1], lease=Lease(1, 9, True, 60.0, FAST.terms))
    actions = decide(replace(view, nodes={**view.nodes, N1: fenced}), NOW).actions
    assert [action.unlock for action in actions if isinstance(action, MoveConfig)] == ["backup"]
    assert not any(isinstance(action, MoveConfig) for action in decide(view, NOW).actions), "its task may be a new one"
