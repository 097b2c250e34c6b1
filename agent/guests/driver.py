"""What every guest driver can do, and the values that go in and come out.

The services above decide (is the lease live, is the config ours, which volumes); a driver performs single steps on one
hypervisor of this node and states what it sees. It knows nothing of the store, of other nodes or of other drivers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvorum.ids import NodeName, Vmid

if TYPE_CHECKING:
    from kvorum.config.guest import GuestConfig


class RunState(StrEnum):
    stopped = "stopped"
    running = "running"
    paused = "paused"


@dataclass(frozen=True, slots=True)
class Observed:
    """What runs at the moment. `pid` is the process to look for in /proc: QEMU, or a container's first process."""

    state: RunState
    pid: int | None = None
    uptime_s: float = 0.0


STOPPED = Observed(RunState.stopped)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of the config, resolved to this node's file. `key` is the config key: scsi0, ide2, rootfs, mp0."""

    key: str
    path: Path
    # raw, qcow2, or subvol for a container's directory.
    format: str
    read_only: bool = False
    # The same file is seen by every node of the cluster (decides what a migration copies).
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest as its config says it should be. `generation` is its ownership number in the store."""

    vmid: Vmid
    config: GuestConfig
    volumes: tuple[Volume, ...]
    node: NodeName
    generation: int


class GuestDriver(Protocol):
    """Single steps on guests of one kind. Methods may be called at the same time for different guests.

    Raises kvorum.errors: NotFound (no such image, template), Locked (image in use elsewhere), Refused (already runs),
    CommandFailed (the hypervisor said no; the message is its own), Unreachable (its daemon does not answer).
    """

    async def start(self, guest: Guest) -> None:
        """Returns when the guest runs. Refused when it already does."""

    async def shutdown(self, vmid: Vmid, *, timeout_s: float) -> None:
        """Ask the guest to power off and wait. Raises Timeout when it still runs then. No error when it is stopped."""

    async def stop(self, vmid: Vmid) -> None:
        """End it hard. Idempotent; returns only when the process is gone, raises Timeout when it would not go."""

    async def observe(self, vmid: Vmid) -> Observed:
        """`stopped` for a guest that the hypervisor does not know."""

    async def observe_all(self) -> Mapping[Vmid, Observed]:
        """Guests that have a process (running or paused), of this driver's kind."""

    async def console_log(self, vmid: Vmid, *, tail_bytes: int) -> bytes:
        """The end of what the guest printed on its first console; empty when there is nothing."""

    async def forget(self, vmid: Vmid) -> None:
        """Remove runtime leftovers (console log, sockets) of a guest that was deleted or has moved away."""
