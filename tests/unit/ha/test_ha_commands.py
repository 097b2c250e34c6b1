"""Operators' commands: taken up once, answered once, and what becomes of guests, nodes and the whole by them."""

from dataclasses import replace

import msgspec
import pytest

from ha.leases import FAST, Lease
from ha.manager import ForgetCommand, MoveConfig, RequestStopped, decide
from ha.manager.decision import Decision
from ha.resources import Request, Resource
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rule, compile_rules
from ha.status import (
    Answer,
    AnswerState,
    Disarm,
    DisarmState,
    LrmStatus,
    ManagerStatus,
    Mode,
    NodeState,
    Result,
    Service,
    State,
)
from ha.view import Command, Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

VM, CT = Sid("vm:100"), Sid("ct:101")
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
NOW = 1000.0


def _node(name: str, *, results: dict[str, Result] | None = None, age_s: float = 0.5, mode: Mode = Mode.active) -> Node:
    lrm = LrmStatus(incarnation=1, tracked=(CT, VM), results=results or {}, mode=mode, uid=f"u-{name}")
    return Node(NodeName(name), NodeUid(f"u-{name}"), Lease(1, 9, False, age_s, FAST.terms), lrm)


def _runs(node: str, uid: str) -> Service:
    cause = f"{node} runs it"
    return Service(state=State.started, node=node, uid=uid, incarnation=1, node_uid=f"u-{node}", running=1, cause=cause)


def _view(*commands: str, rules: tuple[Rule, ...] = (), **more: object) -> View:
    """vm:100 runs on n1, ct:101 on n2."""
    done = {uid: Result(sid=sid, state="started", exit_code=0) for uid, sid in (("o1", VM), ("o2", CT))}
    nodes = {name: _node(name, results=done) for name in (N1, N2, N3)}
    view = View(
        is_leader=True,
        is_quorate=True,
        self_node=N3,
        nodes=nodes,
        resources={VM: Resource(VM), CT: Resource(CT)},
        configs={VM: Config(N1, 5), CT: Config(N2, 6)},
        status=ManagerStatus(
            master_node="n3",
            service_status={VM: _runs("n1", "o1"), CT: _runs("n2", "o2")},
            node_status=dict.fromkeys((N1, N2, N3), NodeState.online),  # type: ignore[arg-type]
        ),
        status_version=17,
        commands=tuple(Command(f"c{number}", 20 + number, text) for number, text in enumerate(commands)),
        rules=compile_rules(rules, (VM, CT), (N1, N2, N3)),
    )
    return replace(view, **more)  # type: ignore[arg-type]


def _after(view: View, decision: Decision) -> View:
    """The view once the decision is committed."""
    return replace(view, status=decision.status or view.status, status_version=view.status_version + 1)


def _status(decision: Decision) -> ManagerStatus:
    assert decision.status is not None
    return decision.status


def test_a_cluster_at_rest_has_nothing_to_write() -> None:
    assert decide(_view(), NOW) == Decision(None)


def test_a_vm_is_ordered_to_migrate_by_the_node_that_has_it_and_the_answer_waits_for_the_outcome() -> None:
    view = _view("migrate vm:100 n3")
    decision = decide(view, NOW)
    entry = _status(decision).service_status[VM]
    assert (entry.state, entry.node, entry.target, entry.cmd) == (State.migrate, "n1", "n3", ("migrate", "n3"))
    assert _status(decision).answers["c0"].state is AnswerState.accepted
    then = _after(view, decision)
    again = decide(then, NOW + 1)
    assert again.status is None, "it is taken up once"
    assert again.actions == (ForgetCommand("c0", "ha/commands/c0", 20),)
    # The agents have moved the file, and n1 has let go.
    left = {entry.uid: Result(sid=VM, state="migrate", exit_code=0)}
    moved = replace(
        then,
        commands=(),
        configs={**view.configs, VM: Config(N3, 9)},
        nodes={**view.nodes, N1: _node("n1", results=left)},
    )
    status = _status(decide(moved, NOW + 2))
    assert (status.service_status[VM].state, status.service_status[VM].node) == (State.started, "n3")
    assert status.answers["c0"].state is AnswerState.done


def test_a_migration_that_fails_leaves_the_guest_where_it_is_and_is_no_error() -> None:
    view = _view("migrate vm:100 n3")
    then = _after(view, decide(view, NOW))
    uid = then.status.service_status[VM].uid
    failed = {uid: Result(sid=VM, state="migrate", exit_code=1, cause="no bandwidth")}
    there = replace(then, commands=(), nodes={**view.nodes, N1: _node("n1", results=failed)})
    status = _status(decide(there, NOW + 2))
    entry = status.service_status[VM]
    assert (entry.state, entry.node, entry.failed_nodes) == (State.started, "n1", ())
    assert (status.answers["c0"].state, status.answers["c0"].cause) == (
        AnswerState.failed,
        "no bandwidth; n1 shall run it",
    )
    assert entry.moves_failed == 1


