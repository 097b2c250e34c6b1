"""What /proc tells of other programs on this node: whether they have a file open, and what they watch with inotify.

FUSE tells neither. Both answers are asked for rarely: when a file is closed without having been written, or by another program
than opened it, and when something has changed elsewhere.
"""

import os
from pathlib import Path


def is_open_still(*, closer: int, opener: int, mountpoint: Path, ino: int, is_blank: bool) -> bool:
    """After a close by thread `closer` of what thread `opener` has opened: a descriptor is left through which more will come.

    A shell that redirects opens, duplicates, closes, and only then writes (`is_blank`: nothing has been written). And a
    program that is started closes what it has inherited, while the one that forked it may be between two writes.
    """
    if is_blank and has_open(closer, mountpoint, ino):
        return True
    return not is_same_process(closer, opener) and has_open(opener, mountpoint, ino)


def has_open(pid: int, mountpoint: Path, ino: int) -> bool:
    """Thread `pid` has a descriptor of the file with this number below `mountpoint`; False when it cannot be seen."""
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir()) if pid else []
    except OSError:
        return False
    beginning = f"{mountpoint}/"
    for descriptor in descriptors:
        try:
            # The rest of the path says little: that name may be gone by now, or stand for another version.
            if str(descriptor.readlink()).startswith(beginning) and descriptor.stat().st_ino == ino:
                return True
        except OSError:
            continue
    return False


def is_same_process(one: int, other: int) -> bool:
    """Of two threads. Also true when that cannot be seen."""
    if one == other:
        return True
    first, second = _process_of(one), _process_of(other)
    return first == second or None in (first, second)


def _process_of(thread: int) -> int | None:
    try:
        for line in Path(f"/proc/{thread}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def watched_inodes(device: int) -> set[int]:
    """The numbers of the inodes on `device` that somebody watches with inotify."""
    wanted = f"sdev:{os.major(device) << 20 | os.minor(device):x}"
    found: set[int] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in os.scandir(process / "fd"):
                if os.readlink(descriptor.path) == "anon_inode:inotify":  # noqa: PTH115
                    found |= _watched(process / "fdinfo" / descriptor.name, wanted)
        except OSError:
            continue
    return found


def _watched(info: Path, wanted: str) -> set[int]:
    """Lines are "inotify wd:1 ino:2a sdev:31 mask:..."."""
    found = set()
    for line in info.read_text().splitlines():
        fields = line.split()
        if fields and fields[0] == "inotify" and wanted in fields:
            found.add(int(fields[2].removeprefix("ino:"), 16))
    return found
