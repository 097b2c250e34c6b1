"""A real directory whose operations a test counts, fails, or ends the process at."""

from collections.abc import Callable
from pathlib import Path

from clusterfs.raft.files import Data, LocalFile, LocalFiles

# Called with the operation and the file's name before it is done; may raise.
Before = Callable[[str, str], None]


class FaultyFile:
    def __init__(self, inner: LocalFile, name: str, before: Before) -> None:
        self._inner, self._name, self._before = inner, name, before

    def write(self, data: Data, *, at: int) -> None:
        try:
            self._before("write", self._name)
        except BaseException:
            # What is interrupted or refused may have been done in part.
            self._inner.write(memoryview(data)[: len(data) // 2], at=at)
            raise
        self._inner.write(data, at=at)

    def append(self, data: Data, *, at: int) -> None:
        try:
            self._before("write", self._name)
        except BaseException:
            self._inner.append(memoryview(data)[: len(data) // 2], at=at)
            raise
        self._inner.append(data, at=at)

    def read(self, size: int, *, at: int) -> bytes:
        return self._inner.read(size, at=at)

    def size(self) -> int:
        return self._inner.size()

    def truncate(self, size: int) -> None:
        self._before("truncate", self._name)
        self._inner.truncate(size)

    def allocate(self, size: int) -> None:
        self._before("allocate", self._name)
        self._inner.allocate(size)

    def datasync(self) -> None:
        self._before("datasync", self._name)
        self._inner.datasync()

    def close(self) -> None:
        self._inner.close()


class FaultyFiles:
    def __init__(self, path: Path) -> None:
        self._inner = LocalFiles(path)
        self.done: list[tuple[str, str]] = []
        self.before: Before = lambda _operation, _name: None

    def _note(self, operation: str, name: str) -> None:
        self.before(operation, name)
        self.done.append((operation, name))

    @property
    def path(self) -> Path:
        return self._inner.path

    def names(self) -> list[str]:
        return self._inner.names()

    def open(self, name: str) -> FaultyFile:
        return FaultyFile(self._inner.open(name), name, self._note)

    def create(self, name: str) -> FaultyFile:
        self._note("create", name)
        return FaultyFile(self._inner.create(name), name, self._note)

    def rename(self, old: str, new: str) -> None:
        self._note("rename", old)
        self._inner.rename(old, new)

    def remove(self, name: str) -> None:
        self._note("remove", name)
        self._inner.remove(name)

    def sync(self) -> None:
        self._note("sync", "")
        self._inner.sync()
