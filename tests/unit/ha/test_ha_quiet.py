"""A round that would decide what the last one decided is skipped, and no other."""

from dataclasses import replace

import msgspec

from ha.leases import FAST, Lease
from ha.manager import Quiet
from ha.status import ManagerStatus, Service, State
from ha.view import Node, View
from kvorum.ids import NodeName, NodeUid

N1 = NodeName("n1")


def _view(age_s: float = 0.5, renewal: int = 9, **lease: bool) -> View:
    held = replace(Lease(1, renewal, False, age_s, FAST.terms), **lease)  # type: ignore[arg-type]
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=N1,
        nodes={N1: Node(N1, NodeUid("u1"), held)},
        resources={},
        configs={},
        status=ManagerStatus(),
        status_version=1,
    )


def _quiet(view: View, now: float = 1000.0) -> Quiet:
    quiet = Quiet()
    assert not quiet.is_same(view, 7, now)
    quiet.keep(view, 7, now)
    return quiet


def test_renewals_and_ages_alone_change_nothing() -> None:
    assert _quiet(_view()).is_same(_view(age_s=1.9, renewal=12), 7, 1003.0)


def test_what_a_decision_depends_on_ends_the_quiet() -> None:
    quiet = _quiet(_view())
    assert not quiet.is_same(_view(), 8, 1003.0), "a file has changed"
    assert not quiet.is_same(_view(age_s=FAST.pause_after_s), 7, 1003.0), "not fresh any more"
    assert not quiet.is_same(_view(age_s=FAST.takeover_after_s + 1), 7, 1003.0), "may be fenced"
    assert not quiet.is_same(_view(is_fenced=True), 7, 1003.0)
    assert not quiet.is_same(replace(_view(), is_leader=False), 7, 1003.0)
    assert not quiet.is_same(replace(_view(), nodes={}), 7, 1003.0)
    assert not quiet.is_same(_view(), 7, 1031.0), "everything is looked at now and then"
    assert not quiet.is_same(_view(), 7, 999.0), "a clock was set back"


def test_a_node_that_died_before_its_first_renewal_may_be_fenced_like_any_other() -> None:
    silent = _quiet(_view(age_s=FAST.pause_after_s, renewal=0))
    assert not silent.is_same(_view(age_s=FAST.takeover_after_s + 1, renewal=0), 7, 1003.0)


def test_a_time_that_is_waited_for_ends_the_quiet() -> None:
    waiting = Service(state=State.error, node="n1", uid="o1", incarnation=1, retry_at=1010)
    view = _view()
    view = replace(view, status=msgspec.structs.replace(view.status, service_status={"vm:100": waiting}))
    quiet = _quiet(view)
    assert quiet.is_same(view, 7, 1009.0)
    assert not quiet.is_same(view, 7, 1010.0)


def test_a_silent_node_that_renews_before_its_fence_is_looked_at_again() -> None:
    silent = _view(age_s=FAST.takeover_after_s + 1)
    assert not _quiet(silent).is_same(
        replace(silent, nodes={N1: replace(silent.nodes[N1], lease=Lease(1, 10, False, 99.0, FAST.terms))}), 7, 1001.0
    )
