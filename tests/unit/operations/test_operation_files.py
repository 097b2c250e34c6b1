"""A file of the store is changed at the version that was read, again when somebody was faster."""

import pytest
from unit.operations.operation_fakes import FakeStore

from agent.operations.files import TRIES, change, load
from kvorum.errors import InvalidInput, StaleVersion

PATH = "ha/some.cfg"


def _appended(content: bytes) -> tuple[int, bytes]:
    return len(content), content + b"x"


async def test_a_file_is_made_and_then_changed() -> None:
    store = FakeStore()
    assert await load(store, PATH) == (b"", 0)
    assert await change(store, PATH, _appended, reason="r") == (0, 1)
    assert await change(store, PATH, _appended, reason="r") == (1, 2)
    assert store.text(PATH) == "xx"


async def test_what_changes_nothing_or_is_only_tried_writes_nothing() -> None:
    store = FakeStore({PATH: "a"})
    assert await change(store, PATH, lambda content: ("same", content), reason="r") == ("same", 1)
    assert await change(store, PATH, _appended, reason="r", is_dry_run=True) == (1, 1)
    assert store.text(PATH) == "a"


async def test_who_was_slower_edits_what_the_faster_one_wrote() -> None:
    store = FakeStore({PATH: "a"})
    seen: list[bytes] = []

    def edit(content: bytes) -> tuple[None, bytes]:
        if not seen:
            store._put(PATH, b"b", placed=False)
        seen.append(content)
        return None, content + b"x"

    await change(store, PATH, edit, reason="r")
    assert seen == [b"a", b"b"] and store.text(PATH) == "bx"


async def test_who_is_always_slower_is_told_so() -> None:
    store = FakeStore({PATH: "a"})
    tries: list[bytes] = []

    def edit(content: bytes) -> tuple[None, bytes]:
        tries.append(content)
        store._put(PATH, b"b", placed=False)
        return None, content + b"x"

    with pytest.raises(StaleVersion, match="faster"):
        await change(store, PATH, edit, reason="r")
    assert len(tries) == TRIES and store.text(PATH) == "b"


async def test_a_refused_edit_writes_nothing() -> None:
    store = FakeStore({PATH: "a"})

    def edit(content: bytes) -> tuple[None, bytes]:
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        await change(store, PATH, edit, reason="r")
    assert store.text(PATH) == "a"
