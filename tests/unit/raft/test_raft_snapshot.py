"""Snapshots and the log beside them: whenever the power fails, together they hold everything that was acknowledged."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sim_disk import SimDisk, SimFiles, Watcher

from clusterfs.raft import StorageDamaged
from clusterfs.raft.catchup import Receiving, Sending
from clusterfs.raft.core import reconcile
from clusterfs.raft.files import LocalFiles
from clusterfs.raft.journal import HINT_WAITS_S, FileLog
from clusterfs.raft.membership import Configuration
from clusterfs.raft.messages import SnapshotChunk
from clusterfs.raft.snapshot import Point, SnapshotStore
from clusterfs.raft.values import Address

MEMBERS = Configuration({"n1": Address("n1", 1)})


class Killed(BaseException):
    """The process ends here."""


def entry(index: int) -> bytes:
    return b"\x00entry %d " % index + b"padding " * 60


def chunks(index: int) -> list[bytes]:
    """A state that is the list of its entries."""
    return [entry(number) for number in range(1, index + 1)]


def received(tmp_path: Path) -> bytes:
    """A leader's snapshot at entry 40."""
    store = SnapshotStore(LocalFiles(tmp_path))
    store.write(Point(40, 2, MEMBERS), chunks(40))
    store.adopt_written()
    return (tmp_path / "snapshot").read_bytes()


def opened(disk: SimDisk, watch: Watcher) -> tuple[FileLog, SnapshotStore]:
    files = SimFiles(disk, watch)
    snapshots = SnapshotStore(files)
    return FileLog(files, uid="n1", segment_bytes=3000), snapshots


def life(disk: SimDisk, watch: Watcher, incoming: bytes, tell: Callable[[int], None]) -> None:
    """`tell` is told up to where everything is durable."""
    log, snapshots = opened(disk, watch)
    log.setCurrentTerm(1, "n1")
    for index in range(1, 21):
        log.add(entry(index), index, 1)
        log.sync()
        tell(index)
    log.setRaftCommitIndex(18)
    for _ in range(HINT_WAITS_S):
        log.onOneSecondTimer()
    for at in (8, 15):
        snapshots.write(Point(at, 1, MEMBERS), chunks(at))
        snapshots.adopt_written()
        log.compact(at - 2)
    log.setCurrentTerm(2, None)
    receiving = Receiving(snapshots.files)
    for offset in range(0, len(incoming), 5000):
        data = incoming[offset : offset + 5000]
        receiving.take(SnapshotChunk(2, 0, 0.0, 0.0, 40, 2, len(incoming), offset, data))
    snapshots.adopt_incoming(receiving.name, 40, 2)
    receiving.forget()
    log.restart(40, 2)
    tell(40)
    for index in range(41, 46):
        log.add(entry(index), index, 2)
        log.sync()
        tell(index)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("has_power", [False, True])
def test_log_and_snapshot_hold_everything_whenever_the_end_comes(tmp_path: Path, seed: int, *, has_power: bool) -> None:
    """C1, T10: between any two operations on the disk. A kill leaves what was written, a power failure what was synced."""
    incoming, luck = received(tmp_path), random.Random(seed)
    moment = 0
    while True:
        disk, left, told = SimDisk(), moment, 0

        def kill(_operation: str, _name: str, _is_done: bool) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        def tell(index: int) -> None:
            nonlocal told
            told = index

        try:
            life(disk, kill, incoming, tell)
        except Killed:
            pass
        else:
            break
        if not has_power:
            disk.lose_power(luck)
        log, snapshots = opened(disk, lambda _operation, _name, _is_done: None)
        point = reconcile(log, snapshots.current())
        assert not point.index or log.term_at(point.index) == point.term, "the log goes on where the snapshot ends"
        held = [*(snapshots.chunks() if point.index else ()), *(e[0] for e in log[point.index - log.base_index + 1 :])]
        assert held == [entry(number) for number in range(1, len(held) + 1)]
        assert len(held) >= told, f"ended at operation {moment}: {told} was acknowledged"
        moment += 1
    assert moment > 200


def test_a_transfer_that_loses_doubles_and_reorders_pieces_arrives_whole(tmp_path: Path) -> None:
    data, luck = received(tmp_path), random.Random(1)
    disk = SimDisk()
    files = SimFiles(disk, lambda _operation, _name, _is_done: None)
    sending = Sending(LocalFiles(tmp_path).open("snapshot"), Point(40, 2, MEMBERS))
    receiving = Receiving(files)
    now, under_way, is_whole = 0.0, [], False
    while not is_whole:
        now += 0.5
        under_way += sending.pieces(now, chunk_bytes=700, window_bytes=3000)
        luck.shuffle(under_way)
        while under_way and not is_whole:
            offset, piece = under_way.pop()
            if luck.random() < 0.2:
                continue
            if luck.random() < 0.2:
                under_way.append((offset, piece))
            chunk = SnapshotChunk(2, 0, now, 0.0, 40, 2, sending.size, offset, piece)
            held, again, is_whole = receiving.take(chunk)
            if luck.random() < 0.05:
                # The receiver is restarted.
                receiving = Receiving(files)
            sending.acknowledge(held, again=again, now=now)
        assert now < 1000
    assert SnapshotStore(files).adopt_incoming(f"snapshot.incoming-40-2-{len(data)}", 40, 2).index == 40
    assert bytes(disk.names["snapshot"].data) == data
    sending.close()


def test_a_snapshot_that_is_damaged_or_another_replaces_nothing(tmp_path: Path) -> None:
    data = bytearray(received(tmp_path))
    files = LocalFiles(tmp_path)
    store = SnapshotStore(files)
    data[len(data) // 2] ^= 1
    (tmp_path / "snapshot.incoming-50-2-9").write_bytes(data)
    with pytest.raises(StorageDamaged, match="checksum"):
        store.adopt_incoming("snapshot.incoming-50-2-9", 50, 2)
    (tmp_path / "snapshot.incoming-50-2-9").write_bytes((tmp_path / "snapshot").read_bytes())
    with pytest.raises(StorageDamaged, match="stands for 40"):
        store.adopt_incoming("snapshot.incoming-50-2-9", 50, 2)
    assert store.current() == Point(40, 2, MEMBERS)


def test_parts_of_a_snapshot_that_is_older_than_the_one_held_are_removed_at_the_start(tmp_path: Path) -> None:
    received(tmp_path)
    for name in ("snapshot.incoming-39-1-10", "snapshot.incoming-41-2-10", "snapshot.incoming-x"):
        (tmp_path / name).write_bytes(b"part")
    SnapshotStore(LocalFiles(tmp_path)).current()
    assert [path.name for path in tmp_path.glob("snapshot.incoming*")] == ["snapshot.incoming-41-2-10"]
