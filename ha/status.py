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
    fence = "fence"
    recovery = "recovery"
    error = "error"


class NodeState(StrEnum):
    online = "online"
    unknown = "unknown"
    fence = "fence"


class Service(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One resource. The assignment is (`node`, `incarnation`, `uid`): an order to that node, in that life of it."""

    state: State
    node: str
    uid: str
    # The node's lease under which the order was given. In a later life of the node it is void.
    incarnation: int
    # Why it is in this state, in a sentence.
    cause: str = ""
    # Where it goes: migrate and recovery.
    target: str = ""
    failed_nodes: tuple[str, ...] = ()
    # Failures in a row, for the back-off; and when error is tried again, seconds since the epoch.
    failures: int = 0
    retry_at: int = 0
    running: int = 0


class ManagerStatus(msgspec.Struct, frozen=True, kw_only=True):
    master_node: str = ""
    # Seconds since the epoch, of the last change.
    timestamp: int = 0
    node_status: dict[str, NodeState] = {}
    service_status: dict[str, Service] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of an order. Exit code 0: done; 1: failed, and this node will not try again under the same uid."""

    sid: str
    state: str
    exit_code: int
    cause: str = ""


class LrmStatus(msgspec.Struct, frozen=True, kw_only=True):
    state: str = "wait_for_agent_lock"
    mode: str = "active"
    # By uid of the order.
    results: dict[str, Result] = {}
    timestamp: int = 0
    # The lease under which this node works; its keeper has proven that nothing of an earlier one runs.
    incarnation: int = 0
    # Resources that the keeper guards. Only these are ever recovered from here.
    tracked: tuple[str, ...] = ()
    # One life of the daemon: its first write shuts out whatever an earlier life may still have under way.
    session: str = ""


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
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read it: {error}", path=path, remedy="restore it from the store's history"
        ) from error
