"""kvorum-clusterfs: serve the store until SIGTERM. Wiring only.

Ends with 0 on SIGTERM, with 1 when it cannot start, and with 70 when the log cannot be followed: a node that stops is better
than one that is wrong.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import click

from clusterfs import grpcenv  # noqa: F401  first, for what it sets is read when grpc is imported
from clusterfs.daemon import Daemon, Places
from clusterfs.server import Server
from kvorum.errors import KvorumError
from kvorum.node import MOUNT, RUN, STATE

log = logging.getLogger(__name__)

SOCKET = "clusterfs.sock"
GRACE_S = 2.0
EXIT_BROKEN = 70
RESUME_AGAIN_S = 2.0


@click.command()
@click.option(
    "--mount", type=click.Path(path_type=Path), default=MOUNT, show_default=True, help="Where the store is seen."
)
@click.option(
    "--state-dir", type=click.Path(path_type=Path), default=STATE, show_default=True, help="Identity, keys, data."
)
@click.option("--run-dir", type=click.Path(path_type=Path), default=RUN, show_default=True, help="Where the socket is.")
def main(mount: Path, state_dir: Path, run_dir: Path) -> None:
    """Serve this node's replica of the config store."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # A thread that waits for the interpreter while another computes asks for it after this long; the default of 5 ms is ten
    # commits.
    sys.setswitchinterval(0.0002)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    # libfuse would take SIGHUP for "unmount".
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code = _serve(Places(state=state_dir, mount=mount), run_dir / SOCKET, stopping)
    logging.shutdown()
    # Threads of libfuse and of calls that were given up must not hold the exit back.
    os._exit(code)


def _serve(places: Places, socket: Path, stopping: threading.Event) -> int:
    from clusterfs.replicas import make_replica

    daemon = Daemon(places, make_replica=make_replica, on_broken=_break)
    server = Server(daemon, socket)
    try:
        daemon.lock()
        server.start()
        _resume(daemon)
        if daemon.active is None:
            log.info("waiting to be activated")
        while not stopping.wait(RESUME_AGAIN_S):
            if daemon.active is None:
                _resume(daemon)
    except KvorumError as error:
        log.error("%s%s", error, f" ({error.remedy})" if error.remedy else "")
        return 1
    finally:
        log.info("stopping")
        daemon.end_watches()
        server.stop(grace_s=GRACE_S)
        daemon.stop()
    return 0


def _resume(daemon: Daemon) -> None:
    """Nothing for a node in no cluster. Its host may not have the node's address: not yet, or not any more."""
    try:
        daemon.resume()
    except OSError as error:
        log.error("cannot start: %s; if the address of this node has changed, run 'kvorum cluster readdress'", error)


def _break(_error: AssertionError) -> None:
    logging.shutdown()
    os._exit(EXIT_BROKEN)


if __name__ == "__main__":
    main()
