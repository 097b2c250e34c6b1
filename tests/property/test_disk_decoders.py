"""Whatever lies on the disk, it is read as a value or refused by the declared error, in memory that its size bounds."""

import hashlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterfs import seed, snapshot
from clusterfs.commands import VERSION, Envelope, Malformed, MemberPut, Move, Write, decode, encode
from clusterfs.machine import StoreMachine
from clusterfs.membership import Member
from clusterfs.raft import StorageDamaged, records, segments
from clusterfs.raft.entries import Entries
from clusterfs.raft.files import LocalFiles
from clusterfs.raft.journal import FileLog
from clusterfs.raft.membership import Configuration
from clusterfs.raft.records import Damaged
from clusterfs.raft.snapshot import NAME, Point, SnapshotStore, chunks_in, verify
from clusterfs.raft.values import Address
from kvorum.errors import ConfigError

UID = "11111111-1111-4111-8111-111111111111"
LONG = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Wound = Callable[[bytes], bytes]


def _flipped(at: float, bit: int) -> Wound:
    def wound(data: bytes) -> bytes:
        changed = bytearray(data)
        if changed:
            changed[int(at * len(changed))] ^= 1 << bit
        return bytes(changed)

    return wound


def _spliced(at: float, length: int, instead: bytes) -> Wound:
    def wound(data: bytes) -> bytes:
        start = int(at * len(data))
        return data[:start] + instead + data[start + length :]

    return wound


def _doubled(at: float, length: int) -> Wound:
    def wound(data: bytes) -> bytes:
        start = int(at * len(data))
        return data[: start + length] + data[start:]

    return wound


places = st.floats(0, 1, exclude_max=True)
wounds = st.lists(
    st.one_of(
        st.builds(_flipped, places, st.integers(0, 7)),
        st.builds(_spliced, places, st.integers(0, 400), st.binary(max_size=40)),
        st.builds(_doubled, places, st.integers(1, 200)),
        st.binary(max_size=200).map(lambda data: lambda _given: data),
    ),
    min_size=1,
    max_size=3,
)


def wounded(data: bytes, all_of_them: list[Wound]) -> bytes:
    for wound in all_of_them:
        data = wound(data)
    return data


def machine() -> StoreMachine:
    made = StoreMachine()
    ops = [
        MemberPut(UID, "n1", "10.0.0.1"),
        Write("a/b", b"x" * 50, parents=True),
        Write("a/c", b"y"),
        Write("a/c", b"z"),
        Move("a", "b"),
    ]
    for index, op in enumerate(ops, 1):
        made.apply(index, encode(Envelope(op, client="c", seq=index, reason="why", time_ms=index)))
    return made


STATE = b"".join(snapshot.encode(machine().state))


@LONG
@given(wounds=wounds, cut=st.integers(1, 100))
def test_a_state_decodes_or_is_no_snapshot(wounds: list[Wound], cut: int) -> None:
    data = wounded(STATE, wounds)
    try:
        state = snapshot.decode(data[start : start + cut] for start in range(0, len(data), cut))
    except snapshot.BadSnapshot:
        return
    assert list(snapshot.encode(state))


@LONG
@given(frames=st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(list(range(6)))), max_size=8))
def test_frames_in_any_order_are_a_state_or_no_snapshot(frames: list[bytes | int]) -> None:
    """Each whole by itself: what a checksum cannot tell."""
    good, at = [], 0
    while at < len(STATE):
        (length,) = struct.unpack_from(">I", STATE, at)
        good.append(STATE[at + 4 : at + 4 + length])
        at += 4 + length
    bodies = [good[frame % len(good)] if isinstance(frame, int) else frame for frame in frames]
    try:
        snapshot.decode(struct.pack(">I", len(body)) + body for body in bodies)
    except snapshot.BadSnapshot:
        return


@LONG
@given(wounds=wounds)
def test_a_snapshot_file_is_whole_or_damaged(tmp_path: Path, wounds: list[Wound]) -> None:
    files = LocalFiles(tmp_path)
    store = SnapshotStore(files)
    point = Point(7, 2, Configuration({UID: Address("10.0.0.1", 5405)}))
    store.write(point, [STATE])
    store.adopt_written()
    path = tmp_path / NAME
    good = path.read_bytes()
    path.write_bytes(wounded(good, wounds))
    try:
        found = store.current()
    except StorageDamaged:
        return
    assert found == point and path.read_bytes() == good


