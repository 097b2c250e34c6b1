import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from agent.tasks import TaskHandle, TaskRecord, TaskRunner, TaskState, UndoStep, Upid
from kvorum.errors import InvalidInput, NotFound, Refused, Timeout


async def ends_well(handle: TaskHandle) -> None:
    handle.progress(0.5, "halfway")
    handle.log("one\ntwo")


async def for_ever(handle: TaskHandle) -> None:
    handle.log("begun")
    await asyncio.Event().wait()


async def begun(runner: TaskRunner, upid: str) -> None:
    async for news in runner.follow(upid):
        if news.text == "begun":
            return


async def log_of(runner: TaskRunner, upid: str) -> list[str]:
    return [news.text async for news in runner.follow(upid) if news.number]


async def test_a_task_that_returns_is_ok_and_its_log_ends_as_in_proxmox_ve(tmp_path: Path) -> None:
    runner = TaskRunner("n1", tmp_path)
    upid = runner.start("qmstart", "100", "root@pam", ends_well)
    assert Upid.parse(upid).node == "n1"
    record = await runner.wait(upid, timeout_s=5)
    assert (record.state, record.progress, record.phase, record.error) == (TaskState.ok, 1.0, "halfway", "")
    assert await log_of(runner, upid) == ["halfway", "one", "two", "TASK OK"]


async def test_a_task_that_raises_fails_with_the_reason_and_the_remedy(tmp_path: Path) -> None:
    async def body(handle: TaskHandle) -> None:
        raise Refused("the guest runs", remedy="stop it first")

    runner = TaskRunner("n1", tmp_path)
    record = await runner.wait(runner.start("qmdestroy", "100", "root@pam", body), timeout_s=5)
    assert (record.state, record.error) == (TaskState.failed, "the guest runs; stop it first")


async def test_failure_undoes_in_reverse_order_even_when_a_step_fails(tmp_path: Path) -> None:
    undone: list[str] = []

    async def undo(name: str) -> None:
        undone.append(name)
        if name == "b":
            raise OSError("disk is gone")

    async def body(handle: TaskHandle) -> None:
        for name in "abc":
            handle.undo(lambda name=name: undo(name))
        raise Refused("no")

    runner = TaskRunner("n1", tmp_path)
    upid = runner.start("qmcreate", "100", "root@pam", body)
    await runner.wait(upid, timeout_s=5)
    assert undone == ["c", "b", "a"]
    assert any("disk is gone" in line for line in await log_of(runner, upid))


async def test_cancel_undoes_and_says_so(tmp_path: Path) -> None:
    undone: list[str] = []

    async def undo() -> None:
        await asyncio.sleep(0)
        undone.append("freed")

    async def body(handle: TaskHandle) -> None:
        handle.undo(undo)
        await for_ever(handle)

    runner = TaskRunner("n1", tmp_path)
    upid = runner.start("qmigrate", "100", "root@pam", body)
    await begun(runner, upid)
    runner.cancel(upid)
    runner.cancel(upid)
    record = await runner.wait(upid, timeout_s=5)
    assert (record.state, undone) == (TaskState.cancelled, ["freed"])
    runner.cancel(upid)
    assert runner.get(upid).state is TaskState.cancelled


async def test_a_second_cancel_does_not_stop_the_undo(tmp_path: Path) -> None:
    gate, undone = asyncio.Event(), []

    async def undo() -> None:
        await gate.wait()
        undone.append("freed")

    async def body(handle: TaskHandle) -> None:
        handle.undo(undo)
        await for_ever(handle)

    runner = TaskRunner("n1", tmp_path)
    upid = runner.start("qmigrate", "100", "root@pam", body)
    await begun(runner, upid)
    for _ in range(3):
        runner.cancel(upid)
        await asyncio.sleep(0.01)
    gate.set()
    assert (await runner.wait(upid, timeout_s=5)).state is TaskState.cancelled
    assert undone == ["freed"]


async def test_after_the_point_of_no_return_cancel_is_refused_and_nothing_is_undone(tmp_path: Path) -> None:
    undone: list[str] = []
    gate = asyncio.Event()

    async def undo() -> None:
        undone.append("freed")

    async def body(handle: TaskHandle) -> None:
        handle.undo(undo, UndoStep(kind="free", arguments={"volid": "local:1"}))
        handle.commit()
        handle.log("begun")
        await gate.wait()
        raise Refused("late trouble")

    runner = TaskRunner("n1", tmp_path)
    upid = runner.start("qmigrate", "100", "root@pam", body)
    await begun(runner, upid)
    with pytest.raises(Refused):
        runner.cancel(upid)
    gate.set()
    assert (await runner.wait(upid, timeout_s=5)).state is TaskState.failed
    assert undone == []


async def test_waiting_ends_at_the_deadline_and_leaves_the_task_running(tmp_path: Path) -> None:
    runner = TaskRunner("n1", tmp_path)
    upid = runner.start("qmstart", "100", "root@pam", for_ever)
    with pytest.raises(Timeout):
        await runner.wait(upid, timeout_s=0.01)
    assert [record.upid for record in runner.running("100")] == [upid]
    await runner.close()
    assert runner.get(upid).state is TaskState.interrupted


