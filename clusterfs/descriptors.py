"""What /proc tells of other programs on this node: whether they have a file open, and what they watch with inotify.

FUSE tells neither. Both answers are asked for rarely: when a file is closed without having been written, and when something
has changed elsewhere.
"""

import os
from pathlib import Path


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
