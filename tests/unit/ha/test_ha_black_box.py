"""The keeper's records on their way to the cluster log and to the other nodes."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from ha.black_box import STATUS_KEY, BlackBox, Shown
from ha.keeper.records import Record, append
from kvorum.errors import KvorumError, Unreachable


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.status: list[Shown] = []
        self.is_away = False

    async def log_message(self, message: str, *, priority: int, tag: str) -> None:
        if self.is_away:
            raise Unreachable("the config store of this node does not answer")
        self.lines.append(f"{priority} {tag} {message}")

    async def set_status(self, values: Mapping[str, bytes]) -> None:
        self.status.append(msgspec.json.decode(values[STATUS_KEY], type=Shown))


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


def _box(log: FakeLog, base: Path) -> BlackBox:
    return BlackBox(log, path=base / "records", posted=base / "posted", state=base / "state.json")


def _append(base: Path, kind: str) -> None:
    append(base / "records", Record(kind=kind, cause="why"))


async def test_each_record_is_posted_once_also_by_the_next_life(log: FakeLog, tmp_path: Path) -> None:
    _append(tmp_path, "killed")
    await _box(log, tmp_path).look()
    await _box(log, tmp_path).look()
    assert log.lines == ["4 kvorum-keeper killed: why"]
    _append(tmp_path, "gone")
    await _box(log, tmp_path).look()
    assert log.lines[1:] == ["5 kvorum-keeper gone: why"]


async def test_what_could_not_be_posted_is_posted_when_the_store_is_back(log: FakeLog, tmp_path: Path) -> None:
    _append(tmp_path, "reset")
    box = _box(log, tmp_path)
    log.is_away = True
    with pytest.raises(KvorumError):
        await box.look()
    log.is_away = False
    await box.look()
    assert log.lines == ["4 kvorum-keeper reset: why"]


async def test_the_status_is_told_when_it_changes_and_not_otherwise(log: FakeLog, tmp_path: Path) -> None:
    box = _box(log, tmp_path)
    await box.look()
    await box.look()
    assert [shown.phase for shown in log.status] == ["none"]
    for _ in range(30):
        _append(tmp_path, "paused")
    await box.look()
    assert [record.number for record in log.status[-1].records] == list(range(11, 31))


async def test_records_that_begin_anew_on_a_new_disk_are_posted_too(log: FakeLog, tmp_path: Path) -> None:
    (tmp_path / "posted").write_text("5000")
    _append(tmp_path, "killed")
    await _box(log, tmp_path).look()
    assert len(log.lines) == 1
