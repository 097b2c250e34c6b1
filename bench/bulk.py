"""100,000 files of 640 bytes: what a snapshot of them costs the leader's writers, a new node's way to them, and their memory.

All nodes of the measurement write their snapshots to one disk at about the same time, which a real cluster does not.
"""

import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import load, nodes
from bench.rows import Row, quantile
from bench.run import Broken, Run
from kvorum.v1 import store_pb2

FILES, SIZE = 100_000, 640
STALL_BAR_MS, JOIN_BAR_S, JOIN_P99_BAR_MS, MEMORY_BAR_MB = 50.0, 8.0, 50.0, 250.0
WRITERS = 8
# Long enough for the leader to make a snapshot by itself.
SNAPSHOT_LOAD_S, TRIES = 15.0, 4
BEFORE_S = 5.0
SAMPLE = 200


def rows(run: Run) -> Iterator[Row]:
    with nodes.cluster(run.directory / "bulk", module=nodes.HOSTED) as cluster:
        leader = cluster.leader()
        run.say(f"bulk: writing {FILES:,} files of {SIZE} bytes")
        begin = time.monotonic()
        leader.load(outstanding=64, size=SIZE, files=FILES)
        run.say(f"bulk: {FILES / (time.monotonic() - begin):,.0f} files a second")
        yield _memory(cluster)
        yield _snapshot(run, cluster)
        yield _join(run, cluster)


def _memory(cluster: nodes.Cluster) -> Row:
    leader = cluster.leader()
    sizes = {node: nodes.resident_mb(node.pid) for node in cluster.nodes}
    return Row(
        group="bulk",
        name="resident memory with 64 MiB of state: leader / worst",
        ours=f"{sizes[leader]:.0f} / {max(sizes.values()):.0f} MB",
        bar=f"<= {MEMORY_BAR_MB:.0f} MB",
        is_met=max(sizes.values()) <= MEMORY_BAR_MB,
        figures={"leader_mb": sizes[leader], "worst_mb": max(sizes.values())},
    )


@dataclass(slots=True)
class Watch:
    """When a snapshot was being written by a node: its unfinished file is seen to come and go."""

    node: nodes.Node
    spans: list[tuple[float, float]] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        raft = self.node.directory / "state/clusterfs/raft"
        begin: float | None = None
        while not self._stopping.wait(0.005):
            is_there = (raft / "snapshot.new").exists()
            if is_there and begin is None:
                begin = time.perf_counter()
            elif not is_there and begin is not None:
                # The log is cut right after it.
                self.spans.append((begin - 0.1, time.perf_counter() + 0.3))
                begin = None


def _snapshot(run: Run, cluster: nodes.Cluster) -> Row:
    """With several writers inside the leader: the longest time without any acknowledgement."""
    leader = cluster.leader()
    during: list[float] = []
    outside: list[float] = []
    longest = 0.0
    spans: list[tuple[float, float]] = []
    for number in range(TRIES):
        run.say(f"bulk: writing until the leader makes a snapshot, {number + 1}")
        with Watch(leader) as watch:
            answer = leader.load(outstanding=WRITERS, size=200, seconds=SNAPSHOT_LOAD_S)
        spans += watch.spans
        ends = sorted(answer["ends_s"])
        for before, after in itertools.pairwise(ends):
            is_during = any(after >= begin and before <= end for begin, end in watch.spans)
            (during if is_during else outside).append(after - before)
        for took, end in zip(answer["latencies_s"], answer["ends_s"], strict=True):
            if any(end >= begin and end - took <= until for begin, until in watch.spans):
                longest = max(longest, took)
        if len(spans) >= 2:
            break
    if not during:
        raise Broken("the leader made no snapshot")
    stall_ms, quiet_ms = max(during) * 1e3, max(outside) * 1e3
    seconds = max(end - begin - 0.4 for begin, end in spans)
    return Row(
        group="bulk",
        name=f"leader's longest stall during a snapshot of 64 MiB ({len(spans)} seen, {seconds:.1f} s)",
        ours=f"{stall_ms:.0f} ms (outside: {quiet_ms:.0f}; longest write: {longest * 1e3:.0f})",
        bar=f"<= {STALL_BAR_MS:g} ms",
        is_met=stall_ms <= STALL_BAR_MS,
        figures={
            "stall_ms": stall_ms,
            "outside_ms": quiet_ms,
            "longest_write_ms": longest * 1e3,
            "p99_gap_during_ms": quantile(during, 0.99) * 1e3,
            "snapshot_s": seconds,
        },
    )


def _join(run: Run, cluster: nodes.Cluster) -> Row:
    run.say("bulk: a fresh node joins while two write")
    leader, other = cluster.leader(), cluster.followers()[0]
    content = os.urandom(200)
    leader.store.WriteEntry(nodes.directory_request("bench"), timeout=10.0)
    before_start = time.monotonic()
    fresh = cluster.new()
    start_s = time.monotonic() - before_start
    with load.watched([load.our_writer(node, content) for node in (leader, other)]) as found:
        quiet_begin = time.monotonic()
        time.sleep(BEFORE_S)
        begin = time.monotonic()
        cluster.join(fresh)
        end = time.monotonic()
        waits, quiet = found.waits_s(begin, end), found.waits_s(quiet_begin, begin)
    if found.errors:
        raise Broken(f"a write failed while a node joined: {found.errors[0]}")
    _check(fresh)
    took = end - begin
    p99_ms, quiet_p99_ms = quantile(waits, 0.99) * 1e3, quantile(quiet, 0.99) * 1e3
    return Row(
        group="bulk",
        name="fresh node, 100,000 files / 64 MiB: ready; writers' p99 meanwhile",
        ours=f"{took:.1f} s; {p99_ms:.0f} ms (before: {quiet_p99_ms:.0f})",
        peer="pmxcfs 13 s with 10,034 files (published)",
        bar=f"<= {JOIN_BAR_S:g} s; <= {JOIN_P99_BAR_MS:g} ms",
        is_met=took <= JOIN_BAR_S and p99_ms <= JOIN_P99_BAR_MS,
        figures={
            "ready_s": took,
            "daemon_start_s": start_s,
            "writers_p99_ms": p99_ms,
            "writers_p99_before_ms": quiet_p99_ms,
            "writers_worst_ms": max(waits) * 1e3,
            "joined_mb": nodes.resident_mb(fresh.pid),
        },
    )


def _check(node: nodes.Node) -> None:
    """A sample of the files is there, whole, on the node itself. Raises Broken."""
    for number in random.sample(range(FILES), SAMPLE):
        path = Path("fill") / str(number // 1000) / str(number)
        request = store_pb2.GetEntryRequest(path=str(path))
        if len(node.store.GetEntry(request, timeout=10.0).entry.content) != SIZE:
            raise Broken(f"LOST: {path} is not whole on {node.identity.name}")
