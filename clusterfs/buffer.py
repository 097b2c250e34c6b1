"""What an open file on the mount holds back until it is closed or synced, so that one save is one entry of the log.

The edits are kept beside the content: when somebody else's version has come in between, they are done again on top of it, so
that two nodes which append to one file both keep their lines. No I/O here; the store is told by `clusterfs.openfiles`.
"""

from dataclasses import dataclass

from clusterfs.rules import MAX_FILE_BYTES


class TooBig(Exception):
    """The file would exceed the largest size; nothing of this edit has been taken."""


@dataclass(slots=True)
class _Put:
    """Bytes at an offset, None for "at the end, wherever that is by then"."""

    offset: int | None
    content: bytearray


@dataclass(slots=True)
class _Cut:
    length: int


class FileBuffer:
    """The content as the opener sees it, and how it came about since `base`."""

    def __init__(self, base: bytes, *, base_version: int | None, limit: int = MAX_FILE_BYTES) -> None:
        """`base_version` None: nothing is there yet. `limit`: how long the file may become."""
        self._limit = limit
        self.content = bytearray(base)
        self.base_version = base_version
        self._edits: list[_Put | _Cut] = []
        # Edits before this one are being committed; later ones must not run into them.
        self._sealed = 0
        self.is_dirty = False
        # Neither a byte has been written nor a length set since the file was created or emptied.
        self.is_blank = False
        # The edits began with emptying the file: what others wrote meanwhile does not matter.
        self.starts_empty = False
        self.is_emptied_since_seal = False
        self.is_changed_since_seal = False

    def write(self, data: bytes, offset: int | None) -> int:
        """Writes at `offset`, or at the end when it is None; a gap is filled with zero bytes. Returns how much went in.

        What does not fit any more is left out; raises TooBig when nothing fits.
        """
        room = self._limit - (len(self.content) if offset is None else offset)
        if data and room <= 0:
            raise TooBig
        data = data[:room]
        self._put(self.content, data, offset)
        last = self._edits[-1] if self._edits else None
        if isinstance(last, _Put) and len(self._edits) > self._sealed and _continues(last, offset):
            last.content += data
        else:
            self._edits.append(_Put(offset, bytearray(data)))
        self._note()
        self.is_blank = False
        return len(data)

    def truncate(self, length: int) -> None:
        """Cuts, or fills up with zero bytes. Raises TooBig."""
        self._cut(self.content, length)
        if length == 0:
            self._edits.clear()
            self._sealed = 0
            self.starts_empty = True
            self.is_emptied_since_seal = True
        else:
            self._edits.append(_Cut(length))
        self._note()
        self.is_blank = False

    def empty(self) -> None:
        """As opened with O_TRUNC or just created: probably something will be written, so nothing needs to be sent yet."""
        self.truncate(0)
        self.is_blank = True

    def on_top_of(self, current: bytes) -> bytes:
        """The content when the edits are done on `current` instead. Raises TooBig."""
        if self.starts_empty:
            current = b""
        content = bytearray(current)
        for edit in self._edits:
            match edit:
                case _Put(offset=offset, content=data):
                    self._put(content, data, offset)
                case _Cut(length=length):
                    self._cut(content, length)
        return bytes(content)

    def seal(self) -> bytes:
        """The content to commit; edits that come from now on are kept for the next time."""
        self._sealed = len(self._edits)
        self.is_emptied_since_seal = False
        self.is_changed_since_seal = False
        return bytes(self.content)

    def committed(self, content: bytes, version: int) -> None:
        """`content`, the sealed edits in it, is in the store as `version`."""
        self.base_version = version
        del self._edits[: self._sealed]
        self._sealed = 0
        self.starts_empty = self.is_emptied_since_seal
        if not self.is_changed_since_seal:
            self.content = bytearray(content)
            self.is_dirty = self.is_blank = False

    def drop(self) -> None:
        """Forgets what has not been committed: its failure has been reported."""
        self._edits.clear()
        self._sealed = 0
        self.is_dirty = self.is_blank = self.starts_empty = False

    def _note(self) -> None:
        self.is_changed_since_seal = True
        self.is_dirty = True

    def _put(self, content: bytearray, data: bytes | bytearray, offset: int | None) -> None:
        start = len(content) if offset is None else offset
        end = start + len(data)
        if end > self._limit:
            raise TooBig
        if start > len(content):
            content.extend(bytes(start - len(content)))
        content[start:end] = data

    def _cut(self, content: bytearray, length: int) -> None:
        if length > self._limit:
            raise TooBig
        if length > len(content):
            content.extend(bytes(length - len(content)))
        else:
            del content[length:]


def _continues(last: _Put, offset: int | None) -> bool:
    if last.offset is None or offset is None:
        return last.offset is None and offset is None
    return offset == last.offset + len(last.content)
