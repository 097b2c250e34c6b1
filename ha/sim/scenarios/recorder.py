"""What can be seen from outside, as a list of events with their seconds; and the rules of safety, checked on the way."""

from dataclasses import dataclass, field
from typing import Any, cast

from ha.sim.checks import Checks
from ha.sim.host import Host
from ha.sim.store import Answer, Command, Done, Fence, Move, Write
from ha.status import MANAGER_STATUS, AnswerState, ManagerStatus, NodeState, Service, State
from ha.view import parse_config_path
from kvorum.ids import NodeName, Sid

from .script import Script

Event = dict[str, Any]


@dataclass(eq=False)
class Recorder(Checks):
    # Set by the stage.
    script: Script | None = None
    events: list[Event] = field(default_factory=list)
    seen: ManagerStatus = field(default_factory=ManagerStatus)

    def note(self, kind: str, **facts: Any) -> None:
        assert self.script is not None
        if "sid" in facts:
            facts["sid"] = self.script.told(facts["sid"])
        self.events.append({"t": round(self.timeline.now, 3), "kind": kind, **facts})

    def guest_started(self, host: Host, sid: str, incarnation: int) -> None:
        super().guest_started(host, sid, incarnation)
        self.note("start-ok", by=host.name, daemon="lrm", sid=sid)

    def guest_arrived(self, host: Host, sid: str) -> None:
        super().guest_arrived(host, sid)
        self.note("start-ok", by=host.name, daemon="lrm", sid=sid, how="migrate")

    def guest_ended(self, host: Host, sid: str, cause: str) -> None:
        """`cause`: who ended it, `lrm` or `keeper`; or that it crashed."""
        self.note("stop-ok", by=host.name, daemon=cause, sid=sid)

    def committed(self, command: Command, answer: Answer) -> None:
        super().committed(command, answer)
        if not isinstance(answer, Done):
            return
        if isinstance(command, Fence):
            self.note("fence-done", node=command.node)
        if isinstance(command, Move) and (found := parse_config_path(command.path)) is not None:
            self._record_move(found[0], found[1], command.new_path)
        if isinstance(command, Write) and command.path == MANAGER_STATUS:
            self._record(cast(ManagerStatus, command.content))

    def _record_nodes(self, after: ManagerStatus) -> None:
        for name, state in sorted(after.node_status.items()):
            if (old := self.seen.node_status.get(name)) is state:
                continue
            self.note("node-state", by=after.master_node, daemon="crm", node=name, old=old or "unknown", new=state)
            if state is NodeState.fence:
                self.note("fence-begin", by=after.master_node, daemon="crm", node=name)

    def _record_move(self, sid: Sid, source: NodeName, new_path: str) -> None:
        found = parse_config_path(new_path)
        entry = self.seen.service_status.get(sid)
        if found is None or entry is None:
            return
        if entry.state is State.recovery:
            self.note("recover", daemon="crm", sid=sid, src=source, dst=found[1])
        elif entry.state in (State.migrate, State.relocate):
            self.note("move-end", by=source, daemon="lrm", sid=sid, how=str(entry.state), dst=found[1])

    def _record(self, after: ManagerStatus) -> None:
        """What a new status says that the last one did not."""
        self._record_nodes(after)
        for sid, service in sorted(after.service_status.items()):
            self._service(sid, self.seen.service_status.get(sid), service)
        for sid in sorted(set(self.seen.service_status) - set(after.service_status)):
            self.note("svc-remove", daemon="crm", sid=sid, why="no resource any more")
        for id_, answer in sorted(after.answers.items()):
            known = self.seen.answers.get(id_)
            if known is None or known.state is not answer.state:
                kind = "cmd-refused" if answer.state is AnswerState.refused else "cmd-answer"
                self.note(kind, daemon="crm", cmd=answer.command, answer=answer.state, why=answer.cause)
        if self.seen.disarm != after.disarm:
            word = after.disarm.state if after.disarm is not None else "armed"
            self.note("disarm", daemon="crm", state=word, why=after.disarm.cause if after.disarm is not None else "")
        self.seen = after

    def _service(self, sid: str, old: Service | None, new: Service) -> None:
        if old is None:
            self.note("svc-add", daemon="crm", sid=sid, dst=new.node)
        if old is None or (old.state, old.node, old.target) != (new.state, new.node, new.target):
            par = f"node = {new.node}" + (f", target = {new.target}" if new.target else "")
            was = old.state if old is not None else "request_start"
            self.note("svc-state", daemon="crm", sid=sid, old=was, new=new.state, par=par, cause=new.cause)
