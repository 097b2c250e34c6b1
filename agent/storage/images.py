"""Disk images in files: made and grown by qemu-img, filled by mkfs, measured by their first bytes.

Formats are always given, never guessed: the first sector of a raw image is the guest's, and one that looked like a qcow2
header could name any file of the host as its backing file.
"""

import struct
from pathlib import Path

import msgspec

from agent.processes import run
from agent.storage.naming import ImageFormat
from kvorum.errors import CommandFailed

CREATE_TIMEOUT_S = 120.0
INFO_TIMEOUT_S = 30.0
FILESYSTEM_TIMEOUT_S = 600.0
QCOW2_HEADER_BYTES = 32

_QCOW2_MAGIC = b"QFI\xfb"


class ImageInfo(msgspec.Struct, rename="kebab", frozen=True):
    """What `qemu-img info --output=json` says, as far as we read it. Bytes."""

    virtual_size: int
    format: str
    actual_size: int = 0
    backing_filename: str = ""


async def create(path: Path, size_bytes: int, image_format: ImageFormat) -> None:
    """Over an empty file that is there already. Raises CommandFailed."""
    # Metadata in advance costs half a second for 10 GiB and spares every first write of a cluster two more.
    options = ["-o", "preallocation=metadata"] if image_format is ImageFormat.qcow2 else []
    command: list[str | Path] = ["qemu-img", "create", "-q", "-f", image_format, *options, path, str(size_bytes)]
    await run(command, timeout_s=CREATE_TIMEOUT_S)


async def make_filesystem(path: Path, *, content: Path | None = None, owner: int = 0) -> None:
    """An ext4 over the whole of a raw image, holding a copy of the directory `content`. Nothing is mounted for it.

    `owner` (user and group) gets its top directory, which is not copied. Raises CommandFailed.
    """
    command: list[str | Path] = ["mkfs.ext4", "-q", "-F", "-E", f"root_owner={owner}:{owner}"]
    if content is not None:
        command += ["-d", content]
    await run([*command, path], timeout_s=FILESYSTEM_TIMEOUT_S)


async def resize(path: Path, size_bytes: int, image_format: ImageFormat) -> None:
    """Only ever larger: qemu-img refuses to shrink without being told to."""
    await run(["qemu-img", "resize", "-q", "-f", image_format, path, str(size_bytes)], timeout_s=CREATE_TIMEOUT_S)


async def info(path: Path, image_format: ImageFormat) -> ImageInfo:
    """Also of an image that a running guest holds. Raises CommandFailed."""
    command: list[str | Path] = ["qemu-img", "info", "--output=json", "--force-share", "-f", image_format, path]
    return parse_info((await run(command, timeout_s=INFO_TIMEOUT_S)).stdout)


def parse_info(output: bytes) -> ImageInfo:
    try:
        return msgspec.json.decode(output, type=ImageInfo)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandFailed(f"qemu-img says nothing of use: {error}") from error


def qcow2_size(header: bytes) -> int | None:
    """Bytes that a guest sees, from the first QCOW2_HEADER_BYTES of the file; None when it is no qcow2.

    docs/interop/qcow2.txt of QEMU: magic, version, backing file offset and length, cluster bits, size.
    """
    if len(header) < QCOW2_HEADER_BYTES or not header.startswith(_QCOW2_MAGIC):
        return None
    (size,) = struct.unpack_from(">Q", header, 24)
    return int(size)
