"""A machine that joins under the name of a removed node is another node: what that one was ordered, it may still run."""

from dataclasses import replace

from ha.leases import FAST, Lease
from ha.manager import decide
from ha.resources import Resource
from ha.status import LrmStatus, ManagerStatus, Service, State
from ha.view import Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

SID = Sid("vm:100")
N1, N2 = NodeName("n1"), NodeName("n2")


def _node(name: NodeName, uid: str, *, incarnation: int = 1) -> Node:
    lrm = LrmStatus(incarnation=incarnation, tracked=(SID,), uid=uid)
    return Node(name, NodeUid(uid), Lease(incarnation, 9, False, 0.5, FAST.terms), lrm)


def _view(*nodes: Node, place: NodeName = N1) -> View:
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=N2,
        nodes={node.name: node for node in nodes},
        resources={SID: Resource(SID)},
        configs={SID: Config(place, 5)},
        status=ManagerStatus(),
        status_version=17,
    )


def _round(view: View) -> View:
    status = decide(view, 1000.0).status
    return replace(view, status=status, status_version=view.status_version + 1) if status is not None else view


def _entry(view: View) -> Service:
    return view.status.service_status[SID]


def test_its_namesake_gets_a_guest_only_when_the_removed_node_has_had_its_time() -> None:
    view = _round(_view(_node(N1, "u1"), _node(N2, "u2")))
    assert (_entry(view).state, _entry(view).node, _entry(view).node_uid) == (State.started, N1, "u1")
    # Removed, and another machine has joined under its name at once; its lease counts from 1, too.
    view = _round(replace(view, nodes={**view.nodes, N1: _node(N1, "u9")}))
    assert _entry(view).node == "u1" and _entry(view).state is not State.started
    view = _round(replace(view, leaving_s={NodeName("u1"): 1.0}))
    assert _entry(view).node == "u1"
    view = _round(replace(view, leaving_s={NodeName("u1"): -0.1}))
    assert (_entry(view).state, _entry(view).node, _entry(view).node_uid) == (State.started, N1, "u9")


def test_a_removed_node_is_remembered_by_its_uuid_while_nobody_has_its_name() -> None:
    view = _round(_view(_node(N1, "u1"), _node(N2, "u2")))
    view = replace(view, nodes={N2: view.nodes[N2]}, leaving_s={N1: 5.0}, configs={SID: Config(N2, 6)})
    view = _round(view)
    assert (_entry(view).node, _entry(view).node_uid) == (N1, "u1"), "its file lies elsewhere; it lets go first"
    view = _round(replace(view, nodes={**view.nodes, N1: _node(N1, "u9")}))
    assert _entry(view).node == "u1"


def test_an_order_from_before_members_were_named_names_its_own_once_it_is_seen_in_its_life() -> None:
    old = Service(state=State.started, node=N1, uid="o1", incarnation=7)
    view = replace(
        _view(_node(N1, "u1", incarnation=7), _node(N2, "u2")), status=ManagerStatus(service_status={SID: old})
    )
    named = _round(view)
    assert (_entry(named).node_uid, _entry(named).uid, _entry(named).incarnation) == ("u1", "o1", 7)
    later = _round(replace(view, nodes={**view.nodes, N1: replace(_node(N1, "u1", incarnation=8), lrm=LrmStatus())}))
    assert _entry(later).node_uid == "", "another life, and nobody knows whose"
    # So it is known to be another's when a machine joins under its name.
    assert _entry(_round(replace(named, nodes={**view.nodes, N1: _node(N1, "u9", incarnation=7)}))).node == "u1"


def test_a_node_in_a_new_life_is_the_same_node() -> None:
    view = _round(_view(_node(N1, "u1"), _node(N2, "u2")))
    view = _round(replace(view, nodes={**view.nodes, N1: _node(N1, "u1", incarnation=2)}))
    assert (_entry(view).state, _entry(view).node, _entry(view).incarnation) == (State.started, N1, 2)
