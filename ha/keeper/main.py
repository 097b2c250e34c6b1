"""kvorum-keeper, the process: alone on its node, locked in memory, before all others, and with nothing to collect.

It sets the guard up and lets it run; what the guard does is in `guard`, why in `core`.
"""

import ctypes
import fcntl
import gc
import logging
import logging.handlers
import os
import queue
import signal
import sys
import time
from contextlib import suppress

from ha.lease_state import GUESTS_FILE, STATE_FILE, boot_id
from kvorum.errors import KvorumError, NotFound
from kvorum.node import CLUSTERFS_SOCKET, load_identity

from . import records
from .courier import raise_nursery
from .guard import Guard
from .link import LineLost, Link
from .processes import Guests
from .watchdog import boot_status, find

log = logging.getLogger("kvorum-keeper")

IDENTITY_POLL_S = 1.0
PRIORITY = 10
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def lock_memory() -> None:
    """Pages that are swapped out would stall the guard when it matters. Best effort."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        log.warning("cannot lock memory: %s", os.strerror(ctypes.get_errno()))


def schedule_first() -> None:
    """Real-time, before all threads of ordinary processes. Best effort."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except OSError as error:
        log.warning("no real-time scheduling: %s", error)


def collect_no_more() -> None:
    """What there is stays for good, and what comes makes no cycles: a collection in the middle of a step serves nobody."""
    gc.collect()
    gc.freeze()
    gc.disable()


def log_beside() -> None:
    """Lines go through a thread: whoever reads them may have stopped reading, and then a write waits."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [logging.handlers.QueueHandler(lines)]
    logging.handlers.QueueListener(lines, writer).start()


def become_only() -> int:
    """A second keeper on the node would renew what the first has given up. Raises SystemExit."""
    STATE_FILE.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(STATE_FILE.parent / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SystemExit("another kvorum-keeper runs on this node") from None
    return handle


def begin_anew() -> None:
    """In place of this program, and without waiting for whoever supervises it. Does not return."""
    with suppress(OSError):
        # What is forked at its start is not to come before all others.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.execv(sys.executable, [sys.executable, "-m", "ha.keeper.main"])  # noqa: S606


def wait_for_identity() -> str:
    """The node's UUID; empty when it is no member, but has a list of guests that its last keeper did not come to end."""
    while True:
        try:
            return load_identity().uid
        except NotFound:
            if GUESTS_FILE.exists():
                return ""
        except KvorumError as error:
            log.error("%s (%s)", error, error.remedy)
        time.sleep(IDENTITY_POLL_S)


def main() -> None:
    """Waits until the node is in a cluster, then keeps its lease until SIGTERM or until it is no member any more."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    # Children are nobody's business here: who must be replaced is replaced by the nursery.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    lock = become_only()
    uid = wait_for_identity()
    # Forks, so it comes before the threads and before the memory is locked.
    line = Link(raise_nursery(uid, CLUSTERFS_SOCKET, ours_alone=lock))
    log_beside()
    box = records.Recorder()
    watchdog = find()
    if missed := records.missed_end(records.read(), boot_id(), uid=uid, boot_status=boot_status()):
        log.warning("%s", missed.cause)
        box.put(missed)
    box.start()
    guard = Guard(uid, line=line, watchdog=watchdog, guests=Guests(), box=box)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: guard.stop())
    lock_memory()
    schedule_first()
    collect_no_more()
    try:
        if uid:
            log.info("guards node %s", uid)
            guard.run()
        if not guard.is_stopping:
            log.info("this node has left its cluster")
            guard.end()
    except LineLost as error:
        # It could not renew any more. The next one goes on with the lease, as after any end of a keeper.
        log.error("begins anew: %s", error)
        box.flush(0.2)
        begin_anew()
    box.flush(1.0)
    if not guard.is_stopping:
        # For the next cluster a new process, with nothing of this one.
        begin_anew()


def _exit(_number: int, _frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
