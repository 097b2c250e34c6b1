"""What is foretold is what the manager does: its own rounds, played ahead on a view of today."""

from dataclasses import replace

import pytest

from ha import foresight
from ha.leases import NORMAL, Lease
from ha.manager import decide
from ha.resources import Request, Resource
from ha.rules import compile_rules, parse_rules
from ha.status import LrmStatus, ManagerStatus, NodeState, Remedy, Result, Service, State
from ha.view import Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

VM, CT = Sid("vm:100"), Sid("ct:101")
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
NAMES = (N1, N2, N3)


def node(name: NodeName, *, tracked: tuple[str, ...] = (VM, CT), resting: bool = False) -> Node:
    """Alive, with everything that it was told done."""
    lease = Lease(1, 9, False, 0.5, NORMAL.terms, resting)
    results = {f"o-{sid}": Result(sid=sid, state="started", exit_code=0) for sid in (VM, CT)} if name == N1 else {}
    return Node(name, NodeUid(f"u-{name}"), lease, LrmStatus(incarnation=1, tracked=tracked, results=results))


def view(*nodes: Node, rules: str = "") -> View:
    """Both guests run on n1."""
    services = {
        sid: Service(state=State.started, node=N1, uid=f"o-{sid}", incarnation=1, cause="n1 runs it", running=1)
        for sid in (VM, CT)
    }
    every = {name: node(name) for name in NAMES} | {one.name: one for one in nodes}
    return View(
        is_leader=False,
        is_quorate=True,
        self_node=N1,
        nodes=every,
        resources={sid: Resource(sid) for sid in (VM, CT)},
        configs={VM: Config(N1, 5), CT: Config(N1, 6), Sid("vm:200"): Config(N1, 7)},
        status=ManagerStatus(
            master_node=N1, service_status=services, node_status=dict.fromkeys(NAMES, NodeState.online)
        ),
        status_version=17,
        rules=compile_rules(parse_rules(rules), (VM, CT), NAMES),
    )


def targets(outcomes: object) -> dict[str, str]:
    assert isinstance(outcomes, tuple)
    return {outcome.sid: outcome.target for outcome in outcomes}


def test_it_tells_who_waits_for_whom_and_how_much_later_it_starts() -> None:
    rules = "start-order: web\n\tresources ct:101\n\tafter vm:100\n\tdelay 20\n"
    found = {one.sid: one for one in foresight.if_killed(view(rules=rules), [N1], 1000.0)}
    assert (found[VM].target, found[VM].waits_for, found[VM].later_s) == (N2, (), 0.0)
    assert (found[CT].target, found[CT].waits_for, found[CT].later_s) == (N3, (VM,), 20.0)
    assert found[CT].cause.startswith("it is free to start elsewhere")


def test_it_tells_of_one_that_would_wait_without_an_end() -> None:
    rules = "start-order: web\n\tresources ct:101\n\tafter vm:100\n\tstrict 1\n"
    today = replace(view(rules=rules), resources={VM: Resource(VM, Request.stopped), CT: Resource(CT)})
    found = {one.sid: one for one in foresight.if_killed(today, [N1], 1000.0)}
    assert (found[CT].target, found[CT].state, found[CT].waits_for) == ("", State.request_start, (VM,))
    assert found[CT].is_stuck


def test_guests_of_a_dead_node_start_where_the_manager_would_start_them() -> None:
    outcomes = foresight.if_killed(view(), [N1], 1000.0)
    assert targets(outcomes) == {CT: N2, VM: N3}
    assert all(outcome.state is State.started for outcome in outcomes)
    assert all(outcome.cause.startswith("it is free to start elsewhere") for outcome in outcomes)


def test_two_nodes_that_die_together_leave_everything_to_the_third() -> None:
    assert targets(foresight.if_killed(view(), [N1, N2], 1000.0)) == {VM: N3, CT: N3}


def test_a_strict_rule_holds_after_the_death_too() -> None:
    rules = "node-affinity: home\n\tresources vm:100\n\tnodes n1,n3\n\tstrict 1\n"
    assert targets(foresight.if_killed(view(rules=rules), [N1], 1000.0)) == {VM: N3, CT: N2}


def test_a_guest_that_may_run_nowhere_else_stays_in_recovery_and_says_why() -> None:
    rules = "node-affinity: home\n\tresources vm:100\n\tnodes n1\n\tstrict 1\n"
    found = {one.sid: one for one in foresight.if_killed(view(rules=rules), [N1], 1000.0)}
    assert (found[VM].state, found[VM].target) == (State.recovery, "")
    assert "home" in found[VM].cause
    assert Remedy.make_room in found[VM].remedies


def test_a_guest_that_its_node_never_guarded_is_not_recovered() -> None:
    found = {one.sid: one for one in foresight.if_killed(view(node(N1, tracked=(CT,))), [N1], 1000.0)}
    assert (found[VM].state, found[VM].target) == (State.fence, "")
    assert Remedy.remove_node in found[VM].remedies
    assert found[CT].target == N2


def test_the_death_of_a_node_without_guests_moves_none() -> None:
    assert foresight.if_killed(view(), [N2], 1000.0) == ()


@pytest.mark.parametrize("leader", [True, False])
def test_asking_changes_nothing_and_every_node_answers_alike(leader: bool) -> None:
    today = replace(view(), is_leader=leader)
    first = foresight.if_killed(today, [N1], 1000.0)
    assert foresight.if_killed(today, [N1], 1000.0) == first == foresight.if_killed(view(), [N1], 1000.0)
    assert today == replace(view(), is_leader=leader)


def test_a_drained_node_loses_its_guests_to_the_others() -> None:
    plan = foresight.if_drained(view(), N1, 1000.0)
    assert set(targets(plan)) == {VM, CT}
    assert N1 not in targets(plan).values()
    assert isinstance(plan, tuple)
    assert all("maintenance" in outcome.cause for outcome in plan)


def test_the_plan_of_a_node_that_is_not_online_is_the_managers_refusal() -> None:
    silent = replace(node(N2), lease=Lease(1, 9, False, 12.0, NORMAL.terms))
    plan = foresight.if_drained(view(silent), N2, 1000.0)
    assert isinstance(plan, foresight.Refusal)
    assert "n2 is not online" in plan.cause


def test_what_is_foretold_is_where_the_rounds_of_the_manager_end() -> None:
    """The same death, decided step by step as the daemon does it: fence, recovery, move, order."""
    today = replace(view(), is_leader=True)
    dead = replace(node(N1), lease=Lease(1, 9, False, NORMAL.takeover_after_s + 0.1, NORMAL.terms))
    now = replace(today, nodes={**today.nodes, N1: dead})
    for round_number in range(6):
        decision = decide(now, 1000.0 + round_number)
        if decision.status is not None:
            now = replace(now, status=decision.status, status_version=now.status_version + 1)
        now = foresight._performed(now, decision.actions)
    assert {sid: service.node for sid, service in now.status.service_status.items()} == targets(
        foresight.if_killed(today, [N1], 1000.0)
    )


def test_the_time_is_t_and_the_start() -> None:
    assert foresight.starts_after_s(view(), [N1]) == pytest.approx(NORMAL.takeover_after_s + foresight.RECOVERY_S)
    assert foresight.starts_after_s(view(node(N2, resting=True)), [N2]) < 0


def test_guests_that_ha_does_not_look_after_are_named() -> None:
    assert foresight.unmanaged(view(), [N1]) == ["vm:200"]
    assert foresight.unmanaged(view(), [N2]) == []
