"""What kvorum-ha keeps from one round to the next, and when it must not."""

import asyncio
from types import SimpleNamespace
from typing import Any

from ha import lrm
from ha.daemon import Rounds


async def never(*_arguments: object, **_options: object) -> None:
    await asyncio.Event().wait()


def of_epoch(number: int) -> Any:
    return SimpleNamespace(replica=SimpleNamespace(epoch=number))


async def test_a_recovered_cluster_is_read_anew_even_where_its_log_is_shorter() -> None:
    store: Any = SimpleNamespace(list=never)
    hands: Any = SimpleNamespace(starting=never)
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


class Starts:
    """The agent's, as the hands see them: each ends when it is told to."""

    def __init__(self, *sids: str) -> None:
        self.left = {sid: asyncio.Event() for sid in sids}

    async def starting(self) -> frozenset[str]:
        return frozenset(self.left)

    async def settle(self, sid: str) -> None:
        await self.left[sid].wait()


async def test_a_start_of_an_earlier_life_that_hangs_holds_up_its_own_guest_and_no_other() -> None:
    hands: Any = Starts("vm:100", "ct:101")
    store: Any = SimpleNamespace(list=never)
    rounds = Rounds(store, Any, hands, Any)  # type: ignore[arg-type]
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        settling = group.create_task(rounds._settle())
        while not rounds._is_settled:
            await asyncio.sleep(0)
        assert rounds._memory.busy == {"vm:100", "ct:101"}
        rounds._wake.clear()
        hands.left["ct:101"].set()
        await rounds._wake.wait()
        assert rounds._memory.busy == {"vm:100"}
        settling.cancel()


async def test_starts_of_before_a_recovery_of_the_cluster_are_the_next_lifes_to_look_for() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def starting() -> frozenset[str]:
        asked.set()
        await answer.wait()
        return frozenset({"vm:100"})

    hands: Any = SimpleNamespace(starting=starting)
    store: Any = SimpleNamespace(list=never)
    rounds = Rounds(store, Any, hands, Any)  # type: ignore[arg-type]
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        settling = group.create_task(rounds._settle())
        await asked.wait()
        rounds._memory = lrm.Memory(session="next")
        answer.set()
        await settling
    assert (rounds._memory.busy, rounds._is_settled) == (frozenset(), False)
