"""One snapshot on its way to a node whose next entry the log no longer has: a file sent in pieces, resumable.

Each piece names the snapshot and its offset, and the receiver answers with how much it holds, so that nothing that is lost,
doubled or reordered can corrupt the copy. Whether the whole is good is for the checksum in it (`snapshot.verify`).
"""

import logging

from kvorum.errors import DiskFull

from .files import File, Files, is_full
from .messages import SnapshotChunk
from .snapshot import INCOMING, Point, incoming_name

log = logging.getLogger(__name__)

# Without progress for this long, in seconds, the pieces in flight are taken as lost.
RESEND_S = 2.0


class Sending:
    """A leader's side, for one follower. The open file stays readable when a newer snapshot replaces it."""

    def __init__(self, file: File, point: Point) -> None:
        self.point = point
        self._file = file
        self.size = file.size()
        self._acknowledged = 0
        self._sent = 0
        self._progress_at = 0.0
        self._beat_at = float("-inf")

    def pieces(self, now: float, *, chunk_bytes: int, window_bytes: int) -> list[tuple[int, bytes]]:
        """What to send now: (offset, data) within the window."""
        if self._sent > self._acknowledged and now - self._progress_at > RESEND_S:
            self._sent = self._acknowledged
        if self._sent == self._acknowledged:
            self._progress_at = now
        found: list[tuple[int, bytes]] = []
        while self._sent < min(self.size, self._acknowledged + window_bytes):
            data = self._file.read(min(chunk_bytes, self.size - self._sent), at=self._sent)
            assert data, "a snapshot does not shrink"
            found.append((self._sent, data))
            self._sent += len(data)
        return found

    def is_beat_due(self, now: float, heartbeat_s: float) -> bool:
        """With nothing to send, the follower still must hear that its leader lives."""
        if now - self._beat_at < heartbeat_s:
            return False
        self._beat_at = now
        return True

    def acknowledge(self, offset: int, *, again: bool, now: float) -> None:
        if again or offset > self._acknowledged:
            self._progress_at = now
        self._acknowledged = min(offset, self.size) if again else max(self._acknowledged, min(offset, self.size))
        self._sent = self._acknowledged if again else max(self._sent, self._acknowledged)

    def close(self) -> None:
        self._file.close()


class Receiving:
    """A follower's side: the file that grows. Its name says of what it is a part, so that neither a lost connection, nor
    another leader, nor a restart makes what is there worthless."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.name = ""
        self._file: File | None = None
        self._held = 0

    def take(self, chunk: SnapshotChunk) -> tuple[int, bool, bool]:
        """Keep a piece: (bytes held, whether to begin again from there, whether it is complete). Raises DiskFull."""
        name = incoming_name(chunk.index, chunk.snapshot_term, chunk.size)
        try:
            if name != self.name or self._file is None:
                self._begin(name, chunk.size)
            assert self._file is not None
            if chunk.offset != self._held or not chunk.data or self._held + len(chunk.data) > chunk.size:
                return self._held, bool(chunk.data), self._held == chunk.size
            self._file.write(chunk.data, at=self._held)
        except OSError as error:
            if not is_full(error):
                raise
            raise DiskFull(
                f"this node has no space for the snapshot that it is sent: {error.strerror}",
                remedy=f"free some on the file system of {self._files.path}; it goes on by itself then",
            ) from error
        self._held += len(chunk.data)
        return self._held, False, self._held == chunk.size

    def _begin(self, name: str, size: int) -> None:
        """Where it was left, if it is this one; parts of another are of no use any more."""
        self._close()
        for other in self._files.names():
            if other.startswith(INCOMING) and other != name:
                self._files.remove(other)
        try:
            self._file = self._files.open(name)
        except FileNotFoundError:
            self._file = self._files.create(name)
        self.name, self._held = name, min(self._file.size(), size)
        if self._held:
            log.info("%s: goes on with %d of %d bytes", name, self._held, size)

    def forget(self) -> None:
        self._close()
        if self.name:
            self._files.remove(self.name)
        self.name, self._held = "", 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
