"""What a node must not forget about migrations under way, in one small file each: those that leave and those that arrive.

Written before the first step that leaves a trace, removed when nothing is left to settle. An agent that starts reads them and
asks `agent.migration.plan.settle` what is safe.
"""

import logging
from pathlib import Path

import msgspec

from kvorum.ids import Vmid
from kvorum.node import write_atomically

log = logging.getLogger(__name__)


class Departure(msgspec.Struct, frozen=True, kw_only=True, tag="departure"):
    """Here at the source. `copied`: our volumes whose contents travel; freed when the guest runs at the target."""

    migration_id: str
    vmid: int
    kind: str
    target: str
    copied: list[str] = []
    # Our copy ended while a task watched, by the migration as far as anybody can tell. Of one that ended unwatched nobody knows
    # whether it had gone on after a failure.
    has_ended: bool = False
    # `has_left`: the config is the target's; what remains is to tidy up.
    has_left: bool = False


class Arrival(msgspec.Struct, frozen=True, kw_only=True, tag="arrival"):
    """Here at the target. `renamed`: the source's volume -> the one made here for it."""

    migration_id: str
    vmid: int
    kind: str
    source: str
    memory_port: int = 0
    disk_port: int = 0
    renamed: dict[str, str] = {}
    started_s: float = 0.0
    # Under which the copy became ours; 0 until then. A guest that went away and came back since is not this copy.
    generation: int = 0
    # The guest runs here (or was started anew): kept for a while, so that a source that asks again gets an answer.
    is_finished: bool = False


Record = Departure | Arrival


class MigrationRecords:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records: dict[str, Record] = {}

    def load(self) -> None:
        """A damaged file is logged and left: nothing may be guessed about a guest."""
        for path in self._directory.glob("*.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("migration record %s cannot be read: %s", path, error)
                continue
            self._records[self._key(record)] = record

    def save(self, record: Record) -> None:
        key = self._key(record)
        write_atomically(self._directory / f"{key}.json", msgspec.json.encode(record), mode=0o600)
        self._records[key] = record

    def remove(self, record: Record) -> None:
        key = self._key(record)
        self._records.pop(key, None)
        (self._directory / f"{key}.json").unlink(missing_ok=True)

    def departures(self) -> list[Departure]:
        return [record for record in self._records.values() if isinstance(record, Departure)]

    def arrivals(self) -> list[Arrival]:
        return [record for record in self._records.values() if isinstance(record, Arrival)]

    def arrival(self, migration_id: str) -> Arrival | None:
        return next((record for record in self.arrivals() if record.migration_id == migration_id), None)

    def is_moving(self, vmid: Vmid) -> bool:
        return any(record.vmid == vmid and not _is_over(record) for record in self._records.values())

    def _key(self, record: Record) -> str:
        return f"{'out' if isinstance(record, Departure) else 'in'}-{record.migration_id}"


def _is_over(record: Record) -> bool:
    return record.is_finished if isinstance(record, Arrival) else record.has_left
