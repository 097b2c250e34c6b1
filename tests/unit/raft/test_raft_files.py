"""Appends past the page cache: the same bytes as through it, and a sector of the disk where that would cost a page."""

import errno
import os
import random
from pathlib import Path

import pytest

from clusterfs.raft import files
from clusterfs.raft.files import LocalFile, LocalFiles


@pytest.fixture
def on_disk(request: pytest.FixtureRequest) -> Path:
    """A place whose file system has direct writes: not /tmp, which may be in memory."""
    directory = Path("/var/tmp") / f"kvorum-files-{os.getpid()}"
    directory.mkdir()
    request.addfinalizer(lambda: [*[path.unlink() for path in directory.iterdir()], directory.rmdir()])
    return directory


def written_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


@pytest.mark.parametrize("seed", range(5))
def test_appends_read_like_writes(on_disk: Path, seed: int) -> None:
    luck = random.Random(seed)
    file = LocalFiles(on_disk).create("log")
    file.allocate(2**18)
    expected, end = bytearray(), 0
    for _ in range(200):
        data = luck.randbytes(luck.choice((1, 24, 200, 511, 512, 513, 5000)))
        match luck.randrange(12):
            case 0:
                file.write(data, at=end)
            case 1:
                # A batch that did not come to be is taken back.
                file.append(data, at=end)
                file.truncate(end)
                continue
            case 2:
                file.close()
                file = LocalFiles(on_disk).open("log")
                file.append(data, at=end)
            case _:
                file.append(data, at=end)
        expected += data
        end = len(expected)
        file.datasync()
        if luck.random() < 0.2:
            assert file.read(end, at=0) == expected
    assert file.read(2**20, at=0).rstrip(b"\0") == expected.rstrip(b"\0")
    file.close()


def test_a_long_append_goes_through_the_page_cache_and_the_next_one_follows_it(on_disk: Path) -> None:
    file = LocalFiles(on_disk).create("log")
    parts = [b"a" * 100, b"b" * (files._DIRECT_BYTES + 1), b"c" * 100]
    end = 0
    for part in parts:
        file.append(part, at=end)
        end += len(part)
    assert file.read(end, at=0) == b"".join(parts)
    file.close()


def test_a_small_append_costs_sectors_not_pages(on_disk: Path) -> None:
    file = LocalFiles(on_disk).create("log")
    file.allocate(2**18)
    file.datasync()
    file.append(b"x", at=0)
    if file._direct is None or file._direct._sector != 512:
        pytest.fail(
            "/var/tmp is on a file system or a disk without sectors of 512 bytes: run this test on one that has them"
        )
    before = written_bytes()
    for number in range(100):
        file.append(b"x" * 300, at=1 + number * 300)
        file.datasync()
    assert written_bytes() - before <= 100 * 1024
    file.close()


def test_where_there_are_no_direct_writes_an_append_is_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_handle: int) -> None:
        raise OSError(errno.EINVAL, "invalid argument")

    monkeypatch.setattr(files, "_Direct", refused)
    file = LocalFile(tmp_path / "log", os.O_CREAT)
    file.append(b"one", at=0)
    file.append(b"two", at=3)
    assert file.read(10, at=0) == b"onetwo"
    file.close()


def test_a_disk_with_large_sectors_gets_large_sectors(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, sizes = os.pwrite, []

    def pwrite(handle: int, data: memoryview, at: int) -> int:
        if len(data) % 4096 or at % 4096:
            raise OSError(errno.EINVAL, "invalid argument")
        sizes.append(len(data))
        return really(handle, data, at)

    file = LocalFiles(on_disk).create("log")
    monkeypatch.setattr(os, "pwrite", pwrite)
    file.append(b"one", at=0)
    file.append(b"two", at=3)
    monkeypatch.undo()
    assert sizes == [4096, 4096]
    assert file.read(6, at=0) == b"onetwo"
    file.close()


def test_a_failing_disk_is_no_reason_to_try_the_page_cache(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(_handle: int, _data: memoryview, _at: int) -> int:
        raise OSError(errno.EIO, "input/output error")

    file = LocalFiles(on_disk).create("log")
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="input/output"):
        file.append(b"one", at=0)
    file.close()
