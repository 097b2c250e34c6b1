"""Volumes on a real directory, with the real qemu-img."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agent.storage import Content, Storages, images
from agent.storage.naming import ImageFormat
from kvorum.config.sizes import GIB, MIB
from kvorum.errors import (
    AlreadyExists,
    CommandFailed,
    ConfigError,
    InvalidInput,
    KvorumError,
    NotFound,
    Refused,
    Unreachable,
    Unsupported,
)
from kvorum.ids import NodeName, Vmid, Volid

VM, CT = Vmid(100), Vmid(101)


def config(root: Path, more: str = "") -> str:
    return f"dir: local\n\tpath {root}\n\tcontent images,rootdir,vztmpl,iso\n{more}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "vz"


@pytest.fixture
def storages(root: Path) -> Storages:
    return Storages.parse(config(root), NodeName("n1"))


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_an_image_is_made_measured_grown_and_removed(storages: Storages, root: Path, image_format: str) -> None:
    volid = await storages.allocate("local", VM, 8 * MIB, image_format)
    assert volid == f"local:100/vm-100-disk-0.{image_format}"
    assert storages.path(volid) == root / f"images/100/vm-100-disk-0.{image_format}"
    assert storages.format(volid) == image_format
    assert not storages.is_shared(volid)
    assert await storages.size(volid) == 8 * MIB
    told = await images.info(storages.path(volid), ImageFormat(image_format))
    assert (told.virtual_size, told.format) == (8 * MIB, image_format)
    await storages.resize(volid, 16 * MIB)
    assert await storages.size(volid) == 16 * MIB
    with pytest.raises(Refused, match="cannot shrink"):
        await storages.resize(volid, 8 * MIB)
    await storages.free(volid)
    await storages.free(volid)
    assert not (root / "images/100").exists()


async def test_a_large_image_takes_hardly_any_space(storages: Storages) -> None:
    volid = await storages.allocate("local", VM, 10 * GIB, "qcow2")
    (found,) = await storages.list("local", "images")
    assert (found.volid, found.size_bytes, found.vmid) == (volid, 10 * GIB, VM)
    assert found.used_bytes < 8 * MIB


async def test_a_container_gets_a_directory(storages: Storages, root: Path) -> None:
    volid = await storages.allocate("local", CT, GIB, "subvol", kind="rootdir")
    assert volid == "local:101/subvol-101-disk-0.subvol"
    path = storages.path(volid)
    assert path.is_dir()
    (path / "etc").mkdir()
    (path / "etc/secret").write_text("x")
    assert await storages.size(volid) == 0
    assert [volume.volid for volume in await storages.list("local", "rootdir")] == [volid]
    assert await storages.list("local", "images") == []
    await storages.free(volid)
    assert not path.exists()


async def test_an_image_for_a_container_has_a_file_system(storages: Storages) -> None:
    volid = await storages.allocate("local", CT, 8 * MIB, "raw", kind="rootdir")
    assert volid == "local:101/vm-101-disk-0.raw"
    with storages.path(volid).open("rb") as stream:
        # The magic number of an ext4 superblock.
        assert stream.seek(0x438) and stream.read(2) == b"\x53\xef"
    for content in ("images", "rootdir", None):
        assert [volume.volid for volume in await storages.list("local", content)] == [volid]


async def test_the_lowest_free_number_is_taken_over_all_formats(storages: Storages) -> None:
    first = await storages.allocate("local", VM, MIB, "raw")
    second = await storages.allocate("local", VM, MIB, "qcow2")
    third = await storages.allocate("local", VM, MIB, "raw")
    await storages.free(second)
    again = await storages.allocate("local", VM, MIB, "raw")
    assert [first[-5:], second[-7:], third[-5:], again[-5:]] == ["0.raw", "1.qcow2", "2.raw", "1.raw"]


async def test_volumes_made_at_once_get_different_numbers(root: Path) -> None:
    """Each from its own reading of storage.cfg, as separate calls have it."""
    formats = ["raw", "qcow2"] * 5
    made = await asyncio.gather(
        *(Storages.parse(config(root)).allocate("local", VM, MIB, image_format) for image_format in formats)
    )
    numbers = {volid.partition("disk-")[2].partition(".")[0] for volid in made}
    assert numbers == {str(number) for number in range(10)}


async def test_a_given_name_is_taken_or_refused(storages: Storages) -> None:
    volid = await storages.allocate("local", VM, MIB, "raw", name="100/vm-100-disk-5.raw")
    assert volid == "local:100/vm-100-disk-5.raw"
    with pytest.raises(AlreadyExists):
        await storages.allocate("local", VM, MIB, "raw", name="100/vm-100-disk-5.raw")
    for name in ("101/vm-101-disk-0.raw", "100/vm-100-disk-0.qcow2", "iso/x.iso"):
        with pytest.raises(InvalidInput):
            await storages.allocate("local", VM, MIB, "raw", name=name)


async def test_templates_and_images_of_discs_are_found_and_others_left_out(storages: Storages, root: Path) -> None:
    for name in (
        "template/cache/busybox.tar.gz",
        "template/cache/README",
        "template/iso/debian.iso",
        "images/100/x.raw",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    assert storages.path(Volid("local:vztmpl/busybox.tar.gz")) == root / "template/cache/busybox.tar.gz"
    found = await storages.list("local")
    assert [(volume.volid, volume.size_bytes) for volume in found] == [
        ("local:iso/debian.iso", 5),
        ("local:vztmpl/busybox.tar.gz", 5),
    ]
    assert storages.content(Volid("local:iso/debian.iso")) is Content.iso


async def test_a_volume_that_is_a_link_is_removed_and_what_it_points_to_stays(storages: Storages, root: Path) -> None:
    victim = root.parent / "victim"
    victim.mkdir()
    (victim / "keep").write_text("x")
    (root / "images/101").mkdir(parents=True)
    link = root / "images/101/subvol-101-disk-0.subvol"
    link.symlink_to(victim)
    assert await storages.list("local", "rootdir") == []
    await storages.free(Volid("local:101/subvol-101-disk-0.subvol"))
    assert not link.is_symlink()
    assert (victim / "keep").exists()


async def test_links_in_a_container_are_not_followed_when_it_is_removed(storages: Storages, root: Path) -> None:
    victim = root.parent / "victim"
    victim.mkdir()
    (victim / "keep").write_text("x")
    volid = await storages.allocate("local", CT, 0, "subvol", kind="rootdir")
    (storages.path(volid) / "etc").symlink_to(victim)
    await storages.free(volid)
    assert (victim / "keep").exists()


async def test_a_guest_directory_that_leads_out_of_the_storage_is_refused(storages: Storages, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "vm-100-disk-0.raw").write_text("theirs")
    (root / "images").mkdir(parents=True)
    (root / "images/100").symlink_to(outside)
    with pytest.raises(Refused, match="out of the storage"):
        await storages.free(Volid("local:100/vm-100-disk-0.raw"))
    with pytest.raises(Refused, match="out of the storage"):
        await storages.allocate("local", VM, MIB, "raw")
    assert (outside / "vm-100-disk-0.raw").exists()


async def test_a_removal_that_was_interrupted_is_finished_by_the_next(storages: Storages) -> None:
    volid = await storages.allocate("local", CT, 0, "subvol", kind="rootdir")
    path = storages.path(volid)
    (path / "etc").mkdir()
    path.rename(path.with_name(f".free-{path.name}"))
    await storages.free(volid)
    assert not path.parent.exists()


async def test_an_image_that_cannot_be_made_leaves_nothing(
    storages: Storages, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CommandFailed, match="storage local"):
        await storages.allocate("local", VM, MIB, "raw")
    assert list((root / "images/100").iterdir()) == []


async def test_a_cancelled_allocation_leaves_nothing(storages: Storages, root: Path) -> None:
    work = asyncio.ensure_future(storages.allocate("local", VM, MIB, "qcow2"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [path for path in (root / "images").rglob("*") if path.is_file()] == []


FULL = """
import asyncio, sys
from pathlib import Path
from agent.storage import Storages
from kvorum.errors import QuotaExceeded
storages = Storages.parse("dir: local\\n\\tpath /mnt\\n\\tcontent images\\n")
try:
    asyncio.run(storages.allocate("local", 100, 1 << 33, "qcow2"))
