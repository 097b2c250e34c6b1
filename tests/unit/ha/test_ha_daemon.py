"""What kvorum-ha keeps from one round to the next, and when it must not."""

import asyncio
from types import SimpleNamespace
from typing import Any

from ha.daemon import Rounds


async def never(*_arguments: object, **_options: object) -> None:
    await asyncio.Event().wait()


def of_epoch(number: int) -> Any:
    return SimpleNamespace(replica=SimpleNamespace(epoch=number))


async def test_a_recovered_cluster_is_read_anew_even_where_its_log_is_shorter() -> None:
    store: Any = SimpleNamespace(list=never)
    hands: Any = SimpleNamespace(settle=never)
    rounds = Rounds(store, Any, hands, Any)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        assert not rounds._is_of_another_epoch(of_epoch(0), group)
        mirror, session = rounds._mirror, rounds._memory.session
        mirror.index = 1000
        assert not rounds._is_of_another_epoch(of_epoch(0), group)
        assert rounds._mirror is mirror
        rounds._is_settled = True
        assert rounds._is_of_another_epoch(of_epoch(1 << 32 | 7), group)
        assert (rounds._mirror is mirror, rounds._mirror.index, rounds._is_settled) == (False, 0, False)
        assert rounds._memory.session != session
        first = rounds._mirroring
        assert rounds._is_of_another_epoch(of_epoch(2 << 32 | 9), group)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first is not None and first.cancelled(), "two mirrors would be asked for one answer"
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
