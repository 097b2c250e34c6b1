"""The manager's switching: once for each life, the first confirmation counts, and what the log is told."""

import asyncio
from collections.abc import Mapping

import msgspec
import pytest

from ha.fencing.agents import Outcome
from ha.fencing.config import FenceConfig, Method
from ha.fencing.fencer import STATUS_KEY, Fencer, Proof
from ha.fencing.plan import Candidate
from ha.leases import FAST, Lease
from kvorum.errors import KvorumError, StaleVersion, Unreachable

CONFIG = FenceConfig({"n1": (Method("slow", ()), Method("quick", ()))})
SILENT = {"n1": Candidate("n1", "u1", Lease(4, 9, False, 7.0, FAST.terms))}


class FakeStore:
    def __init__(self, *errors: KvorumError) -> None:
        self.errors = list(errors)
        self.fences: list[tuple[str, int, int, str]] = []
        self.lines: list[str] = []
        self.status: Mapping[str, bytes] = {}

    async def fence_lease(self, uid: str, incarnation: int, renewal: int, *, confirmed: str = "") -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.fences.append((uid, incarnation, renewal, confirmed))

    async def log_message(self, message: str, *, priority: int, tag: str) -> None:
        self.lines.append(message)

    async def set_status(self, values: Mapping[str, bytes]) -> None:
        self.status = values


class Switch:
    """By method: whether it confirms, and after how many turns of the loop."""

    def __init__(self, **confirms: bool) -> None:
        self.confirms = confirms
        self.asked: list[str] = []
        self.given_up: list[str] = []

    async def __call__(self, method: Method) -> Outcome:
        self.asked.append(method.name)
        try:
            if method.name == "slow":
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            self.given_up.append(method.name)
            raise
        is_off = self.confirms.get(method.name, False)
        return Outcome(method.name, is_off, "" if is_off else "it does not answer", 1.5)


def _fencer(store: FakeStore, switch: Switch, now: list[float] | None = None) -> Fencer:
    clock = now if now is not None else [100.0]
    return Fencer(store, switch, switch, clock=lambda: clock[0], wall=lambda: 1e9, _prove_at=float("inf"))


async def _look(fencer: Fencer, times: int = 1) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(times):
            fencer.look(SILENT, CONFIG, own="n3", members=3, group=group)
            await asyncio.sleep(0)


async def test_the_first_confirmation_counts_and_the_others_are_given_up() -> None:
    store, switch = FakeStore(), Switch(quick=True, slow=True)
    await _look(_fencer(store, switch), times=5)
    assert store.fences == [("u1", 4, 9, "quick")]
    assert sorted(switch.asked) == ["quick", "slow"], "each is asked once, however often the manager looks"
    assert switch.given_up == ["slow"]
    assert store.lines == ["n1 is off, confirmed by quick after 1.5 s"]


async def test_a_method_that_fails_leaves_it_to_the_others() -> None:
    store = FakeStore()
    await _look(_fencer(store, Switch(slow=True)))
    assert [fence[3] for fence in store.fences] == ["slow"]


async def test_without_any_confirmation_the_log_hears_nothing_and_it_is_tried_again_later() -> None:
    store, switch, now = FakeStore(), Switch(), [100.0]
    fencer = _fencer(store, switch, now)
    await _look(fencer, times=3)
    assert (store.fences, len(switch.asked)) == ([], 2)
    await _look(fencer)
    assert len(switch.asked) == 2
    now[0] += 10
    await _look(fencer)
    assert len(switch.asked) == 4


async def test_a_store_that_is_away_for_a_moment_hears_it_all_the_same() -> None:
    store = FakeStore(Unreachable("no answer"))
    await _look(_fencer(store, Switch(quick=True)))
    assert len(store.fences) == 1


async def test_a_node_that_was_switched_on_again_keeps_its_new_lease() -> None:
    store = FakeStore(StaleVersion("the lease went on"))
    await _look(_fencer(store, Switch(quick=True)))
    assert (store.fences, store.lines) == ([], [])


async def test_a_node_without_a_method_is_left_to_its_lease() -> None:
    store, switch = FakeStore(), Switch(quick=True)
    async with asyncio.TaskGroup() as group:
        _fencer(store, switch).look(SILENT, FenceConfig(), own="n3", members=3, group=group)
    assert switch.asked == []


@pytest.mark.parametrize("answers", [True, False])
async def test_the_self_test_remembers_when_a_method_last_answered(answers: bool) -> None:
    store, switch = FakeStore(), Switch(quick=True, slow=True)
    fencer = _fencer(store, switch)
    await fencer.prove_all(CONFIG)
    switch.confirms["quick"] = answers
    fencer.wall = lambda: 2e9
    await fencer.prove_all(CONFIG)
    shown = msgspec.json.decode(store.status[STATUS_KEY], type=list[Proof])
    quick = next(proof for proof in shown if proof.method == "quick")
    assert quick.proven_at == (2e9 if answers else 1e9)
    assert (quick.cause == "") is answers
    assert len(store.lines) == (0 if answers else 1)
