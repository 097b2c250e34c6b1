"""What every kind of storage can do, and the values that go in and come out.

A driver does single steps on one storage of this node: it makes, finds and removes volumes. Which guest may have them, and
what goes back when a later step fails, is decided above. Drivers know nothing of each other; `storages.DRIVERS` lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.storage.naming import Content, ImageFormat
from kvorum.config.sections import Section
from kvorum.ids import Vmid, Volid


@dataclass(frozen=True, slots=True)
class Options:
    """The keys of storage.cfg that every type has."""

    id: str
    type: str
    content: frozenset[Content]
    # The same volumes are seen by every node.
    is_shared: bool = False
    is_disabled: bool = False
    # Node names that have it; empty means all.
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    volid: Volid
    content: Content
    format: str
    # What a guest sees; 0 for a directory, which has no size of its own.
    size_bytes: int
    # What it takes on the storage.
    used_bytes: int
    vmid: Vmid | None = None


@dataclass(frozen=True, slots=True)
class Status:
    total_bytes: int
    used_bytes: int
    # What a new volume may take; less than the rest where the file system keeps some back.
    free_bytes: int


class StorageDriver(Protocol):
    """One storage. Names are what stands behind the colon of a volume id.

    Raises InvalidInput for a name or format that this type does not have, NotFound for a volume that is not there,
    Unreachable when the storage does not answer or is not mounted.
    """

    def path(self, name: str) -> Path:
        """Where the volume is on this node, whether or not it exists."""

    def format(self, name: str) -> str: ...

    def kind(self, name: str) -> Content: ...

    async def allocate(
        self, vmid: Vmid, size_bytes: int, image_format: ImageFormat, *, kind: Content, name: str | None
    ) -> str:
        """Make a volume and return its name: the lowest free number, or `name` itself. Raises AlreadyExists.

        An image for a container (`kind` rootdir) gets a file system. What cannot be finished leaves nothing behind.
        """

    async def free(self, name: str) -> None:
        """Remove the volume and what it holds. No error when there is none."""

    async def resize(self, name: str, size_bytes: int) -> None:
        """Make it larger. Raises Refused for less than it has. Not for a volume that a running guest uses."""

    async def size(self, name: str) -> int: ...

    async def list(self, content: Content) -> list[VolumeInfo]: ...

    async def status(self) -> Status: ...


# Makes a driver of a section of storage.cfg; raises ConfigError.
DriverFactory = Callable[[Section, Options], StorageDriver]
