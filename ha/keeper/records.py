"""The black box: why guests were paused, killed or a host reset, written where it survives the reset.

The guard hands over what it knows and goes on; a thread adds what the kernel says about pressure, writes a line and forces it to
the disk. A disk that hangs loses the line, never the deadline. Others read it later: kvorum-ha posts what is new to
the cluster log. The file is bounded; the oldest lines go first.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from kvorum.node import STATE

RECORDS_FILE = STATE / "keeper" / "records"
MAX_LINES = 200
MAX_BYTES = 256 << 10
PRESSURE = Path("/proc/pressure")


class Renewal(msgspec.Struct, frozen=True, omit_defaults=True):
    """`sent_s`, `took_s`: seconds before the record, and until the answer. No `failure`: it was answered."""

    sent_s: float
    took_s: float
    failure: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    # `paused`, `resumed`, `killed`, `gone`, `reset`, `armed`, `disarmed`, `ended`: the host went without a word.
    kind: str
    cause: str
    # Seconds since the epoch, for people; on the boot-time clock of `boot_id`, for the order.
    time: float = 0.0
    boottime: float = 0.0
    boot_id: str = ""
    uid: str = ""
    incarnation: int = 0
    profile: str = ""
    # Age of the lease on each way on which it is renewed.
    age_s: dict[str, float] = {}
    renewals: tuple[Renewal, ...] = ()
    # The guard's own lateness: the worst of the last minute, and how long ago that was.
    late_s: float = 0.0
    late_ago_s: float = 0.0
    guests: tuple[str, ...] = ()
    # Processes that were still there: `vm:100 (pid 4711)`.
    left: tuple[str, ...] = ()
    watchdog: str = ""
    # As the kernel words it: `io: some avg10=87.00 ...`.
    pressure: tuple[str, ...] = ()
    # Counts the records of this node; the file keeps the last ones.
    number: int = 0


class Recorder:
    """`put` never waits. Without a thread that runs (`start`) everything stays in the queue."""

    def __init__(self, path: Path = RECORDS_FILE, *, wall: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall = wall
        self._queue: queue.SimpleQueue[Record | threading.Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="records", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, record: Record) -> None:
        self._queue.put(msgspec.structs.replace(record, time=self._wall()))

    def flush(self, timeout_s: float) -> bool:
        """Whether everything was on the disk in time."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout_s)

    def _work(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            with suppress(OSError):
                append(self._path, msgspec.structs.replace(item, pressure=read_pressure()))


def append(path: Path, record: Record) -> Record:
    """Writes it with the next number, durably. Raises OSError."""
    known = read(path)
    record = msgspec.structs.replace(record, number=known[-1].number + 1 if known else 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Begins on a line of its own, whatever a reset has left of the one before.
    line = b"\n" + msgspec.json.encode(record) + b"\n"
    if len(known) >= MAX_LINES or (path.exists() and path.stat().st_size + len(line) > MAX_BYTES):
        _rewrite(path, known[-MAX_LINES // 2 :], line)
        return record
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)
    return record


def _rewrite(path: Path, kept: list[Record], line: bytes) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as stream:
        stream.writelines(msgspec.json.encode(one) + b"\n" for one in kept)
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read(path: Path = RECORDS_FILE) -> list[Record]:
    """All that can be read, in order; a line that a reset cut short is left out. Never raises."""
    found: list[Record] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    for line in lines:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            found.append(msgspec.json.decode(line, type=Record))
    return found


def read_pressure(root: Path = PRESSURE) -> tuple[str, ...]:
    """What processes of this host wait for, as far as the kernel tells."""
    found: list[str] = []
    for name in ("cpu", "io", "memory"):
        with suppress(OSError):
            some = (root / name).read_text().partition("\n")[0]
            found.append(f"{name}: {some}")
    return tuple(found)


def missed_end(known: list[Record], boot_id: str, *, uid: str, boot_status: str = "") -> Record | None:
    """The record that nobody had the time to write: the host guarded guests when it ended. Pure."""
    last = next((one for one in reversed(known) if one.kind in ("armed", "disarmed", "reset", "ended")), None)
    if last is None or last.kind != "armed" or last.boot_id == boot_id:
        return None
    why = boot_status or "a power cut, a kernel that hung, or the watchdog of a host that was frozen"
    return Record(
        kind="ended",
        cause=f"the host ended while it guarded HA guests, and nobody had the time to say why: {why}",
        boot_id=boot_id,
        uid=uid,
        incarnation=last.incarnation,
        guests=last.guests,
    )


def told(record: Record) -> str:
    """For people, in one line: what was done, why, and what is known about the cause."""
    age = ", ".join(f"{way} {age_s:.1f} s" for way, age_s in sorted(record.age_s.items()))
    failed = [one for one in record.renewals if one.failure]
    parts = [
        f"{record.kind}: {record.cause}",
        f"age of the lease: {age}" if age else "",
        f"{len(failed)} of the last {len(record.renewals)} renewals failed, the last with {failed[-1].failure}"
        if failed
        else "",
        f"the keeper itself was {record.late_s:.1f} s late {record.late_ago_s:.0f} s before"
        if record.late_s > 0.5
        else "",
        f"still there: {', '.join(record.left)}" if record.left else "",
        "; ".join(_pressing(record.pressure)),
    ]
    return "; ".join(part for part in parts if part)


def _pressing(lines: tuple[str, ...]) -> list[str]:
    """Only what is worth a word: somebody waited for more than a fifth of the last ten seconds."""
    found: list[str] = []
    for line in lines:
        name, _, rest = line.partition(":")
        share = next((word.removeprefix("avg10=") for word in rest.split() if word.startswith("avg10=")), "0")
        with suppress(ValueError):
            if float(share) >= 20:
                found.append(f"processes waited for {name} {float(share):.0f} % of the time")
    return found
