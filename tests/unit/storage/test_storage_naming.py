"""Names of volumes: what they mean, and what none may be called."""

import pytest

from agent.storage.naming import Content, ImageFormat, disk_name, lowest_free, parse_format, parse_name, used_numbers
from kvorum.errors import InvalidInput
from kvorum.ids import Vmid


@pytest.mark.parametrize(
    ("name", "path", "content", "image_format", "vmid"),
    [
        ("100/vm-100-disk-0.qcow2", "images/100/vm-100-disk-0.qcow2", Content.images, "qcow2", 100),
        ("100/vm-100-cloudinit.raw", "images/100/vm-100-cloudinit.raw", Content.images, "raw", 100),
        ("100/base-100-disk-1.raw", "images/100/base-100-disk-1.raw", Content.images, "raw", 100),
        ("101/subvol-101-disk-0.subvol", "images/101/subvol-101-disk-0.subvol", Content.rootdir, "subvol", 101),
        ("vztmpl/busybox.tar.gz", "template/cache/busybox.tar.gz", Content.vztmpl, "tar.gz", None),
        ("iso/debian-12.iso", "template/iso/debian-12.iso", Content.iso, "raw", None),
        ("backup/vzdump-lxc-101.tar.zst", "dump/vzdump-lxc-101.tar.zst", Content.backup, "", None),
        ("snippets/user.yml", "snippets/user.yml", Content.snippets, "", None),
    ],
)
def test_a_name_says_what_and_where(
    name: str, path: str, content: Content, image_format: str, vmid: int | None
) -> None:
    volume = parse_name(name)
    assert (str(volume.path), volume.content, volume.format, volume.vmid) == (path, content, image_format, vmid)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "100/../../../etc/passwd.raw",
        "100/vm-100-disk-0",
        "100/vm-100-disk-0.qcow2/x",
        "100/vm-101-disk-0.qcow2",
        "100/disk.raw",
        "99/vm-99-disk-0.raw",
        "/etc/passwd",
        "iso/../x.iso",
        "iso/.hidden.iso",
        "iso/x.exe",
        "iso/a/b.iso",
        "vztmpl/x.zip",
        "images/100/vm-100-disk-0.raw",
        "100/vm-100-disk-0.raw\n",
        "100/vm-100-..raw",
    ],
)
def test_what_could_lead_elsewhere_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput):
        parse_name(name)


def test_disk_numbers_are_counted_whatever_their_format() -> None:
    files = ["vm-100-disk-0.qcow2", "vm-100-disk-2.raw", "subvol-100-disk-1.subvol", "vm-100-cloudinit.raw", ".free-x"]
    assert used_numbers(files) == {0, 1, 2}
    assert lowest_free({0, 1, 2}) == 3
    assert lowest_free({1, 2}) == 0
    assert lowest_free({0, 2}) == 1


def test_names_that_we_make_are_names_that_we_know() -> None:
    for image_format in ImageFormat:
        volume = parse_name(disk_name(Vmid(100), 7, image_format))
        assert volume.format == image_format
        assert volume.vmid == 100
    with pytest.raises(InvalidInput, match="vmdk"):
        parse_format("vmdk")
