"""The FUSE front: pmxcfs' layout, modes and errnos over the replicated tree.

Handlers are thin: they translate inodes to paths, ask the pure rules, and send commands. Whatever is answered from memory is
answered at once, by the session's thread; whatever commits goes to its pool, has a deadline and ends in an errno.

The kernel keeps names, attributes and contents, for a version of a file has an inode of its own (`clusterfs.inodes`). An open
is asked each time, and compared with the tree of the moment: when the inode is no longer what its name stands for, the
answer is ESTALE, on which the kernel looks the name up again and opens that (`clusterfs.cachedreads`). In the same way a
writer is led from the readers' inode to the writers'. What an open file holds back is `clusterfs.openfiles`, what stat shows
`clusterfs.shown`, how the kernel learns of changes `clusterfs.following`, the past below `.history` `clusterfs.pastfiles`;
mounting and unmounting is `clusterfs.mounting`.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from clusterfs import fusewire as wire
from clusterfs import rules
from clusterfs.cachedreads import CACHED, WRITES, CachedReads
from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Touch, Unlock, Write
from clusterfs.descriptors import is_open_still
from clusterfs.following import Follower, OwnChanges
from clusterfs.fusesession import Handler, Session
from clusterfs.fusewire import Call
from clusterfs.inodes import DirectoryInode, FileInode, Inode, Inodes, PastInode, WriterInode
from clusterfs.inotify import Echo
from clusterfs.openfiles import OpenFile, OpenFiles, cut, emptied
from clusterfs.outcomes import Done, Refusal, Result
from clusterfs.pastfiles import PastFiles
from clusterfs.proposer import DEADLINE_S
from clusterfs.refusals import to_errno
from clusterfs.shown import Shown
from clusterfs.state import check
from clusterfs.tree import Directory, File, Parts, crosses_file, join, lookup
from clusterfs.waist import Store
from kvorum.errors import KvorumError

log = logging.getLogger(__name__)

# The kernel is told of every change, so it may remember for long.
LONG_S = 3600
# The handle of `clusterfs.inotify`.
_ECHO = 1 << 63
_OPEN_ECHO = wire.open_answer(_ECHO, wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH)
_DONE = b""
# Threads whose retry is awaited; one that never comes must not be remembered for ever.
_MAX_AWAITED = 1024


class Mount:
    """The handlers, for one session at a time; see `serve`."""

    def __init__(self, store: Store, *, mountpoint: Path, gid: int, deadline_s: float = DEADLINE_S) -> None:
        self._store = store
        self._mountpoint = mountpoint.absolute()
        self._gid = gid
        self._deadline_s = deadline_s
        self._files = OpenFiles(
            root=self._root,
            propose=self._propose,
            max_file_bytes=lambda: self._store.state().settings.max_file_bytes,
        )
        self._inodes = Inodes()
        self._own = OwnChanges()
        self._shown = Shown(
            state=self._store.state,
            is_quorate=self._is_quorate,
            inodes=self._inodes,
            files=self._files,
            specials=store.specials,
            links=store.links,
            gid=gid,
        )
        self._under_way = store.under_way
        self._cached = CachedReads(
            state=self._store.state,
            inodes=self._inodes,
            files=self._files,
            under_way=self._under_way,
            soon=self._soon,
        )
        self.express = self._cached.express
        self._past = PastFiles(state=self._store.state, inodes=self._inodes, files=self._files, gid=gid)
        self._session: Session
        self._follower: Follower
        self._echo = Echo(mountpoint=self._mountpoint, inodes=self._inodes)
        self.handlers = self._handlers()
        self._was_quorate: bool | None = None
        # Threads that have been sent back with ESTALE, to the writers' inode.
        self._led: dict[int, WriterInode] = {}

    def attach(self, session: Session) -> Mapping[int, Handler]:
        """Returns the handlers that answer `session`."""
        self._session = session
        self._follower = Follower(
            events_after=self._store.events_after,
            index=self._store.index,
            root=self._root,
            inodes=self._inodes,
            session=session,
            own=self._own,
            look_at_quorum=self._is_quorate,
            echo=self._echo.tell,
        )
        return self.handlers

    def _handlers(self) -> dict[int, Handler]:
        return {
            wire.LOOKUP: self._lookup,
            wire.FORGET: self._forget,
            wire.BATCH_FORGET: self._forget,
            wire.GETATTR: self._getattr,
            wire.SETATTR: self._setattr,
            wire.READLINK: self._readlink,
            wire.OPENDIR: lambda _call: wire.open_answer(0, 0),
            wire.READDIR: self._readdir,
            wire.RELEASEDIR: lambda _call: _DONE,
            wire.STATFS: lambda _call: self._shown.statfs(),
            wire.OPEN: self._open,
            wire.CREATE: self._create,
            wire.READ: self._read,
            wire.WRITE: self._write,
            wire.FLUSH: self._flush,
            wire.FSYNC: self._fsync,
            wire.RELEASE: self._release,
            wire.SYMLINK: self._symlink,
            wire.MKNOD: self._mknod,
            wire.MKDIR: self._mkdir,
            wire.UNLINK: self._unlink,
            wire.RMDIR: self._rmdir,
            wire.RENAME: self._rename,
            wire.RENAME2: self._rename,
            wire.LINK: self._link,
        }

    def mounted(self) -> None:
        """The kernel has begun to ask."""
        self._follower.start()
        self._echo.start()

    def stop(self) -> None:
        self._echo.stop()
        self._follower.stop()

    # Looking

    def _lookup(self, call: Call) -> bytes | None:
        parent = self._inode(call)
        if self._past.is_asked(call, parent):
            return self._in_past(call, parent)
        name, parts = self._child(parent, wire.name(call.body))
        if call.pid == self._echo.thread_id:
            step = self._echo.step
            if parts == step.absent:
                raise OSError(errno.ENOENT, "about to be made")
            if parts == step.present:
                return self._echoed(parent, name, parts)
        led = self._led.get(call.pid)
        if led is not None and led.parent is parent and led.name == name:
            return self._entry(led)
        if self._shown.is_computed(parts):
            return self._entry(self._inodes.computed(name))
        index = self._under_way.index_for(parts)
        if index and not isinstance(lookup(self._root(), parts), Directory):

            def work() -> bytes:
                self._under_way.wait(index)
                # The directory may have moved, or gone, meanwhile.
                return self._found(call, parent, *self._child(parent, name.encode()))

            if self._soon(call, work):
                return None
        return self._found(call, parent, name, parts)

    def _found(self, call: Call, parent: Inode, name: str, parts: Parts) -> bytes:
        inode = self._public(parent, name, parts)
        if inode is None:
            pending = self._files.pending(parts)
            if pending is None or not pending.is_new:
                self._cached.found_nothing(call.pid)
                raise OSError(self._missing(parts), name)
            inode = self._inodes.writer(parent, name, None)
        self._cached.looked_up(call.pid, inode)
        return self._entry(inode)

    def _public(self, parent: Inode, name: str, parts: Parts) -> Inode | None:
        """The readers' inode. Known before it is certain that it is current: else a change in between would go untold."""
        while True:
            root = self._root()
            node = lookup(root, parts)
            if node is None:
                return None
            inode = self._inodes.public(parent, name, node)
            if self._root() is root:
                return inode

    def _forget(self, call: Call) -> None:
        self._inodes.forget(wire.forgets(call))

    def _in_past(self, call: Call, inode: Inode) -> bytes | None:
        if self._past.is_at_hand(call, inode):
            return self._past.answer(call, inode)
        self._session.later(call, lambda: self._past.answer(call, inode))
        return None

    def _getattr(self, call: Call) -> bytes | None:
        inode = self._inode(call)
        return self._in_past(call, inode) if isinstance(inode, PastInode) else self._attributes(inode)

    def _readlink(self, call: Call) -> bytes:
        target = self._store.links.get(self._inode(call).name)
        if target is None:
            raise OSError(errno.EINVAL, "no link")
        return target.encode()

    def _readdir(self, call: Call) -> bytes | None:
        inode = self._inode(call)
        if isinstance(inode, PastInode):
            return self._in_past(call, inode)
        _handle, offset, size = wire.transfer(call.body)
        entries = self._shown.listing(inode)
        if entries is None:
            raise OSError(errno.ENOENT, "the directory is gone")
        return wire.directory_page(entries, offset, size)

    # Open files

    def _open(self, call: Call) -> bytes | None:
        inode = self._inode(call)
        flags = wire.flags(call.body)
        if not isinstance(inode, FileInode):
            if isinstance(inode, WriterInode):
                self._led.pop(call.pid, None)
                return self._open_directly(call, inode, flags)
            return self._in_past(call, inode) if isinstance(inode, PastInode) else self._open_computed(inode)
        if flags & WRITES:
            if call.pid == self._echo.thread_id:
                return _OPEN_ECHO
            raise self._lead_to_writers(call, inode)
        return self._cached.open(call, inode)

    def _lead_to_writers(self, call: Call, inode: FileInode) -> OSError:
        """A writer must not have the readers' inode: with it go the size and the pages that they see."""
        self._need_quorum()
        assert inode.parent is not None
        led = self._led.pop(call.pid, None)
        if led is None or (led.parent, led.name) != (inode.parent, inode.name):
            node = lookup(self._root(), self._inodes.parts(inode))
            if isinstance(node, File):
                if len(self._led) >= _MAX_AWAITED:
                    self._led.clear()
                self._led[call.pid] = self._inodes.writer(inode.parent, inode.name, node)
        return OSError(errno.ESTALE, "open the writers' inode")

    def _open_directly(self, call: Call, inode: WriterInode, flags: int) -> bytes | None:
        parts = self._inodes.parts(inode)
        if flags & WRITES:
            self._need_quorum()
        pending = self._files.pending(parts)
        if pending is not None and pending.is_new:
            # A second opener of a file that only this node knows of: from here on it is everybody's.
            self._session.later(call, lambda: self._opened_after(pending, inode, parts, flags, call.pid))
            return None
        return self._opened(inode, parts, flags, call.pid)

    def _opened_after(self, pending: OpenFile, inode: WriterInode, parts: Parts, flags: int, opener: int) -> bytes:
        self._settle(pending)
        return self._opened(inode, parts, flags, opener)

    def _opened(self, inode: WriterInode, parts: Parts, flags: int, opener: int) -> bytes:
        node = lookup(self._root(), parts)
        if not isinstance(node, File) or inode.is_gone:
            raise OSError(errno.EISDIR if isinstance(node, Directory) else errno.ESTALE, "the file is gone")
        file = OpenFile(parts, opener, is_append=bool(flags & os.O_APPEND), snapshot=node.content)
        if flags & os.O_TRUNC:
            self._files.change(file, emptied)
        if flags & WRITES:
            inode.latest = file
        return wire.open_answer(self._files.add(file), wire.FOPEN_DIRECT_IO)

    def _open_computed(self, inode: Inode) -> bytes:
        special = self._store.specials.get(inode.name)
        if special is None or inode.parent is not self._inodes.root:
            raise OSError(errno.EISDIR, inode.name)
        file = OpenFile((inode.name,), special=special())
        return wire.open_answer(self._files.add(file), wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH)

    def _create(self, call: Call) -> bytes | None:
        parent = self._inode(call)
        name, parts = self._child(parent, wire.name(call.body, 16))
        flags = wire.flags(call.body)
        if call.pid == self._echo.thread_id:
            return self._echoed(parent, name, parts) + _OPEN_ECHO
        self._need_quorum()
        command = Write(join(parts), b"", absent=bool(flags & os.O_EXCL))
        if command.absent:
            self._session.later(call, lambda: self._create_exclusively(command, parent, name, flags, call.pid))
            return None
        node = lookup(self._root(), parts)
        if node is not None:
            # Somebody made it since the kernel looked.
            inode = self._inodes.writer(parent, name, node)
            opened = self._opened(inode, parts, flags, call.pid)
            return self._entry(inode) + opened
        self._check(command)
        return self._created(parent, name, parts, flags, call.pid, is_new=True)

    def _create_exclusively(self, command: Write, parent: Inode, name: str, flags: int, opener: int) -> bytes:
        self._execute(command)
        parts = (*self._inodes.parts(parent), name)
        return self._created(parent, name, parts, flags, opener, is_new=False)

    def _created(self, parent: Inode, name: str, parts: Parts, flags: int, opener: int, *, is_new: bool) -> bytes:
        file = OpenFile(parts, opener, is_append=bool(flags & os.O_APPEND), is_new=is_new)
        if is_new:
            self._files.change(file, emptied)
        inode = self._inodes.writer(parent, name, lookup(self._root(), parts))
        inode.latest = file
        opened = wire.open_answer(self._files.add(file), wire.FOPEN_DIRECT_IO)
        return self._entry(inode) + opened

    def _read(self, call: Call) -> bytes:
        handle, offset, size = wire.transfer(call.body)
        if handle != CACHED:
            return self._files.read(self._files.get(handle), size, offset)
        inode = self._inode(call)
        assert isinstance(inode, FileInode)
        return inode.content[offset : offset + size]

    def _write(self, call: Call) -> bytes:
        handle, offset, _size = wire.transfer(call.body)
        data = wire.written(call.body)
        file = self._files.get(handle)
        if file.special is not None:
            return wire.write_answer(self._write_special(file, data))
        if not file.is_dirty:
            self._need_quorum()
        # The kernel's idea of the end may be old; the buffer's is not, and the commit knows better still.
        at = None if file.is_append else offset
        return wire.write_answer(self._files.change(file, lambda buffer: buffer.write(data, at)))

    def _flush(self, call: Call) -> bytes | None:
        """Each close(2) of a descriptor. What fails is told here and then forgotten: there is nobody left to retry."""
        file = self._dirty(call)
        if file is None:
            return _DONE

        def work() -> bytes:
            if self._is_more_to_come(call, file):
                return _DONE
            try:
                return self._settle(file)
            except (KvorumError, OSError):
                self._drop(file)
                raise

        self._session.later(call, work)
        return None

    def _fsync(self, call: Call) -> bytes | None:
        file = self._dirty(call)
        if file is None:
            return _DONE
        self._session.later(call, lambda: self._settle(file, in_step=False))
        return None

    def _release(self, call: Call) -> bytes | None:
        """After the last close. Only what flush left for later can be pending here; nobody hears of its failure but the log."""
        handle = wire.handle(call.body)
        if handle == CACHED:
            return self._cached.release(call.node)
        if handle == _ECHO:
            return _DONE
        file = self._dirty(call)
        if file is None:
            self._files.discard(handle)
            return _DONE

        def work() -> bytes:
            try:
                self._settle(file)
            except (KvorumError, OSError) as error:
                log.warning("%s: not saved: %s", join(file.parts), error)
            finally:
                self._files.discard(handle)
            return _DONE

        self._session.later(call, work)
        return None

    # Names

    def _mknod(self, call: Call) -> bytes | None:
        parent = self._inode(call)
        name, parts = self._child(parent, wire.name(call.body, 16))
        if not stat.S_ISREG(wire.flags(call.body)):
            raise OSError(errno.ENOSYS, "only files and directories")
        return self._make(call, parent, name, Write(join(parts), b"", absent=True))

    def _symlink(self, call: Call) -> bytes:
        self._child(self._inode(call), wire.name(call.body))
        raise OSError(errno.ENOSYS, "only files and directories")

    def _mkdir(self, call: Call) -> bytes | None:
        parent = self._inode(call)
        name, parts = self._child(parent, wire.name(call.body, 8))
        if call.pid == self._echo.thread_id:
            return self._echoed(parent, name, parts)
        return self._make(call, parent, name, Mkdir(join(parts)))

    def _make(self, call: Call, parent: Inode, name: str, command: Write | Mkdir) -> bytes | None:
        self._need_quorum()

        def work() -> bytes:
            self._execute(command)
            inode = self._public(parent, name, (*self._inodes.parts(parent), name))
            if inode is None:
                raise OSError(errno.ENOENT, "made, and removed by somebody else")
            return self._entry(inode)

        self._session.later(call, work)
        return None

    def _unlink(self, call: Call) -> bytes | None:
        return self._remove(call, is_directory=False)

    def _rmdir(self, call: Call) -> bytes | None:
        return self._remove(call, is_directory=True)

    def _remove(self, call: Call, *, is_directory: bool) -> bytes | None:
        parent = self._inode(call)
        name, parts = self._child(parent, wire.name(call.body))
        if call.pid == self._echo.thread_id:
            return _DONE
        self._need_quorum()

        def work() -> bytes:
            if is_directory and self._files.new_names(parts):
                raise OSError(errno.ENOTEMPTY, name)
            # Not marked as gone before it is: a refused unlink must not cost those who write it what they have written.
            if not self._files.is_only_pending(parts) or lookup(self._root(), parts) is not None:
                self._files.hold(parts)
                self._execute(Delete(join(parts), only="directory" if is_directory else "file"))
            self._files.unlinked(parts)
            self._inodes.unlinked(parent, name)
            return _DONE

        self._session.later(call, work)
        return None

    def _rename(self, call: Call) -> bytes | None:
        is_plain = call.opcode == wire.RENAME
        flags = 0 if is_plain else wire.flags(call.body[8:12])
        if flags & ~wire.RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "names are not exchanged")
        old, new = wire.two_names(call.body, 8 if is_plain else 16)
        new_parent = self._inodes.by_id.get(wire.handle(call.body))
        if new_parent is None:
            raise OSError(errno.ESTALE, "no such inode")
        _name, parts = self._child(self._inode(call), old)
        _name, target = self._child(new_parent, new)
        if call.pid == self._echo.thread_id:
            return _DONE
        self._need_quorum()

        def work() -> bytes:
            self._files.settle(parts)
            done = self._execute(Move(join(parts), join(target), replace=not flags))
            if parts != target:
                node = lookup(self._root(), target)
                if node is not None:
                    self._follower.moved(done.index, parts, target, node)
                self._files.moved(parts, target)
            return _DONE

        self._session.later(call, work)
        return None

    def _link(self, call: Call) -> bytes:
        self._child(self._inode(call), wire.name(call.body, 8))
        raise OSError(errno.EPERM, "an entry has one name")

    # Attributes

    def _setattr(self, call: Call) -> bytes | None:
        inode = self._inode(call)
        self._past.need_present(inode)
        wanted = wire.set_attributes(call.body)
        if call.pid == self._echo.thread_id:
            return self._attributes(inode)
        if wanted.valid & wire.FATTR_MODE:
            self._chmod(inode, wanted.mode)
        if wanted.valid & (wire.FATTR_UID | wire.FATTR_GID):
            self._chown(wanted)
        if wanted.valid & wire.FATTR_SIZE:
            return self._truncate(call, inode, wanted)
        if wanted.valid & wire.FATTR_MTIME:
            self._need_quorum()
            self._session.later(call, lambda: self._touch(inode, wanted))
            return None
        return self._attributes(inode)

    def _truncate(self, call: Call, inode: Inode, wanted: wire.SetAttributes) -> bytes | None:
        self._need_quorum()
        if wanted.valid & wire.FATTR_FH and wanted.handle != CACHED:
            file = self._files.get(wanted.handle)
            if file.special is None:
                self._files.change(file, cut(wanted.size))
                return self._attributes(inode)
        if isinstance(inode, FileInode):
            raise self._lead_to_writers(call, inode)
        if not isinstance(inode, WriterInode):
            raise OSError(errno.EIO, "computed files are not written")
        self._led.pop(call.pid, None)
        self._session.later(call, lambda: self._truncate_now(inode, wanted.size))
        return None

    def _truncate_now(self, inode: WriterInode, size: int) -> bytes:
        parts = self._inodes.parts(inode)
        self._files.settle(parts)
        if not isinstance(lookup(self._root(), parts), File):
            raise OSError(errno.ESTALE, "the file is gone")
        file = OpenFile(parts)
        self._files.change(file, cut(size))
        self._settle(file, in_step=False)
        return self._attributes(inode)

    def _touch(self, inode: Inode, wanted: wire.SetAttributes) -> bytes:
        parts = self._inodes.parts(inode)
        self._files.settle(parts)
        node = lookup(self._root(), parts)
        mtime = None if wanted.valid & wire.FATTR_MTIME_NOW else wanted.mtime
        if mtime == 0 and isinstance(node, Directory) and rules.is_lock(parts, node):
            self._break_lock(parts, node)
            self._follower.refresh(parts)
        else:
            self._execute(Touch(join(parts), mtime))
            node = lookup(self._root(), parts)
            if isinstance(inode, FileInode) and isinstance(node, File) and inode.is_version(node):
                inode.mtime = node.mtime
        return self._attributes(inode)

    # Leaves

    def _soon(self, call: Call, work: Callable[[], bytes]) -> bool:
        return self._session.soon(call, work)

    def _inode(self, call: Call) -> Inode:
        inode = self._inodes.by_id.get(call.node)
        if inode is None:
            raise OSError(errno.ESTALE, "no such inode")
        return inode

    def _child(self, parent: Inode, label: bytes) -> tuple[str, Parts]:
        self._past.need_present(parent)
        try:
            name = label.decode()
        except UnicodeDecodeError:
            raise OSError(errno.EILSEQ, "names are UTF-8") from None
        parts = (*self._inodes.parts(parent), name)
        verdict = rules.split(join(parts))
        if isinstance(verdict, Refusal):
            raise OSError(to_errno(verdict), verdict.message)
        if parent.is_gone:
            raise OSError(errno.ENOENT, "the directory is gone")
        return name, parts

    def _entry(self, inode: Inode) -> bytes:
        is_kept = isinstance(inode, FileInode | DirectoryInode) and not inode.is_gone
        keep_s = LONG_S if is_kept else 0
        self._inodes.told(inode)
        return wire.entry(inode.id, self._shown.of(inode), name_s=keep_s, attributes_s=keep_s)

    def _attributes(self, inode: Inode) -> bytes:
        is_kept = isinstance(inode, FileInode | DirectoryInode)
        return wire.attributes_answer(self._shown.of(inode), valid_s=LONG_S if is_kept else 0)

    def _echoed(self, parent: Inode, name: str, parts: Parts) -> bytes:
        """What the thread of `clusterfs.inotify` must find or make; by now it may be gone, or never have come here."""
        step = self._echo.step
        inode = self._public(parent, name, parts) if step.is_real else None
        if inode is None or isinstance(inode, DirectoryInode) != isinstance(step.node, Directory):
            inode = self._inodes.loose(parent, name, step.node)
        self._inodes.told(inode)
        return wire.entry(inode.id, self._shown.of(inode), name_s=0, attributes_s=0)

    def _root(self) -> Directory:
        return self._store.state().root

    def _propose(self, op: Op) -> Result:
        paths = (op.path, op.new_path) if isinstance(op, Move) else (getattr(op, "path", ""),)
        with self._own.making(*paths) as made:
            result = self._store.propose(op, self._deadline_s)
            made(result)
            return result

    def _execute(self, op: Op) -> Done:
        result = self._propose(op)
        if isinstance(result, Refusal):
            raise OSError(to_errno(result), result.message)
        return result

    def _check(self, op: Op) -> None:
        """Fails now if the command would fail now; it is sent later."""
        refusal = check(self._store.state(), Envelope(op, node=self._store.node_uid))
        if refusal is not None:
            raise OSError(to_errno(refusal), refusal.message)

    def _is_quorate(self) -> bool:
        is_quorate = self._store.is_quorate()
        if is_quorate != self._was_quorate:
            is_first, self._was_quorate = self._was_quorate is None, is_quorate
            if not is_first:
                self._follower.attributes_changed()
        return is_quorate

    def _need_quorum(self) -> None:
        if not self._is_quorate():
            # A full disk takes a lone node's quorum away as well; what is to be done about it is another thing.
            if self._store.is_disk_full():
                raise OSError(errno.ENOSPC, "no space for the log")
            raise OSError(errno.EACCES, "no quorum")

    def _dirty(self, call: Call) -> OpenFile | None:
        handle = wire.handle(call.body)
        if handle in (CACHED, _ECHO):
            return None
        file = self._files.get(handle)
        return file if file.is_dirty else None

    def _settle(self, file: OpenFile, *, in_step: bool = True) -> bytes:
        """Commits. With `in_step` this node's programs see it by name when it returns.

        Without, the follower sees to that: for calls during which the kernel holds the inode's lock (all but open, close and
        release), since the notice would wait for that lock and the call for the notice.
        """
        was_new = file.is_new
        self._files.commit(file)
        parts = file.parts
        parent, node = self._inodes.at(parts[:-1]), lookup(self._root(), parts)
        if was_new and parent is not None and node is not None:
            self._inodes.committed(parent, parts[-1], node)
        if in_step:
            self._follower.refresh(parts)
        return _DONE

    def _chmod(self, inode: Inode, mode: int) -> None:
        is_directory = isinstance(inode, DirectoryInode)
        if not rules.chmod_is_harmless(self._inodes.parts(inode), mode, is_directory=is_directory):
            raise OSError(errno.EPERM, "modes follow from the path")

    def _chown(self, wanted: wire.SetAttributes) -> None:
        is_uid_kept = not wanted.valid & wire.FATTR_UID or wanted.uid == 0
        is_gid_kept = not wanted.valid & wire.FATTR_GID or wanted.gid == self._gid
        if not (is_uid_kept and is_gid_kept):
            raise OSError(errno.EPERM, "all belongs to root")

    def _break_lock(self, parts: Parts, node: Directory) -> None:
        if not rules.lock_may_be_broken(self._store.lock_age_s(join(parts), node.version)):
            raise OSError(errno.EACCES, "the lock is young")
        self._execute(Unlock(join(parts), node.version))

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

    def _is_more_to_come(self, call: Call, file: OpenFile) -> bool:
        """Sending what is there now would show an empty or half-written file to the whole cluster; another close will come."""
        inode = self._inodes.by_id.get(call.node)
        is_blank = file.buffer is not None and file.buffer.is_blank
        return inode is not None and is_open_still(
            closer=call.pid, opener=file.opener, mountpoint=self._mountpoint, ino=inode.ino, is_blank=is_blank
        )

    def _missing(self, parts: Parts) -> int:
        return errno.ENOTDIR if crosses_file(self._root(), parts) else errno.ENOENT
