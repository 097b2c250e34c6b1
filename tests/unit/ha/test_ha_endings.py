"""The end of a process is told by the kernel, at once and once."""

import asyncio
import sys
from pathlib import Path

from ha.endings import Endings
from ha.keeper.processes import Found, read_stat


async def _sleeper() -> tuple[asyncio.subprocess.Process, Found]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    stat = read_stat(process.pid)
    assert stat is not None
    return process, Found(process.pid, "vm:100", stat[1], stat[0])


async def test_the_end_of_a_watched_process_is_told() -> None:
    ended = asyncio.Event()
    endings = Endings(ended.set)
    process, found = await _sleeper()
    endings.watch([found])
    endings.watch([found])
    assert not ended.is_set()
    process.kill()
    async with asyncio.timeout(10):
        await ended.wait()
    await process.wait()
    endings.close()


async def test_a_process_that_is_gone_already_is_told_too_and_nothing_is_left_open() -> None:
    ended = asyncio.Event()
    endings = Endings(ended.set)
    process, found = await _sleeper()
    process.kill()
    await process.wait()
    before = len(list(Path("/proc/self/fd").iterdir()))
    endings.watch([found])
    assert ended.is_set()
    other, there = await _sleeper()
    endings.watch([there])
    endings.watch([])
    other.kill()
    await other.wait()
    endings.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