def test_a_failed_migration_releases_nothing_when_its_node_goes_silent() -> None:
    view = _view("migrate vm:100 n3")
    then = _after(view, decide(view, NOW))
    uid = then.status.service_status[VM].uid
    failed = {uid: Result(sid=VM, state="migrate", exit_code=1)}
    silent = _node("n1", results=failed, age_s=FAST.takeover_after_s + 1)
    entry = _status(decide(replace(then, nodes={**view.nodes, N1: silent}), NOW + 2)).service_status[VM]
    assert entry.state is State.fence


@pytest.mark.parametrize(("verb", "sid"), [("relocate", VM), ("migrate", CT)])
def test_relocation_stops_the_guest_then_moves_its_file_then_starts_it(verb: str, sid: Sid) -> None:
    view = _view(f"{verb} {sid} n3")
    then = _after(view, decide(view, NOW))
    entry = then.status.service_status[sid]
    assert (entry.state, entry.target) == (State.relocate, "n3")
    assert not any(isinstance(action, MoveConfig) for action in decide(then, NOW + 1).actions), "it still runs"
    stopped = {entry.uid: Result(sid=sid, state="relocate", exit_code=0)}
    off = _node(entry.node, results=stopped)
    free = replace(then, commands=(), nodes={**view.nodes, NodeName(entry.node): off})
    decision = decide(free, NOW + 2)
    free = _after(free, decision)
    moves = [action for action in decide(free, NOW + 2).actions if isinstance(action, MoveConfig)]
    assert [(move.sid, move.new_path.split("/")[1], move.unlock) for move in moves] == [(sid, "n3", "")]
    there = replace(free, configs={**view.configs, sid: Config(N3, 9)})
    assert (_status(decide(there, NOW + 3)).service_status[sid].node) == "n3"


def test_a_target_that_goes_away_meanwhile_is_replaced_by_another() -> None:
    view = _view("relocate vm:100 n3")
    then = _after(view, decide(view, NOW))
    uid = then.status.service_status[VM].uid
    stopped = {uid: Result(sid=VM, state="relocate", exit_code=0)}
    nodes = {N1: _node("n1", results=stopped), N2: _node("n2"), N3: _node("n3", age_s=5.0)}
    entry = _status(decide(replace(then, commands=(), nodes=nodes), NOW + 2)).service_status[VM]
    assert (entry.state, entry.node) in {(State.started, "n1"), (State.request_start, "n1"), (State.recovery, "n1")}


APART = ResourceAffinity("apart", frozenset((VM, CT)), Affinity.negative)
TOGETHER = ResourceAffinity("together", frozenset((VM, CT)), Affinity.positive)
ONLY_12 = NodeAffinity("only", frozenset((VM,)), {N1: 0, N2: 0}, is_strict=True)


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ("migrate vm:999 n3", {}, "not managed"),
        ("migrate vm:100 n9", {}, "no node n9"),
        ("migrate vm:100 n1", {}, "on n1 already"),
        ("migrate vm:100 n2", {"rules": (APART,)}, "keeps them apart"),
        ("migrate vm:100 n3", {"rules": (ONLY_12,)}, "may not run on n3"),
        ("migrate vm:100", {}, "no such command"),
        ("fly vm:100 n3", {}, "no such command"),
        ("stop vm:100 soon", {}, "no number"),
        ("disarm-ha maybe", {}, "write: disarm-ha"),
        ("disarm-ha freeze 0", {}, "how long"),
        ("arm-ha", {}, "not disarmed"),
        ("enable-node-maintenance n9", {}, "no node n9"),
        ("disable-node-maintenance n1", {}, "not in maintenance"),
        ("", {}, "no such command"),
    ],
)
def test_a_command_is_refused_with_its_reason(text: str, more: dict[str, tuple[Rule, ...]], reason: str) -> None:
    view = _view(text, **more)  # type: ignore[arg-type]
    status = _status(decide(view, NOW))
    answer = status.answers["c0"]
    assert answer.state is AnswerState.refused
    assert reason in answer.cause
    assert status.service_status == view.status.service_status


@pytest.mark.parametrize("state", [State.error, State.fence, State.recovery, State.migrate, State.request_stop])
def test_a_guest_that_is_not_settled_does_not_move(state: State) -> None:
    view = _view("migrate vm:100 n3")
    services = {**view.status.service_status, VM: msgspec.structs.replace(_runs("n1", "o9"), state=state)}
    view = replace(view, status=msgspec.structs.replace(view.status, service_status=services))
    assert _status(decide(view, NOW)).answers["c0"].state is AnswerState.refused


