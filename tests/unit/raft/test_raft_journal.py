"""The log file: what was synced comes back whole, what was not is a prefix, and anything else is refused."""

import shutil
from pathlib import Path

import pytest
from faulty_files import FaultyFiles
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs.raft import StorageDamaged, records
from clusterfs.raft.files import Files, LocalFiles
from clusterfs.raft.journal import FileLog, Log
from clusterfs.raft.records import Damaged


def filled(directory: Path, count: int = 5, files: Files | None = None) -> FileLog:
    """Entries 1..count, each synced by itself, and a vote."""
    directory.mkdir(exist_ok=True)
    log = FileLog(files or LocalFiles(directory), uid="n1")
    log.setCurrentTerm(3, "n2")
    for index in range(1, count + 1):
        log.add(b"\x00entry %d" % index, index, 3)
        log.sync()
    return log


def contents(log: Log) -> list[tuple[bytes, int, int]]:
    return log[:]


def reopened(directory: Path) -> FileLog:
    return FileLog(LocalFiles(directory), uid="n1")


def test_entries_term_and_vote_survive_a_crash_after_the_sync(tmp_path: Path) -> None:
    log = filled(tmp_path)
    before = contents(log)
    log.abandon()
    again = reopened(tmp_path)
    assert contents(again) == before
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "n2")


def test_what_was_not_synced_is_not_there_after_a_crash(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.add(b"\x00late", 6, 3)
    log.abandon()
    assert reopened(tmp_path).last_index == 5


@settings(max_examples=120, deadline=None)
@given(
    batches=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=6),
    cut=st.floats(0, 1, exclude_max=True),
    garbage=st.binary(max_size=64),
)
def test_any_torn_end_leaves_a_prefix_of_whole_batches(batches: list[list[bytes]], cut: float, garbage: bytes) -> None:
    packed = [
        records.pack([records.entry(command, index, 1) for index, command in enumerate(batch, 1)], number)
        for number, batch in enumerate(batches, 1)
    ]
    whole = b"".join(packed[:-1])
    torn = packed[-1][: int(len(packed[-1]) * cut)] + garbage
    found, batch, end = records.read(whole + torn)
    expected = [records.entry(c, i, 1) for one in batches[:-1] for i, c in enumerate(one, 1)]
    assert (found, batch, end) == (expected, len(batches) - 1, len(whole))


@settings(max_examples=200, deadline=None)
@given(
    batches=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=3), min_size=2, max_size=5),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_before_a_whole_batch_is_refused(batches: list[list[bytes]], place: float, bit: int) -> None:
    packed = [
        records.pack([records.entry(command, index, 1) for index, command in enumerate(batch, 1)], number)
        for number, batch in enumerate(batches, 1)
    ]
    data = bytearray(b"".join(packed))
    data[int((len(data) - len(packed[-1])) * place)] ^= 1 << bit
    with pytest.raises(Damaged):
        records.read(bytes(data))


def test_a_log_cut_at_any_byte_opens_with_a_prefix_and_goes_on(tmp_path: Path) -> None:
    log = filled(tmp_path / "whole", 4)
    entries = contents(log)
    log.abandon()
    data = (tmp_path / "whole" / "log").read_bytes()
    start = data.index(b"\x00entry 1")
    for end in range(start, len(data)):
        directory = tmp_path / "cut"
        directory.mkdir()
        (directory / "log").write_bytes(data[:end])
        torn = reopened(directory)
        assert contents(torn) == entries[: len(torn)]
        torn.add(b"\x00new", torn.last_index + 1, 4)
        torn.sync()
        torn.abandon()
        assert reopened(directory)[-1][0] == b"\x00new"
        shutil.rmtree(directory)


