"""Frames on a stream: four bytes of length, then that many bytes. Pure: bytes in, payloads out.

An empty frame says only "I am here"; it keeps a quiet link alive. The first frame of each side is its hello, which tells the
epoch; an empty one tells epoch 0, that of a cluster which never lost its majority.
"""

import struct

_LENGTH = struct.Struct(">I")
HELLO = _LENGTH.pack(0)
_EPOCH = struct.Struct(">cQ")
_EPOCH_TAG = b"E"


class FrameTooLong(ValueError):
    """The peer announced a frame beyond the cap; the link cannot be used further."""


def frame(payload: bytes) -> bytes:
    assert payload
    return _LENGTH.pack(len(payload)) + payload


def hello(epoch: int) -> bytes:
    return frame(_EPOCH.pack(_EPOCH_TAG, epoch)) if epoch else HELLO


def epoch_of(payload: bytes) -> int | None:
    """What a hello tells; None when it is none."""
    if not payload:
        return 0
    if len(payload) != _EPOCH.size:
        return None
    tag, epoch = _EPOCH.unpack(payload)
    return epoch if tag == _EPOCH_TAG else None


class FrameReader:
    """Collects bytes and yields whole frames; refuses an oversized one from its length alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes, empty frames included. Raises FrameTooLong."""
        buffer = self._buffer
        buffer += data
        payloads: list[bytes] = []
        position = 0
        while len(buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, position)
            if length > self._max_bytes:
                raise FrameTooLong(f"a frame of {length} bytes; at most {self._max_bytes} are taken")
            end = position + _LENGTH.size + length
            if len(buffer) < end:
                break
            payloads.append(bytes(memoryview(buffer)[position + _LENGTH.size : end]))
            position = end
        if position:
            del buffer[:position]
        return payloads
