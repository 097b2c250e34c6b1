"""S20, the check of start-orders, at single decisions."""

from collections.abc import Mapping

import pytest

from ha.resources import Resource
from ha.rules import Rules, StartOrder
from ha.sim.checks import Checks, Violation
from ha.sim.orders import DECIDING_S, UNKNOWN_S
from ha.sim.timeline import Timeline
from ha.status import Disarm, DisarmState, ManagerStatus, Service, State
from kvorum.ids import Sid

DB, WEB = Sid("vm:100"), Sid("vm:101")


class _Checks(Checks):
    """Of a cluster without hosts, whose guests nobody sees."""

    def resources(self) -> Mapping[Sid, Resource]:
        return {DB: Resource(DB), WEB: Resource(WEB)}


def _decide(*, after_s: float, is_strict: bool, is_disarming: bool) -> None:
    """WEB is ordered to start; DB runs by its entry, and was last seen `after_s` ago."""
    checks = _Checks(Timeline())
    rule = StartOrder("after-db", frozenset({WEB}), frozenset({DB}), is_strict=is_strict)
    checks.rules = Rules((rule,))
    checks.timeline.run_until(after_s)
    disarm = Disarm(mode="freeze", state=DisarmState.disarming, since=0, for_s=600) if is_disarming else None
    up = Service(state=State.started, node="n2", uid="a", incarnation=1, running=1)
    web = [Service(state=state, node="n1", uid=state, incarnation=1) for state in (State.request_start, State.started)]
    before, after = (ManagerStatus(service_status={DB: up, WEB: one}, disarm=disarm) for one in web)
    checks.orders.decided(checks, before, after)


@pytest.mark.parametrize(
    ("after_s", "is_strict", "is_disarming", "is_broken"),
    [
        pytest.param(DECIDING_S + 1, True, False, False, id="it may have ended a moment ago"),
        pytest.param(UNKNOWN_S + 1, False, False, True, id="it has been gone for long"),
        pytest.param(UNKNOWN_S + 1, False, True, False, id="before a disarm only strict rules count"),
        pytest.param(UNKNOWN_S + 1, True, True, True, id="and those do"),
    ],
)
def test_who_starts_after_one_that_is_gone_breaks_the_order(
    after_s: float, is_strict: bool, is_disarming: bool, is_broken: bool
) -> None:
    try:
        _decide(after_s=after_s, is_strict=is_strict, is_disarming=is_disarming)
    except Violation as violation:
        assert is_broken and "S20" in str(violation)
    else:
        assert not is_broken