def test_a_target_that_is_not_online_in_maintenance_or_being_fenced_is_refused() -> None:
    view = _view("migrate vm:100 n3")
    offline = replace(view, nodes={**view.nodes, N3: _node("n3", age_s=5.0)})
    drained = replace(view, nodes={**view.nodes, N3: _node("n3", mode=Mode.shutdown)})
    held = {**view.status.service_status, CT: msgspec.structs.replace(_runs("n3", "o2"), state=State.fence)}
    fenced = replace(view, status=msgspec.structs.replace(view.status, service_status=held))
    for other in (offline, drained, fenced):
        assert _status(decide(other, NOW)).answers["c0"].state is AnswerState.refused


def test_those_that_run_together_move_together() -> None:
    view = _view("migrate vm:100 n3", rules=(TOGETHER,))
    status = _status(decide(view, NOW))
    assert {(entry.state, entry.target) for entry in status.service_status.values()} == {
        (State.migrate, "n3"),
        (State.relocate, "n3"),
    }
    assert "ct:101" in status.answers["c0"].cause


def test_a_stop_is_carried_out_and_written_where_it_stays() -> None:
    view = _view("stop vm:100 7")
    then = _after(view, decide(view, NOW))
    entry = then.status.service_status[VM]
    assert (entry.state, entry.timeout) == (State.request_stop, 7)
    assert RequestStopped(VM) in decide(then, NOW + 1).actions
    stopped = {entry.uid: Result(sid=VM, state="request_stop", exit_code=0)}
    off = replace(then, commands=(), nodes={**view.nodes, N1: _node("n1", results=stopped)})
    status = _status(decide(off, NOW + 2))
    assert (status.service_status[VM].state, status.answers["c0"].state) == (State.stopped, AnswerState.done)
    # resources.cfg still says started: it stays stopped, and the write is tried again.
    still = _after(off, decide(off, NOW + 2))
    assert RequestStopped(VM) in decide(still, NOW + 3).actions
    agreed = replace(still, resources={VM: Resource(VM, Request.stopped), CT: Resource(CT)})
    assert RequestStopped(VM) not in decide(agreed, NOW + 3).actions
    settled = _after(agreed, decide(agreed, NOW + 3))
    wanted = replace(settled, resources={VM: Resource(VM), CT: Resource(CT)})
    assert _status(decide(wanted, NOW + 4)).service_status[VM].state is State.started


def test_the_same_text_in_a_new_file_is_a_new_command() -> None:
    view = _view("disable-node-maintenance n1")
    known = {"c0": Answer(version=3, command="x", state=AnswerState.done, at=int(NOW))}
    view = replace(view, status=msgspec.structs.replace(view.status, answers=known))
    assert _status(decide(view, NOW)).answers["c0"].version == 20


def test_answers_are_forgotten_after_an_hour_when_their_file_is_gone() -> None:
    old = {"c0": Answer(version=20, command="arm-ha", state=AnswerState.refused, at=int(NOW) - 4000)}
    view = _view()
    view = replace(view, status=msgspec.structs.replace(view.status, answers=old))
    assert _status(decide(view, NOW)).answers == {}
    waiting = replace(view, commands=(Command("c0", 20, "arm-ha"),))
    assert decide(waiting, NOW).status is None, "else it would be taken up a second time"


# Maintenance


def test_a_node_in_maintenance_is_drained_and_gets_its_guests_back() -> None:
    view = _view("enable-node-maintenance n1")
    then = _after(view, decide(view, NOW))
    assert then.status.node_request == {"n1": {"maintenance": 1}}
    then = _after(then, decide(replace(then, commands=()), NOW + 1))
    entry = then.status.service_status[VM]
    assert (entry.state, entry.target, entry.maintenance_node) == (State.migrate, "n3", "n1")
    assert then.status.node_status["n1"] is NodeState.maintenance
    back = msgspec.structs.replace(_runs("n3", "o7"), maintenance_node="n1")
    nodes = {**view.nodes, N3: _node("n3", results={"o7": Result(sid=VM, state="started", exit_code=0)})}
    ended = replace(
        view,
        commands=(),
        nodes=nodes,
        configs={**view.configs, VM: Config(N3, 9)},
        status=msgspec.structs.replace(view.status, service_status={**view.status.service_status, VM: back}),
    )
    entry = _status(decide(ended, NOW + 9)).service_status[VM]
    assert (entry.state, entry.target) == (State.migrate, "n1")


