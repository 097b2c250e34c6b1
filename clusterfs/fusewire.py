"""The bytes that the kernel and a FUSE file system exchange: layouts, requests taken apart, answers put together. Pure.

libfuse 2.9 speaks an old dialect that cannot say what the mount needs: an inode per version of a file, an open that is not
followed by a flush, notices of what has changed (docs/adr/0008). The names are those of <linux/fuse.h>, which is the
reference; 7.31 is spoken, which every kernel since 5.4 understands. Reading and writing the device is
`clusterfs.fusesession`.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

MAJOR, MINOR = 7, 31

LOOKUP, FORGET, GETATTR, SETATTR, READLINK = 1, 2, 3, 4, 5
SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK = 6, 8, 9, 10, 11, 12, 13
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 14, 15, 16, 17, 18, 20, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 27, 28, 29, 30
CREATE, INTERRUPT, DESTROY, BATCH_FORGET, RENAME2 = 35, 36, 38, 42, 45

# The kernel expects no answer to these.
SILENT = frozenset((FORGET, BATCH_FORGET, INTERRUPT))

ROOT_ID = 1
MAX_WRITE = 1 << 20
# The largest request: a write with its headers.
BUFFER_BYTES = MAX_WRITE + 4096
_MAX_PAGES = MAX_WRITE // 4096

FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH = 1 << 0, 1 << 1, 1 << 5

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FATTR_MTIME, FATTR_FH, FATTR_MTIME_NOW = 1 << 5, 1 << 6, 1 << 8

RENAME_NOREPLACE = 1

_ASYNC_READ, _ATOMIC_O_TRUNC, _BIG_WRITES = 1 << 0, 1 << 3, 1 << 5
_PARALLEL_DIROPS, _MAX_PAGES_FLAG, _EXPLICIT_INVAL = 1 << 18, 1 << 22, 1 << 25
_WANTED = _ASYNC_READ | _ATOMIC_O_TRUNC | _BIG_WRITES | _PARALLEL_DIROPS | _MAX_PAGES_FLAG | _EXPLICIT_INVAL

NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY, NOTIFY_DELETE = 2, 3, 6

# opcode, unique, nodeid, pid (of the thread); not length, uid, gid, extensions
IN_HEADER = struct.Struct("<4xIQQ8xI4x")
IN_HEADER_BYTES = IN_HEADER.size
# len, error, unique
OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QII")
_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_TRANSFER = struct.Struct("<QQIIQII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
_DIRENT = struct.Struct("<QQII")
_STATFS = struct.Struct("<QQQQQIIII24x")


class Call(NamedTuple):
    """One request; `pid` is the calling thread, 0 when the daemon cannot see it."""

    opcode: int
    unique: int
    node: int
    pid: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows; `mtime` in whole seconds stands for all three times."""

    ino: int
    mode: int
    size: int = 0
    mtime: int = 0
    links: int = 1
    gid: int = 0


class SetAttributes(NamedTuple):
    """`valid` says which of the others count."""

    valid: int
    handle: int
    size: int
    mtime: int
    mode: int
    uid: int
    gid: int


class Transfer(NamedTuple):
    """The head of a read, a write or a readdir."""

    handle: int
    offset: int
    size: int


def init_answer(body: bytes) -> bytes:
    """The answer to INIT: of what we want, what this kernel offers."""
    _major, _minor, readahead, flags = struct.unpack_from("<IIII", body)
    return _INIT_OUT.pack(
        MAJOR, MINOR, readahead, flags & _WANTED, 64, 48, MAX_WRITE, 1_000_000_000, _MAX_PAGES, 0, 0, 0
    )


def name(body: bytes, offset: int = 0) -> bytes:
    """The name that begins at `offset`."""
    return body[offset : body.index(0, offset)]


def two_names(body: bytes, offset: int) -> tuple[bytes, bytes]:
    first = name(body, offset)
    return first, name(body, offset + len(first) + 1)


def flags(body: bytes) -> int:
    """Of open(2), in OPEN and CREATE."""
    return int.from_bytes(body[:4], "little")


def flags_in(request: bytearray) -> int:
    """As `flags`, of the whole request."""
    return int.from_bytes(request[IN_HEADER_BYTES : IN_HEADER_BYTES + 4], "little")


