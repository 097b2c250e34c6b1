"""Storage type `dir`: volumes are files and directories below a path, in Proxmox VE's layout.

The path may be a mount (NFS, a cluster file system) that hangs: whatever touches it runs in a thread and is given up after a
while. Nothing below the path is followed out of it, because guests' owners may put links there.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from agent.storage import images
from agent.storage.driver import Options, Status, StorageDriver, VolumeInfo
from agent.storage.naming import (
    DIRECTORIES,
    DISK_NUMBER_MAX,
    GUEST_CONTENT,
    Content,
    ImageFormat,
    VolumeName,
    disk_name,
    lowest_free,
    may_be,
    parse_name,
    used_numbers,
)
from kvorum.config.sections import Section
from kvorum.errors import (
    AlreadyExists,
    CommandFailed,
    ConfigError,
    InvalidInput,
    KvorumError,
    NotFound,
    QuotaExceeded,
    Refused,
    Unreachable,
    Unsupported,
)
from kvorum.ids import Vmid, Volid

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_TIMEOUT_S = 20.0
# Removing a container's file system touches each file.
FREE_TIMEOUT_S = 600.0

# A tree on its way out: renamed first, so that a volume is there as a whole or not at all.
_DOOMED_PREFIX = ".free-"
# Storages are parsed anew with each change of storage.cfg, so what they must not do at once is kept here, by path.
_LOCKS: dict[Path, threading.Lock] = {}


class DirectoryStorage:
    def __init__(
        self, options: Options, root: Path, *, makes_root: bool = True, mount_point: Path | None = None
    ) -> None:
        self._options = options
        self._root = root
        self._makes_root = makes_root
        # Where something must be mounted before the storage may be used.
        self._mount_point = mount_point

    def path(self, name: str) -> Path:
        return self._root / parse_name(name).path

    def format(self, name: str) -> str:
        return parse_name(name).format

    def kind(self, name: str) -> Content:
        return parse_name(name).content

    async def allocate(
        self, vmid: Vmid, size_bytes: int, image_format: ImageFormat, *, kind: Content, name: str | None
    ) -> str:
        if name is not None:
            self._check_given(name, vmid, image_format)
        taken = await self._take(vmid, image_format, name)
        if image_format is ImageFormat.subvol:
            return taken
        path = self.path(taken)
        try:
            await images.create(path, size_bytes, image_format)
            if kind is Content.rootdir:
                await images.make_filesystem(path)
        except CommandFailed as error:
            await self._forget_half_made(path)
            raise self._translated(error, taken) from error
        except BaseException:
            await asyncio.shield(self._forget_half_made(path))
            raise
        return taken

    async def free(self, name: str) -> None:
        volume = parse_name(name)
        await self._in_time("free", lambda: self._free(volume), timeout_s=FREE_TIMEOUT_S)

    async def resize(self, name: str, size_bytes: int) -> None:
        volume = parse_name(name)
        if volume.format not in {ImageFormat.raw, ImageFormat.qcow2} or volume.content is not Content.images:
            raise Unsupported(f"{self._volid(name)} has no size of its own", remedy="only images can be resized")
        now = await self.size(name)
        if size_bytes < now:
            raise Refused(f"{self._volid(name)} has {now} bytes and cannot shrink", remedy="name a larger size")
        if size_bytes == now:
            return
        try:
            await images.resize(self.path(name), size_bytes, ImageFormat(volume.format))
        except CommandFailed as error:
            raise self._translated(error, name) from error

    async def size(self, name: str) -> int:
        volume = parse_name(name)
        return (await self._in_time("measure", lambda: self._measure(volume))).size_bytes

    async def list(self, content: Content) -> list[VolumeInfo]:
        return list(await self._in_time("list", lambda: self._list(content)))

    async def status(self) -> Status:
        return await self._in_time("status", self._status)

    async def _in_time(self, what: str, work: Callable[[], T], *, timeout_s: float = ANSWER_TIMEOUT_S) -> T:
        """Run in a thread; a thread that hangs in dead storage is left behind, it cannot be ended."""

        def guarded() -> T:
            self._require_root()
            return work()

        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(guarded)
        except TimeoutError:
            raise Unreachable(
                f"storage {self._options.id}: {what} got no answer from {self._root} within {timeout_s:g} s",
                remedy="see whether what is mounted there still answers",
            ) from None
        except OSError as error:
            raise self._os_error(what, error) from error

    def _require_root(self) -> None:
        if self._mount_point is not None and not self._mount_point.is_mount():
            raise Unreachable(
                f"storage {self._options.id}: nothing is mounted at {self._mount_point}",
                remedy="mount it, or take 'is_mountpoint' out of storage.cfg",
            )
        if self._root.is_dir():
            return
        if not self._makes_root:
            raise Unreachable(
                f"storage {self._options.id}: there is no directory {self._root}", remedy="make it, or set 'mkdir 1'"
            )
        self._root.mkdir(parents=True, exist_ok=True)

    def _check_given(self, name: str, vmid: Vmid, image_format: ImageFormat) -> None:
        volume = parse_name(name)
        if volume.vmid != vmid or volume.format != image_format:
            raise InvalidInput(
                f"{self._volid(name)} is no {image_format} volume of guest {vmid}",
                field="volume",
                remedy=f"name it like {disk_name(vmid, 0, image_format)}",
            )

    async def _take(self, vmid: Vmid, image_format: ImageFormat, name: str | None) -> str:
        """The name of a new, empty file or directory."""
        taking = asyncio.ensure_future(self._in_time("allocate", lambda: self._take_now(vmid, image_format, name)))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The thread goes on, and nobody would ever free what it makes.
            await self._forget_half_made(self.path(await taking))
            raise

    def _take_now(self, vmid: Vmid, image_format: ImageFormat, name: str | None) -> str:
        directory = self._root / "images" / str(vmid)
        # The file itself is the lock against other nodes, but not against the same number in another format.
        with _lock_of(self._root):
            directory.mkdir(parents=True, exist_ok=True)
            self._require_inside(directory)
            if name is not None:
                if _make_empty(self._root / parse_name(name).path, image_format):
                    return name
                raise AlreadyExists(f"volume {self._volid(name)} exists already", remedy="free it, or use another name")
            number = lowest_free(used_numbers([path.name for path in directory.iterdir()]))
            while number <= DISK_NUMBER_MAX:
                candidate = disk_name(vmid, number, image_format)
                if _make_empty(self._root / parse_name(candidate).path, image_format):
                    return candidate
                number += 1
        raise QuotaExceeded(f"storage {self._options.id}: guest {vmid} has {DISK_NUMBER_MAX} disks", remedy="free some")

    def _free(self, volume: VolumeName) -> None:
        path = self._root / volume.path
        if not path.parent.is_dir():
            return
        self._require_inside(path.parent)
        doomed = path.with_name(f"{_DOOMED_PREFIX}{path.name}")
        # One that a crash has left goes first: nothing can be renamed over it.
        _remove(doomed)
        try:
            path.rename(doomed)
        except FileNotFoundError:
            pass
        else:
            _remove(doomed)
            log.info("storage %s: freed %s", self._options.id, volume.name)
        if volume.content in GUEST_CONTENT:
            # Not between another allocation's making of this directory and of its first volume.
            with _lock_of(self._root), contextlib.suppress(OSError):
                path.parent.rmdir()

    def _require_inside(self, directory: Path) -> None:
        """A link among the storage's own directories must not lead removal or creation astray."""
        if not directory.resolve().is_relative_to(self._root.resolve()):
            raise Refused(
                f"storage {self._options.id}: {directory} leads out of the storage",
                remedy=f"see what {directory} links to",
            )

    def _measure(self, volume: VolumeName) -> VolumeInfo:
        path = self._root / volume.path
        try:
            found = path.lstat()
        except FileNotFoundError:
            raise NotFound(
                f"there is no volume {self._volid(volume.name)}",
                remedy=f"list the content of storage {self._options.id}",
            ) from None
        size = 0
        if stat.S_ISREG(found.st_mode):
            size = found.st_size
            if volume.format == ImageFormat.qcow2:
                with path.open("rb") as stream:
                    # No header: it is being made at this moment, or broken.
                    size = images.qcow2_size(stream.read(images.QCOW2_HEADER_BYTES)) or 0
        volid = self._volid(volume.name)
        return VolumeInfo(volid, volume.content, volume.format, size, found.st_blocks * 512, volume.vmid)

    def _list(self, content: Content) -> Sequence[VolumeInfo]:
        base = self._root / DIRECTORIES[content]
        found = []
        for path in sorted(base.glob("*/*" if content in GUEST_CONTENT else "*")):
            relative = path.relative_to(base).as_posix()
            try:
                volume = parse_name(relative if content in GUEST_CONTENT else f"{content}/{relative}")
                if may_be(volume, content) and not path.is_symlink():
                    found.append(self._measure(volume))
            except (InvalidInput, NotFound):
                # Somebody else's file, or a volume that went away while we looked.
                continue
        return found

    def _status(self) -> Status:
        found = os.statvfs(self._root)
        return Status(
            total_bytes=found.f_blocks * found.f_frsize,
            used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
            free_bytes=found.f_bavail * found.f_frsize,
        )

    async def _forget_half_made(self, path: Path) -> None:
        try:
            await asyncio.to_thread(_remove, path)
        except OSError as error:
            log.warning("storage %s: cannot remove the unfinished %s: %s", self._options.id, path, error.strerror)

    def _translated(self, error: CommandFailed, name: str) -> KvorumError:
        if "No space left" in error.message + error.details.get("stderr", ""):
            return self._is_full(name)
        return CommandFailed(
            f"storage {self._options.id}: {name}: {error.message}", remedy=error.remedy, details=error.details
        )

    def _os_error(self, what: str, error: OSError) -> KvorumError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return self._is_full(what)
        where = error.filename or self._root
        return CommandFailed(
            f"storage {self._options.id}: {what}: {where}: {error.strerror}",
            remedy=f"see whether {self._root} can be used",
        )

    def _is_full(self, what: str) -> QuotaExceeded:
        return QuotaExceeded(
            f"storage {self._options.id} is full: {what}",
            remedy=f"free space below {self._root}, or use another storage",
        )

    def _volid(self, name: str) -> Volid:
        return Volid(f"{self._options.id}:{name}")


def make_directory_storage(section: Section, options: Options) -> StorageDriver:
    """Of a `dir` section. Raises ConfigError."""
    root = Path(section.require("path"))
    if not root.is_absolute() or ".." in root.parts:
        raise ConfigError(
            f"storage {options.id}: path {str(root)!r} is not absolute",
            field="path",
            remedy="write it from the root, as /srv",
        )
    is_mountpoint = section.get("is_mountpoint", "0")
    mount_point = None
    if is_mountpoint.startswith("/"):
        mount_point = Path(is_mountpoint)
    elif section.get_bool("is_mountpoint"):
        mount_point = root
    return DirectoryStorage(options, root, makes_root=section.get_bool("mkdir", default=True), mount_point=mount_point)


def _lock_of(root: Path) -> threading.Lock:
    return _LOCKS.setdefault(root, threading.Lock())


def _make_empty(path: Path, image_format: ImageFormat) -> bool:
    """False when the name is taken."""
    try:
        if image_format is ImageFormat.subvol:
            path.mkdir(mode=0o755)
        else:
            # No one but root and the hypervisor's user, to whom libvirt gives it, may read a guest's disk.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640))
    except FileExistsError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
