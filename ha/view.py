"""What the manager knows when it decides: one frozen value, read from one replica. Pure.

Nothing here is a promise about the present. Every action that follows from it is guarded where it is applied: a fence by
the renewal count, a move and the status by the version that was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from kvorum.errors import InvalidInput
from kvorum.ids import NodeName, NodeUid, Sid, parse_sid

from .balance import History
from .leases import Lease
from .load import Demand, Use
from .options import Options
from .resources import Resource
from .rules import Compiled
from .status import LrmStatus, ManagerStatus

COMMANDS_DIR = "ha/commands"

_DIRECTORIES = {"qemu-server": "vm", "lxc": "ct"}
_FOLDERS = {kind: folder for folder, kind in _DIRECTORIES.items()}


@dataclass(frozen=True, slots=True)
class Node:
    """A member. No lease: it has never had one. No LRM status: its daemon has never written one."""

    name: NodeName
    uid: NodeUid
    lease: Lease | None = None
    lrm: LrmStatus = field(default_factory=LrmStatus)
    # Nothing where it is not known: then guests are counted.
    capacity: Use = field(default_factory=Use)
    measured: Use | None = None


@dataclass(frozen=True, slots=True)
class Startup:
    """The guest's `startup` option: lower numbers start first, those without one last; `up_s` later the next."""

    order: int | None = None
    up_s: int = 0

    @property
    def place(self) -> float:
        return inf if self.order is None else float(self.order)


@dataclass(frozen=True, slots=True)
class Config:
    """Where a guest's config file lies. `version` guards its move."""

    node: NodeName
    version: int
    # What holds the guest: backup, migrate, ... Empty when nothing does.
    lock: str = ""
    # What the guest may use at most, and what it was measured to use.
    demand: Demand = field(default_factory=Demand)
    startup: Startup = field(default_factory=Startup)
    # As its node tells; None: it has not told. Of a resource the manager's entry says more.
    is_running: bool | None = None

    @property
    def is_migrating(self) -> bool:
        """A migration holds it, or one that died did: its copy may run or wait where the file does not lie."""
        return self.lock == "migrate"


@dataclass(frozen=True, slots=True)
class Command:
    """A file in `ha/commands`: one of Proxmox VE's verbs with its arguments. Name and version make it one command."""

    id: str
    version: int
    text: str


@dataclass(frozen=True, slots=True)
class View:
    # This replica leads and has committed an entry of its own term.
    is_leader: bool
    is_quorate: bool
    self_node: NodeName
    nodes: Mapping[NodeName, Node]
    # None: the file does not parse; everything stays as it is.
    resources: Mapping[Sid, Resource] | None
    # Every guest of the cluster, HA or not.
    configs: Mapping[Sid, Config]
    status: ManagerStatus
    # Of `ha/manager_status`; 0 when it is not there.
    status_version: int
    # Of nodes of the status that are no members any more: when what they guarded has surely ended, from now.
    leaving_s: Mapping[NodeName, float] = field(default_factory=dict)
    # What operators ask for, in the order of their ids.
    commands: tuple[Command, ...] = ()
    rules: Compiled = field(default_factory=Compiled)
    # What this manager remembers of its own balancing; nothing but its pace hangs on it.
    history: History = field(default_factory=History)
    options: Options = field(default_factory=Options)


def config_path(sid: str, node: str) -> str:
    kind, vmid = parse_sid(sid)
    return f"nodes/{node}/{_FOLDERS[kind]}/{vmid}.conf"


def command_path(command_id: str) -> str:
    return f"{COMMANDS_DIR}/{command_id}"


def parse_config_path(path: str) -> tuple[Sid, NodeName] | None:
    """`nodes/n1/qemu-server/100.conf` -> (`vm:100`, `n1`); None for any other path."""
    match path.split("/"):
        case ["nodes", node, folder, file] if folder in _DIRECTORIES and file.endswith(".conf"):
            sid = f"{_DIRECTORIES[folder]}:{file.removesuffix('.conf')}"
            try:
                parse_sid(sid)
            except InvalidInput:
                return None
            return Sid(sid), NodeName(node)
    return None
