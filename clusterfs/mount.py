"""The FUSE front: pmxcfs' layout, modes and errnos over the replicated tree.

Handlers are thin: they translate paths, ask the pure rules, and send commands. Reads are answered from the local tree and never
wait for consensus; whatever commits has a deadline and ends in an errno. Nothing is cached by the kernel (direct I/O, no
attribute or name timeouts), so that a change on another node is seen at once. What an open file holds back is
`clusterfs.openfiles`; mounting and unmounting is `clusterfs.mounting`.

A public method of `Mount` is a FUSE operation (but `wait_mounted`): fusepy takes any attribute of an operation's name for its
handler, and an operation that is missing is answered ENOSYS, as pmxcfs does (symlinks, extended attributes, ...).
"""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clusterfs import rules
from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Touch, Unlock, Write
from clusterfs.openfiles import OpenFile, OpenFiles
from clusterfs.outcomes import Refusal, Result
from clusterfs.proposer import DEADLINE_S
from clusterfs.refusals import error_errno, to_errno
from clusterfs.state import State, check
from clusterfs.tree import Directory, File, Node, Parts, crosses_file, join, lookup
from kvorum.errors import KvorumError

log = logging.getLogger(__name__)

BLOCK_BYTES = 4096
# utimensat(2): "now" and "leave it", in the nanoseconds of a time stamp.
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

Attributes = dict[str, int]


class Store:
    """What the mount needs of the daemon, as functions: a narrow waist that a test fills by hand."""

    def __init__(
        self,
        *,
        state: Callable[[], State],
        propose: Callable[[Op, float], Result],
        is_quorate: Callable[[], bool],
        lock_age_s: Callable[[str, int], float],
        specials: dict[str, Callable[[], bytes]],
        links: dict[str, str],
        set_debug: Callable[[bool], None] = lambda _on: None,
        node_uid: str = "",
    ) -> None:
        self.state = state
        self.propose = propose
        self.is_quorate = is_quorate
        self.lock_age_s = lock_age_s
        self.specials = specials
        self.links = links
        self.set_debug = set_debug
        self.node_uid = node_uid


