"""S20: no guest is ordered to start before those that its start-orders name, unless the rule itself lets it.

Judged by the rules, the committed entries and the truth about processes, without the code that decides. What is
forgiven: a wish that changed as the manager read it, and, of deadlines alone, a wall clock that jumped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from ha.rules import StartOrder
from ha.status import LrmStatus, ManagerStatus, Service, State, lrm_status_path
from kvorum.ids import Sid

if TYPE_CHECKING:
    from .checks import Checks

# From the reading of a file to the commit of what was decided on it.
DECIDING_S = 10.0
# For so long a dead node may still count as well; and the clocks' roundings.
UNKNOWN_S = 60.0
ROUNDING_S = 2.0


@dataclass(eq=False)
class OrderChecks:
    changed_at: float = 0.0
    # When a process of it was last seen anywhere, paused or frozen ones included.
    seen_at: dict[str, float] = field(default_factory=dict)
    waiting_since: dict[str, float] = field(default_factory=dict)

    def look(self, checks: "Checks") -> None:
        """At every commit."""
        for rule in _orders(checks):
            for sid in rule.after:
                if _is_there(checks, sid):
                    self.seen_at[sid] = checks.timeline.now

    def decided(self, checks: "Checks", before: ManagerStatus, after: ManagerStatus) -> None:
        now = checks.timeline.now
        for rule in _orders(checks):
            for sid in sorted(rule.resources):
                held, service = before.service_status.get(sid), after.service_status.get(sid)
                is_ordered = service is not None and service.state is State.started
                if is_ordered and (held is None or held.state is not State.started or held.uid != service.uid):  # type: ignore[union-attr]
                    checks.count("orders: started under a start-order")
                    is_disarming = before.disarm is not None or after.disarm is not None
                    self._check(checks, rule, sid, before, is_disarming=is_disarming)
        for name, service in after.service_status.items():
            if service.state is State.request_start and service.waits_for:
                if name not in self.waiting_since:
                    checks.count("orders: waits for others")
                self.waiting_since.setdefault(name, now)
            else:
                self.waiting_since.pop(name, None)

    def _check(
        self, checks: "Checks", rule: StartOrder, sid: Sid, before: ManagerStatus, *, is_disarming: bool
    ) -> None:
        now = checks.timeline.now
        if now - self.changed_at < DECIDING_S or _runs_by_its_own_word(checks, sid, before.service_status.get(sid)):
            return
        for first in sorted(rule.after):
            other = before.service_status.get(first)
            if other is None or first not in checks.resources():
                continue
            told = f"S20: {sid} is ordered to start by {rule.id}, but {first} is {other.state}@{other.node}"
            if is_up(other):
                # Before a disarm a rule that is not strict holds nobody up, however it is with the other one.
                if is_disarming and not rule.is_strict:
                    continue
                if now - self.seen_at.get(first, 0.0) > UNKNOWN_S:
                    checks.fail(f"{told} and was last seen {now - self.seen_at.get(first, 0.0):.0f} s ago")
                continue
            if rule.is_strict:
                checks.fail(told)
            is_excused = is_disarming or checks.counts["events: jump"]
            is_on_its_way = first not in checks.unwanted_since and not other.cmd and other.state is not State.error
            waited_s = now - self.waiting_since.get(sid, now)
            if is_on_its_way and not is_excused and waited_s < rule.patience_s - ROUNDING_S:
                checks.fail(f"{told}, and has waited {waited_s:.0f} of {rule.patience_s} s")


def is_up(service: Service) -> bool:
    if service.state is State.migrate:
        return service.cmd[:1] == ("migrate",)
    return service.state is State.started and bool(service.running)


def is_held(services: Mapping[str, Service], sid: str) -> bool:
    """Whether it waits for others, the last of whom do not run: then these are what is to be asked about, not this one."""
    todo, seen = list(services[sid].waits_for), {sid}
    while todo:
        name = todo.pop()
        service = services.get(name)
        if name in seen or (service is not None and is_up(service)):
            continue
        if service is None or not service.waits_for:
            return True
        seen.add(name)
        todo += service.waits_for
    return False


def _orders(checks: "Checks") -> Iterator[StartOrder]:
    return (rule for rule in checks.rules if isinstance(rule, StartOrder))


def _is_there(checks: "Checks", sid: str) -> bool:
    processes = (host.processes.get(sid) for host in checks.hosts.values() if host.is_up)
    return any(process is not None and not process.is_starting for process in processes)


def _runs_by_its_own_word(checks: "Checks", sid: str, held: Service | None) -> bool:
    """Its node has said that it runs while it was to wait."""
    if held is None or checks.store is None:
        return False
    file = checks.store.truth.files.get(lrm_status_path(held.node))
    result = cast(LrmStatus, file.content).results.get(held.uid) if file is not None else None
    return result is not None and result.sid == sid and result.state == State.request_start and not result.exit_code
