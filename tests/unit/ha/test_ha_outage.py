"""Nobody could renew while there was no majority: then silence says nothing yet."""

from dataclasses import replace

from ha.leases import NORMAL, Lease, may_fence
from ha.options import Options
from ha.outage import Outage
from ha.status import ManagerStatus
from ha.view import Node, View
from kvorum.ids import NodeName, NodeUid

OLD_S = NORMAL.takeover_after_s + 5


def _lease(age_s: float, *, is_fenced: bool = False) -> Lease:
    return Lease(3, 9, is_fenced, age_s, NORMAL.terms)


def _excused(outage: Outage, lease: Lease, now: float) -> Lease:
    node = Node(NodeName("n2"), NodeUid("u2"), lease)
    view = View(
        is_leader=True,
        is_quorate=True,
        self_node=NodeName("n1"),
        nodes={node.name: node},
        resources={},
        configs={},
        status=ManagerStatus(),
        status_version=0,
        options=Options(),
    )
    held = outage.excuse(view, now).nodes[node.name].lease
    assert held is not None
    return held


def _may_fence(outage: Outage, lease: Lease, now: float) -> bool:
    return may_fence(_excused(outage, lease, now))


def test_after_an_outage_nobody_is_fenced_before_he_could_renew() -> None:
    outage = Outage()
    outage.look([_lease(1.0), _lease(2.0)], is_quorate=True, now=0.0)
    for now in range(1, 30):
        outage.look([_lease(now), _lease(now + 2.0)], is_quorate=False, now=float(now))
    # One has renewed before this replica knew of the majority.
    outage.look([_lease(0.1), _lease(OLD_S)], is_quorate=True, now=30.0)
    assert not _may_fence(outage, _lease(OLD_S), 30.1)
    assert not _may_fence(outage, _lease(OLD_S), 30.0 + NORMAL.pause_after_s - 0.1)
    assert _may_fence(outage, _lease(OLD_S), 30.0 + NORMAL.pause_after_s), "a real death is fenced then"


def test_an_election_after_a_leaders_death_is_no_outage() -> None:
    outage = Outage()
    outage.look([_lease(1.0), _lease(OLD_S)], is_quorate=True, now=0.0)
    outage.look([_lease(3.5), _lease(OLD_S)], is_quorate=False, now=2.5)
    outage.look([_lease(3.6), _lease(OLD_S)], is_quorate=True, now=2.6)
    assert _may_fence(outage, _lease(OLD_S), 2.6)


def test_leases_that_are_over_do_not_speak_of_an_outage() -> None:
    outage = Outage()
    outage.look([_lease(OLD_S, is_fenced=True), replace(_lease(OLD_S), is_resting=True)], is_quorate=True, now=0.0)
    assert _may_fence(outage, _lease(OLD_S), 0.1)


def test_the_first_look_of_a_process_counts_as_one_after_an_outage_if_nobody_is_fresh() -> None:
    outage = Outage()
    outage.look([_lease(OLD_S), _lease(OLD_S)], is_quorate=True, now=0.0)
    assert not _may_fence(outage, _lease(OLD_S), 0.1)
    assert _may_fence(outage, _lease(OLD_S), 0.1 + NORMAL.pause_after_s)


def test_a_lease_that_a_manager_finds_proves_nothing_until_it_is_renewed() -> None:
    """A replica that starts counts from there, whenever that lease was renewed the last time."""
    outage = Outage()
    assert _excused(outage, _lease(0.0), 0.0).is_unproven
    assert _excused(outage, _lease(3.0), 3.0).is_unproven
    assert not _excused(outage, replace(_lease(0.1), renewal=10), 3.1).is_unproven
    assert not _excused(outage, replace(_lease(2.1), renewal=10), 5.1).is_unproven
    assert not _excused(outage, replace(_lease(0.1), incarnation=4), 6.0).is_unproven
    assert _excused(Outage(), _lease(0.1), 6.0).is_unproven, "another manager has seen nothing yet"
