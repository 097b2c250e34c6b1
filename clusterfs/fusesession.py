"""One thread that takes the kernel's requests from /dev/fuse, and a pool for those whose answer must wait.

Whatever can be answered from memory is answered by the session's own thread, at once: no hand-over between threads, which
costs more in Python than the answer itself. A handler that would wait (for consensus, above all) gives its work to the pool
instead, so that a write that waits never holds up a read. What is answered is for `clusterfs.mount`, the bytes are
`clusterfs.fusewire`.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from clusterfs import fusewire as wire
from clusterfs.fusewire import Call
from clusterfs.proposer import DEADLINE_S
from clusterfs.refusals import error_errno
from kvorum.errors import KvorumError

log = logging.getLogger(__name__)

# More writers than that wait their turn. Each waits for consensus no longer than its deadline.
WORKERS = 32
# So many requests in a row from one thread, and it is worth being near it.
_NEAR_AFTER = 16
_NEAR_CHECK = 1024

# Bytes are the answer, None: it comes later (or, for a forget, never).
Handler = Callable[[Call], bytes | None]


class Session:
    """`serve` returns when the file system is unmounted or the connection is cut."""

    def __init__(self, device: int, *, deadline_s: float = DEADLINE_S) -> None:
        self._device = device
        self._deadline_s = deadline_s
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="mount")
        self.is_ready = threading.Event()
        self.nearness = Nearness()

    def serve(self, handlers: Mapping[int, Handler]) -> None:
        buffer = bytearray(wire.BUFFER_BYTES)
        targets = [buffer]
        device, unpack, near = self._device, wire.IN_HEADER.unpack_from, self.nearness
        near.begin()
        try:
            while True:
                try:
                    size = os.readv(device, targets)
                except OSError as error:
                    # ENOENT: the request was interrupted before it was read.
                    if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        continue
                    if error.errno == errno.ENODEV:
                        return
                    raise
                _size, opcode, unique, node, _uid, _gid, pid, _ext, _pad = unpack(buffer)
                call = Call(opcode, unique, node, pid, bytes(buffer[40:size]))
                near.note(pid)
                handler = handlers.get(opcode)
                if handler is None:
                    self._without_handler(call)
                else:
                    self._answer(call, handler)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            near.leave()

    def later(self, call: Call, work: Callable[[], bytes]) -> None:
        """Answers `call` with what `work` returns or raises, from a thread of the pool.

        When all of them wait for consensus longer than a call may, what comes after them is not even tried.
        """
        end = time.monotonic() + self._deadline_s

        def run(_call: Call) -> bytes:
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, "too many changes wait")
            return work()

        self._pool.submit(self._answer, call, run)

    def notify(self, notice: bytes) -> bool:
        """Tells the kernel; False when it knows nothing of the inode or name. May wait until a change under way in that
        directory is answered: never to be called by a handler of one, nor by the session's thread unless for attributes.
        """
        try:
            os.write(self._device, notice)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EBUSY, errno.ENODEV):
                log.warning("notice to the kernel: %s", error)
            return False
        return True

    def close(self) -> None:
        """After `serve` has returned."""
        os.close(self._device)

    def _answer(self, call: Call, handler: Handler) -> None:
        try:
            payload = handler(call)
        except KvorumError as error:
            log.info("%s", error)
            self._send(wire.error(call.unique, error_errno(error)))
        except OSError as error:
            self._send(wire.error(call.unique, error.errno or errno.EIO))
        except Exception:
            log.exception("request %d of inode %d failed", call.opcode, call.node)
            if call.opcode not in wire.SILENT:
                self._send(wire.error(call.unique, errno.EIO))
        else:
            if payload is not None:
                self._send(wire.answer(call.unique, payload))

    def _without_handler(self, call: Call) -> None:
        if call.opcode == wire.INIT:
            self._send(wire.answer(call.unique, wire.init_answer(call.body)))
            self.is_ready.set()
        elif call.opcode == wire.DESTROY:
            self._send(wire.answer(call.unique, b""))
        elif call.opcode not in wire.SILENT:
            self._send(wire.error(call.unique, errno.ENOSYS))

    def _send(self, message: bytes) -> None:
        try:
            os.write(self._device, message)
        except OSError as error:
            # ENOENT: the caller was killed meanwhile; ENODEV: unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.warning("answer to the kernel: %s", error)


class Nearness:
    """Keeps the session's thread on the processor of a program that asks again and again.

    The two never run at the same time, for one waits for the other; on two processors each request costs two wake-ups of a
    sleeping processor, four times what the request itself costs (55 us against 12 us measured). Left as soon as somebody else
    asks, or nobody any more.
    """

    def __init__(self) -> None:
        self._thread = 0
        self._all: set[int] = set()
        self._last = 0
        self._count = 0
        self._processor: int | None = None
        self._seen = -1

    def begin(self) -> None:
        self._thread = threading.get_native_id()
        self._all = os.sched_getaffinity(0)

    def note(self, pid: int) -> None:
        """A request of thread `pid` has come."""
        if pid != self._last:
            self._last = pid
            self._count = 0
            if self._processor is not None:
                self.leave()
            return
        self._count += 1
        if self._count % _NEAR_CHECK == _NEAR_AFTER and pid and len(self._all) > 1:
            self._go_to(pid)

    def leave_if_idle(self) -> None:
        """Called now and then by somebody else: an idle thread must not wait for one busy processor."""
        if self._processor is not None and self._count == self._seen:
            self.leave()
        self._seen = self._count

    def leave(self) -> None:
        self._processor = None
        self._count = 0
        self._set(self._all)

    def _go_to(self, pid: int) -> None:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - on the way of a read
                processor = int(file.read().rpartition(b")")[2].split()[36])
        except (OSError, ValueError, IndexError):
            return
        if processor != self._processor and processor in self._all:
            self._processor = processor
            self._set({processor})

    def _set(self, processors: set[int]) -> None:
        if self._thread and processors:
            try:
                os.sched_setaffinity(self._thread, processors)
            except OSError as error:
                log.debug("affinity: %s", error)
