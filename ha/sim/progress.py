"""What must happen soon while nothing stands in the way: L2, a silent node that holds up a guest is fenced at T.

A manager is trusted to be able to when it leads a majority, runs, and nothing is lost or late on the way to the log, and has
been so for a while. Then a fence that does not come is the manager's own doing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ha.leases import DEFAULT
from ha.status import Mode, State, lrm_status_path

from .host import Host
from .store import Store

if TYPE_CHECKING:
    from .checks import Checks

# Some rounds and two commits.
PROMPT_S = 8.0
_HOLDING = (State.request_start, State.started)


@dataclass(eq=False)
class Progress:
    """`able`: who manages undisturbed at this moment, with the lives of its host and its daemon; empty when nobody does."""

    checks: "Checks"
    store: Store
    able: Callable[[], tuple[str, int, int] | None]
    _manager: tuple[str, int, int] | None = None
    _since: float = 0.0
    _late_since: dict[str, float] = field(default_factory=dict)

    def audit(self) -> None:
        now, manager = self.checks.timeline.now, self.able()
        if manager != self._manager:
            self._manager, self._since = manager, now
            self._late_since.clear()
        if manager is None or self.checks.status.disarm is not None:
            self._late_since.clear()
            return
        leader = self.checks.hosts[manager[0]]
        for name in self.checks.hosts:
            if not self._is_late(leader, name):
                self._late_since.pop(name, None)
            elif now - self._late_since.setdefault(name, now) > PROMPT_S:
                self.checks.fail(f"L2: {name} could be fenced for {PROMPT_S:.0f} s, but {leader.name} does not do it")

    def _is_late(self, leader: Host, name: str) -> bool:
        replica = self.store.replicas[leader.name]
        lease = replica.state.leases.get(name)
        if lease is None or lease.is_fenced or lease.is_resting:
            return False
        age_s = leader.clock() - replica.renewed_at.get(name, leader.clock())
        if age_s <= lease.terms.takeover_after_s * (1 + DEFAULT.drift):
            return False
        written = self.checks.lrm_status(lrm_status_path(name))
        if written is not None and written.mode is Mode.restart:
            return False  # it keeps its guests, and nobody waits for them
        resources, places = self.checks.resources(), self.checks.places()
        return any(
            service.node == name and service.state in _HOLDING and places.get(sid) == name and resource.wants_running
            for sid, service in self.checks.status.service_status.items()
            if (resource := resources.get(sid)) is not None  # type: ignore[call-overload]
        )
