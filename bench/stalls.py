"""A follower is frozen for two seconds, or killed: the longest wait of any write through the other two nodes.

One writer on the leader's node and one on the other follower's. The worst of the same time without a fault stands beside it:
so much is the machine's.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from bench import etcd, load, nodes
from bench.rows import Row, median
from bench.run import Broken, Run, until

TRIALS = 3
FROZEN_S, AFTER_S = 2.0, 1.5
BAR_MS = 100.0
SETTLE_S = 1.0


class Process(Protocol):
    def signal(self, number: int) -> None: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...


# The longest wait of each trial, in ms: without a fault, a follower frozen, a follower killed.
Waits = tuple[list[float], list[float], list[float]]


def rows(run: Run) -> Iterator[Row]:
    ours, theirs = _ours(run), _theirs(run)
    for name, our, their in zip(("frozen for 2 s", "killed"), ours[1:], theirs[1:], strict=True):
        yield Row(
            group="stalls",
            name=f"follower {name}: longest wait of a write, median / worst of {TRIALS}",
            ours=f"{median(our):.0f} / {max(our):.0f} ms (no fault: {max(ours[0]):.0f})",
            peer=f"etcd {median(their):.0f} / {max(their):.0f} ms (no fault: {max(theirs[0]):.0f})",
            ratio=median(their) / median(our),
            bar=f"<= {BAR_MS:g} ms",
            is_met=max(our) <= BAR_MS,
            figures={
                "ours_median_ms": median(our),
                "ours_worst_ms": max(our),
                "ours_without_fault_ms": max(ours[0]),
                "peer_median_ms": median(their),
                "peer_worst_ms": max(their),
                "peer_without_fault_ms": max(theirs[0]),
            },
        )


def _ours(run: Run) -> Waits:
    run.say("stalls: followers of ours are frozen and killed")
    content = os.urandom(200)
    waits: Waits = ([], [], [])
    with nodes.cluster(run.directory / "stalls") as cluster:
        cluster.leader().store.WriteEntry(nodes.directory_request("bench"), timeout=10.0)
        for trial in range(TRIALS):
            leader = cluster.leader()
            followers = cluster.followers()
            victim, other = followers[trial % 2], followers[1 - trial % 2]
            writers = [load.our_writer(node, content) for node in (leader, other)]
            _trial(victim, writers, victim.is_ready, waits)
    return waits


def _theirs(run: Run) -> Waits:
    run.say("stalls: followers of etcd are frozen and killed")
    content = os.urandom(200)
    waits: Waits = ([], [], [])
    with etcd.cluster(run.directory / "stalls-etcd") as cluster:
        for trial in range(TRIALS):
            leader = cluster.leader()
            followers = cluster.followers()
            victim, other = followers[trial % 2], followers[1 - trial % 2]
            writers = [load.etcd_writer(server, content) for server in (leader, other)]
            _trial(victim, writers, victim.is_up, waits)
    return waits


def _trial(
    victim: Process, writers: Sequence[Callable[[int], object]], is_back: Callable[[], bool], waits: Waits
) -> None:
    quiet, frozen, killed = waits
    with load.watched(writers) as found:
        time.sleep(SETTLE_S)
        quiet.append(_longest_ms(found, lambda: time.sleep(FROZEN_S + AFTER_S)))

        def freeze() -> None:
            victim.signal(signal.SIGSTOP)
            try:
                time.sleep(FROZEN_S)
            finally:
                victim.signal(signal.SIGCONT)
            time.sleep(AFTER_S)

        def kill() -> None:
            victim.kill()
            time.sleep(FROZEN_S + AFTER_S)

        frozen.append(_longest_ms(found, freeze))
        time.sleep(SETTLE_S)
        killed.append(_longest_ms(found, kill))
    if found.errors:
        raise Broken(f"a write failed while only one of three was away: {found.errors[0]}")
    victim.start()
    until(is_back, timeout_s=60.0, what="the killed follower coming back")
    time.sleep(SETTLE_S)


def _longest_ms(found: load.Watched, fault: Callable[[], None]) -> float:
    begin = time.monotonic()
    fault()
    end = time.monotonic()
    return max(found.waits_s(begin, end)) * 1e3
