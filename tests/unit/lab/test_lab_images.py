"""The builders of test guests."""

import tarfile
from pathlib import Path

import pytest

from kvorum.errors import CommandFailed
from lab.images import cache, container, micro
from lab.images.linux import compressed_kernel, module_order, parse_depends
from lab.images.newc import Archive


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name -> mode and content, read as the kernel does."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at += 110 + length + (-(110 + length) % 4)
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[at : at + size])
        at += size + (-size % 4)


def test_an_archive_holds_what_was_added_and_the_directories_above_it() -> None:
    archive = Archive()
    archive.file("a/b/c", b"12345", mode=0o755)
    archive.link("a/l", "b/c")
    archive.device("dev/console", 5, 1)
    found = entries(archive.finish())
    assert list(found) == ["a", "a/b", "a/b/c", "a/l", "dev", "dev/console"]
    assert found["a/b/c"] == (0o100755, b"12345")
    assert found["a/l"] == (0o120777, b"b/c")
    assert found["a"][0] == 0o040755


def test_modules_are_loaded_after_those_they_depend_on() -> None:
    depends = {"net": ("failover", "virtio"), "failover": ("base",), "base": (), "virtio": ()}
    order = module_order(("net", "builtin", "base"), depends)
    assert order == ["base", "failover", "virtio", "net"]


def test_a_modules_dependencies_are_read_from_its_modinfo() -> None:
    assert parse_depends(b"\0license=GPL\0depends=virtio-ring,virtio\0retpoline=Y\0") == ("virtio_ring", "virtio")
    assert parse_depends(b"\0depends=\0") == ()


def test_the_kernel_is_found_by_the_setup_header() -> None:
    header = bytearray(1024)
    payload = b"\x02\x21\x4c\x18" + b"kernel" + b"size"
    header[0x1F1] = 1
    header[0x248:0x24C] = (16).to_bytes(4, "little")
    header[0x24C:0x250] = len(payload).to_bytes(4, "little")
    image = bytes(header) + bytes(16) + payload
    assert compressed_kernel(image) == payload[:-4]


def test_another_compression_is_an_error_and_not_a_broken_guest() -> None:
    with pytest.raises(CommandFailed):
        compressed_kernel(bytes(2048))


def test_the_micro_guest_is_a_boot_sector_on_a_small_disk() -> None:
    disk = micro.build().read_bytes()
    assert len(disk) == micro.DISK_BYTES
    assert disk[510:512] == b"\x55\xaa"
    assert not any(disk[512:])


def test_the_container_template_can_be_unpacked_and_has_an_init(tmp_path: Path) -> None:
    with tarfile.open(container.build()) as archive:
        assert archive.getmember("sbin/init").mode == 0o755
        assert archive.getmember("etc/shadow").mode == 0o600
        archive.extractall(tmp_path, filter="tar")
    assert (tmp_path / "bin/sh").is_symlink()
    assert "READY" in (tmp_path / "sbin/init").read_text()


def test_an_image_is_built_once_for_the_same_sources(tmp_path: Path) -> None:
    built = []

    def build(directory: Path) -> None:
        built.append(directory)
        (directory / "image").write_text("x")

    first = cache.built(tmp_path / "thing-k1", build)
    again = cache.built(tmp_path / "thing-k1", build)
    other = cache.built(tmp_path / "thing-k2", build)
    assert first == again != other
    assert len(built) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise CommandFailed("no")

    with pytest.raises(CommandFailed):
        cache.built(tmp_path / "thing-k", build)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_somebody_else_finished_first_is_taken_from_them(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "image").write_text("mine")
        (tmp_path / "thing-k").mkdir()
        (tmp_path / "thing-k" / "image").write_text("theirs")

    place = cache.built(tmp_path / "thing-k", build)
    assert (place / "image").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [place]
