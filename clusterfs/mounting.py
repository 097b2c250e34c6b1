"""Mounting, unmounting, and clearing away what a killed daemon left behind.

After SIGKILL the kernel keeps the mount, and every access answers "Transport endpoint is not connected" until somebody
unmounts it; the next start does. Which handlers serve the mount is `clusterfs.mount`.
"""

import ctypes
import errno
import grp
import logging
import os
import threading
from pathlib import Path

from clusterfs.fusesession import Session
from clusterfs.mount import Mount
from kvorum.errors import KvorumError

log = logging.getLogger(__name__)

FILE_SYSTEM = "kvorum"
GROUP = "www-data"
MOUNT_TIMEOUT_S = 10.0
_MNT_FORCE, _MNT_DETACH = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class Mounted:
    """A mount that is being served by a thread of this process, until `unmount`."""

    def __init__(self, operations: Mount, mountpoint: Path) -> None:
        self._operations = operations
        self._mountpoint = mountpoint
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
        self._session: Session
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Returns when the kernel talks to us. Raises KvorumError when it does not."""
        clear_stale(self._mountpoint)
        try:
            self._mountpoint.mkdir(parents=True, exist_ok=True)
            if any(self._mountpoint.iterdir()):
                log.warning("%s is not empty: what is in it is hidden while mounted", self._mountpoint)
        except OSError as error:
            raise KvorumError(f"{self._mountpoint} cannot be mounted on: {error}") from error
        self._session = Session(_mount(self._mountpoint))
        self._thread.start()
        if not self._session.is_ready.wait(MOUNT_TIMEOUT_S):
            _umount(self._mountpoint, flags=_MNT_FORCE | _MNT_DETACH)
            raise KvorumError(
                f"{self._mountpoint} is not mounted: {self._failure or 'no answer from the kernel'}",
                remedy="is /dev/fuse there, and does this process run as root?",
            )
        self._operations.mounted()
        log.info("mounted on %s", self._mountpoint)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and is_mounted(self._mountpoint)

    def unmount(self) -> None:
        """Within seconds, whoever uses it: what is still open then answers with an error and hangs nobody."""
        self._operations.stop()
        if is_mounted(self._mountpoint):
            _umount(self._mountpoint)
        self._thread.join(timeout=2.0)
        log.info("unmounted %s", self._mountpoint)

    def _serve(self) -> None:
        try:
            self._session.serve(self._operations.attach(self._session), self._operations.express)
        except BaseException as error:
            self._failure = error
            log.exception("the mount on %s ended", self._mountpoint)
        finally:
            # Whoever still asks is refused by the kernel from here on.
            self._session.close()


def _mount(mountpoint: Path) -> int:
    """Mounts with libfuse, as fusepy has loaded it, and returns the device: what it says is `clusterfs.fusewire`'s."""
    from fuse import _libfuse  # a process that only talks to the daemon does not need libfuse

    options = f"allow_other,default_permissions,nonempty,fsname={FILE_SYSTEM},subtype={FILE_SYSTEM}"
    words = [b"kvorum", b"-o", options.encode()]
    arguments = _Arguments(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None), 0)
    _libfuse.fuse_mount.restype = ctypes.c_void_p
    _libfuse.fuse_mount.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Arguments)]
    _libfuse.fuse_chan_fd.argtypes = [ctypes.c_void_p]
    channel = _libfuse.fuse_mount(os.fsencode(mountpoint), ctypes.byref(arguments))
    if not channel:
        raise KvorumError(
            f"{mountpoint} cannot be mounted", remedy="is /dev/fuse there, and does this process run as root?"
        )
    device = int(_libfuse.fuse_chan_fd(channel))
    os.set_inheritable(device, False)
    return device


class _Arguments(ctypes.Structure):
    """struct fuse_args"""

    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


def mounts_at(mountpoint: Path, *, mountinfo: str) -> list[str]:
    """File system types mounted on `mountpoint`, the topmost last. `mountinfo`: text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        left, _dash, right = line.partition(" - ")
        fields = left.split()
        if len(fields) > 4 and right and _unescape(fields[4]) == str(mountpoint):
            found.append(right.split()[0])
    return found


def is_mounted(mountpoint: Path) -> bool:
    types = mounts_at(mountpoint.absolute(), mountinfo=Path("/proc/self/mountinfo").read_text())
    return bool(types) and types[-1] == f"fuse.{FILE_SYSTEM}"


def clear_stale(mountpoint: Path) -> None:
    """Lazily unmounts what an earlier daemon left on `mountpoint`; the caller holds the daemon's lock, so none is alive."""
    for _try in range(16):
        if not is_mounted(mountpoint):
            return
        log.warning("%s: clearing the mount that an earlier daemon left", mountpoint)
        _umount(mountpoint, flags=_MNT_DETACH)
    raise KvorumError(f"{mountpoint} cannot be unmounted", remedy=f"run 'umount -l {mountpoint}'")


def group_id(name: str = GROUP) -> int:
    """The group that may read the non-private part; root's own when the system has none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        log.warning("no group %s: files belong to root's", name)
        return 0


def _umount(mountpoint: Path, *, flags: int = 0) -> None:
    if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY and not flags & _MNT_DETACH:
        _umount(mountpoint, flags=_MNT_FORCE | _MNT_DETACH)
    elif number != errno.EINVAL:  # EINVAL: no longer mounted
        log.error("unmounting %s: %s", mountpoint, os.strerror(number))


def _unescape(text: str) -> str:
    """mountinfo writes blanks and backslashes as octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