async def test_two_tasks_of_one_moment_have_two_names(tmp_path: Path) -> None:
    runner = TaskRunner("n1", tmp_path)
    upids = {runner.start("qmstart", "100", "root@pam", ends_well) for _ in range(50)}
    assert len(upids) == 50
    for upid in upids:
        await runner.wait(upid, timeout_s=5)


async def test_the_next_agent_marks_what_ran_as_interrupted_and_undoes_what_the_record_says(tmp_path: Path) -> None:
    record = TaskRecord(
        upid="UPID:n1:00000001:00000001:66AABBCC:qmcreate:100:root@pam:",
        start_time_s=1.0,
        undo=(
            UndoStep(kind="free", arguments={"volid": "a"}),
            UndoStep(kind="free", arguments={"volid": "b"}),
            UndoStep(kind="what", arguments={}),
        ),
    )
    (tmp_path / f"{record.upid}.json").write_bytes(msgspec.json.encode(record))
    (tmp_path / "UPID:n1:broken.json").write_bytes(b"{")
    runner = TaskRunner("n1", tmp_path)
    assert runner.get(record.upid).state is TaskState.interrupted

    freed: list[str] = []

    async def free(arguments: Mapping[str, str]) -> None:
        freed.append(arguments["volid"])

    await runner.recover({"free": free})
    assert freed == ["b", "a"]
    assert any("what" in line and "left behind" in line for line in await log_of(runner, record.upid))
    again = TaskRunner("n1", tmp_path)
    await again.recover({"free": free})
    assert freed == ["b", "a"]


def of_a_dead_agent(directory: Path, subject: str, *kinds: str) -> str:
    record = TaskRecord(
        upid=f"UPID:n1:00000001:00000001:66AABBCC:qmstart:{subject}:root@pam:",
        undo=tuple(UndoStep(kind=kind, arguments={"vmid": subject}) for kind in kinds),
    )
    (directory / f"{record.upid}.json").write_bytes(msgspec.json.encode(record))
    return record.upid


async def test_what_may_take_for_ever_keeps_its_own_task_from_being_over_and_nothing_else(tmp_path: Path) -> None:
    one, other = of_a_dead_agent(tmp_path, "100", "free", "late"), of_a_dead_agent(tmp_path, "101", "late")
    gates = {"100": asyncio.Event(), "101": asyncio.Event()}
    freed: list[str] = []

    async def free(arguments: Mapping[str, str]) -> None:
        freed.append(arguments["vmid"])

    async def late(arguments: Mapping[str, str]) -> None:
        await gates[arguments["vmid"]].wait()

    # The first agent dies anew before the start has ended: the next one knows of it still.
    await TaskRunner("n1", tmp_path).recover({"free": free}, apart={"late"})
    runner = TaskRunner("n1", tmp_path)
    await runner.recover({"free": free}, apart={"late"})
    assert freed == ["100"]
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(runner.outlast("late", late))
        await asyncio.sleep(0.01)
        assert [runner.get(upid).is_over for upid in (one, other)] == [False, False]
        gates["101"].set()
        while not runner.get(other).is_over:
            await asyncio.sleep(0.01)
        assert not runner.get(one).is_over
        gates["100"].set()
    assert runner.get(one).is_over and TaskRunner("n1", tmp_path).get(one).is_over


async def test_only_the_newest_ended_tasks_are_kept(tmp_path: Path) -> None:
    runner = TaskRunner("n1", tmp_path, keep=3)
    upids = []
    for _ in range(5):
        upids.append(runner.start("qmstart", "100", "root@pam", ends_well))
        await runner.wait(upids[-1], timeout_s=5)
    assert [record.upid for record in runner.newest_first()] == upids[:1:-1]
    assert len(list(tmp_path.glob("*.log"))) == 3
    with pytest.raises(NotFound):
        runner.get(upids[0])


async def test_followers_see_every_line_once_and_then_the_end(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def body(handle: TaskHandle) -> None:
        handle.log("begun")
        await gate.wait()
        for number in range(3):
            handle.log(f"line {number}")
            await asyncio.sleep(0)

    runner = TaskRunner("n1", tmp_path)
    upid = runner.start("qmstart", "100", "root@pam", body)
    await begun(runner, upid)
    following = asyncio.ensure_future(log_of(runner, upid))
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.wait_for(following, 5) == ["begun", "line 0", "line 1", "line 2", "TASK OK"]
    assert [n.number async for n in runner.follow(upid, from_line=4) if n.number] == [4, 5]


async def test_a_closing_runner_starts_nothing_new(tmp_path: Path) -> None:
    runner = TaskRunner("n1", tmp_path)
    await runner.close()
    with pytest.raises(Refused):
        runner.start("qmstart", "100", "root@pam", ends_well)


def test_a_name_that_is_no_upid_reaches_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        TaskRunner("n1", tmp_path).get("../../etc/passwd")
