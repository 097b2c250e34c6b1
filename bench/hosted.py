"""kvorum-clusterfs with a door for load: proposers inside the daemon's process, as the threads of its mount are.

An order is a line of JSON on standard input, the answer one on standard output; the end of the input ends the daemon. Nothing
here is part of the product, and the daemon behaves as the real one: same replica, state machine, mount and server.
"""

import json
import logging
import os
import queue
import sys
import time
from pathlib import Path

import click

from clusterfs import grpcenv  # noqa: F401  first, as in `clusterfs.main`
from clusterfs.commands import Write
from clusterfs.daemon import Daemon, Places
from clusterfs.main import SOCKET
from clusterfs.outcomes import Done, Result
from clusterfs.replicas import make_replica
from clusterfs.server import Server
from kvorum.errors import KvorumError

GRACE_S = 1.0
NAMES = 1000


@click.command()
@click.option("--mount", type=click.Path(path_type=Path), required=True)
@click.option("--state-dir", type=click.Path(path_type=Path), required=True)
@click.option("--run-dir", type=click.Path(path_type=Path), required=True)
def main(mount: Path, state_dir: Path, run_dir: Path) -> None:
    """Serve until the input ends."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # As `clusterfs.main` does.
    sys.setswitchinterval(0.0002)
    daemon = Daemon(Places(state=state_dir, mount=mount), make_replica=make_replica)
    server = Server(daemon, run_dir / SOCKET)
    daemon.lock()
    server.start()
    daemon.resume()
    for line in sys.stdin:
        print(json.dumps(load(daemon, **json.loads(line))), flush=True)
    daemon.end_watches()
    server.stop(grace_s=GRACE_S)
    daemon.stop()
    os._exit(0)


def load(
    daemon: Daemon, *, outstanding: int, size: int, seconds: float = 3600.0, files: int = 0
) -> dict[str, float | list[float]]:
    """So many writes under way, each followed by another when it is acknowledged: to a thousand names in turn, for some seconds;
    or so many files, each once, a thousand to a directory. One thread makes them all, as one client of the peer does. The ends
    are of the system's monotonic clock."""
    proposer = daemon.running.proposer
    content = os.urandom(size)
    latencies: list[float] = []
    ends: list[float] = []
    answers: queue.SimpleQueue[tuple[int, float, float, Result | KvorumError]] = queue.SimpleQueue()
    clock = time.perf_counter
    begin = clock()
    until = begin + seconds

    def write(number: int) -> int:
        """How many it has put under way."""
        start = clock()
        if start >= until or (files and number >= files):
            return 0
        path = f"fill/{number // NAMES}/{number}" if files else f"bench/{number % NAMES}"
        proposer.submit(
            Write(path, content, parents=True),
            on_result=lambda result: answers.put((number, start, clock(), result)),
        )
        return 1

    under_way = sum([write(number) for number in range(outstanding)])
    while under_way:
        number, start, end, result = answers.get()
        if not isinstance(result, Done):
            raise RuntimeError(f"a write was not made: {result}")
        latencies.append(end - start)
        ends.append(end)
        under_way += write(number + outstanding) - 1
    return {"latencies_s": latencies, "ends_s": ends, "duration_s": clock() - begin}


if __name__ == "__main__":
    main()