def test_damage_in_the_middle_is_refused_with_the_path_and_a_remedy(tmp_path: Path) -> None:
    filled(tmp_path).abandon()
    path = tmp_path / "log"
    data = bytearray(path.read_bytes())
    data[data.index(b"entry 2")] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageDamaged, match="damaged") as caught:
        reopened(tmp_path)
    assert str(path) in caught.value.message and caught.value.remedy
    assert path.read_bytes() == data, "a refused log is left as it is"


def test_damage_to_the_last_entry_is_refused_after_a_clean_stop(tmp_path: Path) -> None:
    filled(tmp_path).close()
    path = tmp_path / "log"
    data = bytearray(path.read_bytes())
    data[data.index(b"entry 5")] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageDamaged):
        reopened(tmp_path)


def test_the_log_of_another_node_is_refused(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with pytest.raises(StorageDamaged, match="belongs to node n1"):
        FileLog(LocalFiles(tmp_path), uid="n9")


def test_an_empty_file_is_no_fresh_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(StorageDamaged):
        reopened(tmp_path)


def test_a_truncation_survives_and_committed_entries_cannot_be_cut(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.setRaftCommitIndex(3)
    with pytest.raises(AssertionError):
        log.truncate(3)
    log.truncate(4)
    log.add(b"\x00other", 4, 5)
    log.sync()
    log.abandon()
    assert [entry[0] for entry in reopened(tmp_path)[1:]] == [
        b"\x00entry 1",
        b"\x00entry 2",
        b"\x00entry 3",
        b"\x00other",
    ]


@pytest.mark.parametrize("failing", ["write", "datasync", "rename"])
def test_a_crash_anywhere_in_compaction_keeps_the_tail(tmp_path: Path, failing: str) -> None:
    files = FaultyFiles(tmp_path)
    log = filled(tmp_path, 50, files)
    log.setRaftCommitIndex(45)

    def fail(operation: str, _name: str) -> None:
        if operation == failing:
            raise OSError(28, "no space left on device")

    files.before = fail
    with pytest.raises(OSError, match="no space"):
        log.compact(40)
    log.abandon()
    again = reopened(tmp_path)
    assert (again.base_index, again.last_index) == (0, 50)
    again.setRaftCommitIndex(45)
    again.compact(40)
    again.abandon()
    compacted = reopened(tmp_path)
    assert (compacted.base_index, compacted.last_index, compacted.getRaftCommitIndex()) == (40, 50, 45)
    assert compacted.term_at(40) == 3 and compacted.term_at(39) is None
    assert (compacted.getCurrentTerm(), compacted.getVotedForNodeId()) == (3, "n2")


def test_after_a_failed_sync_the_log_never_says_again_that_something_is_durable(tmp_path: Path) -> None:
    is_broken = False

    def fail(operation: str, _name: str) -> None:
        if is_broken and operation == "datasync":
            raise OSError(5, "input/output error")

    files = FaultyFiles(tmp_path)
    files.before = fail
    log = FileLog(files, uid="n1")
    log.add(b"\x00a", 1, 1)
    is_broken = True
    with pytest.raises(OSError, match="input/output"):
        log.sync()
    is_broken = False
    with pytest.raises(OSError, match="failed before"):
        log.sync()
    with pytest.raises(OSError, match="failed before"):
        log.setRaftCommitIndex(1)


def test_a_vote_is_on_disk_before_it_is_answered_and_given_once_a_term(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path)
    log = FileLog(files, uid="n1")
    files.done.clear()
    log.setCurrentTerm(4, "n2")
    assert [operation for operation, _name in files.done] == ["write", "datasync"]
    with pytest.raises(AssertionError):
        log.setCurrentTerm(4, "n3")
    with pytest.raises(AssertionError):
        log.setCurrentTerm(3, None)


def test_a_commit_is_counted_only_when_the_entry_is_on_disk_here(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path)
    log = FileLog(files, uid="n1")
    files.done.clear()
    log.add(b"\x00a", 1, 1)
    log.setRaftCommitIndex(1)
    assert [operation for operation, _name in files.done] == ["write", "datasync"]
