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
from clusterfs.nearness import LOOK_EVERY, Nearness
from clusterfs.proposer import DEADLINE_S
from clusterfs.refusals import error_errno
from kvorum.errors import KvorumError

log = logging.getLogger(__name__)

# More writers than that wait their turn. Each waits for consensus no longer than its deadline.
WORKERS = 32
# Readers that wait for what is under way. More than that read what is there.
LOOKERS = 4
# Bytes are the answer, None: it comes later (or, for a forget, never).
Handler = Callable[[Call], bytes | None]
# For the node and the whole request: the answer when it is at hand, None when it is for the handler to find.
Express = Callable[[int, bytearray], bytes | None]


class Session:
    """`serve` returns when the file system is unmounted or the connection is cut."""

    def __init__(self, device: int, *, deadline_s: float = DEADLINE_S) -> None:
        self._device = device
        self._deadline_s = deadline_s
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="mount")
        self._lookers = ThreadPoolExecutor(LOOKERS, thread_name_prefix="mount-look")
        self._looking = threading.BoundedSemaphore(LOOKERS)
        self.is_ready = threading.Event()
        self.nearness = Nearness()

    def serve(self, handlers: Mapping[int, Handler], express: Mapping[int, Express]) -> None:
        """A cached read is two requests, and what Python does for them is most of what it costs: so what is `express` is
        answered without more steps than this."""
        buffer = bytearray(wire.BUFFER_BYTES)
        targets, view = [buffer], memoryview(buffer)
        device, unpack, near = self._device, wire.IN_HEADER.unpack_from, self.nearness
        last = in_a_row = 0
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
                opcode, unique, node, pid = unpack(buffer)
                if pid == last:
                    in_a_row += 1
                    if near.is_near and near.is_late():
                        in_a_row = 0
                    elif in_a_row % LOOK_EVERY == 0:
                        near.look(pid)
                # What the kernel does for nobody in particular, as at the end of a release, says nothing of who asks.
                elif pid:
                    last, in_a_row = pid, 0
                    if near.is_near:
                        near.leave()
                quick = express.get(opcode)
                answer = quick(node, buffer) if quick is not None else None
                if answer is not None:
                    self._send(wire.answer(unique, answer))
                    continue
                call = Call(opcode, unique, node, pid, bytes(view[wire.IN_HEADER_BYTES : size]))
                handler = handlers.get(opcode)
                if handler is None:
                    self._without_handler(call)
                else:
                    self._answer(call, handler)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._lookers.shutdown(wait=False, cancel_futures=True)
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

    def soon(self, call: Call, work: Callable[[], bytes]) -> bool:
        """As `later`, for reads that wait some milliseconds: never behind writers that wait for consensus. False, and nothing is
        done, when as many as may do so at a time wait already."""
        if not self._looking.acquire(blocking=False):
            return False

        def run(_call: Call) -> bytes:
            try:
                return work()
            finally:
                self._looking.release()

        self._lookers.submit(self._answer, call, run)
        return True

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
