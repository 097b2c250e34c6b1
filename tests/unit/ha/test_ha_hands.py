"""What the local resource manager's hands make of the agent's answers."""

import asyncio
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from ha import hands
from ha.hands import Hands
from kvorum.v1 import task_pb2


def task(kind: str, subject: str) -> task_pb2.Task:
    return task_pb2.Task(type=kind, subject=subject, state=task_pb2.TASK_STATE_RUNNING)


class Agent:
    """Answers each question with the next of `answers`, and the last of them from then on; None: it is away."""

    def __init__(self, *answers: Sequence[task_pb2.Task] | None) -> None:
        self.answers = list(answers)
        self.asked: list[task_pb2.ListTasksRequest] = []

    async def ListTasks(self, request: task_pb2.ListTasksRequest, **_: Any) -> task_pb2.ListTasksResponse:
        self.asked.append(request)
        tasks = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if tasks is None:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        return task_pb2.ListTasksResponse(tasks=tasks)


def hands_of(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Hands:
    monkeypatch.setattr(hands, "SETTLE_POLL_S", 0.001)
    monkeypatch.setattr(hands.grpc.aio, "insecure_channel", lambda *_, **__: SimpleNamespace())
    for stub in ("GuestServiceStub", "TaskServiceStub"):
        monkeypatch.setattr(hands, stub, lambda _: agent)
    return Hands("n1")


async def test_what_the_agent_starts_is_known_by_sid_once_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(None, [task("qmstart", "100"), task("vzstart", "101"), task("qmigrate", "102")])
    assert await hands_of(agent, monkeypatch).starting() == {"vm:100", "ct:101"}
    assert agent.asked[-1].running_only and agent.asked[-1].page_size == 1000, "none may be left out of the list"


async def test_a_start_is_over_when_the_agent_says_so_whatever_else_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    other = task("qmstart", "200")
    agent = Agent([task("qmstart", "100"), other], None, [task("qmstart", "100")], [other])
    async with asyncio.timeout(5):
        await hands_of(agent, monkeypatch).settle("vm:100")
    assert len(agent.asked) == 4


async def test_a_start_that_hangs_is_complained_about_once_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hands, "HANG_S", 0.0)
    agent = Agent(*[[task("qmstart", "100")]] * 3, [])
    with caplog.at_level(logging.ERROR):
        await hands_of(agent, monkeypatch).settle("vm:100")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("vm:100: its start has not ended") and "switch this node off" in line