def test_what_cannot_leave_a_node_in_maintenance_says_why() -> None:
    only = NodeAffinity("only", frozenset((VM,)), {N1: 0}, is_strict=True)
    view = _view(rules=(only,))
    view = replace(view, status=msgspec.structs.replace(view.status, node_request={"n1": {"maintenance": 1}}))
    entry = _status(decide(view, NOW)).service_status[VM]
    assert entry.state is State.started
    assert "cannot move" in entry.cause
    assert "only" in entry.cause


@pytest.mark.parametrize(
    ("mode", "state"),
    [(Mode.restart, State.freeze), (Mode.shutdown, State.relocate), (Mode.maintenance, State.migrate)],
)
def test_a_node_that_goes_down_keeps_fails_over_or_migrates_its_guests(mode: Mode, state: State) -> None:
    view = _view()
    done = {"o1": Result(sid=VM, state="started", exit_code=0)}
    view = replace(view, nodes={**view.nodes, N1: _node("n1", results=done, mode=mode)})
    assert _status(decide(view, NOW)).service_status[VM].state is state


def test_a_frozen_guest_waits_for_its_own_node_however_long_that_is_silent() -> None:
    view = _view()
    frozen = msgspec.structs.replace(_runs("n1", "o1"), state=State.freeze)
    silent = _node("n1", age_s=500.0, mode=Mode.restart)
    view = replace(
        view,
        nodes={**view.nodes, N1: silent},
        status=msgspec.structs.replace(view.status, service_status={**view.status.service_status, VM: frozen}),
    )
    decision = decide(view, NOW)
    assert (_status(decision).service_status[VM].state, decision.actions) == (State.freeze, ())
    back = replace(view, nodes={**view.nodes, N1: _node("n1")})
    assert _status(decide(back, NOW)).service_status[VM].state is State.started


# Disarming


def test_disarming_finishes_what_is_under_way_and_ends_by_itself() -> None:
    view = _view("migrate vm:100 n3", "disarm-ha freeze 60")
    first = _after(view, decide(view, NOW))
    assert first.status.disarm is not None
    assert first.status.disarm.state is DisarmState.disarming
    waiting = _after(first, decide(replace(first, commands=()), NOW + 1))
    assert waiting.status.disarm is not None
    assert "vm:100" in waiting.status.disarm.cause
    assert waiting.status.disarm.state is DisarmState.disarming
    done = replace(
        waiting, commands=(), status=msgspec.structs.replace(waiting.status, service_status=view.status.service_status)
    )
    disarmed = _after(done, decide(done, NOW + 2))
    assert disarmed.status.is_disarmed
    frozen = _after(disarmed, decide(disarmed, NOW + 3))
    assert {entry.state for entry in frozen.status.service_status.values()} == {State.freeze}
    assert {entry.uid for entry in frozen.status.service_status.values()} == {"o1", "o2"}
    armed = _after(frozen, decide(frozen, NOW + 61))
    assert armed.status.disarm is None
    again = _status(decide(armed, NOW + 62))
    assert {entry.state for entry in again.service_status.values()} == {State.started}


def _disarmed(since: int = 990, for_s: int = 600) -> View:
    view = _view()
    record = Disarm(mode="ignore", state=DisarmState.disarmed, since=since, for_s=for_s)
    return replace(view, status=msgspec.structs.replace(view.status, disarm=record))


def test_a_clock_that_was_set_back_ends_a_disarm() -> None:
    assert _status(decide(_disarmed(since=5000), NOW)).disarm is None


def test_while_disarmed_nothing_is_fenced_recovered_or_moved() -> None:
    view = _disarmed()
    nodes = {**view.nodes, N1: _node("n1", age_s=500.0)}
    lost = replace(view, nodes=nodes)
    decision = decide(lost, NOW)
    assert decision.actions == ()
    recovering = msgspec.structs.replace(_runs("n1", "o1"), state=State.recovery, target="n2")
    held = {**view.status.service_status, VM: recovering}
    view = replace(lost, status=msgspec.structs.replace(view.status, service_status=held))
    assert decide(_after(view, decide(view, NOW)), NOW).actions == ()


def test_armed_again_a_lease_that_was_given_back_is_waited_for() -> None:
    view = _view()
    resting = Node(
        N1, NodeUid("u-n1"), Lease(1, 9, False, 500.0, FAST.terms, is_resting=True), LrmStatus(incarnation=1)
    )
    frozen = msgspec.structs.replace(_runs("n1", "o1"), state=State.freeze)
    view = replace(
        view,
        nodes={**view.nodes, N1: resting},
        status=msgspec.structs.replace(view.status, service_status={**view.status.service_status, VM: frozen}),
    )
    decision = decide(view, NOW)
    assert (_status(decision).service_status[VM].state, decision.actions) == (State.freeze, ())
