"""Long work of this node: named by UPIDs, logged, watched, cancelled, undone, remembered after the agent's restart.

What the work is stays with the rooms that do it; guests, storage and the network are unknown here.
"""

from .direct import undoing
from .handle import TaskHandle
from .record import TaskRecord, TaskState, UndoStep
from .runner import Body, LogNews, TaskRunner
from .upid import Upid

__all__ = ["Body", "LogNews", "TaskHandle", "TaskRecord", "TaskRunner", "TaskState", "UndoStep", "Upid", "undoing"]
