"""Which of the node's 51 migration ports are promised to whom. Pure; `now` is a parameter.

A target holds ports when it prepares and releases them when the migration has ended either way. A hold that nobody
renews ends by itself: its source may be dead. Whether a port is really free on the host is asked by the caller (`taken`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from kvorum.errors import NotFound, QuotaExceeded
from kvorum.node import MIGRATION_PORTS

HOLD_S = 60.0


@dataclass(frozen=True, slots=True)
class Hold:
    owner: str
    ports: tuple[int, ...]
    # On the clock that the caller gives as `now`.
    expires_at: float


@dataclass(frozen=True, slots=True)
class Ports:
    """A value: `hold`, `renew` and `release` return the next one."""

    holds: tuple[Hold, ...] = ()
    available: Sequence[int] = MIGRATION_PORTS

    def hold(
        self, owner: str, count: int, *, now: float, taken: Collection[int] = (), hold_s: float = HOLD_S
    ) -> tuple[Self, Hold]:
        """The lowest free ports. Asked again, an owner gets new ones for its old ones. Raises QuotaExceeded."""
        assert count > 0
        others = tuple(hold for hold in self.holds if hold.expires_at > now and hold.owner != owner)
        held = {port for hold in others for port in hold.ports}
        free = [port for port in self.available if port not in held and port not in taken]
        if len(free) < count:
            raise QuotaExceeded(
                f"{len(free)} of {len(self.available)} migration ports are free, {count} are needed",
                remedy="wait until other migrations to this node have ended",
            )
        made = Hold(owner, tuple(free[:count]), now + hold_s)
        return replace(self, holds=(*others, made)), made

    def renew(self, owner: str, *, now: float, hold_s: float = HOLD_S) -> Self:
        """Raises NotFound when the hold has ended: the ports may be somebody else's by now."""
        if not any(hold.owner == owner and hold.expires_at > now for hold in self.holds):
            raise NotFound(f"migration {owner} holds no ports here", remedy="start the migration again")
        renewed = tuple(replace(hold, expires_at=now + hold_s) if hold.owner == owner else hold for hold in self.holds)
        return replace(self, holds=renewed)

    def release(self, owner: str) -> Self:
        """No error when it holds none."""
        return replace(self, holds=tuple(hold for hold in self.holds if hold.owner != owner))


def listening(tables: Sequence[str]) -> frozenset[int]:
    """TCP ports in use by sockets of this host, from the text of /proc/net/tcp and tcp6. Pure.

    A socket in TIME_WAIT (06) blocks nobody who listens with SO_REUSEADDR, as QEMU does.
    """
    ports = set()
    for table in tables:
        for line in table.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] != "06":
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return frozenset(ports)


def read_listening(proc: Path = Path("/proc/self/net")) -> frozenset[int]:
    """`listening` for this network namespace."""
    return listening([(proc / name).read_text() for name in ("tcp", "tcp6") if (proc / name).exists()])
