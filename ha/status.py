"""The two files in which HA speaks: `ha/manager_status` and `nodes/<n>/lrm_status`, in Proxmox VE's shape. Pure.

Keys that Proxmox VE has keep its names and meaning, so that its tools read them; ours come on top. Whatever decides
anything about a guest lies in these files and nowhere else: a new manager goes on where the last one stopped.
"""

from enum import StrEnum
from typing import TypeVar

import msgspec

from kvorum.errors import ConfigError

T = TypeVar("T")

MANAGER_STATUS = "ha/manager_status"


def lrm_status_path(node: str) -> str:
    return f"nodes/{node}/lrm_status"


class State(StrEnum):
    """What the manager wants of a resource, in Proxmox VE's words."""

    request_start = "request_start"
    started = "started"
    request_stop = "request_stop"
    stopped = "stopped"
    migrate = "migrate"
    relocate = "relocate"
    freeze = "freeze"
    fence = "fence"
    recovery = "recovery"
    error = "error"


# Orders that are fulfilled when the guest does not run on the node, and nothing there will start it.
LETTING_GO = frozenset({State.request_stop, State.stopped, State.migrate, State.relocate})


# Exit code of a migration (`Result`).
CAME_BACK = 2


class NodeState(StrEnum):
    online = "online"
    maintenance = "maintenance"
    unknown = "unknown"
    fence = "fence"
    # No member any more; remembered for an hour.
    gone = "gone"


class Mode(StrEnum):
    """Of a local resource manager: what becomes of the guests of its node."""

    active = "active"
    # The node goes down, its guests stay with it.
    restart = "restart"
    # The node goes down, its guests are stopped and start elsewhere.
    shutdown = "shutdown"
    # The node keeps no guests; they move away.
    maintenance = "maintenance"
    disarm = "disarm"


class Remedy(StrEnum):
    """What a person can do, without danger, about a resource that does not go on. `kvorum ha explain` has the sentences.

    A new value here cannot be read by managers from before unknown ones were left out, and they would decide nothing any more:
    what else there is to say goes into a field of its own.
    """

    wait = "wait"
    # Request `disabled`: gives it up, and clears what went wrong.
    disable = "disable"
    # Mend the guest or the node that would not do; then nothing more, or disable and start.
    mend = "mend"
    # Make sure that the node is off, and remove it from the cluster.
    remove_node = "remove-node"
    # Bring the node back.
    revive_node = "revive-node"
    # Make room: add a node, loosen a rule, end maintenance.
    make_room = "make-room"


