"""The black box: what survives, what is bounded, and what nobody had the time to write."""

from pathlib import Path

import pytest

from ha.keeper import records
from ha.keeper.records import Record, Recorder, Renewal, append, missed_end, read, told


def _record(kind: str = "killed", **more: object) -> Record:
    return Record(kind=kind, cause="no renewal was answered", **more)  # type: ignore[arg-type]


def test_records_are_kept_in_order_with_numbers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "keeper" / "records"
    append(path, _record("paused"))
    append(path, _record("killed"))
    assert [(one.number, one.kind) for one in read(path)] == [(1, "paused"), (2, "killed")]


def test_a_line_that_a_reset_cut_short_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "records"
    append(path, _record())
    path.write_bytes(path.read_bytes() + b'{"kind": "res')
    assert [one.kind for one in read(path)] == ["killed"]
    append(path, _record("gone"))
    assert [one.kind for one in read(path)] == ["killed", "gone"]


def test_the_file_is_bounded_and_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINES", 10)
    path = tmp_path / "records"
    for _ in range(57):
        append(path, _record())
    found = read(path)
    assert len(found) <= 10
    assert found[-1].number == 57


def test_the_recorder_writes_beside_whoever_tells_it(tmp_path: Path) -> None:
    path = tmp_path / "records"
    recorder = Recorder(path, wall=lambda: 1e9)
    recorder.put(_record())
    assert not path.exists(), "before it was started nothing is written, and nobody waits"
    assert not recorder.flush(0.01)
    recorder.start()
    assert recorder.flush(10.0)
    (found,) = read(path)
    assert (found.time, found.number) == (1e9, 1)


def test_a_disk_that_refuses_loses_the_record_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    recorder = Recorder(tmp_path / "file" / "records")
    recorder.start()
    recorder.put(_record())
    assert recorder.flush(10.0)


@pytest.mark.parametrize(
    ("kinds", "boot", "is_missed"),
    [
        ((), "b", False),
        (("armed",), "b", True),
        (("armed",), "a", False),
        (("armed", "disarmed"), "b", False),
        (("armed", "killed", "reset"), "b", False),
        (("armed", "paused", "resumed"), "b", True),
        (("armed", "ended"), "b", False),
    ],
)
def test_a_host_that_ended_without_a_word_is_noticed_at_its_next_boot(
    kinds: tuple[str, ...], boot: str, is_missed: bool
) -> None:
    known = [_record(kind, boot_id="a", guests=("vm:100",)) for kind in kinds]
    found = missed_end(known, boot, uid="u", boot_status="its watchdog reset it")
    assert (found is not None) is is_missed
    if found is not None:
        assert "its watchdog reset it" in found.cause
        assert found.guests == ("vm:100",)


def test_a_record_tells_people_what_is_known_of_the_cause() -> None:
    record = _record(
        age_s={"store": 4.51},
        renewals=(Renewal(3.0, 0.1), Renewal(2.0, 0.8, "timeout: no answer")),
        late_s=2.4,
        late_ago_s=3.0,
        left=("vm:100 (pid 4711)",),
        pressure=("io: some avg10=87.20 avg60=1.00 total=5", "cpu: some avg10=0.00"),
    )
    assert told(record) == (
        "killed: no renewal was answered; age of the lease: store 4.5 s; "
        "1 of the last 2 renewals failed, the last with timeout: no answer; the keeper itself was 2.4 s late 3 s before; "
        "still there: vm:100 (pid 4711); processes waited for io 87 % of the time"
    )
    assert told(_record()) == "killed: no renewal was answered"