def handle_in(request: bytearray) -> int:
    """As `handle`, of the whole request."""
    return int.from_bytes(request[IN_HEADER_BYTES : IN_HEADER_BYTES + 8], "little")


def handle(body: bytes) -> int:
    """Of RELEASE, FLUSH and FSYNC, and of RENAME and LINK the other inode."""
    return int.from_bytes(body[:8], "little")


def transfer(body: bytes) -> Transfer:
    handle_, offset, size, *_rest = _TRANSFER.unpack_from(body)
    return Transfer(handle_, offset, size)


def written(body: bytes) -> bytes:
    """The data of a WRITE."""
    return body[_TRANSFER.size :]


def set_attributes(body: bytes) -> SetAttributes:
    valid, _pad, handle_, size, _owner, _at, mtime, _ct, _atn, _mtn, _ctn, mode, _u4, uid, gid, _u5 = (
        _SETATTR.unpack_from(body)
    )
    return SetAttributes(valid, handle_, size, mtime, mode, uid, gid)


def forgets(call: Call) -> list[tuple[int, int]]:
    """(node, how many lookups are given back)."""
    if call.opcode == FORGET:
        return [(call.node, int.from_bytes(call.body[:8], "little"))]
    count = int.from_bytes(call.body[:4], "little")
    return [struct.unpack_from("<QQ", call.body, 8 + 16 * number) for number in range(count)]


def attributes(shown: Attributes) -> bytes:
    stamp = max(0, shown.mtime)
    return _ATTR.pack(
        shown.ino,
        shown.size,
        -(-shown.size // 512),
        stamp,
        stamp,
        stamp,
        0,
        0,
        0,
        shown.mode,
        shown.links,
        0,
        shown.gid,
        0,
        4096,
        0,
    )


def entry(node: int, shown: Attributes, *, name_s: int, attributes_s: int) -> bytes:
    """An answer to LOOKUP and what makes names; how long the kernel may trust the name and the attributes."""
    return _ENTRY.pack(node, 0, name_s, attributes_s, 0, 0) + attributes(shown)


def attributes_answer(shown: Attributes, *, valid_s: int) -> bytes:
    return _ATTR_OUT.pack(valid_s, 0, 0) + attributes(shown)


def open_answer(handle_: int, how: int) -> bytes:
    return _OPEN_OUT.pack(handle_, how, 0)


def write_answer(size: int) -> bytes:
    return struct.pack("<II", size, 0)


def statfs_answer(*, blocks: int, free: int, files: int, free_files: int, block_bytes: int, name_bytes: int) -> bytes:
    return _STATFS.pack(blocks, free, free, files, free_files, block_bytes, name_bytes, block_bytes, 0)


def directory_page(entries: list[tuple[bytes, int, int]], offset: int, size: int) -> bytes:
    """As many (name, ino, mode) from `offset` on as go into `size` bytes."""
    page = bytearray()
    for position in range(offset, len(entries)):
        label, ino, mode = entries[position]
        record = _DIRENT.size + len(label)
        padded = -(-record // 8) * 8
        if len(page) + padded > size:
            break
        page += _DIRENT.pack(ino, position + 1, len(label), mode >> 12) + label + bytes(padded - record)
    return bytes(page)


def answer(unique: int, payload: bytes) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique) + payload


def error(unique: int, number: int) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def inode_changed(node: int, *, pages: bool) -> bytes:
    """Notice: forget the attributes and, with `pages`, the content."""
    return _notice(NOTIFY_INVAL_INODE, struct.pack("<Qqq", node, 0 if pages else -1, 0))


def name_changed(parent: int, label: bytes) -> bytes:
    """Notice: look the name up again."""
    return _notice(NOTIFY_INVAL_ENTRY, struct.pack("<QII", parent, len(label), 0) + label + b"\0")


def name_gone(parent: int, child: int, label: bytes) -> bytes:
    """Notice: the name no longer stands for `child`; who watches that file learns that it is gone."""
    return _notice(NOTIFY_DELETE, struct.pack("<QQII", parent, child, len(label), 0) + label + b"\0")


def _notice(code: int, payload: bytes) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), code, 0) + payload