class Service(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One resource. The assignment is (`node`, `node_uid`, `incarnation`, `uid`): an order to that node, in that life of it."""

    state: State
    node: str
    uid: str
    # The node's lease under which the order was given. In a later life of the node it is void.
    incarnation: int
    # The member that had the name then; a machine that has joined under it since is another node (`manager.strangers`).
    node_uid: str = ""
    # Why it is in this state, in a sentence.
    cause: str = ""
    # What was wanted when resources.cfg could be read the last time.
    request: str = "started"
    # Where it goes: migrate, relocate and recovery.
    target: str = ""
    # The order's verb and its argument, as in Proxmox VE. A `migrate` without one follows a file that has moved already.
    cmd: tuple[str, ...] = ()
    # Where a live migration was to bring it that began under this order, or under one before: its copy may run there, whatever
    # became of the file since. Nobody else gets the guest before that node has let go of it, too.
    carried_to: str = ""
    # The operator's command that this carries out, by its id.
    command: str = ""
    # Seconds for a graceful stop; 0 pulls the plug.
    timeout: int | None = None
    # Where it was before maintenance drove it away.
    maintenance_node: str = ""
    # Moves in a row that failed, and when the next may be tried, seconds since the epoch.
    moves_failed: int = 0
    move_after: int = 0
    # In recovery: whoever held the guest on its node is surely gone.
    after_fence: int = 0
    # What a person can do now.
    remedies: tuple[Remedy, ...] = ()
    failed_nodes: tuple[str, ...] = ()
    # Failures in a row, for the back-off; and when error is tried again, seconds since the epoch.
    failures: int = 0
    retry_at: int = 0
    running: int = 0
    # Since when it runs without a break, seconds since the epoch; 0 when it does not, or that is not known.
    running_since: int = 0
    # Whom it waits for before it starts or stops; since when, and until when at most (0: without an end).
    waits_for: tuple[str, ...] = ()
    wait_since: int = 0
    wait_until: int = 0
    # One of them does not start by itself: a person starts it, or loosens the rule.
    is_stuck: bool = False
    # Those that lost their node together start in the order of their `startup` options: that node and its life.
    batch: str = ""


class AnswerState(StrEnum):
    accepted = "accepted"
    done = "done"
    failed = "failed"
    refused = "refused"


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """To an operator's command. `version`: of the file that held it; another file of that name is another command."""

    version: int
    command: str
    state: AnswerState
    cause: str = ""
    sid: str = ""
    node: str = ""
    # Seconds since the epoch.
    at: int = 0


class DisarmState(StrEnum):
    # What is under way is finished first.
    disarming = "disarming"
    # No lease is held, no node is fenced, nothing is recovered.
    disarmed = "disarmed"


class Disarm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Proxmox VE's record, with an end: HA arms itself again `for_s` after `since`, seconds since the epoch."""

    mode: str
    state: DisarmState
    since: int
    for_s: int
    # What is waited for, or that it is complete.
    cause: str = ""


class ManagerStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    master_node: str = ""
    # Seconds since the epoch, of the last change.
    timestamp: int = 0
    node_status: dict[str, NodeState] = {}
    service_status: dict[str, Service] = {}
    # By node: `{"maintenance": 1}`.
    node_request: dict[str, dict[str, int]] = {}
    disarm: Disarm | None = None
    # By id of the operator's command.
    answers: dict[str, Answer] = {}

    @property
    def is_disarmed(self) -> bool:
        return self.disarm is not None and self.disarm.state is DisarmState.disarmed

    def is_drained(self, node: str) -> bool:
        """Whether an operator wants no guests there."""
        return bool(self.node_request.get(node, {}).get("maintenance"))


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of an order. Exit code 0: done; 1: failed, and this node will not try again under the same uid; 2: of a
    migration, the guest has left, but its file is here again."""

    sid: str
    state: str
    exit_code: int
    cause: str = ""


class LrmStatus(msgspec.Struct, frozen=True, kw_only=True):
    state: str = "wait_for_agent_lock"
    mode: Mode = Mode.active
    # By uid of the order.
    results: dict[str, Result] = {}
    timestamp: int = 0
    # The lease under which this node works; its keeper has proven that nothing of an earlier one runs.
    incarnation: int = 0
    # Resources that the keeper guards. Only these are ever recovered from here.
    tracked: tuple[str, ...] = ()
    # One life of the daemon: its first write shuts out whatever an earlier life may still have under way.
    session: str = ""
    # The member that wrote it; one that has its name now has not said anything by it.
    uid: str = ""


def parse_manager_status(content: bytes) -> ManagerStatus:
    """An empty file is an empty status. Raises ConfigError; nothing is decided on a status that cannot be read."""
    return _decode(content, ManagerStatus, MANAGER_STATUS)


def parse_lrm_status(content: bytes, path: str) -> LrmStatus:
    return _decode(content, LrmStatus, path)


def render(status: ManagerStatus | LrmStatus) -> bytes:
    """Canonical: equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(status, order="sorted")) + b"\n"


def _decode(content: bytes, kind: type[T], path: str) -> T:
    if not content.strip():
        return kind()
    try:
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.ValidationError:
            return msgspec.convert(_with_known_remedies(msgspec.json.decode(content)), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read it: {error}", path=path, remedy="restore it from the store's history"
        ) from error


def _with_known_remedies(raw: object) -> object:
    """Without those of a later version: they are for people, and nothing is decided by them."""
    match raw:
        case {"service_status": {**services}}:
            for service in services.values():
                if isinstance(service, dict) and isinstance(remedies := service.get("remedies"), list):
                    service["remedies"] = [remedy for remedy in remedies if remedy in list(Remedy)]
    return raw
