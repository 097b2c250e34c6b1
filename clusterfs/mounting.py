"""Mounting, unmounting, and clearing away what a killed daemon left behind.

After SIGKILL the kernel keeps the mount, and every access answers "Transport endpoint is not connected" until somebody
unmounts it; the next start does. Which handlers serve the mount is `clusterfs.mount`.
"""

import ctypes
import errno
import grp
import logging
import os
import signal
import threading
import time
from pathlib import Path

from clusterfs.mount import Mount
from kvorum.errors import KvorumError

log = logging.getLogger(__name__)

FILE_SYSTEM = "kvorum"
GROUP = "www-data"
MOUNT_TIMEOUT_S = 10.0
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Mounted:
    """A mount that is being served by a thread of this process, until `unmount`."""

    def __init__(self, operations: Mount, mountpoint: Path) -> None:
        self._operations = operations
        self._mountpoint = mountpoint
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
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
        self._thread.start()
        end = time.monotonic() + MOUNT_TIMEOUT_S
        while not self._operations.wait_mounted(0.1):
            if not self._thread.is_alive() or time.monotonic() > end:
                raise KvorumError(
                    f"{self._mountpoint} is not mounted: {self._failure or 'no answer from the kernel'}",
                    remedy="is /dev/fuse there, and does this process run as root?",
                )
        log.info("mounted on %s", self._mountpoint)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and is_mounted(self._mountpoint)

    def unmount(self) -> None:
        """A mount that is in use goes from the tree at once and for good when the last user leaves it."""
        if is_mounted(self._mountpoint):
            _umount(self._mountpoint)
        self._thread.join(timeout=2.0)
        log.info("unmounted %s", self._mountpoint)

    def _serve(self) -> None:
        from fuse import FUSE  # loads libfuse, which a process that only talks to the daemon does not need

        try:
            FUSE(
                self._operations,
                str(self._mountpoint),
                raw_fi=True,
                encoding="latin-1",
                foreground=True,
                nothreads=False,
                allow_other=True,
                default_permissions=True,
                big_writes=True,
                hard_remove=True,
                atomic_o_trunc=True,
                nonempty=True,
                # A change on another node is seen at once: the kernel remembers nothing.
                attr_timeout=0,
                entry_timeout=0,
                negative_timeout=0,
                fsname=FILE_SYSTEM,
                subtype=FILE_SYSTEM,
            )
        except BaseException as error:
            self._failure = error
            log.error("the mount on %s ended: %s", self._mountpoint, error)
        finally:
            _ignore_broken_pipes()


def _ignore_broken_pipes() -> None:
    """libfuse 2.9 sets SIGPIPE to its default when it ends (fuse_remove_signal_handlers), whatever it was before.

    The next write to a closed connection would then end the process in place of raising. Python lets only its main thread
    set signals; signal(2) itself has no such rule.
    """
    _libc.signal(int(signal.SIGPIPE), ctypes.c_void_p(int(signal.SIG_IGN)))


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
        _umount(mountpoint, flags=_MNT_DETACH)
    elif number != errno.EINVAL:  # EINVAL: no longer mounted
        log.error("unmounting %s: %s", mountpoint, os.strerror(number))


def _unescape(text: str) -> str:
    """mountinfo writes blanks and backslashes as octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
