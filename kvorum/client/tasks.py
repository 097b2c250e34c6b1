"""TaskService for Python callers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvorum.errors import Cancelled, TaskFailed
from kvorum.ids import node_resource
from kvorum.v1 import task_pb2 as pb
from kvorum.v1.task_pb2_grpc import TaskServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection

DEFAULT_WAIT_S = 600


class TaskApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stream = connection.stream
        self._stub = TaskServiceStub(connection.channel)

    def get(self, upid: str) -> pb.Task:
        response: pb.GetTaskResponse = self._call(self._stub.GetTask, pb.GetTaskRequest(upid=upid))
        return response.task

    def follow(self, upid: str, *, from_line: int = 0) -> Iterator[pb.StreamTaskLogResponse]:
        """Log lines and progress until the task ends."""
        request = pb.StreamTaskLogRequest(upid=upid, from_line=from_line, follow=True)
        return self._stream(self._stub.StreamTaskLog, request)

    def log(self, upid: str) -> list[str]:
        request = pb.StreamTaskLogRequest(upid=upid)
        return [answer.text for answer in self._stream(self._stub.StreamTaskLog, request) if answer.line]

    def wait(self, upid: str, *, timeout_s: int = DEFAULT_WAIT_S) -> pb.Task:
        """The ended task. Raises TaskFailed or Cancelled when it did not end well, Timeout when it still runs."""
        request = pb.WaitTaskRequest(upid=upid, timeout_seconds=timeout_s)
        response: pb.WaitTaskResponse = self._call(self._stub.WaitTask, request, timeout_s=timeout_s + 10)
        require_success(response.task)
        return response.task

    def cancel(self, upid: str) -> None:
        self._call(self._stub.CancelTask, pb.CancelTaskRequest(upid=upid))

    def list(self, *, node: str = "", vmid: int = 0, running_only: bool = False, limit: int = 0) -> list[pb.Task]:
        """Newest first; `limit` 0 means the server's default of 50."""
        request = pb.ListTasksRequest(
            node=node_resource(node) if node else "", vmid=vmid, running_only=running_only, page_size=limit
        )
        response: pb.ListTasksResponse = self._call(self._stub.ListTasks, request)
        return list(response.tasks)


def require_success(task: pb.Task) -> None:
    """Raise what the task ended with, unless it ended well or still runs."""
    remedy = f"read its log with 'kvorum task log {task.upid}'"
    if task.state == pb.TASK_STATE_CANCELLED:
        raise Cancelled(f"{task.type} {task.subject} was cancelled", remedy=remedy)
    if task.state in (pb.TASK_STATE_FAILED, pb.TASK_STATE_INTERRUPTED):
        raise TaskFailed(f"{task.type} {task.subject} failed: {task.error or 'interrupted'}", remedy=remedy)
