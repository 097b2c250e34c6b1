"""Fakes of what operations use: a store, a driver, storages. Small, in memory, and strict where the real ones are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.guests.driver import STOPPED, Guest, Observed, RunState
from agent.inventory import GuestKind, Inventory
from agent.operations.host import Host
from agent.tasks import UndoStep
from ha.lease_state import LeaseState
from kvorum.errors import AlreadyExists, NoQuorum, NotFound, Refused, StaleVersion, Timeout
from kvorum.ids import NodeName, Vmid, Volid


@dataclass(frozen=True)
class FakeEntry:
    path: str
    content: bytes
    version: int
    placement: int


class FakeStore:
    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        self.entries: dict[str, FakeEntry] = {}
        self.index = 0
        self.is_quorate = True
        self.before_write: list[object] = []
        for path, text in (files or {}).items():
            self._put(path, text.encode(), placed=True)

    def _put(self, path: str, content: bytes, *, placed: bool) -> FakeEntry:
        self.index += 1
        placement = self.index if placed else self.entries[path].placement
        self.entries[path] = FakeEntry(path, content, self.index, placement)
        return self.entries[path]

    def _check(self, path: str, expected_version: int | None) -> None:
        if not self.is_quorate:
            raise NoQuorum(missing=["n2"])
        if expected_version and path in self.entries and self.entries[path].version != expected_version:
            raise StaleVersion(f"{path} has changed")

    async def get(self, path: str, *, linearizable: bool = False) -> FakeEntry:
        if linearizable and not self.is_quorate:
            raise NoQuorum(missing=["n2"])
        if path not in self.entries:
            raise NotFound(path)
        return self.entries[path]

    async def list(self, path: str = "", *, recursive: bool = False, with_content: bool = False) -> Sequence[FakeEntry]:
        return [self.entries[name] for name in sorted(self.entries) if name.startswith(path)]

    async def write(
        self,
        path: str,
        content: bytes,
        *,
        expected_version: int | None = None,
        absent: bool = False,
        parents: bool = False,
        reason: str = "",
    ) -> FakeEntry:
        self._check(path, expected_version)
        if absent and path in self.entries:
            raise AlreadyExists(path)
        if expected_version and path not in self.entries:
            raise NotFound(path)
        return self._put(path, content, placed=path not in self.entries)

    async def move(self, path: str, new_path: str, *, expected_version: int = 0, reason: str = "") -> FakeEntry:
        self._check(path, expected_version)
        if path not in self.entries:
            raise NotFound(path)
        content = self.entries.pop(path).content
        return self._put(new_path, content, placed=True)

    async def delete(self, path: str, *, expected_version: int = 0, reason: str = "") -> None:
        self._check(path, expected_version)
        if path not in self.entries:
            raise NotFound(path)
        del self.entries[path]

    def text(self, path: str) -> str:
        return self.entries[path].content.decode()


class FakeDriver:
    def __init__(self) -> None:
        self.states: dict[Vmid, RunState] = {}
        self.started: list[Guest] = []
        self.calls: list[str] = []
        self.ignores_power_button = False
        self.on_start: Exception | None = None
        # Called whenever a guest begins to run: a place to look for a second copy.
        self.on_running: Callable[[], None] = lambda: None

    async def start(self, guest: Guest) -> None:
        if self.on_start:
            raise self.on_start
        if guest.vmid in self.states:
            raise Refused("runs already")
        self.started.append(guest)
        self.states[guest.vmid] = RunState.running
        self.on_running()

    async def shutdown(self, vmid: Vmid, *, timeout_s: float) -> None:
        self.calls.append(f"shutdown {vmid} {timeout_s:g}")
        if self.ignores_power_button:
            raise Timeout("still runs")
        self.states.pop(vmid, None)

    async def stop(self, vmid: Vmid) -> None:
        self.calls.append(f"stop {vmid}")
        self.states.pop(vmid, None)

    async def resume(self, vmid: Vmid) -> None:
        self.calls.append(f"resume {vmid}")
        self.states[vmid] = RunState.running
        self.on_running()

    async def observe(self, vmid: Vmid) -> Observed:
        return Observed(self.states[vmid], pid=1) if vmid in self.states else STOPPED

    async def observe_all(self) -> Mapping[Vmid, Observed]:
        return {vmid: Observed(state) for vmid, state in self.states.items()}

    async def console_log(self, vmid: Vmid, *, tail_bytes: int) -> bytes:
        return b"READY\n"[-tail_bytes:]

    async def forget(self, vmid: Vmid) -> None:
        self.calls.append(f"forget {vmid}")


class FakeStorages:
    """`local` is this node's own, `shared` everybody's."""

    def __init__(self, root: Path = Path("/nowhere")) -> None:
        self.root = root
        self.volumes: dict[str, int] = {}
        self.fail_at: str = ""

    def _storage(self, volid: str) -> str:
        storage = volid.partition(":")[0]
        if storage not in ("local", "shared"):
            raise NotFound(f"there is no storage {storage}")
        return storage

    def path(self, volid: Volid) -> Path:
        return self.root / self._storage(volid) / volid.partition(":")[2]

    def format(self, volid: Volid) -> str:
        return "raw" if volid.endswith(".raw") else "qcow2"

    def is_shared(self, volid: Volid) -> bool:
        return self._storage(volid) == "shared"

    async def size(self, volid: Volid) -> int:
        if volid not in self.volumes:
            raise NotFound(volid)
        return self.volumes[volid]

    async def allocate(
        self,
        storage: str,
        vmid: Vmid,
        size_bytes: int,
        image_format: str,
        *,
        kind: str = "images",
        name: str | None = None,
    ) -> Volid:
        self._storage(f"{storage}:x")
        if storage == self.fail_at:
            raise Refused("no space left")
        for number in range(100):
            volid = Volid(f"{storage}:{name or f'{vmid}/vm-{vmid}-disk-{number}.{image_format}'}")
            if volid not in self.volumes:
                self.volumes[volid] = size_bytes
                return volid
            if name:
                raise AlreadyExists(volid)
        raise AssertionError("too many volumes")

    async def free(self, volid: Volid) -> None:
        self.volumes.pop(volid, None)


@dataclass
class FakeHandle:
    upid: str = "UPID:n1:00000001:00000001:66AABBCC:test:100:root@pam:"
    lines: list[str] = field(default_factory=list)
    undos: list[tuple[object, UndoStep | None]] = field(default_factory=list)
    is_committed: bool = False
    phases: list[str] = field(default_factory=list)

    def log(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, fraction: float, phase: str = "") -> None:
        if phase:
            self.phases.append(phase)

    def undo(self, callback: object, step: UndoStep | None = None) -> None:
        self.undos.append((callback, step))

    def commit(self) -> None:
        self.is_committed = True
        self.undos.clear()

    async def roll_back(self) -> None:
        while self.undos:
            callback, _ = self.undos.pop()
            await callback()  # type: ignore[operator]


def fake_host(
    store: FakeStore,
    *,
    node: str = "n1",
    driver: FakeDriver | None = None,
    storages: FakeStorages | None = None,
    lease: LeaseState | None = None,
) -> Host:
    driver = driver or FakeDriver()
    volumes = storages or FakeStorages()

    async def all_storages() -> FakeStorages:
        return volumes

    return Host(
        node=lambda: NodeName(node),
        store=store,
        inventory=Inventory(store),
        drivers={GuestKind.vm: driver, GuestKind.container: driver},
        storages=all_storages,
        lease=lambda: lease or LeaseState(),
        boottime=lambda: 100.0,
    )
