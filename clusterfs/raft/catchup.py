"""One snapshot on its way to a node whose next entry the log no longer has: a file sent in pieces, resumable.

Each piece names the snapshot and its offset, and the receiver answers with how much it holds, so that nothing that is lost,
doubled or reordered can corrupt the copy. Whether the whole is good is for the checksum in it (`snapshot.verify`).
"""

from .files import File, Files
from .messages import SnapshotChunk
from .snapshot import Point

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
    """A follower's side: the file that grows."""

    def __init__(self, files: Files, file_name: str) -> None:
        self._files = files
        self._file_name = file_name
        self._file: File | None = None
        self._name: tuple[int, int, int] | None = None
        self._held = 0

    def take(self, chunk: SnapshotChunk) -> tuple[int, bool, bool]:
        """Keep a piece: (bytes held, whether to begin again from there, whether it is complete)."""
        name = (chunk.index, chunk.snapshot_term, chunk.size)
        if name != self._name:
            self.forget()
            self._name = name
        if chunk.offset != self._held or not chunk.data:
            return self._held, bool(chunk.data), False
        if self._file is None:
            self._file = self._files.create(self._file_name)
        self._file.write(chunk.data, at=self._held)
        self._held += len(chunk.data)
        return self._held, False, self._held == chunk.size

    def forget(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._files.remove(self._file_name)
        self._name, self._held = None, 0
