"""What a guest has read, written, received and sent since it was started, out of what hypervisor and kernel count.

Pure but for `of_interfaces`, which reads a few files of /sys. Directions are the guest's: what its end of a pair of interfaces
has received, ours has sent.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kvorum.ids import Vmid

NET = Path("/sys/class/net")
_V1_LINE = re.compile(r"^[0-9]+:[0-9]+ (Read|Write) ([0-9]+)$", re.MULTILINE)
_V2_FIELD = re.compile(r"\b([rw])bytes=([0-9]+)\b")


@dataclass(frozen=True, slots=True)
class Traffic:
    """None: nobody counts it."""

    received_bytes: int | None = None
    sent_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


UNKNOWN = Traffic()


@runtime_checkable
class Measures(Protocol):
    """What a driver may offer besides: the traffic of its running guests."""

    async def traffic(self) -> Mapping[Vmid, Traffic]: ...


def of_domain(stats: Mapping[str, object]) -> Traffic:
    """Of libvirt's statistics of a domain (groups `block` and `net`)."""
    return Traffic(
        received_bytes=_total(stats, "net", "rx.bytes"),
        sent_bytes=_total(stats, "net", "tx.bytes"),
        read_bytes=_total(stats, "block", "rd.bytes"),
        written_bytes=_total(stats, "block", "wr.bytes"),
    )


def of_io_stat(text: str) -> tuple[int, int]:
    """Of `io.stat` (cgroup v2): bytes read and written on all devices."""
    found = [(kind, int(number)) for kind, number in _V2_FIELD.findall(text)]
    return sum(n for kind, n in found if kind == "r"), sum(n for kind, n in found if kind == "w")


def of_blkio(text: str) -> tuple[int, int]:
    """Of `blkio.throttle.io_service_bytes` (cgroup v1), likewise."""
    found = [(kind, int(number)) for kind, number in _V1_LINE.findall(text)]
    return sum(n for kind, n in found if kind == "Read"), sum(n for kind, n in found if kind == "Write")


def of_interfaces(prefix: str, net: Path = NET) -> tuple[int, int]:
    """Bytes that a guest has received and sent through its interfaces, whose ends here are called by this prefix."""
    received = sent = 0
    for path in net.glob(f"{prefix}[0-9]*"):
        received += _number(path / "statistics/tx_bytes")
        sent += _number(path / "statistics/rx_bytes")
    return received, sent


def _total(stats: Mapping[str, object], group: str, name: str) -> int | None:
    count = stats.get(f"{group}.count")
    if not isinstance(count, int):
        return None
    values = [stats.get(f"{group}.{number}.{name}") for number in range(count)]
    return sum(value for value in values if isinstance(value, int))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        # The interface has gone in the meantime.
        return 0
