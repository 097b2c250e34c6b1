"""An operator's commands to the HA manager: a file in `ha/commands` each, and the manager's answer to it.

The words are those of Proxmox VE. Whether a command can be carried out, only the manager says; here it is made, written as the
caller's, and its answer looked for.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass

from agent.inventory import GuestStore, StoredEntry
from ha.status import MANAGER_STATUS, Answer, AnswerState, ManagerStatus, parse_manager_status
from ha.view import command_path
from kvorum.errors import InvalidInput, NotFound, Refused
from kvorum.ids import parse_node_name, parse_sid

from .files import FileStore

WAITING = "waiting"
# A new manager is chosen within that; a client waits longer.
ANSWER_S = 8.0
POLL_S = 0.1
MAX_STOP_S = MAX_DISARM_S = 24 * 3600
MODES = ("freeze", "ignore")


@dataclass(frozen=True, slots=True)
class Asked:
    """`state`: `waiting` while no manager has seen it, else that of the answer."""

    id: str
    text: str
    state: str
    cause: str = ""


def move_text(verb: str, sid: str, node: str) -> str:
    """`verb`: migrate or relocate. Raises InvalidInput."""
    parse_sid(sid)
    return f"{verb} {sid} {node_name(node)}"


def stop_text(sid: str, timeout_s: int) -> str:
    parse_sid(sid)
    if not 0 <= timeout_s <= MAX_STOP_S:
        raise InvalidInput(f"{timeout_s} s is no time to stop in", field="timeout_seconds", remedy="0 to 86400 seconds")
    return f"stop {sid} {timeout_s}"


def maintenance_text(node: str, *, is_enabled: bool) -> str:
    return f"{'enable' if is_enabled else 'disable'}-node-maintenance {node_name(node)}"


def disarm_text(mode: str, for_s: int) -> str:
    if mode not in MODES:
        raise InvalidInput(f"{mode!r} is no way to disarm HA", field="mode", remedy="use freeze or ignore")
    if not 1 <= for_s <= MAX_DISARM_S:
        raise InvalidInput(
            f"HA cannot be disarmed for {for_s} s",
            field="for_seconds",
            remedy="1 second to 24 hours; arm it earlier by hand",
        )
    return f"disarm-ha {mode} {for_s}"


def arm_text() -> str:
    return "arm-ha"


def node_name(text: str) -> str:
    return parse_node_name(text.removeprefix("nodes/"))


async def give(store: FileStore, text: str, *, patience_s: float = ANSWER_S) -> Asked:
    """Writes it and waits until the manager has taken it up. Raises Refused with the manager's reason, NoQuorum."""
    # Sorted by name, commands are taken up in the order in which they were given.
    name = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(3)}"
    entry = await store.write(command_path(name), f"{text}\n".encode(), absent=True, parents=True, reason=f"HA: {text}")
    deadline = time.monotonic() + patience_s
    while True:
        answer = (await manager_status(store)).answers.get(name)
        if answer is not None and answer.version == entry.version:
            return _told(name, text, answer)
        if time.monotonic() > deadline:
            cause = "no manager has taken it up yet; it stays written and is taken up when there is one"
            return Asked(name, text, WAITING, cause)
        await asyncio.sleep(POLL_S)


async def look(store: GuestStore, name: str) -> Asked:
    """Raises NotFound for one that was never given, or ended more than an hour ago."""
    answer = (await manager_status(store)).answers.get(name)
    if answer is not None:
        return Asked(name, answer.command, answer.state, answer.cause)
    entry: StoredEntry = await _file(store, name)
    return Asked(name, entry.content.decode(errors="replace").strip(), WAITING, "no manager has taken it up yet")


async def manager_status(store: GuestStore) -> ManagerStatus:
    """An empty one while no manager has written any. Raises ConfigError for a damaged one."""
    try:
        return parse_manager_status((await store.get(MANAGER_STATUS)).content)
    except NotFound:
        return ManagerStatus()


async def _file(store: GuestStore, name: str) -> StoredEntry:
    if not name or "/" in name:
        raise InvalidInput(f"{name!r} is no command's id", field="id")
    try:
        return await store.get(command_path(name))
    except NotFound:
        raise NotFound(
            f"nothing is known of the command {name}",
            remedy="answers are kept for an hour; 'kvorum ha status' shows today",
        ) from None


def _told(name: str, text: str, answer: Answer) -> Asked:
    if answer.state is AnswerState.refused:
        remedy = f"'kvorum ha explain {answer.sid}' says more" if answer.sid else "'kvorum ha status' says more"
        raise Refused(f"{text}: {answer.cause}", remedy=remedy)
    return Asked(name, text, answer.state, answer.cause)
