"""What pysyncobj 0.3.17 loses on disk, each made to show; ours, with the same scenario, is named beside it or stands below."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pysyncobj.journal
import pytest
from pysyncobj.journal import FileJournal
from pysyncobj.serializer import Serializer
from stock_node import NO_OP, Stock, journal_of, no_ops

from clusterfs.raft.files import LocalFiles


def test_stock_c1_a_dump_newer_than_the_journal_clears_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The snapshot is on disk, the journal not trimmed yet, and the process dies between the two."""
    stock = Stock(monkeypatch, journalFile=journal_of(tmp_path), fullDumpFile=str(tmp_path / "dump"), useFork=False)
    (answer,) = stock.append("n2", 1, no_ops(2, 20), commit=10)
    assert (answer["next_node_idx"], answer["success"]) == (21, True), "all twenty are acknowledged"
    stock.raft.forceLogCompaction()
    stock.tick()
    assert (tmp_path / "dump").exists()
    stock.start()
    assert stock.last_index == 20, "the journal had them"
    stock.tick()
    assert stock.last_index == 10, "ten acknowledged entries are gone"


def test_stock_t6_a_crash_in_compaction_loses_the_tail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Crash(Exception): ...

    journal = FileJournal(journal_of(tmp_path))
    for index in range(1, 1001):
        journal.add(b"v%d" % index, index, 1)
    add, left = journal.add, iter(range(19))

    def add_some(command: bytes, index: int, term: int) -> None:
        if next(left, None) is None:
            raise Crash
        add(command, index, term)

    monkeypatch.setattr(journal, "add", add_some)
    with pytest.raises(Crash):
        journal.deleteEntriesTo(500)
    assert len(FileJournal(journal_of(tmp_path))) == 19


def test_stock_t7_a_vote_whose_file_is_empty_is_given_again(tmp_path: Path) -> None:
    """What a power loss leaves of a file that was renamed and never synced."""
    journal = FileJournal(journal_of(tmp_path))
    journal.setCurrentTerm(5, "n2")
    (tmp_path / "journal.meta").write_bytes(b"")
    again = FileJournal(journal_of(tmp_path))
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (0, None)


def test_stock_t8_a_torn_write_stops_the_start(tmp_path: Path) -> None:
    """The page with the length is on disk, one with data is not."""
    journal = FileJournal(journal_of(tmp_path))
    for index in range(1, 200):
        journal.add(b"x" * 100, index, 1)
    journal.flush()
    with (tmp_path / "journal").open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\0" * 4096)
    with pytest.raises(struct.error):
        FileJournal(journal_of(tmp_path))


def test_stock_a_flipped_bit_is_loaded_as_if_nothing_were(tmp_path: Path) -> None:
    journal = FileJournal(journal_of(tmp_path))
    journal.add(b"the truth", 1, 1)
    journal.flush()
    data = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(data.replace(b"the truth", b"the trutl"))
    assert FileJournal(journal_of(tmp_path))[0] == (b"the trutl", 1, 1)


def test_stock_nothing_is_synced_before_an_acknowledgement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    monkeypatch.setattr(pysyncobj.journal.ResizableFile, "flush", lambda _self: synced.append(-1))
    stock = Stock(monkeypatch, journalFile=journal_of(tmp_path))
    (answer,) = stock.append("n2", 1, no_ops(2, 20), commit=10)
    stock.tick(5.0)
    assert answer["success"] and synced == []


def test_stock_t10_a_damaged_snapshot_replaces_the_good_one_and_is_confirmed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dump = tmp_path / "dump"
    stock = Stock(monkeypatch, fullDumpFile=str(dump), useFork=False)
    stock.append("n2", 1, no_ops(2, 6), commit=6)
    stock.raft.forceLogCompaction()
    stock.tick()
    good = dump.read_bytes()
    answers = []
    for piece in ((b"no snapshot at all", True, False), (b"", False, True)):
        answers += stock.say("n2", type="append_entries", term=1, commit_index=50, serialized=piece)
    assert [answer["success"] for answer in answers] == [True]
    assert dump.read_bytes() != good


def test_stock_a_reconnect_leaves_a_hole_in_a_snapshot(tmp_path: Path) -> None:
    """The sender goes on from its own offset, whatever arrived."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(100)))
    target.write_bytes(b"the good one")
    sender, receiver = (Serializer(str(path), 10, False, None, None, None) for path in (source, target))
    is_done = False
    for number in range(20):
        piece = sender.getTransmissionData("n2")
        if number != 4:  # lost with the connection
            is_done = receiver.setTransmissionData(piece)
        if is_done:
            break
    assert target.read_bytes() == bytes(range(40)) + bytes(range(50, 100))


FILL = """
from pysyncobj.journal import FileJournal
journal = FileJournal("full/journal")
for index in range(1, 10_000):
    journal.add(b"x" * 4096, index, 1)
"""


def test_stock_a_full_disk_kills_the_process(tmp_path: Path) -> None:
    assert on_a_small_disk(FILL, tmp_path).returncode in (-7, 128 + 7), "SIGBUS"


OURS = """
from pathlib import Path
from clusterfs.raft.files import LocalFiles
from clusterfs.raft.journal import FileLog
from kvorum.errors import DiskFull
directory = LocalFiles(Path("full"))
log = FileLog(directory, uid="n1")
durable = 0
try:
    for index in range(1, 10_000):
        log.add(b"x" * 4096, index, 1)
        log.sync()
        durable = index
except DiskFull:
    print(durable)
log.abandon()
print(FileLog(directory, uid="n1").last_index)
"""


def test_on_a_full_disk_ours_says_so_and_what_was_synced_is_there(tmp_path: Path) -> None:
    done = on_a_small_disk(OURS, tmp_path)
    assert done.returncode == 0, done.stderr
    durable, found = map(int, done.stdout.split())
    assert durable > 500 and found in (durable, durable + 1), "what was being written when it was full may be whole"


def on_a_small_disk(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run it where `full` is a disk of 10 MiB; the mount namespace ends with the process, and the mount with it."""
    (directory / "full").mkdir()
    run = f'mount -t tmpfs -o size=10m none full && exec "{sys.executable}" -c "$0"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", run, program],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_stock_a_journal_ends_at_four_gibibytes(tmp_path: Path) -> None:
    """Offsets have 32 bits; a sparse file stands in for four gibibytes of entries."""
    journal = FileJournal(journal_of(tmp_path))
    journal._FileJournal__currentOffset = 2**32 - 64
    with pytest.raises(struct.error):
        journal.add(NO_OP * 100, 1, 1)


def test_ours_goes_on_beyond_four_gibibytes(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    file = files.create("segment")
    for at in (0, 2**32 - 2, 2**32 + 5):
        file.write(b"x%d" % at, at=at)
    file.datasync()
    assert file.read(2, at=0) == b"x0" and file.read(4, at=2**32 - 2) == b"x429" and file.size() > 2**32
    file.close()