class Mount:
    """The handlers. fusepy calls the instance with the operation's name, so each error is mapped in one place."""

    use_ns = True
    # Openers keep reading a file that has been unlinked, without libfuse's replicated .fuse_hidden files.
    flag_nullpath_ok = True
    # `touch -m` sets one of the two times.
    flag_utime_omit_ok = True

    def __init__(self, store: Store, *, mountpoint: Path, gid: int, deadline_s: float = DEADLINE_S) -> None:
        self._store = store
        self._mountpoint = mountpoint.absolute()
        self._gid = gid
        self._deadline_s = deadline_s
        self._files = OpenFiles(root=self._root, propose=self._propose)
        self._is_mounted = threading.Event()

    def __call__(self, operation: str, *arguments: Any) -> Any:
        try:
            return getattr(self, operation)(*arguments)
        except KvorumError as error:
            log.info("%s: %s", operation, error)
            raise OSError(error_errno(error), error.message) from error
        except OSError:
            raise
        except Exception as error:
            log.exception("%s failed", operation)
            raise OSError(errno.EIO, str(error)) from error

    def init(self, _path: str) -> None:
        self._is_mounted.set()

    def wait_mounted(self, timeout_s: float) -> bool:
        return self._is_mounted.wait(timeout_s)

    # Looking

    def getattr(self, path: str | None, info: Any = None) -> Attributes:
        if path is None:
            file = self._files.get(info.fh)
            content = file.buffer.content if file.buffer is not None else file.snapshot or b""
            return self._attributes(stat.S_IFREG | 0o640, size=len(content), links=0)
        parts = _parts(path)
        special = self._special_attributes(parts)
        if special is not None:
            return special
        node = lookup(self._root(), parts)
        pending = self._files.pending(parts)
        if pending is not None and pending.buffer is not None and (isinstance(node, File) or pending.is_new):
            mode = rules.mode(parts, is_directory=False, is_quorate=self._store.is_quorate())
            return self._attributes(mode, size=len(pending.buffer.content), mtime=int(time.time()))
        if node is None:
            raise OSError(self._missing(parts), path)
        return self._node_attributes(parts, node)

    def readlink(self, path: str) -> str:
        parts = _parts(path)
        if len(parts) == 1 and parts[0] in self._store.links:
            return _out(self._store.links[parts[0]])
        raise OSError(errno.EINVAL, path)

    def readdir(self, path: str | None, _handle: int) -> Iterator[str]:
        if path is None:
            raise OSError(errno.ENOENT, "the directory is gone")
        parts = _parts(path)
        node = lookup(self._root(), parts)
        if not isinstance(node, Directory):
            raise OSError(errno.ENOTDIR if node is not None else self._missing(parts), path)
        names = {*node.entries, *self._files.new_names(parts)}
        if not parts:
            names |= {*self._store.specials, *self._store.links}
        return iter([".", "..", *(_out(name) for name in sorted(names))])

    def statfs(self, _path: str) -> Attributes:
        root = self._root()
        blocks, used = rules.MAX_STORE_BYTES // BLOCK_BYTES, -(-root.size // BLOCK_BYTES)
        free, free_files = max(0, blocks - used), max(0, rules.MAX_ENTRIES - root.count)
        return {
            "f_bsize": BLOCK_BYTES,
            "f_frsize": BLOCK_BYTES,
            "f_blocks": blocks,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": rules.MAX_ENTRIES,
            "f_ffree": free_files,
            "f_favail": free_files,
            "f_namemax": rules.MAX_NAME_BYTES,
        }

    # Open files

    def open(self, path: str, info: Any) -> int:
        parts = _parts(path)
        info.direct_io = 1
        if len(parts) == 1 and parts[0] in self._store.specials:
            info.fh = self._files.add(OpenFile(parts, special=self._store.specials[parts[0]]()))
            return 0
        pending = self._files.pending(parts)
        if pending is not None and pending.is_new:
            # A second opener of a file that only this node knows of: from here on it is everybody's.
            self._files.commit(pending)
        node = lookup(self._root(), parts)
        if not isinstance(node, File):
            raise OSError(errno.EISDIR if node is not None else self._missing(parts), path)
        file = OpenFile(parts, is_append=bool(info.flags & os.O_APPEND), snapshot=node.content)
        if info.flags & os.O_ACCMODE != os.O_RDONLY or info.flags & os.O_TRUNC:
            self._need_quorum()
        if info.flags & os.O_TRUNC:
            self._files.change(file, _empty)
        info.fh = self._files.add(file)
        return 0

    def create(self, path: str, _mode: int, info: Any) -> int:
        self._need_quorum()
        parts = _parts(path)
        info.direct_io = 1
        is_exclusive = bool(info.flags & os.O_EXCL)
        command = Write(join(parts), b"", absent=is_exclusive)
        if is_exclusive:
            self._execute(command)
        elif lookup(self._root(), parts) is not None:
            # Somebody made it since the kernel looked.
            return self.open(path, info)
        else:
            self._check(command)
        file = OpenFile(parts, is_append=bool(info.flags & os.O_APPEND), is_new=not is_exclusive)
        if not is_exclusive:
            self._files.change(file, _empty)
        info.fh = self._files.add(file)
        return 0

    def read(self, _path: str | None, size: int, offset: int, info: Any) -> bytes:
        return self._files.read(self._files.get(info.fh), size, offset)

    def write(self, _path: str | None, data: bytes, offset: int, info: Any) -> int:
        file = self._files.get(info.fh)
        if file.special is not None:
            return self._write_special(file, data)
        if not file.is_dirty:
            self._need_quorum()
        # The kernel's idea of the end may be old; the buffer's is not, and the commit knows better still.
        at = None if file.is_append else offset
        return self._files.change(file, lambda buffer: buffer.write(data, at))

    def truncate(self, path: str | None, length: int, info: Any = None) -> int:
        self._need_quorum()
        if info is not None:
            file = self._files.get(info.fh)
            if file.special is not None:
                raise OSError(errno.EIO, "computed files are not written")
            return self._files.change(file, _cut(length))
        assert path is not None
        parts = _parts(path)
        if len(parts) == 1 and parts[0] in rules.RESERVED:
            raise OSError(errno.EIO, "computed files are not written")
        self._files.settle(parts)
        node = lookup(self._root(), parts)
        if not isinstance(node, File):
            raise OSError(errno.EISDIR if node is not None else self._missing(parts), path)
        file = OpenFile(parts)
        self._files.change(file, _cut(length))
        self._files.commit(file)
        return 0

    def flush(self, _path: str | None, info: Any) -> int:
        """Each close(2) of a descriptor. What fails is told here and then forgotten: there is nobody left to retry."""
        file = self._files.get(info.fh)
        if not file.is_dirty or (file.buffer is not None and file.buffer.is_blank and self._is_open_elsewhere(file)):
            return 0
        try:
            self._files.commit(file)
        except (KvorumError, OSError):
            self._drop(file)
            raise
        return 0

    def fsync(self, _path: str | None, _datasync: int, info: Any) -> int:
        self._files.commit(self._files.get(info.fh))
        return 0

    def release(self, _path: str | None, info: Any) -> int:
        """After the last close. Only what flush left for later can be pending here; nobody hears of its failure but the log."""
        file = self._files.get(info.fh)
        try:
            self._files.commit(file)
        except (KvorumError, OSError) as error:
            log.warning("%s: not saved: %s", join(file.parts), error)
        finally:
            self._files.discard(info.fh)
        return 0

    # Names

    def mknod(self, path: str, mode: int, _device: int) -> int:
        if not stat.S_ISREG(mode):
            raise OSError(errno.ENOSYS, "only files and directories")
        self._need_quorum()
        self._execute(Write(join(_parts(path)), b"", absent=True))
        return 0

    def mkdir(self, path: str, _mode: int) -> int:
        self._need_quorum()
        self._execute(Mkdir(join(_parts(path))))
        return 0

    def unlink(self, path: str) -> int:
        self._need_quorum()
        parts = _parts(path)
        if self._files.unlinked(parts) and lookup(self._root(), parts) is None:
            return 0
        self._execute(Delete(join(parts), only="file"))
        return 0

    def rmdir(self, path: str) -> int:
        self._need_quorum()
        parts = _parts(path)
        if self._files.new_names(parts):
            raise OSError(errno.ENOTEMPTY, path)
        self._execute(Delete(join(parts), only="directory"))
        return 0

    def rename(self, path: str, new_path: str) -> int:
        self._need_quorum()
        parts, target = _parts(path), _parts(new_path)
        self._files.settle(parts)
        self._execute(Move(join(parts), join(target), replace=True))
        self._files.moved(parts, target)
        return 0

    def link(self, _target: str, _source: str) -> int:
        raise OSError(errno.EPERM, "an entry has one name")

    # Attributes

    def chmod(self, path: str, mode: int) -> int:
        parts = _parts(path)
        is_directory = stat.S_ISDIR(self.getattr(path)["st_mode"])
        if not rules.chmod_is_harmless(parts, mode, is_directory=is_directory):
            raise OSError(errno.EPERM, "modes follow from the path")
        return 0

    def chown(self, _path: str, uid: int, gid: int) -> int:
        if uid not in (-1, 0) or gid not in (-1, self._gid):
            raise OSError(errno.EPERM, "all belongs to root")
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._need_quorum()
        parts = _parts(path)
        stamp = UTIME_NOW if times is None else times[1]
        if stamp == UTIME_OMIT:
            return 0
        self._files.settle(parts)
        node = lookup(self._root(), parts)
        if stamp == 0 and isinstance(node, Directory) and rules.is_lock(parts, node):
            return self._break_lock(parts, node)
        mtime = None if stamp == UTIME_NOW else stamp // 1_000_000_000
        self._execute(Touch(join(parts), mtime))
        return 0

    # Leaves

    def _root(self) -> Directory:
        return self._store.state().root

    def _propose(self, op: Op) -> Result:
        return self._store.propose(op, self._deadline_s)

    def _execute(self, op: Op) -> None:
        result = self._propose(op)
        if isinstance(result, Refusal):
            raise OSError(to_errno(result), result.message)

    def _check(self, op: Op) -> None:
        """Fails now if the command would fail now; it is sent later."""
        refusal = check(self._store.state(), Envelope(op, node=self._store.node_uid))
        if refusal is not None:
            raise OSError(to_errno(refusal), refusal.message)

    def _need_quorum(self) -> None:
        if not self._store.is_quorate():
            raise OSError(errno.EACCES, "no quorum")

    def _break_lock(self, parts: Parts, node: Directory) -> int:
        if not rules.lock_may_be_broken(self._store.lock_age_s(join(parts), node.version)):
            raise OSError(errno.EACCES, "the lock is young")
        self._execute(Unlock(join(parts), node.version))
        return 0

    def _write_special(self, file: OpenFile, data: bytes) -> int:
        if file.parts != (".debug",) or data not in (b"0\n", b"1\n"):
            raise OSError(errno.EIO, "computed files are not written")
        self._store.set_debug(data == b"1\n")
        return len(data)

    def _drop(self, file: OpenFile) -> None:
        with file.mutex:
            file.is_new = False
            if file.buffer is not None:
                file.buffer.drop()

    def _is_open_elsewhere(self, file: OpenFile) -> bool:
        """The closing program has another descriptor of this file: a shell redirecting (open, dup2, close, then write).

        Sending the empty file now would show it to the whole cluster and cost an entry; another close will come.
        """
        import fuse  # libfuse is loaded by who mounts, not by who imports the handlers

        _uid, _gid, pid = fuse.fuse_get_context()
        path = self._mountpoint / join(file.parts)
        try:
            descriptors = list(Path(f"/proc/{pid}/fd").iterdir()) if pid else []
        except OSError:
            return False
        for descriptor in descriptors:
            try:
                if descriptor.readlink() == path:
                    return True
            except OSError:
                continue
        return False

    def _missing(self, parts: Parts) -> int:
        return errno.ENOTDIR if crosses_file(self._root(), parts) else errno.ENOENT

    def _special_attributes(self, parts: Parts) -> Attributes | None:
        if len(parts) != 1:
            return None
        (name,) = parts
        if name in self._store.links:
            bits = 0o755 if self._store.is_quorate() else 0o555
            return self._attributes(stat.S_IFLNK | bits, size=len(self._store.links[name]))
        if name in self._store.specials:
            bits = 0o640 if name == ".debug" else 0o440
            return self._attributes(stat.S_IFREG | bits, size=len(self._store.specials[name]()), mtime=int(time.time()))
        return None

    def _node_attributes(self, parts: Parts, node: Node) -> Attributes:
        is_directory = isinstance(node, Directory)
        return self._attributes(
            rules.mode(parts, is_directory=is_directory, is_quorate=self._store.is_quorate()),
            size=0 if isinstance(node, Directory) else len(node.content),
            mtime=node.mtime,
            links=2 if is_directory else 1,
        )

    def _attributes(self, mode: int, *, size: int, mtime: int = 0, links: int = 1) -> Attributes:
        stamp = mtime * 1_000_000_000
        return {
            "st_mode": mode,
            "st_nlink": links,
            "st_uid": 0,
            "st_gid": self._gid,
            "st_size": size,
            "st_blocks": -(-size // 512),
            "st_blksize": BLOCK_BYTES,
            "st_atime": stamp,
            "st_mtime": stamp,
            "st_ctime": stamp,
        }


def _parts(path: str) -> Parts:
    """The path as fusepy hands it over: bytes in the clothes of Latin-1, because names need not be UTF-8 for the kernel."""
    try:
        text = path.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, "names are UTF-8") from None
    parts = rules.split(text)
    if isinstance(parts, Refusal):
        raise OSError(to_errno(parts), parts.message)
    return parts


def _out(name: str) -> str:
    return name.encode().decode("latin-1")


def _empty(buffer: Any) -> int:
    buffer.empty()
    return 0


def _cut(length: int) -> Callable[[Any], int]:
    def cut(buffer: Any) -> int:
        buffer.truncate(length)
        return 0

    return cut
