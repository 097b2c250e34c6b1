"""Locks of the kernel on files: they die with their holder, so nobody has to clean up after a crash."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvorum.errors import Locked


@contextmanager
def held(path: Path, complaint: str, *, timeout_s: float = 60.0) -> Iterator[None]:
    """Alone among all who ask for `path`. Raises Locked with `complaint` when it does not become free in time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Locked(complaint) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)
