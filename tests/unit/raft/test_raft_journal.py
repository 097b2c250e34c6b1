"""The log's files: what was synced comes back whole, what was not is a prefix, and anything else is refused."""

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_files import FaultyFiles
from sim_disk import SimDisk, SimFiles, Watcher

from clusterfs.raft import StorageDamaged, segments
from clusterfs.raft.entries import Entries
from clusterfs.raft.files import Files, LocalFiles
from clusterfs.raft.journal import HINT_WAITS_S, FileLog, Log
from clusterfs.raft.messages import Entry
from kvorum.errors import DiskFull

SMALL = 600


def opened(where: Path | Files, *, segment_bytes: int = SMALL, memory_bytes: int = 200) -> FileLog:
    if isinstance(where, Path):
        where.mkdir(exist_ok=True)
    files = LocalFiles(where) if isinstance(where, Path) else where
    return FileLog(files, uid="n1", segment_bytes=segment_bytes, memory_bytes=memory_bytes)


def filled(where: Path | Files, count: int = 5, *, segment_bytes: int = 2**16) -> FileLog:
    """Entries 1..count, each synced by itself, and a vote."""
    log = opened(where, segment_bytes=segment_bytes)
    log.setCurrentTerm(3, "n2")
    for index in range(1, count + 1):
        log.add(b"\x00entry %d" % index, index, 3)
        log.sync()
    return log


def contents(log: Log) -> list[Entry]:
    return list(log[:])


def segment_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("log-*"))


def test_entries_term_and_vote_survive_a_crash_after_the_sync(tmp_path: Path) -> None:
    log = filled(tmp_path)
    before = contents(log)
    log.abandon()
    again = opened(tmp_path)
    assert contents(again) == before
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "n2")


def test_what_was_not_synced_is_not_there_after_a_crash(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.add(b"\x00late", 6, 3)
    log.abandon()
    assert opened(tmp_path).last_index == 5


def test_a_log_cut_at_any_byte_opens_with_a_prefix_and_goes_on(tmp_path: Path) -> None:
    log = filled(tmp_path / "whole", 4, segment_bytes=0)
    entries = contents(log)
    log.abandon()
    *sealed, _ = segment_files(tmp_path / "whole")
    assert len(sealed) == 5, "one batch in each"
    log = filled(tmp_path / "one", 4)
    log.abandon()
    (path,) = segment_files(tmp_path / "one")
    data = path.read_bytes().rstrip(b"\0")
    start = data.index(b"\x00entry 1")
    for end in range(start, len(data)):
        directory = tmp_path / "cut"
        directory.mkdir()
        (directory / path.name).write_bytes(data[:end])
        torn = opened(directory)
        assert contents(torn) == entries[: len(torn)]
        torn.add(b"\x00new", torn.last_index + 1, 4)
        torn.sync()
        torn.abandon()
        assert opened(directory)[-1][0] == b"\x00new"
        shutil.rmtree(directory)


def test_damage_in_the_middle_is_refused_with_the_path_and_a_remedy(tmp_path: Path) -> None:
    filled(tmp_path).abandon()
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"entry 2")] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageDamaged, match="damaged") as caught:
        opened(tmp_path)
    assert path.name in caught.value.message and str(tmp_path) in caught.value.message and caught.value.remedy
    assert path.read_bytes() == data, "a refused log is left as it is"


def test_damage_to_the_last_entry_is_refused_after_a_clean_stop(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"entry 5")] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageDamaged):
        opened(tmp_path)


def test_any_damage_to_a_sealed_segment_is_refused(tmp_path: Path) -> None:
    """Its last batch too, which in the last segment would be taken for torn."""
    filled(tmp_path, 40, segment_bytes=SMALL).abandon()
    sealed = segment_files(tmp_path)[1]
    good = sealed.read_bytes()
    end = len(good.rstrip(b"\0"))
    for at in (*range(0, end, 7), end - 1, end + 5):
        data = bytearray(good)
        data[at] ^= 0x10
        sealed.write_bytes(data)
        with pytest.raises(StorageDamaged, match=sealed.name):
            opened(tmp_path)
    sealed.write_bytes(good[: end - 3])
    with pytest.raises(StorageDamaged):
        opened(tmp_path)
    sealed.write_bytes(good)
    assert opened(tmp_path).last_index == 40


