"""Starts that hang in a hypervisor: asked of the agent that runs them, and told in words.

HA does nothing about such a guest, and its status says nothing of it: the order stands, and there is no answer yet.
"""

import time

from agent.context import AgentContext
from agent.operations.power import HANG_S
from kvorum.ids import Vmid, node_resource
from kvorum.v1 import task_pb2

from .task import TaskService

START_TASKS = ("qmstart", "vzstart")


class HungStarts:
    def __init__(self, context: AgentContext) -> None:
        self._tasks = TaskService(context)

    async def since(self, node: str, vmid: Vmid) -> float:
        """Seconds since the epoch; 0 when nothing hangs, or the node does not say."""
        request = task_pb2.ListTasksRequest(node=node_resource(node), vmid=vmid, running_only=True)
        tasks = (await self._tasks.ListTasks(request, None)).tasks
        began = [task.start_time.ToMicroseconds() / 1e6 for task in tasks if task.type in START_TASKS]
        return next((at for at in sorted(began) if time.time() - at >= HANG_S), 0.0)


async def none_hangs(_node: str, _vmid: Vmid) -> float:
    return 0.0


def hang(node: str, for_s: float) -> str:
    return f"the hypervisor on {node} has not ended its start for {for_s:.0f} s; it may still come up there"


def hang_remedy(node: str) -> str:
    return f"free its storage; or switch {node} off, hard: then it starts elsewhere"
