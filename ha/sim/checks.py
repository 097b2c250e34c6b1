"""What must hold at every moment of a simulation, and what after it has healed. A broken rule raises Violation.

The rules of safety, as the docs name them: S1, no guest runs on two nodes; S2, none starts without a live lease; S3, no
lease is taken over before T. They look at the truth of the simulation, never at what a node believes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from ha.leases import DEFAULT
from ha.resources import RESOURCES_CFG, Request, Resource
from ha.status import MANAGER_STATUS, ManagerStatus, Service, State
from ha.view import parse_config_path
from kvorum.ids import Sid

from .host import Host
from .store import Answer, Command, Done, Fence, File, Store
from .timeline import Timeline


class Violation(Exception):
    """A rule is broken; the seed tells the rest."""


@dataclass(eq=False)
class Checks:
    timeline: Timeline
    hosts: Mapping[str, Host] = field(default_factory=dict)
    store: Store | None = None
    story: list[str] = field(default_factory=list)
    # How often the interesting things happened: a simulation in which nothing does proves nothing.
    starts: int = 0
    fences: int = 0
    fenced: set[tuple[str, int]] = field(default_factory=set)

    def tell(self, line: str) -> None:
        self.story.append(f"{self.timeline.now:8.3f}  {line}")

    def fail(self, rule: str) -> None:
        self.tell(f"VIOLATION {rule}")
        raise Violation(rule)

    def guest_runs(self, sid: str) -> None:
        where = [name for name, host in self.hosts.items() if host.is_running(sid)]
        if len(where) > 1:
            self.fail(f"S1: {sid} runs on {' and '.join(where)}")

    def guest_started(self, host: Host, sid: str, incarnation: int) -> None:
        self.starts += 1
        assert self.store is not None
        lease = self.store.truth.leases.get(host.name)
        # A later incarnation may stand there by a call of the node's own that it gave up: harmless, it only counts anew.
        if lease is None or lease.incarnation < incarnation or (host.name, incarnation) in self.fenced:
            self.fail(f"S2: {host.name} started {sid} under lease {incarnation}, but the log says {lease}")
        if host.keeper is not None and sid not in host.keeper.sids:
            self.fail(f"S2: {host.name} started {sid}, which its keeper does not guard")

    def committed(self, command: Command, answer: Answer) -> None:
        if not isinstance(command, Fence) or not isinstance(answer, Done):
            return
        self.fences += 1
        self.fenced.add((command.node, command.incarnation))
        assert self.store is not None
        age_s = self.timeline.now - self.store.renewed_truly_at.get(command.node, 0.0)
        takeover_s = self.store.truth.leases[command.node].terms.takeover_after_s
        if age_s < takeover_s * (1 - DEFAULT.drift):
            self.fail(f"S3: {command.node} was fenced {age_s:.2f} s after its last renewal, T is {takeover_s:.2f} s")

    def services(self) -> Mapping[str, Service]:
        """The manager's entries, as committed."""
        assert self.store is not None
        return cast(ManagerStatus, _content(self.store.truth.files, MANAGER_STATUS) or ManagerStatus()).service_status

    def unsettled(self, away: str = "") -> list[str]:
        """What still keeps the cluster from rest; empty when every guest is where it shall be. `away`: a dead node."""
        assert self.store is not None
        files = self.store.truth.files
        resources = cast("dict[Sid, Resource]", _content(files, RESOURCES_CFG) or {})
        services = self.services()
        places = {found[0]: found[1] for path in files if (found := parse_config_path(path))}
        found_ = [
            f"{sid} is no resource any more"
            for sid, service in services.items()
            if sid not in resources and service.node != away
        ]
        for sid, resource in resources.items():
            service = services.get(sid)
            running = [name for name, host in self.hosts.items() if host.is_running(sid)]
            if sid not in places:
                # Its creation was lost on the way; there is no such guest.
                continue
            if service is None:
                found_.append(f"{sid} is unknown to the manager")
            elif service.state is State.fence and service.node == away:
                # It was never acknowledged there: a person has to say that the node is off. Explained, not forgotten.
                if "never confirmed" not in service.cause:
                    found_.append(f"{sid} waits for {away} without a reason: {service.cause}")
            elif service.node == away and (held := self.store.truth.leases.get(away)) is not None and held.is_resting:
                # Likewise: it went to rest without guarding this guest, and never woke.
                if "gave its lease back" not in service.cause:
                    found_.append(f"{sid} waits for {away} without a reason: {service.cause}")
            elif resource.request is Request.started:
                if service.state is not State.started or not service.running or running != [places[sid]]:
                    found_.append(f"{sid} is {service.state}@{service.node}, runs on {running} ({service.cause})")
            elif service.state is not State.stopped or running:
                found_.append(f"{sid} is {service.state}@{service.node}, runs on {running} ({service.cause})")
        return found_


def _content(files: Mapping[str, File], path: str) -> object:
    file = files.get(path)
    return file.content if file is not None else None
