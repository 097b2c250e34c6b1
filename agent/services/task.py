"""TaskService: tasks of this node from its runner, those of others by asking their agents."""

from collections.abc import AsyncIterator
from typing import Any

from agent.context import AgentContext
from agent.tasks import TaskRecord, TaskState, Upid
from kvorum.errors import InvalidInput
from kvorum.ids import node_resource, parse_node_resource
from kvorum.v1 import task_pb2 as pb
from kvorum.v1 import task_pb2_grpc

from .forwarding import Forwarding

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
DEFAULT_WAIT_S = 600
MAX_WAIT_S = 24 * 3600
_MARGIN_S = 5.0

_STATES = {
    TaskState.running: pb.TASK_STATE_RUNNING,
    TaskState.ok: pb.TASK_STATE_OK,
    TaskState.failed: pb.TASK_STATE_FAILED,
    TaskState.cancelled: pb.TASK_STATE_CANCELLED,
    TaskState.interrupted: pb.TASK_STATE_INTERRUPTED,
}


def register(server: Any, context: AgentContext) -> None:
    task_pb2_grpc.add_TaskServiceServicer_to_server(TaskService(context), server)


class TaskService(task_pb2_grpc.TaskServiceServicer):
    def __init__(self, context: AgentContext) -> None:
        self._tasks = context.tasks
        self._forwarding = Forwarding(context)

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> pb.GetTaskResponse:  # noqa: N802
        if node := self._elsewhere(request.upid):
            answer: pb.GetTaskResponse = await self._forwarding.call(
                node, task_pb2_grpc.TaskServiceStub, "GetTask", request
            )
            return answer
        return pb.GetTaskResponse(task=to_message(self._tasks.get(request.upid)))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:  # noqa: N802
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        if size < 0:
            raise InvalidInput("page_size is negative", field="page_size")
        here = self._forwarding.node
        wanted = parse_node_resource(request.node) if request.node else None
        tasks = []
        if wanted in (None, here):
            tasks = [to_message(record) for record in self._tasks.newest_first() if _matches(record, request)]
        nodes = [wanted] if wanted not in (None, here) else []
        if wanted is None:
            nodes = [node for node in await self._forwarding.nodes() if node != here]
        answers, _ = await self._forwarding.ask_all(
            [node for node in nodes if node],
            task_pb2_grpc.TaskServiceStub,
            "ListTasks",
            lambda node: pb.ListTasksRequest(
                node=node_resource(node), vmid=request.vmid, running_only=request.running_only, page_size=MAX_PAGE_SIZE
            ),
        )
        for answer in answers.values():
            tasks += answer.tasks
        tasks.sort(key=_order, reverse=True)
        if request.page_token:
            tasks = [task for task in tasks if _token(task) < request.page_token]
        page = tasks[:size]
        more = len(tasks) > len(page)
        return pb.ListTasksResponse(tasks=page, next_page_token=_token(page[-1]) if more and page else "")

    async def StreamTaskLog(  # noqa: N802
        self, request: pb.StreamTaskLogRequest, context: Any
    ) -> AsyncIterator[pb.StreamTaskLogResponse]:
        if node := self._elsewhere(request.upid):
            stub = task_pb2_grpc.TaskServiceStub
            async for answer in self._forwarding.stream(node, stub, "StreamTaskLog", request):
                yield answer
            return
        async for news in self._tasks.follow(request.upid, from_line=request.from_line, is_live=request.follow):
            yield pb.StreamTaskLogResponse(line=news.number, text=news.text, task=to_message(news.task))

    async def WaitTask(self, request: pb.WaitTaskRequest, context: Any) -> pb.WaitTaskResponse:  # noqa: N802
        timeout_s = request.timeout_seconds or DEFAULT_WAIT_S
        if not 0 < timeout_s <= MAX_WAIT_S:
            raise InvalidInput(f"cannot wait {timeout_s} s", field="timeout_seconds", remedy=f"1 to {MAX_WAIT_S}")
        if node := self._elsewhere(request.upid):
            answer: pb.WaitTaskResponse = await self._forwarding.call(
                node, task_pb2_grpc.TaskServiceStub, "WaitTask", request, timeout_s=timeout_s + _MARGIN_S
            )
            return answer
        return pb.WaitTaskResponse(task=to_message(await self._tasks.wait(request.upid, timeout_s=timeout_s)))

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Any) -> pb.CancelTaskResponse:  # noqa: N802
        if node := self._elsewhere(request.upid):
            answer: pb.CancelTaskResponse = await self._forwarding.call(
                node, task_pb2_grpc.TaskServiceStub, "CancelTask", request
            )
            return answer
        self._tasks.cancel(request.upid)
        return pb.CancelTaskResponse()

    def _elsewhere(self, upid: str) -> str:
        """The node that has the task, empty when it is this one."""
        node = Upid.parse(upid).node
        if self._forwarding.is_here(node):
            return ""
        self._forwarding.require_first_hop(f"task {upid}")
        return node


def to_message(record: TaskRecord) -> pb.Task:
    upid = record.id
    task = pb.Task(
        upid=record.upid,
        node=node_resource(upid.node),
        type=upid.type,
        subject=upid.subject,
        user=upid.user,
        state=_STATES[record.state],
        error=record.error,
        progress=record.progress,
        phase=record.phase,
    )
    task.start_time.FromMicroseconds(int(record.start_time_s * 1e6))
    if record.end_time_s:
        task.end_time.FromMicroseconds(int(record.end_time_s * 1e6))
    return task


def _matches(record: TaskRecord, request: pb.ListTasksRequest) -> bool:
    if request.running_only and record.is_over:
        return False
    return not request.vmid or record.id.subject == str(request.vmid)


def _order(task: pb.Task) -> str:
    return _token(task)


def _token(task: pb.Task) -> str:
    """Sorts by time; the UPID tells apart what began in the same microsecond."""
    return f"{task.start_time.ToMicroseconds():020d} {task.upid}"
