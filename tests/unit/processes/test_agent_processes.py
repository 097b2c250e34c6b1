"""Programs are run with a deadline, and end with whoever asked for them."""

import asyncio
import time
from pathlib import Path

import pytest

from agent.processes import last_line, run, run_blocking
from kvorum.errors import CommandFailed, Timeout


async def test_output_and_status_are_handed_back() -> None:
    done = await run(["sh", "-c", "cat; echo said >&2"], timeout_s=10, input=b"given")
    assert (done.returncode, done.stdout, done.stderr, done.text) == (0, b"given", b"said\n", "given")
    assert (await run(["sh", "-c", "exit 3"], timeout_s=10, ok_codes=(0, 3))).returncode == 3
    assert run_blocking(["cat"], timeout_s=10, input=b"given").text == "given"


async def test_an_open_file_can_be_the_input(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from a file")
    with (tmp_path / "in").open("rb") as stream:
        assert (await run(["cat"], timeout_s=10, input=stream)).text == "from a file"


async def test_a_program_gets_no_terminal_and_speaks_english() -> None:
    assert (await run(["sh", "-c", "cat; echo $LC_ALL $MORE"], timeout_s=10, env={"MORE": "x"})).text == "C x\n"


async def test_a_failure_says_the_programs_last_words() -> None:
    with pytest.raises(CommandFailed, match=r"^sh: at last \(exit status 2\)$") as caught:
        await run(["sh", "-c", "echo first >&2; echo at last >&2; echo >&2; exit 2"], timeout_s=10, remedy="do this")
    assert caught.value.remedy == "do this"
    assert caught.value.details["stderr"] == "first\nat last"
    with pytest.raises(CommandFailed, match="killed by SIGTERM"):
        run_blocking(["sh", "-c", "kill -TERM $$"], timeout_s=10)


async def test_a_program_that_is_not_installed_is_named() -> None:
    for_both = "cannot run no-such-program: No such file"
    with pytest.raises(CommandFailed, match=for_both):
        await run(["no-such-program"], timeout_s=10)
    with pytest.raises(CommandFailed, match=for_both) as caught:
        run_blocking(["no-such-program"], timeout_s=10)
    assert "install" in caught.value.remedy


LONG_WITH_HELPER = 'sleep 60 & echo $! >"$0"; wait'


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def helper_pid(path: Path) -> int:
    for _ in range(500):
        if path.exists() and path.read_text().endswith("\n"):
            return int(path.read_text())
        await asyncio.sleep(0.01)
    raise AssertionError("the program did not start")


async def all_gone(pid: int) -> bool:
    for _ in range(500):
        if is_gone(pid):
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_late_program_is_killed_with_its_helpers(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Timeout, match="did not end within"):
        await run(["sh", "-c", LONG_WITH_HELPER, str(tmp_path / "pid")], timeout_s=0.5)
    assert time.monotonic() - began < 10
    assert await all_gone(await helper_pid(tmp_path / "pid"))
    with pytest.raises(Timeout):
        run_blocking(["sh", "-c", LONG_WITH_HELPER, str(tmp_path / "pid2")], timeout_s=0.5)
    assert await all_gone(await helper_pid(tmp_path / "pid2"))


async def test_a_program_ends_with_the_task_that_waits_for_it(tmp_path: Path) -> None:
    work = asyncio.ensure_future(run(["sh", "-c", LONG_WITH_HELPER, str(tmp_path / "pid")], timeout_s=60))
    helper = await helper_pid(tmp_path / "pid")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await all_gone(helper)


def test_the_last_line_that_says_anything_is_found() -> None:
    assert last_line(b"one\n two \n\n \n") == "two"
    assert last_line(b"") == ""
    assert last_line(b"\xff") == "�"
