"""The few Linux system calls that Python 3.11 does not wrap: namespaces and mounts.

Only thin wrappers that raise OSError live here. Standard library only, because a node's PID 1 imports it.
"""

import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000

MNT_DETACH = 0x2

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """New namespaces for this process (PID: for its next children)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_namespace(path: Path, kind: int) -> None:
    """Move the calling thread into the namespace behind `path` (/proc/PID/ns/...); `kind` guards against mistakes."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(ctypes.c_int(handle), ctypes.c_int(kind)), f"setns {path}")
    finally:
        os.close(handle)


def mount(source: str, target: str | Path, *, kind: str = "", flags: int = 0, options: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {kind or 'bind'} {source} on {target}")


def bind(source: str | Path, target: str | Path) -> None:
    mount(str(source), target, flags=MS_BIND)


def unmount(target: str | Path) -> None:
    """Detach at once; what still uses it keeps it alive unseen."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
