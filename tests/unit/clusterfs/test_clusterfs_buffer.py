import pytest

from clusterfs.buffer import FileBuffer, TooBig
from clusterfs.rules import MAX_FILE_BYTES


def test_a_gap_is_filled_with_zero_bytes() -> None:
    buffer = FileBuffer(b"", base_version=1)
    buffer.write(b"Z", 3)
    assert buffer.seal() == b"\0\0\0Z"
    buffer.truncate(6)
    assert buffer.seal() == b"\0\0\0Z\0\0"
    buffer.truncate(2)
    assert buffer.seal() == b"\0\0"


@pytest.mark.parametrize("offset", [MAX_FILE_BYTES, 1 << 32, 1 << 40])
def test_an_edit_beyond_the_limit_is_refused_and_leaves_the_rest(offset: int) -> None:
    buffer = FileBuffer(b"abc", base_version=1)
    with pytest.raises(TooBig):
        buffer.write(b"Z", offset)
    with pytest.raises(TooBig):
        buffer.truncate(offset + 1)
    assert buffer.seal() == b"abc"
    buffer.write(b"Z", MAX_FILE_BYTES - 1)
    assert len(buffer.content) == MAX_FILE_BYTES


def test_of_an_edit_that_crosses_the_limit_the_part_that_fits_is_taken() -> None:
    buffer = FileBuffer(b"", base_version=1)
    assert buffer.write(b"x" * 10, MAX_FILE_BYTES - 4) == 4
    assert len(buffer.content) == MAX_FILE_BYTES


def test_appends_land_behind_what_others_appended_meanwhile() -> None:
    buffer = FileBuffer(b"a\n", base_version=1)
    buffer.write(b"b\n", None)
    buffer.write(b"c\n", None)
    assert buffer.on_top_of(b"a\nother\n") == b"a\nother\nb\nc\n"


def test_edits_are_done_again_on_the_version_that_came_between() -> None:
    buffer = FileBuffer(b"0123456789", base_version=1)
    buffer.write(b"AB", 0)
    buffer.write(b"CD", 2)
    buffer.truncate(8)
    assert buffer.on_top_of(b"zzzzzzzzzz") == b"ABCDzzzz"


def test_an_emptied_file_does_not_care_what_others_wrote() -> None:
    buffer = FileBuffer(b"old", base_version=1)
    buffer.empty()
    assert buffer.is_blank
    buffer.write(b"new", 0)
    assert not buffer.is_blank
    assert buffer.on_top_of(b"theirs") == b"new"


def test_what_is_written_during_a_commit_is_kept_for_the_next_and_done_once() -> None:
    buffer = FileBuffer(b"", base_version=1)
    buffer.write(b"a", None)
    content = buffer.seal()
    buffer.write(b"b", None)
    buffer.committed(content, 2)
    assert buffer.is_dirty
    assert buffer.on_top_of(b"a!") == b"a!b"
    buffer.committed(buffer.seal(), 3)
    assert not buffer.is_dirty
