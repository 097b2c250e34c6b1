"""Builds the container template: busybox-static as a root file system, 1 MB packed. See container-init.sh."""

import gzip
import io
import tarfile
from pathlib import Path

from lab import programs
from lab.images import cache

FILE_NAME = "busybox.tar.gz"

_BUSYBOX = Path("/bin/busybox")
_INIT = cache.SOURCES / "container-init.sh"
_DIRECTORIES = (
    *("bin", "sbin", "usr", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "home", "mnt"),
    *("var", "var/log", "var/lib", "var/run"),
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/os-release": 'ID=busybox\nNAME="busybox"\nPRETTY_NAME="busybox, Kvorum test container"\n',
}


def build() -> Path:
    """The template archive."""
    return cache.built(cache.place("container", cache.key([_INIT, Path(__file__), _BUSYBOX])), _pack) / FILE_NAME


def _pack(directory: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in _DIRECTORIES:
            _add(archive, name, kind=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        _add(archive, "bin/busybox", content=_BUSYBOX.read_bytes(), mode=0o755)
        for path in programs.run([str(_BUSYBOX), "--list-full"]).split():
            if path not in ("bin/busybox", "sbin/init"):
                _add(archive, path, kind=tarfile.SYMTYPE, target="/bin/busybox")
        _add(archive, "sbin/init", content=_INIT.read_bytes(), mode=0o755)
        _add(archive, "etc/shadow", content=b"root::19000:0:99999:7:::\n", mode=0o600)
        for name, text in _FILES.items():
            _add(archive, name, content=text.encode())
    (directory / FILE_NAME).write_bytes(gzip.compress(raw.getvalue(), 6, mtime=0))


def _add(
    archive: tarfile.TarFile,
    name: str,
    *,
    kind: bytes = tarfile.REGTYPE,
    content: bytes = b"",
    mode: int = 0o644,
    target: str = "",
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), target
    archive.addfile(entry, io.BytesIO(content))