def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 40, segment_bytes=SMALL).abandon()
    first, second, *_ = segment_files(tmp_path)
    aside = tmp_path / "aside"
    for missing, why in ((second, "comes next"), (first, "begins after entry 0")):
        missing.rename(aside)
        with pytest.raises(StorageDamaged, match=why):
            opened(tmp_path)
        aside.rename(missing)
    assert opened(tmp_path).last_index == 40


def test_the_log_of_another_node_is_refused(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with pytest.raises(StorageDamaged, match="belongs to node n1"):
        FileLog(LocalFiles(tmp_path), uid="n9")


def test_a_log_of_one_file_and_an_empty_segment_are_no_fresh_log(tmp_path: Path) -> None:
    for name in ("log", segments.name_of(1), "log-1"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(StorageDamaged):
            opened(tmp_path)
        (tmp_path / name).unlink()


def test_a_truncation_survives_and_committed_entries_cannot_be_cut(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.setRaftCommitIndex(3)
    with pytest.raises(AssertionError):
        log.truncate(3)
    log.truncate(4)
    log.add(b"\x00other", 4, 5)
    log.sync()
    log.abandon()
    assert [entry[0] for entry in contents(opened(tmp_path))[1:]] == [
        b"\x00entry 1",
        b"\x00entry 2",
        b"\x00entry 3",
        b"\x00other",
    ]


def test_compaction_removes_whole_segments_and_writes_one_record(tmp_path: Path) -> None:
    """Nothing that is kept is written again: the leader would stand still meanwhile, and a crash could lose the tail."""
    files = FaultyFiles(tmp_path)
    log = filled(files, 60, segment_bytes=SMALL)
    log.setRaftCommitIndex(60)
    before = contents(log)
    files.done.clear()
    log.compact(40)
    assert [operation for operation, _ in files.done][:2] == ["write", "datasync"]
    assert {operation for operation, _ in files.done[2:]} == {"remove"}
    assert contents(log)[1:] == before[41:]
    log.abandon()
    again = opened(tmp_path)
    assert (again.base_index, again.last_index, again.getRaftCommitIndex()) == (40, 60, 40)
    assert again.term_at(40) == 3 and again.term_at(39) is None
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "n2")
    assert contents(again)[1:] == before[41:]


def test_a_log_whose_cut_entries_were_in_a_removed_segment_opens(tmp_path: Path) -> None:
    log = filled(tmp_path, 20, segment_bytes=300)
    log.setRaftCommitIndex(6)
    log.truncate(7)
    for index in range(7, 20):
        log.add(b"\x00other %d" % index, index, 4)
        log.sync()
    log.setRaftCommitIndex(19)
    for base in range(5, 19):
        log.compact(base)
        kept = contents(log)
        log.abandon()
        log = opened(tmp_path, segment_bytes=300)
        assert contents(log) == kept
        log.setRaftCommitIndex(19)


def test_old_entries_are_read_from_disk_and_checked(tmp_path: Path) -> None:
    log = filled(tmp_path, 100, segment_bytes=SMALL)
    assert log._entries.resident_bytes <= 200
    assert log.entries_from(3, count=2, size_bytes=10**6) == [(b"\x00entry 3", 3, 3), (b"\x00entry 4", 4, 3)]
    assert [entry[1] for entry in log.entries_from(90, count=100, size_bytes=25)] == [90, 91]
    assert len(log.entries_from(90, count=100, size_bytes=1)) == 1
    assert len(contents(log)) == 101
    path = segment_files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[data.index(b"entry 3")] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageDamaged, match="entry 3 "):
        log.entries_from(3, count=2, size_bytes=10**6)
    log.abandon()


def test_the_next_segment_is_allocated_beside_the_raft_thread(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path)
    waiting: list[Callable[[], None]] = []
    log = FileLog(files, uid="n1", segment_bytes=SMALL, spawn=waiting.append)
    index = 0
    for _ in range(30):
        while waiting:
            waiting.pop()()
        files.done.clear()
        index += 1
        log.add(b"\x00entry %d" % index, index, 1)
        log.sync()
        assert "allocate" not in [operation for operation, _ in files.done]
    assert len(segment_files(tmp_path)) > 2
    while len(segment_files(tmp_path)) < 6:
        index += 1
        log.add(b"\x00entry %d" % index, index, 1)
        log.sync()
    assert waiting, "without the thread's help it allocates itself"
    log.abandon()
    assert opened(tmp_path).last_index == index


class Killed(BaseException):
    """The process ends here."""


State = tuple[list[Entry], int, str | None]


def state(log: Log) -> State:
    return contents(log), log.getCurrentTerm(), log.getVotedForNodeId()


def life(log: FileLog, padding: bytes = b"") -> list[Callable[[], None]]:
    """Everything that happens to a log, in steps that are durable when they return."""

    def adds(first: int, last: int, term: int) -> list[Callable[[], None]]:
        def add(index: int) -> None:
            log.add(b"\x00entry %d of %d" % (index, term) + padding, index, term)
            log.sync()

        return [lambda index=index: add(index) for index in range(first, last + 1)]  # type: ignore[misc]

    def cut(index: int) -> None:
        log.truncate(index)
        log.add(b"\x00instead", index, 5)
        log.sync()

    return [
        lambda: log.setCurrentTerm(1, "n1"),
        *adds(1, 12, 1),
        lambda: log.setRaftCommitIndex(9),
        log.onOneSecondTimer,
        lambda: log.setCurrentTerm(5, None),
        lambda: cut(10),
        *adds(11, 15, 5),
        lambda: log.setCurrentTerm(5, "n3"),
        lambda: log.setRaftCommitIndex(14),
        lambda: log.compact(11),
        *adds(16, 24, 5),
        lambda: log.restart(30, 6),
        *adds(31, 40, 6),
        lambda: log.setRaftCommitIndex(38),
        lambda: log.compact(38),
        *adds(41, 44, 6),
    ]


def test_a_crash_anywhere_in_compaction_keeps_the_tail(tmp_path: Path) -> None:
    """T6, T8. The process is killed at each operation on the disk in turn, in a write also half way through."""
    moments = torn = 0
    while True:
        directory = tmp_path / str(moments)
        directory.mkdir()
        files = FaultyFiles(directory)
        left = moments

        def kill(operation: str, _name: str) -> None:
            nonlocal left, torn
            left -= 1
            if left < 0:
                torn += operation == "write"
                raise Killed

        files.before = kill
        seen: list[State] = [([(b"\x01", 0, 0)], 0, None)]
        try:
            log = opened(files, segment_bytes=400)
            for step in life(log):
                step()
                seen.append(state(log))
        except Killed:
            pass
        else:
            break
        files.before = lambda _operation, _name: None
        again = opened(directory, segment_bytes=400)
        reached = state(again)
        if reached != seen[-1]:
            # The step that was under way is done as a whole: the next life of it shows what that is.
            log = opened(tmp_path / f"{moments}-whole", segment_bytes=400)
            for step in life(log)[: len(seen)]:
                step()
            assert reached == state(log), f"killed at operation {moments}"
        again.add(b"\x00new", again.last_index + 1, 9)
        again.sync()
        again.abandon()
        assert opened(directory, segment_bytes=400)[-1][0] == b"\x00new"
        moments += 1
    assert moments > 120 and torn > 40


# Over several sectors, each of which may be lost.
PADDING = b"padding " * 100


def lived(disk: SimDisk, moment: int) -> list[State]:
    """The states that were durable before the end came, at an operation on the disk that is counted from the beginning."""
    left = moment

    def kill(_operation: str, _name: str, _is_done: bool) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    seen: list[State] = [([(b"\x01", 0, 0)], 0, None)]
    try:
        log = opened(SimFiles(disk, kill), segment_bytes=4000)
        for step in life(log, PADDING):
            step()
            seen.append(state(log))
    except Killed:
        pass
    return seen


def reopened(disk: SimDisk) -> FileLog:
    return opened(SimFiles(disk, lambda _operation, _name, _is_done: None), segment_bytes=4000)


@pytest.mark.parametrize("seed", range(4))
def test_a_power_failure_anywhere_keeps_what_was_durable(seed: int) -> None:
    """T7, T8. At each operation on the disk in turn, before it and after it, and again while the log is mended."""
    luck = random.Random(seed)
    whole = lived(SimDisk(), 10**9)
    torn = moment = 0
    while True:
        disk = SimDisk()
        seen = lived(disk, moment)
        if len(seen) == len(whole):
            break
        disk.lose_power(luck)
        again = moment + luck.randrange(8)
        with contextlib.suppress(Killed):
            opened(SimFiles(disk, _dying(again - moment)), segment_bytes=4000)
        disk.lose_power(luck)
        log = reopened(disk)
        assert state(log) in (whole[len(seen) - 1], whole[len(seen)]), f"power lost at operation {moment}"
        torn += state(log) == whole[len(seen) - 1]
        moment += 1
    assert moment > 250 and torn > 100


def _dying(left: int) -> Watcher:
    def kill(_operation: str, _name: str, _is_done: bool) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    return kill


@pytest.mark.parametrize("seed", range(3))
def test_what_is_written_after_a_kill_survives_a_power_failure_too(seed: int) -> None:
    """A killed process leaves what it had not synced yet; what the next one builds on it, or
    merely says to have, must not be lost with it."""
    luck = random.Random(seed)
    length = len(lived(SimDisk(), 10**9))
    moment = 0
    while True:
        disk = SimDisk()
        if len(lived(disk, moment)) == length:
            break
        log = reopened(disk)
        if luck.random() < 0.5:
            log.setCurrentTerm(20, "n2")
            log.add(b"\x00new" + PADDING, log.last_index + 1, 20)
            log.sync()
        expected = state(log)
        disk.lose_power(luck)
        assert state(reopened(disk)) == expected, f"killed at operation {moment}"
        moment += 1
    assert moment > 250


def test_after_a_failed_sync_the_log_never_says_again_that_something_is_durable(tmp_path: Path) -> None:
    is_broken = False

    def fail(operation: str, _name: str) -> None:
        if is_broken and operation == "datasync":
            raise OSError(5, "input/output error")

    files = FaultyFiles(tmp_path)
    files.before = fail
    log = opened(files)
    log.add(b"\x00a", 1, 1)
    is_broken = True
    with pytest.raises(OSError, match="input/output"):
        log.sync()
    is_broken = False
    with pytest.raises(OSError, match="failed before"):
        log.sync()
    with pytest.raises(OSError, match="failed before"):
        log.setRaftCommitIndex(1)


@pytest.mark.parametrize("operation", ["write", "create", "allocate"])
@pytest.mark.parametrize("code", [28, 122])
def test_a_full_disk_loses_nothing_and_passes(tmp_path: Path, operation: str, code: int) -> None:
    """ENOSPC, EDQUOT. The stock package's process dies of SIGBUS."""
    files = FaultyFiles(tmp_path)
    log = filled(files, 5, segment_bytes=SMALL)
    is_full = True

    def fail(done: str, _name: str) -> None:
        if is_full and done == operation:
            raise OSError(code, os.strerror(code))

    files.before = fail
    acknowledged = 5
    with pytest.raises(DiskFull, match="no space") as caught:
        while True:
            log.add(b"\x00entry %d" % (acknowledged + 1), acknowledged + 1, 3)
            log.sync()
            acknowledged += 1
    assert "free some" in caught.value.remedy
    for _ in range(3):
        with pytest.raises(DiskFull):
            log.setCurrentTerm(4, "n3")
    assert log.entries_from(2, count=1, size_bytes=100) == [(b"\x00entry 2", 2, 3)], "reads go on"
    shutil.copytree(tmp_path, tmp_path.parent / "crashed")
    crashed = opened(tmp_path.parent / "crashed")
    assert (crashed.last_index, crashed.getCurrentTerm()) == (acknowledged, 3), "nothing more was ever said"
    shutil.rmtree(tmp_path.parent / "crashed")
    is_full = False
    log.setCurrentTerm(4, "n3")
    log.abandon()
    again = opened(tmp_path)
    assert (again.last_index, again.getCurrentTerm(), again.getVotedForNodeId()) == (acknowledged + 1, 4, "n3")
    assert not (tmp_path / segments.SPARE).exists()


def committed_after_a_crash(log: FileLog, where: Path) -> int:
    log.abandon()
    return opened(where, segment_bytes=2**16).getRaftCommitIndex()


def test_what_is_committed_goes_to_the_disk_with_the_next_entries(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path)
    log = filled(files)
    log.setRaftCommitIndex(5)
    files.done.clear()
    for _ in range(HINT_WAITS_S - 1):
        log.onOneSecondTimer()
    assert files.done == []
    log.add(b"\x00entry 6", 6, 3)
    log.sync()
    assert [operation for operation, _ in files.done] == ["write", "datasync"]
    for _ in range(2 * HINT_WAITS_S):
        log.onOneSecondTimer()
    assert len(files.done) == 2
    assert committed_after_a_crash(log, tmp_path) == 5


def test_what_is_committed_goes_to_the_disk_by_itself_when_nothing_follows(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path)
    log = filled(files)
    log.setRaftCommitIndex(5)
    files.done.clear()
    for _ in range(3 * HINT_WAITS_S):
        log.onOneSecondTimer()
    assert [operation for operation, _ in files.done] == ["write", "datasync"]
    assert committed_after_a_crash(log, tmp_path) == 5


def test_a_busy_log_tells_what_is_committed_once_a_second(tmp_path: Path) -> None:
    log = filled(tmp_path)
    for index in range(6, 9):
        log.setRaftCommitIndex(index - 1)
        log.add(b"\x00entry %d" % index, index, 3)
        log.sync()
    assert log._stored_commit_index == 0
    log.onOneSecondTimer()
    log.add(b"\x00entry 9", 9, 3)
    log.sync()
    assert committed_after_a_crash(log, tmp_path) == 7


def test_a_vote_is_on_disk_before_it_is_answered_and_given_once_a_term(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path)
    log = opened(files)
    files.done.clear()
    log.setCurrentTerm(4, "n2")
    assert [operation for operation, _name in files.done] == ["write", "datasync"]
    with pytest.raises(AssertionError):
        log.setCurrentTerm(4, "n3")
    with pytest.raises(AssertionError):
        log.setCurrentTerm(3, None)


def test_a_commit_is_counted_only_when_the_entry_is_on_disk_here(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path)
    log = opened(files)
    files.done.clear()
    log.add(b"\x00a", 1, 1)
    log.setRaftCommitIndex(1)
    assert [operation for operation, _name in files.done] == ["write", "datasync"]


def test_places_beyond_4_gib_are_found(tmp_path: Path) -> None:
    """A log of many large segments: the place of an entry counts the bytes of all of them."""
    log = filled(tmp_path, 30, segment_bytes=SMALL)
    first = log._segments[0].start
    for segment in log._segments:
        segment.start += 5 * 2**32
    entries = log._entries
    for index in range(1, 31):
        place = entries.place_of(index)
        assert place is not None and place - first < 2**32
        entries.place(index, place + 5 * 2**32)
    assert [entry[0] for entry in log.entries_from(1, count=3, size_bytes=10**6)] == [
        b"\x00entry 1",
        b"\x00entry 2",
        b"\x00entry 3",
    ]
    assert isinstance(entries, Entries)


def test_a_long_group_is_written_in_several_batches_and_an_entry_may_exceed_a_segment(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=2**20, memory_bytes=2**20)
    for index in range(1, 13):
        log.add(bytes([index]) * 2**20, index, 1)
    log.add(b"\x0d" * (3 * 2**20), 13, 1)
    log.sync()
    assert log._entries.resident_bytes <= 3 * 2**20
    log.abandon()
    again = opened(tmp_path)
    assert [(command[0], len(command) >> 20) for command, _, _ in contents(again)[1:]] == [
        *((index, 1) for index in range(1, 13)),
        (13, 3),
    ]
