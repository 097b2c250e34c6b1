"""Where tasks lie on disk: `UPID….json` for the record and `UPID….log` for what it said, side by side.

A record is replaced as a whole, so that an agent killed at any point leaves the old or the new one. It is not forced to the
platter: what it protects against is the agent's death, and after the host's death the guests that it spoke of are gone too.
"""

import logging
from pathlib import Path

import msgspec

from .record import TaskRecord
from .upid import Upid

log = logging.getLogger(__name__)

_MAX_LOG_BYTES = 4 * 1024 * 1024


class TaskFiles:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load_all(self) -> list[TaskRecord]:
        """Every record that can be read, oldest first; a damaged one is logged and left where it is."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for path in self._directory.glob("UPID:*.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=TaskRecord)
                Upid.parse(record.upid)
                found.append(record)
            except Exception as error:  # one damaged file must not keep the agent from starting
                log.warning("task record %s cannot be read: %s", path.name, error)
        return sorted(found, key=lambda record: record.start_time_s)

    def save(self, record: TaskRecord) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(record.upid, "json")
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(path)

    def append(self, upid: str, lines: list[str]) -> None:
        path = self._path(upid, "log")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a", encoding="utf-8", errors="replace") as stream:
            stream.writelines(f"{line}\n" for line in lines)

    def lines(self, upid: str) -> list[str]:
        """The log of a task that no longer runs; empty when there is none."""
        try:
            with self._path(upid, "log").open("r", encoding="utf-8", errors="replace") as stream:
                return stream.read(_MAX_LOG_BYTES).splitlines()
        except FileNotFoundError:
            return []

    def remove(self, upid: str) -> None:
        for suffix in ("log", "json"):
            self._path(upid, suffix).unlink(missing_ok=True)

    def _path(self, upid: str, suffix: str) -> Path:
        Upid.parse(upid)  # keeps a name from the network from leaving the directory
        return self._directory / f"{upid}.{suffix}"
