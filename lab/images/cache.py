"""Where what was built is kept: one directory for each kind and content of its sources, put there whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from lab.layout import IMAGE_CACHE

SOURCES = Path(__file__).parent


def key(sources: Iterable[Path], *extra: str) -> str:
    """Twelve hex digits that change with any byte that goes in."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes() + b"\0")
    for text in extra:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:12]


def place(kind: str, content: str) -> Path:
    return IMAGE_CACHE / f"{kind}-{content}"


def built(place: Path, build: Callable[[Path], None]) -> Path:
    """`place`, a directory that `build` fills the first time. Two may build it at once: one wins."""
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        build(work)
        work.chmod(0o755)
        try:
            work.rename(place)
        except OSError:  # somebody else was faster
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def link_or_copy(source: Path, target: Path) -> None:
    """For files that nobody writes to: no second copy on the same file system. An existing target stays."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
