"""Runs long work as tasks: each has a name, a log, progress, an end that is remembered, and a way back.

Knows nothing of guests. A body is a coroutine function that gets a `TaskHandle`; it ends well by returning. When it raises or is
cancelled, what it registered is undone in reverse order. Tasks live inside the agent: when the agent ends, those that
run are undone and marked as interrupted; when it dies, the next one finds their records and does the same (`recover`).
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvorum.errors import KvorumError, NotFound, Refused, Timeout
from kvorum.ids import NodeName

from .files import TaskFiles
from .handle import LiveHandle, TaskHandle
from .live import UNDO_TIMEOUT_S, LiveTask
from .record import TaskRecord, TaskState, UndoStep, last_line, surplus
from .upid import Upid

log = logging.getLogger(__name__)

KEEP = 1000
_CLOSE_TIMEOUT_S = 10.0

Body = Callable[[TaskHandle], Awaitable[None]]
Performer = Callable[[Mapping[str, str]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class LogNews:
    """A log line (`number` from 1), or only news of the task (`number` 0)."""

    number: int
    text: str
    task: TaskRecord


class TaskRunner:
    """`node` may be a function, since a node gets its name when it joins a cluster."""

    def __init__(self, node: str | Callable[[], str], directory: Path, *, keep: int = KEEP) -> None:
        self._node = node if callable(node) else lambda: node
        self._files = TaskFiles(directory)
        self._keep = keep
        self._live: dict[str, LiveTask] = {}
        self._last_tick = 0
        self._is_closing = False
        self._records = {record.upid: record for record in self._files.load_all()}
        for record in [record for record in self._records.values() if record.is_running]:
            self._interrupt(record)

    def start(self, task_type: str, subject: str, user: str, body: Body) -> str:
        """Begin and return the UPID at once. Raises Refused while the agent ends."""
        if self._is_closing:
            raise Refused("the agent is about to end", remedy="try again in a few seconds")
        now_s = time.time()
        upid = str(
            Upid(
                node=NodeName(self._node()),
                pid=os.getpid(),
                pstart=self._tick(),
                start_time_s=int(now_s),
                type=task_type,
                subject=subject,
                user=user,
            )
        )
        Upid.parse(upid)
        record = TaskRecord(upid=upid, start_time_s=now_s)
        self._files.save(record)
        self._changed(record)
        task = self._live[upid] = LiveTask(record, self._files, self._changed)
        task.work = asyncio.create_task(self._run(task, body), name=upid)
        log.info("task %s started", upid)
        return upid

    def get(self, upid: str) -> TaskRecord:
        """Raises NotFound; InvalidInput when it is no UPID at all."""
        Upid.parse(upid)
        record = self._records.get(upid)
        if record is None:
            raise NotFound(f"there is no task {upid}", remedy="old tasks are forgotten; see 'kvorum task list'")
        return record

    def newest_first(self) -> list[TaskRecord]:
        """All that are remembered."""
        return sorted(self._records.values(), key=lambda record: (record.start_time_s, record.upid), reverse=True)

    def running(self, subject: str) -> list[TaskRecord]:
        """What works on `subject` now."""
        return [task.record for task in self._live.values() if task.record.id.subject == subject]

    async def wait(self, upid: str, *, timeout_s: float) -> TaskRecord:
        """The ended task. Raises Timeout when it still runs after `timeout_s`."""
        record = self.get(upid)
        task = self._live.get(upid)
        if task is None or task.work is None:
            return record
        await asyncio.wait([task.work], timeout=timeout_s)
        record = self.get(upid)
        if record.is_running:
            raise Timeout(f"task {upid} still runs after {timeout_s:g} s", remedy="wait longer, or cancel it")
        return record

    def cancel(self, upid: str) -> None:
        """Ask it to end and undo; returns at once. A task that has ended is left alone.

        Raises Refused when it has passed the point up to which it can be undone.
        """
        self.get(upid)
        task = self._live.get(upid)
        if task is None or task.work is None:
            return
        if task.is_committed:
            raise Refused(f"task {upid} can no longer be undone", remedy="wait until it ends")
        log.info("task %s is asked to end", upid)
        task.work.cancel()

    async def follow(self, upid: str, *, from_line: int = 1, is_live: bool = True) -> AsyncIterator[LogNews]:
        """Lines from `from_line` on; with `is_live`, then every new line and progress until the task has ended."""
        record = self.get(upid)
        number = max(from_line, 1)
        while True:
            task = self._live.get(upid)
            lines = task.lines if task is not None else await asyncio.to_thread(self._files.lines, upid)
            for text in lines[number - 1 :]:
                yield LogNews(number, text, self._records.get(upid, record))
                number += 1
            if task is None or not is_live:
                break
            if number > len(task.lines) and task.record.is_running:
                yield LogNews(0, "", task.record)
                if number > len(task.lines) and task.record.is_running:
                    await task.news()
            elif not task.record.is_running and number > len(task.lines):
                break
        yield LogNews(0, "", self._records.get(upid, record))

    async def recover(self, performers: Mapping[str, Performer], *, apart: Collection[str] = ()) -> None:
        """Undo what tasks of an agent that died have left, as their records say. Call once, when the node can work. Steps of
        the kinds `apart` are for `outlast`."""
        for record in self._left_behind():
            steps = [step for step in reversed(record.undo) if step.kind not in apart]
            for step in steps:
                await self._perform(record, step, performers.get(step.kind))
            self._undone(record.upid, {step.kind for step in steps})

    async def outlast(self, kind: str, performer: Performer) -> None:
        """As `recover`, for steps of one kind that may take for ever and must not be given up: all at the same time. Until its
        own has ended, a task is not over (`TaskRecord.is_over`), also for agents to come. `performer` must not raise."""

        async def one(record: TaskRecord, step: UndoStep) -> None:
            await performer(step.arguments)
            self._files.append(record.upid, [f"done after the agent's restart: {step}"])
            self._undone(record.upid, {kind})

        async with asyncio.TaskGroup() as group:
            for record in self._left_behind():
                for step in record.undo:
                    if step.kind == kind:
                        group.create_task(one(record, step))

    async def close(self, *, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """End what runs: what can be undone is, what is beyond that point gets `timeout_s` to end by itself."""
        self._is_closing = True
        works = []
        for task in list(self._live.values()):
            assert task.work is not None
            works.append(task.work)
            if not task.is_committed:
                task.work.cancel()
        if works:
            await asyncio.wait(works, timeout=timeout_s)

    async def _run(self, task: LiveTask, body: Body) -> None:
        state, error = TaskState.ok, ""
        try:
            await body(LiveHandle(task))
        except asyncio.CancelledError:
            state = TaskState.interrupted if self._is_closing else TaskState.cancelled
            error = "the agent was stopped" if self._is_closing else "cancelled by user"
        except KvorumError as problem:
            state, error = TaskState.failed, _sentence(problem)
        except Exception as problem:  # a bug in one task must not end the agent
            log.exception("task %s: unexpected error", task.record.upid)
            state, error = TaskState.failed, f"unexpected error: {problem or type(problem).__name__}"
        try:
            if state is not TaskState.ok:
                await self._roll_back(task)
        finally:
            task.end(state, error)
            self._live.pop(task.record.upid, None)
            self._prune()
            log.info("task %s ended: %s%s", task.record.upid, state, f" ({error})" if error else "")

    async def _roll_back(self, task: LiveTask) -> None:
        """To the end, even if somebody cancels again meanwhile: half an undo is worse than a late one."""
        rolling = asyncio.ensure_future(task.roll_back())
        while not rolling.done():
            try:
                await asyncio.shield(rolling)
            except asyncio.CancelledError:
                continue

    def _left_behind(self) -> list[TaskRecord]:
        return [record for record in self._records.values() if not record.is_running and not record.is_over]

    def _undone(self, upid: str, kinds: Collection[str]) -> None:
        record = self._records.get(upid)
        if record is not None:  # else it was among the oldest, and is forgotten
            self._records[upid] = record.undone(kinds)
            self._files.save(self._records[upid])

    async def _perform(self, record: TaskRecord, step: UndoStep, performer: Performer | None) -> None:
        if performer is None:
            self._files.append(record.upid, [f"left behind: {step}; nobody here can undo it"])
            log.warning("task %s: nobody can undo '%s'", record.upid, step)
            return
        try:
            async with asyncio.timeout(UNDO_TIMEOUT_S):
                await performer(step.arguments)
            self._files.append(record.upid, [f"undone after the agent's restart: {step}"])
        except Exception as error:  # the next step must still be tried
            log.warning("task %s: undo of '%s' failed: %s", record.upid, step, error)
            self._files.append(record.upid, [f"left behind: {step}: {error or type(error).__name__}"])

    def _interrupt(self, record: TaskRecord) -> None:
        ended = record.ended(TaskState.interrupted, now_s=time.time(), error="the agent ended while the task ran")
        self._files.append(record.upid, [last_line(ended.state, ended.error)])
        self._files.save(ended)
        self._records[record.upid] = ended
        log.warning("task %s: interrupted by the end of an earlier agent", record.upid)

    def _tick(self) -> int:
        """Hundredths of a second since boot, never the same twice: two tasks of one second need two names."""
        self._last_tick = max(self._last_tick + 1, int(time.clock_gettime(time.CLOCK_BOOTTIME) * 100))
        return self._last_tick

    def _changed(self, record: TaskRecord) -> None:
        self._records[record.upid] = record

    def _prune(self) -> None:
        for record in surplus(list(self._records.values()), keep=self._keep):
            self._files.remove(record.upid)
            del self._records[record.upid]


def _sentence(error: KvorumError) -> str:
    return f"{error.message}; {error.remedy}" if error.remedy else error.message
