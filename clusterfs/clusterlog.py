"""The cluster log: what all nodes have to say, each with its own ring of the newest lines, merged for whoever reads.

Pure. A node's ring is a set of lines cut to the newest that fit, and merging copies is a union: whoever has heard the same
lines holds the same ring, but for lines at its far end. A line is known by (time, node, uid); texts are made harmless when
they enter. The same lines are kept by every node and by no disk.
"""

import heapq
import zlib
from collections.abc import Iterable, Mapping

import msgspec

# As pmxcfs has them: of a node's ring, of one line, of each of its names.
RING_BYTES = 128 << 10
MAX_LINE_BYTES = 4096
MAX_NAME_BYTES = 254
# Of what a line costs besides its texts.
_OVERHEAD = 48
# Rings of nodes that were renamed or removed stay until this many others have newer lines.
MAX_RINGS = 128


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """One line of `.clusterlog`; `priority` as in syslog, `time` in seconds since the epoch, `uid` counts a node's lines."""

    uid: int
    time: int
    priority: int
    tag: str
    pid: int
    node: str
    user: str
    message: str

    @property
    def order(self) -> tuple[int, str, int]:
        return self.time, self.node, self.uid

    @property
    def size(self) -> int:
        return _OVERHEAD + sum(
            len(text.encode(errors="replace")) for text in (self.tag, self.node, self.user, self.message)
        )


# By node: its lines, oldest first.
Rings = Mapping[str, tuple[LogLine, ...]]


def line(*, uid: int, time: int, priority: int, tag: str, pid: int, node: str, user: str, message: str) -> LogLine:
    """A line whose texts fit and hold nothing that could break a terminal or a parser."""
    names = [harmless(text, MAX_NAME_BYTES) for text in (tag, node, user)]
    left = MAX_LINE_BYTES - _OVERHEAD - sum(len(name.encode()) for name in names)
    return LogLine(uid, time, priority, names[0], pid, names[1], names[2], harmless(message, left))


def why_not(line: LogLine) -> str:
    """Why this is no line that `line` has made; empty when it is."""
    numbers = (line.uid, line.time, line.pid)
    if not all(0 <= number < 1 << 63 for number in numbers) or line.priority not in range(8):
        return "a number is out of range"
    if line.size > MAX_LINE_BYTES or not line.node:
        return f"a line names its node and has at most {MAX_LINE_BYTES} bytes"
    return ""


def harmless(text: str, limit: int) -> str:
    """Control characters as `#010`, at most `limit` bytes of UTF-8. Those of 128 to 159 too: some terminals obey them."""
    shown = "".join(f"#{ord(char):03d}" if ord(char) < 32 or 127 <= ord(char) < 160 else char for char in text)
    return shown.encode(errors="ignore")[:limit].decode(errors="ignore")


def added(rings: Rings, lines: Iterable[LogLine]) -> Rings:
    """With these lines, as far as they are new and not too old."""
    by_node: dict[str, list[LogLine]] = {}
    for new in lines:
        by_node.setdefault(new.node, []).append(new)
    if not by_node:
        return rings
    result = dict(rings)
    for node, news in by_node.items():
        known = {(old.time, old.uid): old for old in result.get(node, ())}
        fresh = {(new.time, new.uid): new for new in news if (new.time, new.uid) not in known}
        if fresh:
            known.update(fresh)
            result[node] = _newest_that_fit([known[at] for at in sorted(known)])
    while len(result) > MAX_RINGS:
        del result[min(result, key=lambda node: result[node][-1].order)]
    return result


def newest(rings: Rings, limit: int, *, user: str = "") -> list[LogLine]:
    """Of all nodes, the newest first; of one user when named."""
    candidates: list[LogLine] = []
    for ring in rings.values():
        wanted = ring if not user else [one for one in ring if one.user == user]
        candidates.extend(wanted[-limit:] if limit > 0 else ())
    return heapq.nlargest(limit, candidates, key=lambda one: one.order)


def check(ring: tuple[LogLine, ...]) -> tuple[int, int]:
    """Two copies of a ring with the same check hold the same lines."""
    stamps = b"".join(one.time.to_bytes(8, "big") + one.uid.to_bytes(8, "big") for one in ring)
    return len(ring), zlib.crc32(stamps)


def _newest_that_fit(lines: list[LogLine]) -> tuple[LogLine, ...]:
    left = RING_BYTES
    for start in range(len(lines), 0, -1):
        left -= lines[start - 1].size
        if left < 0:
            return tuple(lines[start:])
    return tuple(lines)
