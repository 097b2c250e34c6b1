"""Names of volumes and where a directory holds them, in Proxmox VE's layout. Pure.

100/vm-100-disk-0.qcow2        images/100/vm-100-disk-0.qcow2
101/subvol-101-disk-0.subvol   images/101/subvol-101-disk-0.subvol (a directory: a container's file system)
vztmpl/busybox.tar.gz          template/cache/busybox.tar.gz
iso/debian-12.iso              template/iso/debian-12.iso
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from kvorum.errors import InvalidInput
from kvorum.ids import Vmid, parse_vmid


class Content(StrEnum):
    """What a storage may hold, as in the `content` line of storage.cfg."""

    images = "images"
    rootdir = "rootdir"
    vztmpl = "vztmpl"
    iso = "iso"
    backup = "backup"
    snippets = "snippets"


class ImageFormat(StrEnum):
    raw = "raw"
    qcow2 = "qcow2"
    # A directory that holds a container's files.
    subvol = "subvol"


GUEST_CONTENT = frozenset((Content.images, Content.rootdir))
# Below the storage's path.
DIRECTORIES = {
    Content.images: "images",
    Content.rootdir: "images",
    Content.vztmpl: "template/cache",
    Content.iso: "template/iso",
    Content.backup: "dump",
    Content.snippets: "snippets",
}

_FORMATS = "|".join(ImageFormat)
_GUEST_NAME = re.compile(
    rf"(?P<owner>[1-9][0-9]{{2,8}})/(?P<base>(?:vm|base|subvol)-(?P<vmid>[1-9][0-9]{{2,8}})-[A-Za-z0-9][A-Za-z0-9_.+-]*)"
    rf"\.(?P<format>{_FORMATS})"
)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@:~-]*")
_SUFFIXES = {
    Content.vztmpl: (".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".tgz", ".tar"),
    Content.iso: (".iso", ".img"),
}
_DISK_NUMBER = re.compile(r"(?:vm|base|subvol)-[0-9]+-disk-(0|[1-9][0-9]{0,5})\.[a-z0-9]+")
DISK_NUMBER_MAX = 9999


@dataclass(frozen=True, slots=True)
class VolumeName:
    """What stands behind the colon of a volume id. `path` is relative to the storage."""

    name: str
    content: Content
    path: PurePosixPath
    format: str
    vmid: Vmid | None = None


def parse_name(name: str) -> VolumeName:
    """Raises InvalidInput for what no volume of a directory can be called: nothing leaves the storage's own directories."""
    if match := _GUEST_NAME.fullmatch(name):
        vmid = parse_vmid(match["vmid"])
        if match["owner"] != match["vmid"]:
            raise InvalidInput(f"{name!r} belongs to guest {vmid} but lies with {match['owner']}", field="volume")
        image_format = ImageFormat(match["format"])
        content = Content.rootdir if image_format is ImageFormat.subvol else Content.images
        return VolumeName(name, content, PurePosixPath("images", name), image_format, vmid)
    kind, _, file = name.partition("/")
    if kind in _FILE_CONTENTS and _FILE_NAME.fullmatch(file):
        content = Content(kind)
        suffixes = _SUFFIXES.get(content, ("",))
        if not file.endswith(suffixes):
            raise InvalidInput(
                f"{name!r} is no {kind} file", field="volume", remedy=f"its name must end in {suffixes[0]}"
            )
        return VolumeName(name, content, PurePosixPath(DIRECTORIES[content], file), _file_format(content, file))
    raise InvalidInput(
        f"{name!r} is no volume of a directory storage",
        field="volume",
        remedy="write 100/vm-100-disk-0.qcow2, vztmpl/NAME.tar.gz or iso/NAME.iso",
    )


_FILE_CONTENTS = frozenset(Content) - GUEST_CONTENT


def may_be(volume: VolumeName, content: Content) -> bool:
    """A raw image is a VM's disk or a container's file system: its name does not say, its guest's config does."""
    return volume.content is content or (
        content is Content.rootdir and volume.format == ImageFormat.raw and bool(volume.vmid)
    )


def disk_name(vmid: Vmid, number: int, image_format: ImageFormat) -> str:
    kind = "subvol" if image_format is ImageFormat.subvol else "vm"
    return f"{vmid}/{kind}-{vmid}-disk-{number}.{image_format}"


def used_numbers(files: Collection[str]) -> set[int]:
    """Disk numbers taken by these file names of a guest's directory, whatever their format."""
    return {int(match[1]) for match in map(_DISK_NUMBER.fullmatch, files) if match}


def lowest_free(used: Collection[int]) -> int:
    return next(number for number in range(len(used) + 1) if number not in used)


def parse_format(text: str) -> ImageFormat:
    try:
        return ImageFormat(text)
    except ValueError:
        raise InvalidInput(
            f"{text!r} is no format of a directory storage",
            field="format",
            remedy=f"use one of {', '.join(ImageFormat)}",
        ) from None


def _file_format(content: Content, file: str) -> str:
    if content is Content.iso:
        return "raw"
    return next((suffix.lstrip(".") for suffix in _SUFFIXES.get(content, ()) if file.endswith(suffix)), "")
