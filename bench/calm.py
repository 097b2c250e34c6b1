"""A crowded machine: does the cluster keep its leader while everybody has to wait for a processor? Only on demand, it takes long.

Busy processes are added until the load average is where it is wanted, and taken away again when others bring it about. Every
change of leader or term that is seen without a fault is a false election.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench import load, nodes
from bench.rows import Row, median, quantile
from bench.run import Broken, Run

LOAD, SLACK = 10.0, 1.0
LOOK_S, ADJUST_S = 0.5, 10.0
# Between two writes of one writer.
PAUSE_S = 0.1
# Until the load average follows.
WARM_UP_S = 60.0


@dataclass(slots=True)
class Crowd:
    """Processes that do nothing as fast as they can."""

    busy: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def adjust(self) -> None:
        average = os.getloadavg()[0]
        if average < LOAD and len(self.busy) < LOAD + 2:
            command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", "while True: pass"]
            self.busy.append(subprocess.Popen(command))
        elif average > LOAD + SLACK and self.busy:
            self.shrink(1)

    def shrink(self, count: int) -> None:
        for _ in range(count):
            process = self.busy.pop()
            process.kill()
            process.wait()


@contextlib.contextmanager
def crowd() -> Iterator[Crowd]:
    made = Crowd()
    try:
        for _ in range(int(LOAD - os.getloadavg()[0])):
            made.adjust()
        yield made
    finally:
        made.shrink(len(made.busy))


def rows(run: Run) -> Iterator[Row]:
    content = os.urandom(200)
    with nodes.cluster(run.directory / "calm") as cluster:
        cluster.leader().store.WriteEntry(nodes.directory_request("bench"), timeout=10.0)
        with crowd() as busy:
            run.say(f"calm: {run.minutes:g} minutes at a load average of {LOAD:g}")
            time.sleep(WARM_UP_S)
            first = _seen(cluster)
            averages = [os.getloadavg()[0]]
            elections, last = 0, first
            writers = [load.our_writer(node, content) for node in cluster.nodes]
            with load.watched(writers, pause_s=PAUSE_S) as found:
                begin = adjusted = time.monotonic()
                while time.monotonic() < begin + run.minutes * 60:
                    time.sleep(LOOK_S)
                    now = _seen(cluster)
                    if now != last:
                        run.say(f"calm: leader and term {last} => {now}")
                        elections, last = elections + max(1, now[1] - last[1]), now
                    if time.monotonic() - adjusted >= ADJUST_S:
                        busy.adjust()
                        averages.append(os.getloadavg()[0])
                        adjusted = time.monotonic()
                waits = found.waits_s(begin, time.monotonic())
            if found.errors:
                raise Broken(f"a write failed: {found.errors[0]}")
    low, typical, high = min(averages), median(averages), max(averages)
    yield Row(
        group="calm",
        name=f"false elections in {run.minutes:g} minutes at load average {low:.1f} to {high:.1f}, median {typical:.1f}",
        ours=f"{elections} (writes: p99 {quantile(waits, 0.99) * 1e3:.0f}, worst {max(waits) * 1e3:.0f} ms)",
        bar=f"0 in 30 minutes at {LOAD:g}",
        # Only a whole half hour that was as crowded as asked for says that the bar is met.
        is_met=False if elections else True if run.minutes >= 30 and typical >= LOAD - SLACK else None,
        figures={"elections": elections, "writes_worst_ms": max(waits) * 1e3, "minutes": run.minutes},
    )


def _seen(cluster: nodes.Cluster) -> tuple[str, int]:
    """The latest leader and term that any node knows."""
    answers = [status for node in cluster.nodes if (status := node.status()) is not None]
    latest = max(answers, key=lambda status: status.term)
    return latest.leader_uid, latest.term
