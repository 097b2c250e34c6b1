"""What the manager makes of placement: who is asked, who is not, and what it waits for."""

from dataclasses import replace

import msgspec

from ha.leases import FAST, Lease
from ha.manager import decide
from ha.resources import Resource
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rule, compile_rules
from ha.status import Disarm, DisarmState, LrmStatus, ManagerStatus, Result, Service, State
from ha.view import Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

A, B = Sid("vm:100"), Sid("vm:101")
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")


def cluster(*rules: Rule, late: str = "", unguarded: str = "", answered: bool = True) -> View:
    """`vm:100` runs on n1, `vm:101` on n2."""
    services, nodes = {}, {}
    for sid, place in ((A, N1), (B, N2)):
        services[str(sid)] = Service(state=State.started, node=place, uid=f"u-{sid}", incarnation=1, running=1)
    for name in (N1, N2, N3):
        results = {
            one.uid: Result(sid=sid, state=State.started, exit_code=0)
            for sid, one in services.items()
            if one.node == name and answered
        }
        tracked = () if name == unguarded else (A, B)
        lease = Lease(1, 9, False, 5.0 if name == late else 0.5, FAST.terms)
        nodes[name] = Node(
            name, NodeUid(f"id-{name}"), lease, LrmStatus(incarnation=1, tracked=tracked, results=results)
        )
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=N3,
        nodes=nodes,
        resources={A: Resource(A), B: Resource(B)},
        configs={A: Config(N1, 5), B: Config(N2, 6)},
        status=ManagerStatus(service_status=services),
        status_version=17,
        rules=compile_rules(rules, (A, B), (N1, N2, N3)),
    )


def after(view: View, sid: Sid = A) -> Service:
    status = decide(view, 1000.0).status
    return (status or view.status).service_status[sid]


WISH = NodeAffinity("rather-n3", frozenset({A}), {N3: 0})


def test_a_running_guest_goes_to_the_node_that_a_rule_would_rather_have() -> None:
    entry = after(cluster(WISH))
    assert (entry.state, entry.target) == (State.migrate, "n3")
    assert "rather-n3" in entry.cause


def test_a_guest_whose_node_is_late_with_its_renewal_is_not_sent_away() -> None:
    assert after(cluster(WISH, late="n1")).state is State.started
    assert after(cluster(ResourceAffinity("apart", frozenset({A, B}), Affinity.negative), late="n1")).target == ""


def test_a_node_that_does_not_guard_the_guest_is_not_chosen() -> None:
    assert after(cluster(WISH, unguarded="n3")).state is State.started
    assert after(cluster(WISH, late="n3")).state is State.started


def test_disarming_waits_for_a_guest_that_was_ordered_to_run_and_does_not_yet() -> None:
    view = cluster(answered=False)
    disarm = Disarm(mode="freeze", state=DisarmState.disarming, since=990, for_s=600)
    waiting = msgspec.structs.replace(view.status.service_status[A], running=0)
    services = {**view.status.service_status, A: waiting}
    held = decide(
        replace(view, status=msgspec.structs.replace(view.status, service_status=services, disarm=disarm)), 1000.0
    ).status
    assert held is not None
    assert held.disarm is not None
    assert held.disarm.state is DisarmState.disarming
    assert "vm:100" in held.disarm.cause
    done = decide(replace(view, status=msgspec.structs.replace(view.status, disarm=disarm)), 1000.0).status
    assert done is not None
    assert done.disarm is not None
    assert done.disarm.state is DisarmState.disarmed


def test_a_guest_whose_file_somebody_moved_counts_where_it_goes() -> None:
    """Both lose their node at once; the file of the second lies on n2 already, so the first must not be sent there."""
    view = cluster(ResourceAffinity("apart", frozenset({A, B}), Affinity.negative))
    services = {str(sid): Service(state=State.fence, node=N1, uid=f"u-{sid}", incarnation=1) for sid in (A, B)}
    fenced = replace(view.nodes[N1], lease=Lease(1, 9, True, 60.0, FAST.terms))
    view = replace(
        view,
        nodes={**view.nodes, N1: fenced},
        configs={A: Config(N1, 5), B: Config(N2, 6)},
        status=ManagerStatus(service_status=services),
    )
    assert after(view).target == "n3"
    assert after(view, B).node == "n2"
