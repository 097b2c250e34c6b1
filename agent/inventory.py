"""Which guests exist and which node owns each: read from where their config files lie in the store, never remembered.

A guest *is* its file `nodes/<node>/qemu-server/<vmid>.conf` or `nodes/<node>/lxc/<vmid>.conf`; the directory names the owner
and the entry's placement is the guest's generation. What runs is for the drivers; nothing is changed here.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kvorum.config import GuestConfig
from kvorum.errors import NotFound
from kvorum.ids import VMID_MAX, VMID_MIN, NodeName, Sid, Vmid

_PATH = re.compile(r"nodes/([A-Za-z0-9-]{1,63})/(qemu-server|lxc)/([1-9][0-9]{2,8})\.conf")


class GuestKind(StrEnum):
    """Values as in HA's resource ids, `vm:100`."""

    vm = "vm"
    container = "ct"

    @property
    def directory(self) -> str:
        return "qemu-server" if self is GuestKind.vm else "lxc"

    @property
    def task_prefix(self) -> str:
        """Of Proxmox VE's task types: qmstart, vzstart."""
        return "qm" if self is GuestKind.vm else "vz"


class StoredEntry(Protocol):
    """What the store tells of an entry (clusterfs.client, kvorum.v1.Entry)."""

    @property
    def path(self) -> str: ...
    @property
    def content(self) -> bytes: ...
    @property
    def version(self) -> int: ...
    @property
    def placement(self) -> int: ...


class GuestStore(Protocol):
    """The part of the store's client that is used here."""

    async def get(self, path: str, *, linearizable: bool = False) -> StoredEntry: ...
    async def list(
        self, path: str = "", *, recursive: bool = False, with_content: bool = False
    ) -> Iterable[StoredEntry]: ...


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A guest as the store has it. `version` guards writes; `generation` changes when the guest changes its owner."""

    vmid: Vmid
    kind: GuestKind
    node: NodeName
    text: str
    version: int
    generation: int

    @property
    def path(self) -> str:
        return guest_path(self.node, self.kind, self.vmid)

    @property
    def sid(self) -> Sid:
        return Sid(f"{self.kind}:{self.vmid}")

    @property
    def config(self) -> GuestConfig:
        """Raises ConfigError when somebody broke the file by hand."""
        return GuestConfig.parse(self.text, self.path)

    @property
    def display_name(self) -> str:
        config = self.config
        return config.get("name") or config.get("hostname") or ""


def guest_path(node: str, kind: GuestKind, vmid: int) -> str:
    return f"nodes/{node}/{kind.directory}/{vmid}.conf"


def parse_guest_path(path: str) -> tuple[NodeName, GuestKind, Vmid] | None:
    """None for the path of anything else."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    kind = GuestKind.vm if match[2] == "qemu-server" else GuestKind.container
    return NodeName(match[1]), kind, Vmid(int(match[3]))


def next_free(taken: Collection[int]) -> Vmid:
    """The lowest free guest id, from 100 up. Raises NotFound when all are taken."""
    used = set(taken)
    for vmid in range(VMID_MIN, VMID_MAX + 1):
        if vmid not in used:
            return Vmid(vmid)
    raise NotFound("no guest id is free")


class Inventory:
    """Answers from the local replica; ask `linearizable` before doing what only the owner may do."""

    def __init__(self, store: GuestStore) -> None:
        self._store = store

    async def all(self) -> list[GuestFile]:
        """Sorted by guest id."""
        entries = await self._store.list("nodes", recursive=True, with_content=True)
        files = [file for entry in entries if (file := _file(entry)) is not None]
        return sorted(files, key=lambda file: file.vmid)

    async def of_node(self, node: NodeName) -> list[GuestFile]:
        """Those that the node owns, sorted by guest id."""
        try:
            entries = await self._store.list(f"nodes/{node}", recursive=True, with_content=True)
        except NotFound:
            return []
        files = [file for entry in entries if (file := _file(entry)) is not None]
        return sorted(files, key=lambda file: file.vmid)

    async def find(self, vmid: Vmid) -> GuestFile:
        """Wherever it is. Raises NotFound."""
        for _ in range(3):  # it may move between the listing and the reading
            entries = await self._store.list("nodes", recursive=True)
            path = next((entry.path for entry in entries if _is_file_of(entry.path, vmid)), None)
            if path is None:
                break
            try:
                return await self.at(path)
            except NotFound:
                continue
        raise NotFound(f"there is no guest {vmid}", remedy="list the guests with 'kvorum guest list'")

    async def at(self, path: str, *, linearizable: bool = False) -> GuestFile:
        """The guest whose file is there. Raises NotFound; NoQuorum when `linearizable` and there is none."""
        entry = await self._store.get(path, linearizable=linearizable)
        file = _file(entry)
        assert file is not None, f"{path} is no guest's file"
        return file

    async def find_current(self, vmid: Vmid) -> GuestFile:
        """As the majority has it. Raises NotFound, NoQuorum."""
        for _ in range(3):
            found = await self.find(vmid)
            try:
                return await self.at(found.path, linearizable=True)
            except NotFound:
                continue  # our replica lagged behind; the linearizable read has made it catch up
        raise NotFound(f"there is no guest {vmid}")


def _file(entry: StoredEntry) -> GuestFile | None:
    place = parse_guest_path(entry.path)
    if place is None:
        return None
    node, kind, vmid = place
    text = entry.content.decode("utf-8", errors="replace")
    return GuestFile(vmid, kind, node, text, entry.version, entry.placement)


def _is_file_of(path: str, vmid: Vmid) -> bool:
    place = parse_guest_path(path)
    return place is not None and place[2] == vmid
