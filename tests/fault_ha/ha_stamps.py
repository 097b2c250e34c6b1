"""Proves single ownership from what guests stamped on their own disks, in the order in which it reached them. Pure.

Each boot of a guest has an id of its own and counts; about once a second it writes both to its disk, past every cache. So once a
later boot has written, an earlier one must be silent for ever, a count never goes back, and between two stamps of one boot nobody
else writes to that volume: who mounts or replays it there has begun to run the guest before its own first stamp.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

# Of the micro guest's disk, and of the container's file system (stamping_template in ha_guests.py).
_STAMP = re.compile(rb"BOOT ([0-9a-f]{16}) COUNT (\d+)\n|STAMP ([0-9a-f-]{36}) COUNT (\d+)\n")
_VOLUME = re.compile(r"/?images/(\d+)/.+")


@dataclass(frozen=True, slots=True)
class Entry:
    """A write that reached a guest's volume, at a second of the machine's monotonic clock. Without `boot` it is no stamp."""

    time_s: float
    node: str
    vmid: int
    boot: str = ""
    count: int = 0


@dataclass(slots=True)
class Journal:
    """Tells writes to guests' volumes, a line each; of several in a row that are no stamps and of one node, the first."""

    write: Callable[[str], object]
    _last: dict[int, tuple[str, bool]] = field(default_factory=dict)

    def note(self, time_s: float, node: str, path: str, data: bytes) -> None:
        volume = _VOLUME.fullmatch(path)
        if volume is None:
            return
        vmid = int(volume[1])
        found = [(match[1] or match[3], match[2] or match[4]) for match in _STAMP.finditer(data)]
        for boot, count in found:
            self.write(f"{time_s:.6f} {node} {vmid} {boot.decode()} {count.decode()}\n")
        if not found and self._last.get(vmid) != (node, False):
            self.write(f"{time_s:.6f} {node} {vmid}\n")
        self._last[vmid] = (node, bool(found))


def parse(text: str) -> list[Entry]:
    """The journal's whole lines; the last one may still be under way."""
    entries = []
    for line in text.splitlines(keepends=True):
        fields = line.split()
        if line.endswith("\n") and len(fields) in (3, 5):
            boot, count = (fields[3], int(fields[4])) if len(fields) == 5 else ("", 0)
            entries.append(Entry(float(fields[0]), fields[1], int(fields[2]), boot, count))
    return entries


def faults(entries: Iterable[Entry]) -> list[str]:
    """A line for each write that cannot be if each guest ran once at a time. `entries` in the order of the disk."""
    by_guest: dict[int, list[Entry]] = {}
    for entry in entries:
        by_guest.setdefault(entry.vmid, []).append(entry)
    return [line for _, own in sorted(by_guest.items()) for line in _faults_of_one(own)]


def stamps(entries: Iterable[Entry], vmid: int) -> list[Entry]:
    return [entry for entry in entries if entry.vmid == vmid and entry.boot]


def new_boot(entries: Sequence[Entry], vmid: int, since_s: float) -> Entry | None:
    """The first stamp after `since_s` of a boot that had not written before."""
    own = stamps(entries, vmid)
    known = {entry.boot for entry in own if entry.time_s <= since_s}
    return next((entry for entry in own if entry.time_s > since_s and entry.boot not in known), None)


def _faults_of_one(entries: Sequence[Entry]) -> list[str]:
    found: list[str] = []
    newest: Entry | None = None  # the last stamp
    over: set[str] = set()  # boots that later ones have succeeded
    stranger: Entry | None = None  # somebody else's write since then
    for entry in entries:
        if not entry.boot:
            if newest is not None and entry.node != newest.node:
                stranger = entry
            continue
        if newest is not None and entry.boot == newest.boot:
            if stranger is not None and entry.node == newest.node:
                found.append(f"{_told(stranger)} in the midst of {_told(entry)}")
            if entry.count < newest.count or (entry.count == newest.count and entry.node != newest.node):
                found.append(f"{_told(entry)} after {_told(newest)}")
        elif entry.boot in over:
            found.append(f"{_told(entry)} although it was over: {_told(newest)}" if newest else _told(entry))
            continue  # the later boot remains the one that may write
        elif newest is not None:
            over.add(newest.boot)
        newest, stranger = entry, None
    return found


def _told(entry: Entry) -> str:
    what = f"boot {entry.boot[:8]} wrote count {entry.count}" if entry.boot else "a write"
    return f"guest {entry.vmid}: {what} on {entry.node} at {entry.time_s:.3f} s"