@LONG
@given(body=st.binary(max_size=200), lengths=st.lists(st.integers(0, 2**32 - 1), max_size=3))
def test_a_snapshot_file_with_a_good_checksum_over_nonsense_is_read_or_damaged(
    tmp_path: Path, body: bytes, lengths: list[int]
) -> None:
    data = b"KvRaftS1" + b"".join(struct.pack("<I", length) for length in lengths) + body
    (tmp_path / NAME).write_bytes(data + hashlib.sha256(data).digest())
    try:
        verify(LocalFiles(tmp_path), NAME)
        list(chunks_in(LocalFiles(tmp_path), NAME))
    except StorageDamaged:
        return


@LONG
@given(wounds=wounds, which=st.integers(0, 10))
def test_a_log_opens_with_what_was_written_or_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, wounds: list[Wound], which: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = FileLog(LocalFiles(directory), uid=UID, segment_bytes=400)
    log.setCurrentTerm(1, UID)
    for index in range(1, 21):
        log.add(b"\x00entry %d" % index, index, 1)
        log.sync()
    written = list(log[:])
    log.abandon()
    paths = sorted(directory.glob("log-*"))
    path = paths[which % len(paths)]
    path.write_bytes(wounded(path.read_bytes(), wounds))
    try:
        again = FileLog(LocalFiles(directory), uid=UID, segment_bytes=400)
    except StorageDamaged:
        return
    # Only the last segment may lack its end.
    held = list(again[:])
    assert held == written[: len(held)]
    assert path == paths[-1] or held == written
    again.abandon()


@LONG
@given(
    kinds=st.lists(st.tuples(st.sampled_from(list(records.Kind)), st.binary(max_size=70)), min_size=1, max_size=6),
    has_head=st.booleans(),
)
def test_a_segment_with_good_checksums_over_nonsense_is_read_or_damaged(
    tmp_path: Path, kinds: list[tuple[records.Kind, bytes]], has_head: bool
) -> None:
    head = [records.head(UID, records.Tail())] if has_head else []
    made = [*head, *(records.Record(kind, body) for kind, body in kinds)]
    (tmp_path / segments.name_of(1)).write_bytes(records.pack(made, 1))
    replay = segments.Replay(Entries())
    try:
        for segment in segments.read(LocalFiles(tmp_path)):
            replay.take_segment(segment, 0)
        replay.finish()
    except Damaged:
        return
    assert replay.entries.last_index >= replay.entries.base_index


@LONG
@given(wounds=wounds)
def test_a_seed_is_one_or_a_configuration_error(tmp_path: Path, wounds: list[Wound]) -> None:
    seed.save(seed.Seed(cluster_name="home", members=[Member(UID, "n1", "10.0.0.1", 1)], joining=False), tmp_path)
    path = tmp_path / seed.FILE
    path.write_bytes(wounded(path.read_bytes(), wounds))
    try:
        assert seed.load(tmp_path) is not None
    except ConfigError:
        return


HOSTILE = [
    b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
    b"\xdf\xff\xff\xff\xff",  # a map of as many
    b"\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
    b"\x91" * 5000,  # deep
    b"\x82\xa4type\xa5batch\xa7entries\xdd\x7f\xff\xff\xff",
    b"\x82\xa4type\xa4past\xa7changes\xdd\x7f\xff\xff\xff",
    b"\x81\xa1x" * 5000,
    b"\x83\xa5index\x01\xa4term\x01\xa7members\xdf\x7f\xff\xff\xff",
    b"\x81\xa7unknown" + b"\x91" * 5000,
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_lengths_that_lie_take_no_memory(tmp_path: Path, body: bytes) -> None:
    good_head = STATE[: 4 + struct.unpack_from(">I", STATE)[0]]
    header = b"KvRaftS1" + struct.pack("<I", len(body)) + body
    (tmp_path / NAME).write_bytes(header + hashlib.sha256(header).digest())
    long_chunk = b"KvRaftS1" + struct.pack("<I", 2**28) + body
    (tmp_path / "long").write_bytes(long_chunk + hashlib.sha256(long_chunk).digest())
    tracemalloc.start()
    try:
        with pytest.raises(snapshot.BadSnapshot):
            snapshot.decode([good_head, struct.pack(">I", len(body)) + body])
        with pytest.raises(snapshot.BadSnapshot):
            snapshot.decode([struct.pack(">I", 2**32 - 1), body])
        for name in (NAME, "long"):
            with pytest.raises(StorageDamaged):
                verify(LocalFiles(tmp_path), name)
        with pytest.raises(Malformed):
            decode(bytes([VERSION]) + body)
        (tmp_path / seed.FILE).write_bytes(b'{"unknown":' * 5000)
        with pytest.raises(ConfigError):
            seed.load(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
