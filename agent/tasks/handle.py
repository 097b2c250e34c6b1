"""What the body of a task holds: the way to say how far it is, and to register what must be undone if it does not end well."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from .record import UndoStep

if TYPE_CHECKING:
    from .live import LiveTask

Undo = Callable[[], Awaitable[None]]


class TaskHandle(Protocol):
    """The part of a task that its body sees; tests pass one of their own."""

    @property
    def upid(self) -> str: ...

    def log(self, line: str) -> None:
        """One line, or several."""

    def progress(self, fraction: float, phase: str = "") -> None:
        """`fraction` 0 to 1, negative when not known. A new phase also goes to the log."""

    def undo(self, callback: Undo, step: UndoStep | None = None) -> None:
        """Call back when the task fails or is cancelled, last registered first. `step` is kept on disk: it says what an
        agent that starts after this one died must do instead."""

    def commit(self) -> None:
        """What has been done stands: undo nothing of it, and refuse to be cancelled from here on."""


class LiveHandle:
    """The real one."""

    def __init__(self, task: "LiveTask") -> None:
        self._task = task

    @property
    def upid(self) -> str:
        return self._task.record.upid

    def log(self, line: str) -> None:
        self._task.say(line)

    def progress(self, fraction: float, phase: str = "") -> None:
        self._task.advance(fraction, phase)

    def undo(self, callback: Undo, step: UndoStep | None = None) -> None:
        self._task.register(callback, step)

    def commit(self) -> None:
        self._task.commit()
