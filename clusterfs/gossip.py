"""Keeps the nodes' volatile status alike: tells peers what was set here, takes what they tell, and finds out what got lost.

What is told at once may get lost; a digest every few seconds, and at each new link, shows who lacks what, and a piece that does
not fit what is there is asked for again. Nothing here waits for consensus, has a quorum, or touches a disk: a node that is cut
off keeps the others' last words and says how old they are, until it forgets them. Values and their merging are in
`clusterfs.volatile`, the log's in `clusterfs.clusterlog`.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clusterfs import clusterlog, volatile
from clusterfs.clusterlog import LogLine, Rings
from clusterfs.volatile import Delta, Digest, Lines, Shelf, Whispered
from kvorum.errors import InvalidInput, QuotaExceeded

log = logging.getLogger(__name__)

DIGEST_INTERVAL_S = 5.0
# Status of a node that nobody hears any more is kept this long.
FORGET_S = 300.0
# What is set in one burst leaves together.
_PAUSE_S = 0.03
_INBOX = 512
_RECENT = 10_000

RRD = "rrd/"
MAX_RRD_BYTES = 4095

Send = Callable[[bytes, "str | None"], None]


@dataclass(frozen=True, slots=True)
class Change:
    """A key of a node's shelf has another value now; `version` counts the changes that this process has seen."""

    uid: str
    key: str
    version: int