except QuotaExceeded as error:
    assert "storage local is full" in error.message and "/mnt" in error.remedy, error
    left = [path for path in Path("/mnt").rglob("*") if path.is_file()]
    sys.exit(f"left behind: {left}" if left else 0)
sys.exit("it fitted")
"""


def test_a_full_storage_is_named_and_left_clean() -> None:
    """On a file system of 256 KiB, mounted where nobody else sees it."""
    inner = 'mount -t tmpfs -o size=256k tmpfs /mnt && exec "$@"'
    command = ["unshare", "-m", "bash", "-c", inner, "_", sys.executable, "-c", FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


async def test_the_space_of_a_storage_is_told(storages: Storages) -> None:
    status = await storages.status("local")
    assert status.total_bytes >= status.used_bytes + status.free_bytes > 0


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("\tdisable\n", Refused, "is disabled"),
        ("\tnodes n2,n3\n", Refused, "not there on node n1"),
        ("\tis_mountpoint 1\n", Unreachable, "nothing is mounted"),
        ("\tmkdir 0\n", Unreachable, "no directory"),
        ("\tcontent iso\n", InvalidInput, "may not hold images"),
    ],
)
async def test_a_storage_that_cannot_be_used_says_why(
    root: Path, more: str, error: type[KvorumError], message: str
) -> None:
    storages = Storages.parse(config(root, more), NodeName("n1"))
    with pytest.raises(error, match=message) as caught:
        await storages.allocate("local", VM, MIB, "raw")
    assert "local" in caught.value.message
    assert caught.value.remedy
    assert not root.exists()


@pytest.mark.parametrize(
    ("size_bytes", "image_format", "kind"),
    [
        (MIB, "vmdk", "images"),
        (MIB, "subvol", "images"),
        (MIB, "qcow2", "rootdir"),
        (0, "raw", "images"),
        (-1, "raw", "images"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused(
    storages: Storages, size_bytes: int, image_format: str, kind: str
) -> None:
    with pytest.raises(InvalidInput):
        await storages.allocate("local", VM, size_bytes, image_format, kind=kind)


async def test_what_is_not_there_is_not_found(storages: Storages) -> None:
    with pytest.raises(NotFound, match="no storage 'nowhere'") as caught:
        storages.path(Volid("nowhere:100/vm-100-disk-0.raw"))
    assert "local" in caught.value.remedy
    with pytest.raises(NotFound, match=r"local:100/vm-100-disk-9\.raw"):
        await storages.size(Volid("local:100/vm-100-disk-9.raw"))


def test_storages_of_unknown_types_stay_and_are_refused_when_used(root: Path) -> None:
    storages = Storages.parse(config(root, "\nzfspool: tank\n\tpool tank\n\nnfs: far\n\tdisable\n"))
    assert storages.ids() == ["local"]
    with pytest.raises(Unsupported, match="zfspool"):
        storages.path(Volid("tank:vm-100-disk-0"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dir: a1\n", "lacks 'path'"),
        ("dir: a1\n\tpath relative\n", "not absolute"),
        ("dir: a1\n\tpath /a/../b\n", "not absolute"),
        ("dir: a1\n\tpath /a\n\nnfs: a1\n\tpath /a\n", "twice"),
        ("dir: a1\n\tpath /a\n\tshared maybe\n", "neither 1 nor 0"),
        ("dir a1\n", "expected"),
    ],
)
def test_a_storage_that_is_configured_wrongly_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Storages.parse(text)


def test_a_shared_storage_says_so(root: Path) -> None:
    storages = Storages.parse(config(root, "\tshared 1\n"))
    assert storages.is_shared(Volid("local:100/vm-100-disk-0.raw"))


def test_the_size_in_a_qcow2_header_is_read_and_anything_else_is_none() -> None:
    assert images.qcow2_size(b"QFI\xfb" + bytes(20) + (4 * GIB).to_bytes(8, "big")) == 4 * GIB
    assert images.qcow2_size(b"QFI\xfb") is None
    assert images.qcow2_size(bytes(64)) is None
    with pytest.raises(CommandFailed):
        images.parse_info(b"no json")
