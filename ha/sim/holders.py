"""The rules for who holds a lease, looked at on the hosts themselves: S2, S3, S4, S5, S8 and a part of S16.

They go by the truth of the simulation: what the log has applied and when, which processes may write to their disks, when a
watchdog was fed. What a keeper or a daemon believes is asked only where a rule is about just that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from ha.leases import DEFAULT, PROFILES
from ha.status import LrmStatus, lrm_status_path

from .host import Host
from .store import Acquire, Fence, Renew, Store
from .timeline import Timeline

AUDIT_S = 0.5
# From a keeper's own moment to the last process: its step, the signal's way, the drift of its clock.
ENDING_S = 0.6
# A keeper that was killed or frozen until just now has had no step yet.
AWAKE_S = 1.0


@dataclass(eq=False)
class Holders:
    timeline: Timeline
    store: Store
    hosts: Mapping[str, Host]
    fail: Callable[[str], None]
    # Lives of nodes that are over, by the log.
    fenced: set[tuple[str, int]] = field(default_factory=set)

    def silent_s(self, name: str) -> float:
        """Since the log applied its last renewal. Its own age is no less: it counts from the sending."""
        return self.timeline.now - self.store.renewed_truly_at.get(name, float("-inf"))

    def acknowledged(self, name: str) -> tuple[str, ...]:
        """What its local resource manager says is guarded there; others rely on it."""
        file = self.store.truth.files.get(lrm_status_path(name))
        return cast(LrmStatus, file.content).tracked if file is not None else ()

    # At single moments

    def started(self, host: Host, sid: str, incarnation: int) -> None:
        lease = self.store.truth.leases.get(host.name)
        # A later incarnation may stand there by a call of the node's own that it gave up: harmless, it only counts anew.
        if lease is None or lease.incarnation < incarnation or (host.name, incarnation) in self.fenced:
            self.fail(f"S2: {host.name} started {sid} under lease {incarnation}, but the log says {lease}")
        self.guarded(host, sid, "started")
        self.in_time(host, f"started {sid}")

    def guarded(self, host: Host, sid: str, what: str) -> None:
        if host.keeper is not None and sid not in host.keeper.sids:
            self.fail(f"S2: {host.name} {what} {sid}, which its keeper does not guard")

    def in_time(self, host: Host, what: str) -> None:
        lease, silent_s = self.store.truth.leases.get(host.name), self.silent_s(host.name)
        if lease is not None and silent_s > lease.terms.pause_after_s * (1 + DEFAULT.drift):
            self.fail(
                f"S4: {host.name} {what} {silent_s:.2f} s after its last renewal, A is {lease.terms.pause_after_s}"
            )

    def lease_taken(self, host: Host) -> None:
        """Its keeper begins a new life; nothing that it guards may run on from the old one."""
        assert host.keeper is not None
        for sid in host.keeper.sids:
            if host.is_running(sid):
                self.fail(f"S8: {host.name} takes lease {host.keeper.incarnation} while {sid} runs there")

    def watchdog_closed(self, host: Host) -> None:
        for sid in self.acknowledged(host.name):
            if host.is_running(sid):
                self.fail(f"S5: {host.name} closes its watchdog while {sid} runs there, which it says it guards")

    def renewed(self, command: Renew | Acquire, number: int) -> None:
        """By the log. An acquisition's number is the incarnation."""
        if isinstance(command, Renew) and (command.node, command.incarnation) in self.fenced:
            self.fail(f"S8: a renewal of {command.node}'s lease {command.incarnation} counts, which was fenced")
        if isinstance(command, Acquire) and (command.node, number) in self.fenced:
            self.fail(f"S8: {command.node} was given lease {number} once more, which was fenced")

    def fenced_at(self, command: Fence) -> None:
        self.fenced.add((command.node, command.incarnation))
        if command.is_confirmed:
            return  # it says that the host is off, which is for S1 to judge
        age_s = self.silent_s(command.node)
        takeover_s = self.store.truth.leases[command.node].terms.takeover_after_s
        if age_s < takeover_s * (1 - DEFAULT.drift):
            self.fail(f"S3: {command.node} was fenced {age_s:.2f} s after its last renewal, T is {takeover_s:.2f} s")

    # Now and then

    def audit(self) -> None:
        for name, host in self.hosts.items():
            lease = self.store.truth.leases.get(name)
            if lease is None or lease.is_resting or not host.is_up or host.is_frozen:
                continue
            silent_s, terms = self.silent_s(name), lease.terms
            if silent_s <= terms.pause_after_s:
                continue
            # Without a device nothing replaces a keeper that stays dead: a gap that the docs name.
            if silent_s > terms.takeover_after_s and (host.has_watchdog or host.keeper is not None):
                self._nothing_runs(host, silent_s, f"T is {terms.takeover_after_s:.2f} s")
            grace_s = next((p.kill_grace_s for p in PROFILES.values() if p.terms == terms), None)
            is_awake = host.keeper is not None and self.timeline.now - host.awake_since > AWAKE_S
            if grace_s is not None and is_awake and silent_s > terms.pause_after_s + grace_s + ENDING_S:
                self._nothing_runs_or_is_fed(host, silent_s, terms.pause_after_s + grace_s)

    def _nothing_runs(self, host: Host, silent_s: float, limit: str) -> None:
        for sid in self.acknowledged(host.name):
            if host.is_running(sid):
                self.fail(f"S4: {sid} runs on {host.name} {silent_s:.2f} s after its last renewal, {limit}")

    def _nothing_runs_or_is_fed(self, host: Host, silent_s: float, limit_s: float) -> None:
        is_fed = host.has_watchdog and host.fed_at is not None and host.clock() - host.fed_at < ENDING_S
        for sid in self.acknowledged(host.name):
            if host.is_running(sid) and (is_fed or not host.has_watchdog):
                self.fail(
                    f"S4: {sid} runs on {host.name} {silent_s:.2f} s after its last renewal, A + K is {limit_s:.2f} s, "
                    f"and {'the watchdog is fed' if is_fed else 'there is no watchdog'}"
                )

    def disarmed(self) -> None:
        """All leases rest: then no device may be armed, or a network that is worked on resets hosts."""
        for name, host in self.hosts.items():
            lease = self.store.truth.leases.get(name)
            is_well = host.is_up and not host.is_frozen and host.keeper is not None
            if is_well and lease is not None and lease.is_resting and host.fed_at is not None:
                self.fail(f"S16: HA is disarmed and {name} has given its lease back, but its watchdog is armed")
