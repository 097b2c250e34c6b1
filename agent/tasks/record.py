"""What is known of a task: a value that is written to disk and shown to people, and the ways it may change.

Pure: the runner says when, the files say where. A task ends once; whatever arrives later changes nothing.
"""

from collections.abc import Collection
from enum import StrEnum

import msgspec

from .upid import Upid


class TaskState(StrEnum):
    running = "running"
    ok = "ok"
    failed = "failed"
    cancelled = "cancelled"
    interrupted = "interrupted"


class UndoStep(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent that starts anew must do for a task that its predecessor left behind; `kind` names who performs it."""

    kind: str
    arguments: dict[str, str] = {}

    def __str__(self) -> str:
        return " ".join((self.kind, *(f"{key}={value}" for key, value in self.arguments.items())))


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds since 1970. `progress` is 0 to 1, negative when not known."""

    upid: str
    state: TaskState = TaskState.running
    error: str = ""
    start_time_s: float = 0.0
    end_time_s: float = 0.0
    progress: float = -1.0
    phase: str = ""
    # In the order in which they were registered; undone backwards.
    undo: tuple[UndoStep, ...] = ()

    @property
    def id(self) -> Upid:
        return Upid.parse(self.upid)

    @property
    def is_running(self) -> bool:
        return self.state is TaskState.running

    @property
    def is_over(self) -> bool:
        """It has ended, and nothing of it is left for this agent to undo or to wait for."""
        return not self.is_running and not self.undo

    def advanced(self, fraction: float, phase: str) -> "TaskRecord":
        """Further on; an empty phase keeps the present one. Progress outside 0 to 1 is cut off, negative means unknown."""
        if not self.is_running:
            return self
        progress = -1.0 if fraction < 0 else min(fraction, 1.0)
        return msgspec.structs.replace(self, progress=progress, phase=phase or self.phase)

    def ended(self, state: TaskState, *, now_s: float, error: str = "") -> "TaskRecord":
        """`undo` stays when the end is an interruption: somebody must still perform it."""
        assert state is not TaskState.running, "a task cannot end by running"
        if not self.is_running:
            return self
        return msgspec.structs.replace(
            self,
            state=state,
            error=error,
            end_time_s=now_s,
            progress=1.0 if state is TaskState.ok else self.progress,
            undo=self.undo if state is TaskState.interrupted else (),
        )

    def undone(self, kinds: Collection[str]) -> "TaskRecord":
        """Without the steps of these kinds."""
        return msgspec.structs.replace(self, undo=tuple(step for step in self.undo if step.kind not in kinds))


def last_line(state: TaskState, error: str) -> str:
    """How the log of a task ends, in Proxmox VE's words."""
    match state:
        case TaskState.ok:
            return "TASK OK"
        case TaskState.cancelled:
            return "TASK ERROR: cancelled by user"
        case TaskState.interrupted:
            return f"TASK ERROR: interrupted: {error or 'the agent ended while the task ran'}"
        case _:
            return f"TASK ERROR: {error or 'unexpected status'}"


def surplus(records: list[TaskRecord], *, keep: int) -> list[TaskRecord]:
    """The oldest ended tasks beyond `keep`; running ones are never among them."""
    ended = sorted((record for record in records if not record.is_running), key=lambda record: record.end_time_s)
    return ended[: max(0, len(records) - keep)]
