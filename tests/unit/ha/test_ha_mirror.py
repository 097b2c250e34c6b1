"""The mirror: listed once, then kept by what the watch tells."""

from typing import Any, cast

import pytest

from clusterfs.client import Listing, StoreClient
from ha.mirror import Mirror
from kvorum.errors import NotFound
from kvorum.v1 import store_pb2


def _entry(path: str, version: int) -> store_pb2.Entry:
    return store_pb2.Entry(path=path, content=b"x", version=version)


class FakeStore:
    """A tree of files; each top is listed at an index of its own."""

    def __init__(self, **tops: tuple[int, dict[str, int]]) -> None:
        self.tops = tops

    async def list(self, path: str, *, recursive: bool, with_content: bool) -> Listing:
        if path not in self.tops:
            raise NotFound(f"there is no {path}")
        index, files = self.tops[path]
        return Listing(tuple(_entry(f"{path}/{name}", version) for name, version in files.items()), index)

    async def get_at(self, path: str) -> store_pb2.GetEntryResponse:
        raise NotFound(f"there is no {path}")


async def _mirror(**tops: tuple[int, dict[str, int]]) -> tuple[Mirror, list[int]]:
    changes: list[int] = []
    mirror = Mirror(cast(StoreClient, FakeStore(**tops)), lambda: changes.append(1))
    await mirror.load()
    return mirror, changes


def _told(index: int, **change: Any) -> store_pb2.WatchEntriesResponse:
    return store_pb2.WatchEntriesResponse(index=index, **change)


async def test_a_listing_is_all_there_is_and_the_watch_goes_on_from_its_oldest_part() -> None:
    mirror, changes = await _mirror(ha=(40, {"resources.cfg": 12}), nodes=(42, {"n1/lxc/101.conf": 41}))
    assert sorted(mirror.files) == ["ha/resources.cfg", "nodes/n1/lxc/101.conf"]
    assert (mirror.index, mirror.revision, len(changes)) == (40, 1, 1)


async def test_what_a_listing_had_already_is_not_taken_back_by_the_watch() -> None:
    mirror, _ = await _mirror(ha=(40, {}), nodes=(42, {"n2/lxc/101.conf": 42}))
    before = dict(mirror.files)
    assert mirror.apply(
        _told(
            41,
            moved=store_pb2.WatchEntriesResponse.Move(
                path="nodes/n2/lxc/101.conf", entry=_entry("nodes/n1/lxc/101.conf", 41)
            ),
        )
    )
    assert mirror.apply(_told(41, deleted="nodes/n2"))
    assert mirror.files == before


@pytest.mark.parametrize(
    ("change", "files"),
    [
        ({"written": _entry("ha/rules.cfg", 43)}, ["ha/a", "ha/rules.cfg", "nodes/n1/x"]),
        ({"written": _entry("storage.cfg", 43)}, ["ha/a", "nodes/n1/x"]),
        ({"deleted": "nodes"}, ["ha/a"]),
        ({"deleted": "nodes/n"}, ["ha/a", "nodes/n1/x"]),
        (
            {"moved": store_pb2.WatchEntriesResponse.Move(path="nodes/n1/x", entry=_entry("nodes/n2/x", 43))},
            ["ha/a", "nodes/n2/x"],
        ),
        (
            {"moved": store_pb2.WatchEntriesResponse.Move(path="nodes/n1/x", entry=_entry("elsewhere/x", 43))},
            ["ha/a"],
        ),
        ({"bookmark": True}, ["ha/a", "nodes/n1/x"]),
    ],
)
async def test_a_change_is_taken_over_and_told_when_it_is_about_us(change: dict[str, Any], files: list[str]) -> None:
    mirror, changes = await _mirror(ha=(42, {"a": 1}), nodes=(42, {"n1/x": 2}))
    snapshot, revision = mirror.snapshot(), mirror.revision
    assert mirror.apply(_told(43, **change))
    assert sorted(mirror.files) == files
    is_news = files != ["ha/a", "nodes/n1/x"]
    assert (mirror.revision > revision, len(changes) > 1) == (is_news, is_news)
    assert (mirror.snapshot() is snapshot) is not is_news
    assert sorted(snapshot) == ["ha/a", "nodes/n1/x"], "what a round has read does not change under it"


async def test_a_directory_that_moves_means_to_list_anew() -> None:
    mirror, _ = await _mirror(ha=(42, {}), nodes=(42, {"n1/x": 2}))
    assert not mirror.apply(
        _told(43, moved=store_pb2.WatchEntriesResponse.Move(path="nodes/n1", entry=_entry("nodes/n9", 43)))
    )


async def test_an_older_listing_changes_nothing() -> None:
    mirror, _ = await _mirror(ha=(42, {"a": 1}))
    mirror._store = cast(StoreClient, FakeStore(ha=(41, {})))
    await mirror.load()
    assert sorted(mirror.files) == ["ha/a"]


async def test_a_removed_directory_ha_is_empty() -> None:
    mirror, _ = await _mirror(nodes=(42, {"n1/x": 2}))
    assert sorted(mirror.files) == ["nodes/n1/x"]
    assert mirror.index == 42
