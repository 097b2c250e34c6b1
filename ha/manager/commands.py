"""Operators' commands: read from files in `ha/commands`, taken up once, answered once, forgotten. Pure.

A command is the name and the version of its file, so the same text in a new file is a new command. That it was taken up
is written in the same status as its effect: whichever manager writes it, it happens once. The file goes after that, the
answer an hour later. The words are those that Proxmox VE puts into `ha/crm_commands`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from ha.leases import is_fresh
from ha.resources import Resource
from ha.status import Answer, AnswerState, Disarm, DisarmState, Mode, Service, State
from ha.view import Command, View, command_path
from kvorum.ids import NodeName, Sid

from . import arming, moving
from .case import Case, is_stopping
from .decision import Action, ForgetCommand, RequestStopped
from .placing import Placing

KEEP_S = 3600
KEEP_MOST = 200
MAX_STOP_S = 24 * 3600
_MOVABLE = (State.started, State.stopped)
_STOPPABLE = (State.request_start, State.started, State.request_stop, State.stopped)


class Refusal(Exception):
    """Why a command is not taken up, in a sentence."""


@dataclass(slots=True)
class Desk:
    """What the commands of one round come to. Taken up in order, each sees those before it."""

    view: View
    resources: Mapping[Sid, Resource]
    now: float
    placing: Placing
    services: dict[str, Service]
    node_request: dict[str, dict[str, int]] = field(init=False)
    disarm: Disarm | None = field(init=False)
    answers: dict[str, Answer] = field(init=False)
    journal: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        status = self.view.status
        self.node_request, self.disarm, self.answers = dict(status.node_request), status.disarm, dict(status.answers)

    def take_all(self) -> None:
        for command in self.view.commands:
            known = self.answers.get(command.id)
            if known is not None and known.version == command.version:
                continue
            answer = self._take(command)
            self.answers[command.id] = answer
            self.journal.append(f"command {command.id}, {answer.command!r}: {answer.state} ({answer.cause})")

    def _take(self, command: Command) -> Answer:
        text = " ".join(command.text.split())[:200]
        answer = Answer(version=command.version, command=text, state=AnswerState.done, at=int(self.now))
        try:
            match text.split(" "):
                case ["migrate" | "relocate" as verb, sid, node]:
                    cause = self._move(verb, sid, node, command.id)
                    return msgspec.structs.replace(answer, state=AnswerState.accepted, cause=cause, sid=sid, node=node)
                case ["stop", sid, *rest]:
                    cause = self._stop(sid, rest, command.id)
                    return msgspec.structs.replace(answer, state=AnswerState.accepted, cause=cause, sid=sid)
                case ["enable-node-maintenance", node]:
                    return msgspec.structs.replace(answer, cause=self._enable_maintenance(node), node=node)
                case ["disable-node-maintenance", node]:
                    return msgspec.structs.replace(answer, cause=self._disable_maintenance(node), node=node)
                case ["disarm-ha", mode, *rest]:
                    return msgspec.structs.replace(answer, cause=self._disarm(mode, rest))
                case ["arm-ha"]:
                    return msgspec.structs.replace(answer, cause=self._arm())
            raise Refusal("there is no such command")
        except Refusal as refusal:
            return msgspec.structs.replace(answer, state=AnswerState.refused, cause=str(refusal))

    # Guests

    def _service(self, sid: str) -> tuple[Case, Service]:
        resource, service = self.resources.get(Sid(sid)), self.services.get(sid)
        if resource is None or service is None:
            raise Refusal(f"{sid} is not managed by HA")
        self._require_armed()
        return Case(self.view, resource, self.now, self.placing), service

    def _move(self, verb: str, sid: str, target: str, command_id: str) -> str:
        case, service = self._service(sid)
        self._check_target(target)
        if service.state not in _MOVABLE:
            raise Refusal(f"{sid} is in state {service.state}, so it cannot move now: {service.cause}")
        if service.node == target:
            raise Refusal(f"{sid} is on {target} already")
        together = self._group(sid)
        for one in together:
            self._check_rules(one, target, together)
        moved: list[str] = []
        for one in together:
            case, service = self._service(one)
            if service.node == target or service.state not in _MOVABLE:
                continue
            if lock := case.held_by(service):
                raise Refusal(f"a task holds {one} (lock {lock})")
            if service.state is State.started and not case.is_ready(service.node):
                raise Refusal(f"{service.node}, which has {one}, is not ready")
            if case.place() != service.node:
                raise Refusal(f"the config file of {one} lies on {case.place() or 'no node'}, it is not settled yet")
            if not case.is_ready(target):
                raise Refusal(f"{target} is not ready: it has no live lease, or does not guard {one} yet")
            moved.append(one)
        for one in moved:
            case, service = self._service(one)
            if service.state is State.started and (full := self.placing.lacks_room(Sid(one), target)):
                raise Refusal(f"{target} {full}")
            entry = msgspec.structs.replace(service, moves_failed=0, move_after=0, maintenance_node="")
            cause = f"an operator wants it on {target}"
            if one != sid:
                cause = f"{sid}, with which it must run, goes to {target}"
            entry = moving.begin(case, entry, verb, target, cause, command=command_id if one == sid else "")
            self.services[one] = entry
            self.placing.put(Sid(one), entry)
        others = [one for one in moved if one != sid]
        return f"on its way to {target}" + (f", and with it {', '.join(others)}" if others else "")

    def _group(self, sid: str) -> tuple[str, ...]:
        """Those that must run together, the one that was asked for first."""
        others = [one for one in self.view.rules.terms(Sid(sid)).group if one != sid and one in self.services]
        return (sid, *others)

    def _check_rules(self, sid: str, target: str, together: tuple[str, ...]) -> None:
        terms = self.view.rules.terms(Sid(sid))
        if terms.allowed is not None and NodeName(target) not in terms.allowed:
            raise Refusal(f"{sid} may not run on {target}: {', '.join(terms.allowed_by)}")
        for other, rule in terms.apart.items():
            held = self.services.get(other)
            is_there = held is not None and held.state is not State.stopped and target in (held.node, held.target)
            if is_there and other not in together:
                raise Refusal(f"{other} is on {target}, and rule {rule} keeps them apart")

    def _check_target(self, target: str) -> None:
        node = self.view.nodes.get(NodeName(target))
        if node is None:
            raise Refusal(f"there is no node {target}")
        if any(one.node == target and one.state is State.fence for one in self.services.values()):
            raise Refusal(f"{target} is being fenced")
        if node.lease is None or not is_fresh(node.lease):
            raise Refusal(f"{target} is not online: it has no live lease")
        if self.placing.mode(target) is not Mode.active:
            raise Refusal(f"{target} takes no guests: it is in mode {self.placing.mode(target)}")

    def _stop(self, sid: str, rest: list[str], command_id: str) -> str:
        case, service = self._service(sid)
        timeout_s = _number(rest[0], MAX_STOP_S) if rest else 60
        if len(rest) > 1:
            raise Refusal("write: stop SID SECONDS")
        if service.state not in _STOPPABLE:
            raise Refusal(f"{sid} is in state {service.state}; ask for the state stopped in its configuration")
        entry = msgspec.structs.replace(service, cmd=("stop", str(timeout_s)), command=command_id, timeout=timeout_s)
        if service.state is not State.stopped:
            entry = case.order_stop(entry, "an operator wants it stopped")
        self.services[sid] = entry
        return "it is stopped" if service.state is State.stopped else f"it has {timeout_s} s to stop"

    # Nodes and the whole

    def _enable_maintenance(self, name: str) -> str:
        node = self.view.nodes.get(NodeName(name))
        if node is None:
            raise Refusal(f"there is no node {name}")
        self._require_armed()
        if node.lease is None or node.lease.is_fenced:
            raise Refusal(f"{name} is not online")
        if not node.lease.is_resting and not is_fresh(node.lease):
            raise Refusal(f"{name} is not online: it has no live lease")
        if name in self.node_request:
            return f"{name} is in maintenance already"
        self.node_request[name] = {"maintenance": 1}
        return f"{name} keeps no guests from now on"

    def _disable_maintenance(self, name: str) -> str:
        if self.node_request.pop(name, None) is None:
            raise Refusal(f"{name} is not in maintenance")
        return f"{name} takes guests again"

    def _disarm(self, mode: str, rest: list[str]) -> str:
        if self.disarm is not None:
            raise Refusal(f"HA is {self.disarm.state} already")
        if mode not in arming.MODES or len(rest) > 1:
            raise Refusal("write: disarm-ha freeze|ignore [SECONDS]")
        for_s = _number(rest[0], arming.MAX_S) if rest else arming.DEFAULT_S
        if not for_s:
            raise Refusal("say for how long, at least a second")
        self.disarm = Disarm(mode=mode, state=DisarmState.disarming, since=int(self.now), for_s=for_s)
        return f"HA is disarmed once nothing is under way, and arms itself again after {for_s} s"

    def _arm(self) -> str:
        if self.disarm is None:
            raise Refusal("HA is not disarmed")
        self.disarm = None
        return "the nodes take new leases"

    def _require_armed(self) -> None:
        if self.disarm is not None:
            raise Refusal(f"HA is {self.disarm.state}")


def _number(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise Refusal(f"{text!r} is no number of seconds up to {most}")
    return int(text)


def settle_answers(
    answers: Mapping[str, Answer], services: Mapping[str, Service], view: View, now: float
) -> dict[str, Answer]:
    """Those whose outcome is known by now get it; old ones are forgotten when their file is gone."""
    present = {command.id for command in view.commands}
    settled = {id_: _settle_answer(id_, answer, services, view, now) for id_, answer in answers.items()}
    kept = {
        id_: answer
        for id_, answer in settled.items()
        if id_ in present or answer.state is AnswerState.accepted or abs(now - answer.at) < KEEP_S
    }
    final = [id_ for id_ in kept if id_ not in present and kept[id_].state is not AnswerState.accepted]
    for id_ in sorted(final, key=lambda id_: (kept[id_].at, id_))[: max(0, len(final) - KEEP_MOST)]:
        del kept[id_]
    return kept


def _settle_answer(id_: str, answer: Answer, services: Mapping[str, Service], view: View, now: float) -> Answer:
    if answer.state is not AnswerState.accepted:
        return answer
    service = services.get(answer.sid)
    if service is not None and service.command == id_ and service.state is not State.stopped:
        return answer
    if answer.node:
        is_done = service is not None and service.node == answer.node
    else:
        is_done = service is None or service.state is State.stopped
    cause = service.cause if service is not None else f"{answer.sid} is no resource any more"
    if not is_done and (why := _why_failed(answer.sid, view)):
        cause = f"{why}; {cause}"
    state = AnswerState.done if is_done else AnswerState.failed
    return msgspec.structs.replace(answer, state=state, cause=cause, at=int(now))


def _why_failed(sid: str, view: View) -> str:
    """What the node said to the order that the entry has left by now: its present cause is about the next one."""
    service = view.status.service_status.get(sid)
    node = view.nodes.get(NodeName(service.node)) if service is not None else None
    result = node.lrm.results.get(service.uid) if service is not None and node is not None else None
    return result.cause if result is not None and result.sid == sid and result.exit_code != 0 else ""


def actions(view: View, services: Mapping[str, Service], resources: Mapping[Sid, Resource]) -> tuple[Action, ...]:
    """Files of answered commands go; an operator's stop is written where it stays."""
    found: list[Action] = []
    for command in view.commands:
        answer = view.status.answers.get(command.id)
        if answer is not None and answer.version == command.version:
            found.append(ForgetCommand(command.id, command_path(command.id), command.version))
    for sid, service in services.items():
        resource = resources.get(Sid(sid))
        is_committed = is_stopping(service) and view.status.service_status.get(sid) == service
        if is_committed and resource is not None and resource.wants_running and view.resources is not None:
            found.append(RequestStopped(Sid(sid)))
    return tuple(found)
