"""Frames on a stream: four bytes of length, then that many bytes. Pure: bytes in, payloads out.

An empty frame says only "I am here"; it is what both sides say first, and what keeps a quiet link alive.
"""

import struct

_LENGTH = struct.Struct(">I")
HELLO = _LENGTH.pack(0)


class FrameTooLong(ValueError):
    """The peer announced a frame beyond the cap; the link cannot be used further."""


def frame(payload: bytes) -> bytes:
    assert payload
    return _LENGTH.pack(len(payload)) + payload


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