class Gossip:
    """`send(payload, uid)` whispers to a peer, or to all when `uid` is None. `receive`, `links` and the rest are for any thread;
    `step` is for one."""

    def __init__(
        self,
        *,
        uid: str,
        name: str,
        send: Send,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.uid = uid
        self.name = name
        self._send = send
        self._clock = clock
        self._wall = wall
        self.changed = threading.Condition()
        self._shelves: Mapping[str, Shelf] = {uid: Shelf(int(wall() * 1e6))}
        self._rings: Rings = {}
        self._checks: dict[str, tuple[tuple[LogLine, ...], tuple[int, int]]] = {}
        self._versions: dict[str, dict[str, int]] = {uid: {}}
        self._arrived: dict[tuple[str, str], float] = {}
        self._recent: deque[Change] = deque()
        self._forgotten_version = 0
        self._version = 0
        self._log_version = 0
        self._lines = 0
        self._connected: frozenset[str] = frozenset()
        self._heard: dict[str, float] = {}
        # Of the thread that steps.
        self._inbox: deque[tuple[str, bytes]] = deque(maxlen=_INBOX)
        self._fresh: list[LogLine] = []
        self._greeted: frozenset[str] = frozenset()
        self._told = (0, 0)
        self._turn = 0
        self._digest_at = float("-inf")
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="gossip", daemon=True)

    # Life.

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping = True
        self._wake.set()
        with self.changed:
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def _work(self) -> None:
        while not self._is_stopping:
            self._wake.wait(max(0.0, self._digest_at - self._clock()))
            self._wake.clear()
            try:
                self.step()
            except Exception:
                # Status is worth less than the daemon.
                log.exception("the exchange of status failed")
                self._digest_at = self._clock() + DIGEST_INTERVAL_S
            time.sleep(_PAUSE_S)

    # From consensus' thread.

    def receive(self, uid: str, payload: bytes) -> None:
        self._inbox.append((uid, payload))
        self._wake.set()

    def links(self, connected: frozenset[str]) -> None:
        self._connected = connected
        self._wake.set()

    # What the node has to say.

    def set(self, values: Mapping[str, bytes]) -> None:
        """An empty value deletes its key. Raises InvalidInput and QuotaExceeded; then nothing is set."""
        for key, value in values.items():
            _check(key, value)
        with self.changed:
            mine = self._shelves[self.uid]
            shelf = volatile.changed(mine, values)
            if len(shelf.values) > volatile.MAX_KEYS or shelf.size > volatile.MAX_SHELF_BYTES:
                raise QuotaExceeded(
                    f"the status of a node has at most {volatile.MAX_KEYS} keys and {volatile.MAX_SHELF_BYTES >> 20} MiB"
                )
            if shelf is not mine:
                self._put(self.uid, shelf, [key for key in values if shelf.items.get(key) != mine.items.get(key)])
        self._wake.set()

    def log(self, *, priority: int, tag: str, user: str, message: str, pid: int = 0) -> LogLine:
        with self.changed:
            self._lines += 1
            line = clusterlog.line(
                uid=self._lines,
                time=int(self._wall()),
                priority=priority,
                tag=tag,
                pid=pid or os.getpid(),
                node=self.name,
                user=user,
                message=message,
            )
            self._rings = clusterlog.added(self._rings, [line])
            self._log_version += 1
            self._fresh.append(line)
            self.changed.notify_all()
        self._wake.set()
        return line

    # What is known.

    @property
    def shelves(self) -> Mapping[str, Shelf]:
        return self._shelves

    @property
    def rings(self) -> Rings:
        return self._rings

    @property
    def version(self) -> int:
        """Of the status as a whole."""
        return self._version

    @property
    def log_version(self) -> int:
        return self._log_version

    def age_s(self, uid: str) -> float:
        """Seconds since anybody who is connected here heard the node."""
        if uid == self.uid or uid in self._connected:
            return 0.0
        heard = self._heard.get(uid)
        return max(0.0, self._clock() - heard) if heard is not None else FORGET_S

    def get(self, uid: str, key: str) -> bytes | None:
        shelf = self._shelves.get(uid)
        item = shelf.items.get(key) if shelf is not None else None
        return item.value if item is not None else None

    def versions(self, uid: str) -> dict[str, int]:
        """By key; what a client compares to see a change."""
        with self.changed:
            return dict(self._versions.get(uid, {}))

    def newest(self, prefix: str, *, max_age_s: float) -> list[tuple[str, bytes]]:
        """Values below a prefix that arrived lately, by key without it; of two nodes' the later one."""
        since = self._clock() - max_age_s
        found: dict[str, tuple[float, bytes]] = {}
        with self.changed:
            for uid, shelf in self._shelves.items():
                for key, item in shelf.items.items():
                    at = self._arrived.get((uid, key), since)
                    if item.value is None or not key.startswith(prefix) or at <= since:
                        continue
                    short = key.removeprefix(prefix)
                    if short not in found or found[short][0] < at:
                        found[short] = (at, item.value)
        return [(key, found[key][1]) for key in sorted(found)]

    def changes_after(self, version: int, *, timeout_s: float) -> list[Change] | None:
        """What changed since; waits when nothing has. None when that is too long ago to tell."""
        with self.changed:
            if self._version <= version and not self._is_stopping:
                self.changed.wait(timeout_s)
            if version < self._forgotten_version:
                return None
            return [change for change in self._recent if change.version > version]

    # The exchange.

    def step(self) -> None:
        """Take what came in, tell what is new, compare when it is time."""
        now = self._clock()
        connected = self._connected
        for uid in connected:
            self._heard[uid] = now
        while self._inbox:
            uid, payload = self._inbox.popleft()
            try:
                self._hear(uid, volatile.decode(payload), now)
            except ValueError as error:
                log.warning("%s whispers nonsense: %s", uid, error)
        self._tell()
        if now >= self._digest_at:
            self._digest_at = now + DIGEST_INTERVAL_S
            if connected:
                self._say(self._digest(), None)
            self._forget(now)
        else:
            for uid in sorted(connected - self._greeted):
                self._say(self._digest(), uid)
        self._greeted = connected

    def _hear(self, uid: str, message: Whispered, now: float) -> None:
        match message:
            case Delta():
                self._on_delta(uid, message, now)
            case Digest():
                self._on_digest(uid, message, now)
            case Lines():
                self._on_lines(message.lines)

    def _on_delta(self, uid: str, delta: Delta, now: float) -> None:
        if uid == delta.owner:
            self._heard[uid] = now
        if delta.owner == self.uid:
            self._outdo(delta.incarnation, delta.known)
        # Somebody still speaks of a node that all others have forgotten.
        if delta.owner == self.uid or delta.owner not in self._heard:
            return
        with self.changed:
            merged = volatile.merge(self._shelves.get(delta.owner), delta)
            if merged.shelf is not None and volatile.is_full(merged.shelf):
                log.warning("%s tells more of %s than a node may say", uid, delta.owner)
                return
            if merged.shelf is not None and not merged.is_gap:
                self._put(delta.owner, merged.shelf, merged.changed)
        if merged.is_gap or delta.more:
            self._say(self._digest(), uid)

    def _on_digest(self, uid: str, digest: Digest, now: float) -> None:
        for other in {uid, *digest.connected} - {self.uid}:
            self._heard[other] = now
        if self.uid in digest.shelves:
            self._outdo(*digest.shelves[self.uid])
        linked = {uid, *digest.connected}
        for owner, shelf in self._shelves.items():
            # A node tells its own; for those whom the peer cannot hear, whoever knows.
            if owner == self.uid or owner not in linked:
                for delta in volatile.missing(owner, shelf, digest.shelves.get(owner)):
                    self._say(delta, uid)
        peers = sorted(digest.connected)
        is_my_turn = bool(peers) and peers[digest.turn % len(peers)] == self.uid
        for node, ring in self._rings.items():
            if (node == self.name or is_my_turn) and digest.logs.get(node) != self._check(node, ring):
                self._say_lines(ring, uid)

    def _on_lines(self, lines: Sequence[LogLine]) -> None:
        with self.changed:
            rings = clusterlog.added(self._rings, lines)
            if rings == self._rings:
                return
            self._rings = rings
            self._log_version += 1
            # From before this process: its own numbers go on from there.
            own = (line.uid for line in lines if line.node == self.name and line.uid < volatile.MAX_COUNT)
            self._lines = max([self._lines, *own])
            self.changed.notify_all()

    def _outdo(self, incarnation: int, known: int) -> None:
        """Somebody knows more of this node than it does itself: from an earlier life, under a clock that was ahead."""
        with self.changed:
            mine = self._shelves[self.uid]
            if (incarnation, known) > (mine.incarnation, mine.known):
                shelf = volatile.renewed(mine, incarnation + 1)
                self._put(self.uid, shelf, ())

    def _tell(self) -> None:
        mine, told = self._shelves[self.uid], self._told
        if told != (mine.incarnation, mine.known):
            self._told = (mine.incarnation, mine.known)
            for delta in volatile.missing(self.uid, mine, told) if self._connected else ():
                self._say(delta, None)
        with self.changed:
            fresh, self._fresh = self._fresh, []
        if fresh and self._connected:
            self._say_lines(fresh, None)

    def _say(self, message: Whispered, uid: str | None) -> None:
        self._send(volatile.encode(message), uid)

    def _say_lines(self, lines: Sequence[LogLine], uid: str | None) -> None:
        piece: list[LogLine] = []
        size = 0
        for line in lines:
            if piece and size + line.size > volatile.PIECE_BYTES:
                self._say(Lines(piece), uid)
                piece, size = [], 0
            piece.append(line)
            size += line.size
        self._say(Lines(piece), uid)

    def _digest(self) -> Digest:
        self._turn += 1
        return Digest(
            self._turn,
            {uid: (shelf.incarnation, shelf.known) for uid, shelf in self._shelves.items()},
            {node: self._check(node, ring) for node, ring in self._rings.items()},
            sorted(self._connected),
        )

    def _check(self, node: str, ring: tuple[LogLine, ...]) -> tuple[int, int]:
        known = self._checks.get(node)
        if known is None or known[0] is not ring:
            known = (ring, clusterlog.check(ring))
            # Without nodes whose rings are gone.
            self._checks = {name: kept for name, kept in self._checks.items() if name in self._rings} | {node: known}
        return known[1]

    def _put(self, uid: str, shelf: Shelf, keys: Sequence[str]) -> None:
        """With the condition held."""
        self._shelves = {**self._shelves, uid: shelf}
        versions = self._versions.setdefault(uid, {})
        now = self._clock()
        for key in keys:
            self._version += 1
            item = shelf.items.get(key)
            if item is None or item.value is None:
                versions.pop(key, None)
                self._arrived.pop((uid, key), None)
            else:
                versions[key] = self._version
                self._arrived[uid, key] = now
            self._recent.append(Change(uid, key, self._version))
        while len(self._recent) > _RECENT:
            self._forgotten_version = self._recent.popleft().version
        if keys:
            self.changed.notify_all()

    def _forget(self, now: float) -> None:
        for uid in [uid for uid, at in self._heard.items() if now - at > FORGET_S]:
            del self._heard[uid]
            with self.changed:
                shelf = self._shelves.get(uid)
                if shelf is not None:
                    log.info("%s has not been heard for %d s: its status is forgotten", uid, FORGET_S)
                    self._put(uid, Shelf(shelf.incarnation), list(shelf.values))
                    self._shelves = {other: kept for other, kept in self._shelves.items() if other != uid}
                    del self._versions[uid]


def _check(key: str, value: bytes) -> None:
    if len(value) > volatile.MAX_VALUE_BYTES:
        raise QuotaExceeded(f"a status value has at most {volatile.MAX_VALUE_BYTES} bytes, this one {len(value)}")
    if why := volatile.why_not(key, value):
        raise InvalidInput(f"{why}, {key!r:.80} is none", field="key")
    if key.startswith(RRD) and len(value) > MAX_RRD_BYTES:
        raise QuotaExceeded(f"a record below {RRD} has at most {MAX_RRD_BYTES} bytes")
    if key.startswith(RRD) and any(byte < 32 for byte in value):
        raise InvalidInput(f"a record below {RRD} is one line of text", field="value")
