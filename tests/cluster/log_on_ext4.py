"""What `test_log_on_ext4` does, as a program: it runs in a mount namespace of its own.

Who else made a namespace meanwhile would hold a copy of the mount, and the file system would outlive its unmount, still dead.
"""

import random
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster.small_disk import SmallDisk, small_disk

from clusterfs.raft.files import LocalFile, LocalFiles
from clusterfs.raft.journal import FileLog
from clusterfs.raft.membership import Configuration
from clusterfs.raft.snapshot import Point, SnapshotStore
from clusterfs.raft.values import Address, StorageDamaged
from kvorum.errors import DiskFull

POINT = Configuration({"n1": Address("n1", 1)})


def command(index: int) -> bytes:
    return b"\x00entry %d " % index + bytes([index % 251]) * (index * 37 % 900)


def opened(path: Path) -> FileLog:
    return FileLog(LocalFiles(path), uid="n1", segment_bytes=2**16, memory_bytes=2**14)


@dataclass
class Writer:
    """Does what a replica does to its disk, as fast as it can, until the disk fails. `index` and `term` are acknowledged."""

    path: Path
    seed: int
    index: int = 0
    term: int = 0
    base: int = 0
    failure: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        log = opened(self.path)
        try:
            self._write(log)
        except OSError as error:
            self.failure = error
        finally:
            log.abandon()

    def _write(self, log: FileLog) -> None:
        luck = random.Random(self.seed)
        snapshots = SnapshotStore(LocalFiles(self.path))
        while True:
            for index in range(log.last_index + 1, log.last_index + 1 + luck.randint(1, 8)):
                log.add(command(index), index, log.getCurrentTerm())
            log.sync()
            self.index = log.last_index
            if luck.random() < 0.05:
                log.setCurrentTerm(log.getCurrentTerm() + 1, "n1")
                self.term = log.getCurrentTerm()
            if luck.random() < 0.03:
                log.setRaftCommitIndex(log.last_index)
                base = max(0, log.last_index - 20)
                snapshots.write(Point(base, log.term_at(base) or 0, POINT), [b"%d" % base])
                snapshots.adopt_written()
                log.compact(base)
                self.base = base


def one_life(disk: SmallDisk, seed: int) -> Writer:
    """Write until the power fails, and start again."""
    luck = random.Random(seed)
    before = opened(disk.path)
    writer = Writer(disk.path, seed, index=before.last_index, term=before.getCurrentTerm(), base=before.base_index)
    before.abandon()
    writer.start()
    goal = before.last_index + luck.randint(1, 400)
    end = time.monotonic() + 20
    while writer.index < goal and writer.failure is None and time.monotonic() < end:
        time.sleep(0.001)
    disk.fail_power()
    writer.thread.join(20)
    assert writer.failure is not None and writer.index >= goal, writer.failure
    disk.unmount()
    disk.mount()
    return writer


def through_the_page_cache() -> None:
    """As on a file system that knows no other way."""
    LocalFile.append = LocalFile.write  # type: ignore[method-assign]


def keeps_in_the_page_cache(tmp_path: Path) -> None:
    through_the_page_cache()
    keeps(tmp_path, lives=10)


def keeps(tmp_path: Path, lives: int = 25) -> None:
    """Everything acknowledged survives a power failure."""
    with small_disk(tmp_path / "one", size_mib=32) as disk:
        for seed in range(lives):
            writer = one_life(disk, seed)
            log = opened(disk.path)
            snapshot = SnapshotStore(LocalFiles(disk.path)).current()
            assert log.last_index >= writer.index, f"acknowledged {writer.index}, there is {log.last_index}"
            assert log.getCurrentTerm() >= writer.term
            assert log.base_index >= writer.base
            assert all(entry[0] == command(entry[1]) for entry in log[1:])
            assert snapshot is not None or not log.base_index
            assert snapshot is None or log.base_index <= snapshot.index <= log.last_index
            log.abandon()
        assert log.base_index > 0, "compaction took part"


def loses(tmp_path: Path) -> None:
    """A log that does not sync, as the stock package's, loses what it acknowledged: so `keeps` can fail. Past the page cache it
    would not here, for this disk has no cache of its own."""
    through_the_page_cache()
    with small_disk(tmp_path / "one", size_mib=32) as disk:
        opened(disk.path).close()
        LocalFile.datasync = lambda _file: None  # type: ignore[method-assign, assignment]
        writer = one_life(disk, 1)
        try:
            log = opened(disk.path)
        except StorageDamaged:
            # The end of one segment is lost, and the next one is there.
            return
        assert log.last_index < writer.index
        log.abandon()


def fills(tmp_path: Path) -> None:
    """A full disk takes back the batch, and it goes on when there is space."""
    with small_disk(tmp_path / "one", size_mib=8) as disk:
        log = opened(disk.path)
        ballast = disk.path / "ballast"
        _fill(ballast)
        acknowledged = 0
        with pytest.raises(DiskFull):
            while True:
                log.add(b"x" * 20_000, acknowledged + 1, 1)
                log.sync()
                acknowledged += 1
        with pytest.raises(DiskFull):
            log.setCurrentTerm(2, "n1")
        assert log.entries_from(1, count=1, size_bytes=10**6)[0][1] == 1
        copy = tmp_path / "copy"
        shutil.copytree(disk.path, copy, ignore=shutil.ignore_patterns("lost+found", "ballast"))
        crashed = opened(copy)
        assert (crashed.last_index, crashed.getCurrentTerm()) == (acknowledged, 0)
        crashed.abandon()
        ballast.unlink()
        log.sync()
        log.add(b"y", acknowledged + 2, 2)
        log.sync()
        log.abandon()
        again = opened(disk.path)
        assert (again.last_index, again.getCurrentTerm()) == (acknowledged + 2, 2)
        again.abandon()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(bytes(4096))


if __name__ == "__main__":
    lives = {"keeps": keeps, "keeps-in-cache": keeps_in_the_page_cache, "loses": loses, "fills": fills}
    lives[sys.argv[1]](Path(sys.argv[2]))
