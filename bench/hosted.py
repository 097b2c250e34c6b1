"""kvorum-clusterfs with a door for load: proposers inside the daemon's process, as the threads of its mount are.

An order is a line of JSON on standard input, the answer one on standard output; the end of the input ends the daemon. Nothing
here is part of the product, and the daemon behaves as the real one: same replica, state machine, mount and server.
"""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import click

from clusterfs.commands import Write
from clusterfs.daemon import Daemon, Places
from clusterfs.main import SOCKET
from clusterfs.replicas import make_replica
from clusterfs.server import Server

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
    """So many threads, each of which writes again when its last write is acknowledged: to a thousand names in turn, for some
    seconds; or so many files, each once, a thousand to a directory. The ends are of the system's monotonic clock."""
    proposer = daemon.running.proposer
    content = os.urandom(size)
    latencies: list[list[float]] = [[] for _ in range(outstanding)]
    ends: list[list[float]] = [[] for _ in range(outstanding)]
    begin = time.perf_counter()
    until = begin + seconds

    def work(first: int) -> None:
        number = first
        while (start := time.perf_counter()) < until and not (files and number >= files):
            path = f"fill/{number // NAMES}/{number}" if files else f"bench/{number % NAMES}"
            proposer.execute(Write(path, content, parents=True))
            end = time.perf_counter()
            latencies[first].append(end - start)
            ends[first].append(end)
            number += outstanding

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(outstanding)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "latencies_s": [latency for row in latencies for latency in row],
        "ends_s": [end for row in ends for end in row],
        "duration_s": time.perf_counter() - begin,
    }


if __name__ == "__main__":
    main()
