"""The storage array of the lab: files that all nodes share, each through a path of its own that can be cut.

    array_server.py SOCKET FILES CUTS JOURNAL

Nodes reach the files only by their mount (array_mount.py), which asks here for each operation. While a file CUTS/<node>
exists, that node's requests wait: as behind a cable that is out, nothing fails and nothing is answered. One whose mount is gone
by the time the path is whole again is thrown away: a dead host resends nothing.

The journal says what reached the disks, in the order in which it did: each stamp that a guest put there, and who else wrote to
the same volume in between (see ha_stamps.py). The write and its line are one step, which no fault of a node can part, since
nothing here is part of a node. It belongs to the tests and knows nothing of HA.
"""

import errno
import os
import socket
import socketserver
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from array_wire import Hello, Reply, Request, receive, send
from ha_stamps import Journal

_LOOK_S = 0.01
_STAT = (
    "st_mode",
    "st_ino",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_size",
    "st_blocks",
    "st_atime",
    "st_mtime",
    "st_ctime",
)
_STATFS = (
    "f_bavail",
    "f_bfree",
    "f_blocks",
    "f_bsize",
    "f_favail",
    "f_ffree",
    "f_files",
    "f_flag",
    "f_frsize",
    "f_namemax",
)
# Of the caller's machine, or served by this process's own way of opening.
_NOT_OURS = os.O_DIRECT | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class Files:
    """The operations of a file system on a directory. Raises OSError."""

    def __init__(self, root: Path, journal: Journal) -> None:
        self._root, self._journal = root, journal
        self._writing = threading.Lock()
        self._open: dict[int, str] = {}

    def call(self, node: str, request: Request) -> Any:
        if request.operation == "write":
            return self._write(node, *request.arguments)
        operation = getattr(self, f"do_{request.operation}", None)
        if operation is None:
            raise OSError(errno.ENOSYS, request.operation)
        return operation(*request.arguments)

    def _path(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _write(self, node: str, path: str, data: bytes, offset: int, handle: int) -> int:
        with self._writing:
            count = os.pwrite(handle, data, offset)
            self._journal.note(time.monotonic(), node, path, data[:count])
            return count

    def do_open(self, path: str, flags: int) -> int:
        handle = os.open(self._path(path), flags & ~_NOT_OURS)
        self._open[handle] = path
        return handle

    def do_create(self, path: str, mode: int) -> int:
        # Exclusive: to the volume drivers of all nodes, making a file is a lock.
        handle = os.open(self._path(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._open[handle] = path
        return handle

    def do_release(self, _path: str, handle: int) -> None:
        if self._open.pop(handle, None) is not None:
            os.close(handle)

    def do_read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        return os.pread(handle, size, offset)

    def do_flush(self, _path: str, _handle: int) -> None:
        pass

    def do_fsync(self, _path: str, _datasync: int, handle: int) -> None:
        os.fdatasync(handle)

    def do_truncate(self, path: str, length: int, handle: int | None = None) -> None:
        os.truncate(self._path(path) if handle is None else handle, length)

    def do_getattr(self, path: str, handle: int | None = None) -> dict[str, float]:
        found = self._path(path).lstat() if handle is None else os.fstat(handle)
        return {name: getattr(found, name) for name in _STAT}

    def do_readdir(self, path: str, _handle: int) -> list[str]:
        return [".", "..", *(entry.name for entry in self._path(path).iterdir())]

    def do_statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._path(path))
        return {name: getattr(found, name) for name in _STATFS}

    def do_mkdir(self, path: str, mode: int) -> None:
        self._path(path).mkdir(mode)

    def do_rmdir(self, path: str) -> None:
        self._path(path).rmdir()

    def do_unlink(self, path: str) -> None:
        self._path(path).unlink()

    def do_rename(self, old: str, new: str) -> None:
        self._path(old).rename(self._path(new))

    def do_symlink(self, target: str, source: str) -> None:
        self._path(target).symlink_to(source)

    def do_link(self, target: str, source: str) -> None:
        self._path(target).hardlink_to(self._path(source))

    def do_readlink(self, path: str) -> str:
        return str(self._path(path).readlink())

    def do_chmod(self, path: str, mode: int) -> None:
        self._path(path).chmod(mode)

    def do_chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._path(path), uid, gid, follow_symlinks=False)

    def do_mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(self._path(path), mode, device)

    def do_utimens(self, path: str, times: list[float] | None) -> None:
        os.utime(self._path(path), None if times is None else (times[0], times[1]))


class Array(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: str, files: Files, cuts: Path) -> None:
        super().__init__(address, Line)
        self.files, self.cuts = files, cuts
        self._lock = threading.Lock()
        self._connections: defaultdict[Hello, int] = defaultdict(int)
        self._handles: defaultdict[Hello, set[int]] = defaultdict(set)

    def begin(self, client: Hello) -> None:
        with self._lock:
            self._connections[client] += 1

    def end(self, client: Hello) -> None:
        """What a dead mount left open is closed with its last connection."""
        with self._lock:
            self._connections[client] -= 1
            left = self._handles.pop(client, set()) if not self._connections[client] else set()
        for handle in left:
            with suppress(OSError):
                self.files.do_release("", handle)

    def keep(self, client: Hello, request: Request, result: Any) -> None:
        with self._lock:
            if request.operation in ("open", "create"):
                self._handles[client].add(result)
            elif request.operation == "release":
                self._handles[client].discard(request.arguments[1])


class Line(socketserver.BaseRequestHandler):
    """One thread of one node's mount."""

    server: Array
    request: socket.socket

    def handle(self) -> None:
        client = msgspec.msgpack.decode(receive(self.request), type=Hello)
        self.server.begin(client)
        try:
            while True:
                request = msgspec.msgpack.decode(receive(self.request), type=Request)
                if not self._is_whole(client.node):
                    return
                reply = self._serve(client, request)
                # The answer takes the same way.
                if not self._is_whole(client.node):
                    return
                send(self.request, reply)
        except (EOFError, OSError):
            pass  # its node is off
        finally:
            self.server.end(client)

    def _serve(self, client: Hello, request: Request) -> Reply:
        try:
            result = self.server.files.call(client.node, request)
        except OSError as error:
            return Reply(error.errno or errno.EIO)
        self.server.keep(client, request, result)
        return Reply(result=result)

    def _is_whole(self, node: str) -> bool:
        """Wait until the path is whole. False when the mount is gone before."""
        cut = self.server.cuts / node
        while cut.exists():
            with suppress(BlockingIOError):
                if not self.request.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return False
            time.sleep(_LOOK_S)
        return True


def main(address: str, files: str, cuts: str, journal: str) -> None:
    """Until killed."""
    os.umask(0)
    with Path(journal).open("a", buffering=1) as lines:
        Array(address, Files(Path(files), Journal(lines.write)), Path(cuts)).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
