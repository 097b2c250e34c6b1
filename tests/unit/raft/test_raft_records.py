"""The log's bytes: what was whole once is refused when it is not any more, a torn end is not."""

import contextlib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clusterfs.raft import records
from clusterfs.raft.records import Damaged, Kind, Place, Record, Tail

Batches = list[list[bytes]]


def packed(batches: Batches, first: int = 1) -> list[bytes]:
    return [
        records.pack([records.entry(command, index, 1) for index, command in enumerate(batch, 1)], number)
        for number, batch in enumerate(batches, first)
    ]


@settings(max_examples=120, deadline=None)
@given(
    batches=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=6),
    cut=st.floats(0, 1, exclude_max=True),
    garbage=st.binary(max_size=64),
    zeros=st.integers(0, 100),
)
def test_any_torn_end_leaves_a_prefix_of_whole_batches(
    batches: Batches, cut: float, garbage: bytes, zeros: int
) -> None:
    parts = packed(batches, 7)
    whole = b"".join(parts[:-1])
    torn = parts[-1][: int(len(parts[-1]) * cut)] + garbage + bytes(zeros)
    assume(not torn.startswith(parts[-1]))
    found = records.read(whole + torn, 7)
    expected = [records.entry(c, i, 1) for one in batches[:-1] for i, c in enumerate(one, 1)]
    assert [record for record, _ in found.records] == expected
    assert (found.batch, found.end) == (6 + len(batches) - 1, len(whole))
    for record, offset in found.records:
        assert (whole + torn)[offset : offset + records.size(record)].endswith(record.body)


@settings(max_examples=200, deadline=None)
@given(
    batches=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=3), min_size=2, max_size=5),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_before_a_whole_batch_is_refused(batches: Batches, place: float, bit: int) -> None:
    parts = packed(batches)
    data = bytearray(b"".join(parts))
    data[int((len(data) - len(parts[-1])) * place)] ^= 1 << bit
    with pytest.raises(Damaged):
        records.read(bytes(data))


def test_a_record_of_a_kind_that_is_not_known_is_refused_and_not_skipped() -> None:
    unknown = Record(99, b"")  # type: ignore[arg-type]
    with pytest.raises(Damaged, match="newer version"):
        records.read(records.pack([unknown], 1))
    tail = bytearray(records.head("n1", Tail()).body)
    tail[0] = 2
    with pytest.raises(Damaged, match="format 2"):
        records.uid_and_tail(bytes(tail))


def test_nothing_in_the_log_has_32_bits_but_a_records_length_which_is_checked() -> None:
    """The stock package's offsets end at 4 GiB."""
    huge = 2**63
    tail = Tail(Place(huge, huge), Place(huge + 1, huge), huge, "n2", huge)
    assert records.uid_and_tail(records.head("n1", tail).body) == ("n1", tail)
    found = records.read(records.pack([records.entry(b"x", huge, huge)], huge), huge)
    assert found.batch == huge
    assert records.pair_and_rest(found.records[0][0].body) == (huge, huge, b"x")
    with pytest.raises(AssertionError, match="bytes"):
        records.pack([Record(Kind.entry, bytes(records.MAX_BODY + 1))], 1)


bodies = st.binary(max_size=80)


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.binary(max_size=300), st.builds(b"".join, st.lists(bodies))))
def test_any_bytes_are_a_log_or_damaged(data: bytes) -> None:
    try:
        found = records.read(data)
    except Damaged:
        return
    assert found.end <= len(data)


@settings(max_examples=400, deadline=None)
@given(made=st.lists(st.tuples(st.sampled_from(list(Kind)), bodies), max_size=8))
def test_any_records_with_good_checksums_are_followed_or_damaged(made: list[tuple[Kind, bytes]]) -> None:
    """Only a bug writes them; it must not become another bug's beginning."""
    tail = Tail()
    if made:
        for record, _ in records.read(records.pack([Record(*one) for one in made], 1)).records:
            with contextlib.suppress(Damaged):
                records.uid_and_tail(record.body)
            try:
                tail = records.after(tail, record)
            except Damaged:
                continue
            assert tail.commit_index <= tail.last.index
