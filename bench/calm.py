"""A crowded machine: does the cluster keep its leader while everybody has to wait for a processor? Only on demand, it takes long.

Busy processes hold the load average where it is wanted: as many as are missing beside what else runs at the moment. (To go by
the average itself would swing: it follows a minute late.) Every change of leader or term that is seen without a fault is a false
election.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from bench import load, nodes
from bench.rows import Row, quantile
from bench.run import Broken, Run, until

LOAD, SLACK = 10.0, 1.0
LOOK_S = 0.5
# Between two looks at what runs, and how many of them are averaged.
SAMPLE_S, SAMPLES = 0.25, 20
# The kernel counts who waits for a disk as well: what the average lacks in the long run is added slowly.
TRIM_PER_S, TRIM_MAX = 0.02, 3.0
# Between two writes of one writer.
PAUSE_S = 0.1
WARM_UP_S = 300.0
MINUTES = 30.0


class Crowd:
    """Processes that do nothing as fast as they can, and a thread that sees to their number."""

    def __init__(self) -> None:
        self._busy: list[subprocess.Popen[bytes]] = []
        self._others: deque[float] = deque(maxlen=SAMPLES)
        self._trim = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        # More at first, so that the average is there sooner.
        self.wanted = 2 * LOAD
        # The load average since `begin`.
        self.averages: list[float] = []
        self._is_measured = False

    def start(self) -> None:
        self._thread.start()

    def begin(self) -> None:
        self.wanted, self._trim, self._is_measured = LOAD, 0.0, True

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._adjust(0)

    def _keep(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            # Without this thread, which runs just now.
            self._others.append(_running() - len(self._busy) - 1)
            average = os.getloadavg()[0]
            if self._is_measured:
                self.averages.append(average)
                self._trim += (LOAD - average) * TRIM_PER_S * SAMPLE_S
                self._trim = min(max(self._trim, -TRIM_MAX), TRIM_MAX)
            others = max(0.0, sum(self._others) / len(self._others))
            self._adjust(round(self.wanted + self._trim - others))

    def _adjust(self, count: int) -> None:
        while len(self._busy) < count:
            command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-S", "-c", "while True: pass"]
            self._busy.append(subprocess.Popen(command))
        while len(self._busy) > max(0, count):
            process = self._busy.pop()
            process.kill()
            process.wait()


def _running() -> int:
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])


@contextlib.contextmanager
def crowd() -> Iterator[Crowd]:
    made = Crowd()
    made.start()
    try:
        yield made
    finally:
        made.stop()


def rows(run: Run) -> Iterator[Row]:
    content = os.urandom(200)
    with nodes.cluster(run.directory / "calm") as cluster:
        cluster.leader().store.WriteEntry(nodes.directory_request("bench"), timeout=10.0)
        with crowd() as busy:
            run.say(f"calm: bringing the load average to {LOAD:g}")
            until(lambda: os.getloadavg()[0] >= LOAD, timeout_s=WARM_UP_S, what="the load average", every_s=LOOK_S)
            busy.begin()
            run.say(f"calm: {run.minutes:g} minutes")
            last = _seen(cluster)
            if last is None:
                raise Broken("no node answers")
            elections = 0
            writers = [load.our_writer(node, content) for node in cluster.nodes]
            with load.watched(writers, pause_s=PAUSE_S) as found:
                begin = time.monotonic()
                while time.monotonic() < begin + run.minutes * 60:
                    time.sleep(LOOK_S)
                    now = _seen(cluster)
                    if now is not None and now != last:
                        run.say(f"calm: leader and term {last} => {now}")
                        elections, last = elections + max(1, now[1] - last[1]), now
                waits = found.waits_s(begin, time.monotonic())
            averages = list(busy.averages)
            if found.errors:
                raise Broken(f"a write failed: {found.errors[0]}")
            for writer, calls in zip(cluster.nodes, found.calls, strict=True):
                if len(calls) < run.minutes * 60:
                    raise Broken(
                        f"{writer.identity.name} made only {len(calls)} writes: nobody would notice an election"
                    )
    low, mean, high = min(averages), sum(averages) / len(averages), max(averages)
    # Only a whole half hour that was as crowded as asked for, all the time, says that the bar is met.
    is_whole = run.minutes >= MINUTES and low >= LOAD - SLACK
    yield Row(
        group="calm",
        name=f"false elections in {run.minutes:g} minutes; load average min {low:.1f}, mean {mean:.1f}, max {high:.1f}",
        ours=f"{elections} (writes: p99 {quantile(waits, 0.99) * 1e3:.0f}, worst {max(waits) * 1e3:.0f} ms)",
        bar=f"0 in {MINUTES:g} minutes at {LOAD:g}",
        is_met=False if elections else True if is_whole else None,
        figures={
            "elections": elections,
            "writes_worst_ms": max(waits) * 1e3,
            "minutes": run.minutes,
            "load_min": low,
            "load_mean": mean,
            "load_max": high,
        },
    )


def _seen(cluster: nodes.Cluster) -> tuple[str, int] | None:
    """The latest leader and term that any node knows. None when none answers in time, which the writers will feel."""
    answers = [status for node in cluster.nodes if (status := node.status()) is not None]
    if not answers:
        return None
    latest = max(answers, key=lambda status: status.term)
    return latest.leader_uid, latest.term
