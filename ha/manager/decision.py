"""What a round of the manager comes to, as values: a status to write, and actions that follow once it is written. Pure.

Each action says by which version it is guarded. Nothing here is performed; `ha.daemon` does that, `ha.sim` plays it.
"""

from dataclasses import dataclass, field

from ha.balance import History
from ha.status import ManagerStatus
from kvorum.ids import NodeName, NodeUid, Sid


@dataclass(frozen=True, slots=True)
class FenceLease:
    """Refused, in apply, if the node has renewed since."""

    node: NodeName
    uid: NodeUid
    incarnation: int
    renewal: int
    cause: str


@dataclass(frozen=True, slots=True)
class MoveConfig:
    """Follows only from a *committed* entry. Refused if the file has changed or moved since.

    `unlock`: a lock whose holder is surely gone, to be taken off first.
    """

    sid: Sid
    path: str
    new_path: str
    expected_version: int
    cause: str
    unlock: str = ""


@dataclass(frozen=True, slots=True)
class RequestStopped:
    """Writes into resources.cfg what an operator's `stop` means. Does nothing if somebody has done so."""

    sid: Sid


@dataclass(frozen=True, slots=True)
class ForgetCommand:
    """Its answer is committed, so its file may go. Refused if the file has changed: then it is another command."""

    id: str
    path: str
    expected_version: int


Action = FenceLease | MoveConfig | RequestStopped | ForgetCommand


@dataclass(frozen=True, slots=True)
class Decision:
    """`status` is None when there is nothing new to write. It goes first; if it is refused, the actions are void."""

    status: ManagerStatus | None
    actions: tuple[Action, ...] = ()
    journal: tuple[str, ...] = ()
    # For the view of the next round.
    history: History = field(default_factory=History)
