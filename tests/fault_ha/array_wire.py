"""What a node's mount and the storage array say to each other: requests and replies with their length before them."""

import socket
import struct
from typing import Any

import msgspec

_LENGTH = struct.Struct("!I")


class Hello(msgspec.Struct, frozen=True):
    """The first message of a connection. `life` tells one mount of a node from its next."""

    node: str
    life: int


class Request(msgspec.Struct, frozen=True):
    """`operation` is one of fusepy's, with its arguments."""

    operation: str
    arguments: list[Any]


class Reply(msgspec.Struct, frozen=True):
    """`error` is an errno, 0 when there is none."""

    error: int = 0
    result: Any = None


def send(connection: socket.socket, message: Hello | Request | Reply) -> None:
    data = msgspec.msgpack.encode(message)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> bytes:
    """One message, not decoded. Raises EOFError when the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
