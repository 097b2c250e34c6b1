"""The client of the storage array in a node: a FUSE mount that asks the array for everything and keeps nothing.

    array_mount.py SOCKET NODE MOUNT_POINT

It runs in the node's namespaces and control group, so it is frozen and dies with the node, and with it whatever it had not
sent. Each request has a connection to itself: one that hangs holds up no other.
"""

import errno
import os
import socket
import sys
from contextlib import suppress
from typing import Any

import msgspec
from array_wire import Hello, Reply, Request, receive, send
from fuse import FUSE, FuseOSError, Operations

# Of the local kernel, or of no use here: never asked of the array.
_LOCAL: dict[str, Any] = {
    "init": None,
    "destroy": None,
    "access": 0,
    "listxattr": [],
    "opendir": 0,
    "releasedir": 0,
    "fsyncdir": 0,
}
_REFUSED = {
    "ioctl": errno.ENOTTY,
    "getxattr": errno.EOPNOTSUPP,
    "setxattr": errno.EOPNOTSUPP,
    "removexattr": errno.ENODATA,
}


class Mount(Operations):  # type: ignore[misc]
    def __init__(self, address: str, node: str) -> None:
        self._address, self._hello = address, Hello(node, os.getpid())
        # Those that no request is using; kept open, as the array closes what a mount without connections has left.
        self._idle: list[socket.socket] = []

    def __call__(self, op: str, *arguments: Any) -> Any:
        if op in _LOCAL:
            return _LOCAL[op]
        if op in _REFUSED:
            raise FuseOSError(_REFUSED[op])
        try:
            # Not by thread: to Python, each call of libfuse comes from a new one.
            connection = self._take()
            send(connection, Request(op, list(arguments)))
            reply = msgspec.msgpack.decode(receive(connection), type=Reply)
        except (OSError, EOFError) as error:
            raise FuseOSError(errno.EIO) from error
        self._idle.append(connection)
        if reply.error:
            raise FuseOSError(reply.error)
        return reply.result

    def _take(self) -> socket.socket:
        with suppress(IndexError):
            return self._idle.pop()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        send(connection, self._hello)
        return connection


def main(address: str, node: str, point: str) -> None:
    # Nothing is cached but by an open file: what another node wrote is seen by the next open.
    times = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    FUSE(
        Mount(address, node), point, foreground=True, allow_other=True, nonempty=True, big_writes=True,
        fsname="array", subtype="array", hard_remove=True, **times,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
