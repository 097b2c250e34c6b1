"""New volumes for a guest: which ones its config wishes for (pure), and making them, with a way back.

`scsi0: local:4` makes 4 GiB; `local:0,import-from=/path/image.raw` makes a copy of an image; `rootfs: local:1` with a template
makes a container's file system. A volume that exists already is taken as it is.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.inventory import GuestKind
from agent.processes import run
from agent.storage import images
from agent.storage.naming import ImageFormat
from agent.tasks import TaskHandle, UndoStep
from kvorum.config.sizes import render_size
from kvorum.errors import InvalidInput, NotFound
from kvorum.ids import Vmid, Volid

from .disks import Disk, is_disk_key, parse_disk
from .host import Storages

FREE_VOLUME = "free-volume"
_CONVERT_TIMEOUT_S = 3600.0
SECTOR_BYTES = 512
# What Proxmox VE makes on a directory, and what every cache and snapshot works with.
_DEFAULT_FORMAT = {GuestKind.vm: "qcow2", GuestKind.container: "subvol"}


@dataclass(frozen=True, slots=True)
class Wish:
    """A volume to make for one disk line."""

    disk: Disk
    storage: str
    size_bytes: int
    format: str
    import_from: str = ""


def plan_volumes(config: Mapping[str, str], kind: GuestKind) -> tuple[Wish, ...]:
    """The disk lines that name no volume but wish for one. Raises ConfigError or InvalidInput."""
    wishes = []
    for key, value in config.items():
        if not is_disk_key(key, kind):
            continue
        disk = parse_disk(key, value)
        wish = disk.wish
        source = disk.properties.get("import-from", "")
        if wish is None:
            if source:
                raise InvalidInput(
                    f"{key}: import-from needs STORAGE:0", field=key, remedy=f"{key}=local:0,import-from={source}"
                )
            continue
        if not wish.size_bytes and not source:
            raise InvalidInput(
                f"{key}: a volume of no size", field=key, remedy=f"write {key}={wish.storage}:4 for 4 GiB"
            )
        if source and kind is not GuestKind.vm:
            raise InvalidInput(f"{key}: containers import no images", field=key, remedy="use a template")
        image_format = disk.properties.get("format") or _DEFAULT_FORMAT[kind]
        wishes.append(Wish(disk, wish.storage, wish.size_bytes, image_format, source))
    return tuple(wishes)


async def make_volumes(
    handle: TaskHandle, storages: Storages, vmid: Vmid, kind: GuestKind, wishes: Sequence[Wish]
) -> dict[str, str]:
    """Make them; the new values of their config lines. What has been made is freed when the task does not end well."""
    made = {}
    for wish in wishes:
        size_bytes = wish.size_bytes
        if wish.import_from:
            size_bytes = max(size_bytes, await image_size(storages, wish.import_from))
        volid = await allocate(
            handle, storages, vmid, storage=wish.storage, size_bytes=size_bytes, image_format=wish.format, kind=kind
        )
        if wish.import_from:
            await _import(handle, storages, wish, volid)
        line = wish.disk.at(volid)
        made[wish.disk.key] = line.render(size=render_size(size_bytes), import_from=None, format=None)
    return made


async def allocate(
    handle: TaskHandle,
    storages: Storages,
    vmid: Vmid,
    *,
    storage: str,
    size_bytes: int,
    image_format: str,
    kind: GuestKind,
    name: str | None = None,
) -> Volid:
    """One volume, freed again when the task does not end well."""
    content = "images" if kind is GuestKind.vm else "rootdir"
    volid = await storages.allocate(storage, vmid, size_bytes, image_format, kind=content, name=name)
    handle.undo(lambda: storages.free(volid), UndoStep(kind=FREE_VOLUME, arguments={"volid": volid}))
    handle.log(f"made volume {volid} ({render_size(size_bytes)})")
    return volid


def source_path(storages: Storages, source: str) -> Path:
    """Of `import-from`: an absolute path on this node, or a volume."""
    return Path(source) if source.startswith("/") else storages.path(Volid(source))


async def image_size(storages: Storages, source: str) -> int:
    """Bytes that a guest sees. Raises NotFound, CommandFailed when it is no image."""
    path = source_path(storages, source)
    if not await asyncio.to_thread(path.is_file):
        raise NotFound(f"there is no image {source} on this node", remedy="name a file that the owner node can read")
    size_bytes = (await images.info(path, _format_of(source))).virtual_size
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def _format_of(source: str) -> ImageFormat:
    """By the name, never by the content: a raw image's first sector is the guest's and may claim to be anything."""
    return ImageFormat.qcow2 if source.endswith(".qcow2") else ImageFormat.raw


async def _import(handle: TaskHandle, storages: Storages, wish: Wish, volid: Volid) -> None:
    """Copy an image into the volume, sparse places left out; a larger volume keeps its size."""
    source, target = source_path(storages, wish.import_from), storages.path(volid)
    handle.progress(-1.0, f"import {wish.import_from}")
    # -n: the volume is there already, with its size.
    formats = ["-f", _format_of(wish.import_from), "-O", storages.format(volid)]
    await run(["qemu-img", "convert", "-n", *formats, source, target], timeout_s=_CONVERT_TIMEOUT_S)
