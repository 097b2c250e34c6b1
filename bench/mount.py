"""The mount as programs meet it: single operations timed from C, beside tmpfs in the same rounds and pmxcfs' published figures.

pmxcfs is not run here; its figures are those of 9.1.6 on three nodes of such a machine, whose writes are not durable.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import nodes
from bench.rows import Row, median, of_pairs, quantile
from bench.run import Broken, Run

SOURCE = Path(__file__).parent / "mountloop.c"
TMPFS = Path("/dev/shm")  # noqa: S108 - a tmpfs is what is wanted
NAME = "bench-mount"
READS, WRITES, BIGS, LOOKS = 2000, 60, 8, 100
# Enough a round that segments of the log, which are laid out ahead in one piece, count with their share.
CHUNKED = 10
CHUNKED_BYTES = 500_000
DEADLINE_S = 120.0

READ_BAR, REPLACE_BAR_MS, CREATE_BAR_MS, BIG_BAR_MS, CHUNKED_BAR = 3.0, 4.0, 2.5, 25.0, 5.0
FIRST_LOOK_BAR, LAG_BAR_MS = 0.95, 20.0


@dataclass(frozen=True, slots=True)
class Loop:
    """The compiled program."""

    program: Path

    def run(self, operation: str, directory: Path, count: int, *more: Path) -> list[list[float]]:
        """The numbers of each operation's line."""
        command = [str(self.program), operation, str(directory), str(count), *map(str, more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        if done.returncode:
            raise Broken(f"{operation} in {directory}: {done.stderr.strip()}")
        return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]

    def p50_us(self, operation: str, directory: Path, count: int) -> float:
        return quantile([numbers[0] for numbers in self.run(operation, directory, count)], 0.5)


@dataclass(slots=True)
class Seen:
    """Median microseconds by round; of writes, on the leader's node and on a follower's."""

    reads: list[float] = field(default_factory=list)
    tmpfs_reads: list[float] = field(default_factory=list)
    writes: dict[str, list[list[float]]] = field(
        default_factory=lambda: {operation: [[], []] for operation in ("replace", "create", "big")}
    )
    lags_us: list[float] = field(default_factory=list)
    # Bytes that went to disk for each byte of the file, on the node with the most.
    chunked: list[float] = field(default_factory=list)
    chunked_ms: list[float] = field(default_factory=list)


def rows(run: Run) -> Iterator[Row]:
    seen = Seen()
    with compiled(run.directory) as loop, nodes.cluster(run.directory / "mount") as cluster:
        leader, follower = cluster.leader(), cluster.followers()[0]
        places = [node.mount / NAME for node in (leader, follower)]
        places[0].mkdir()
        for number in range(run.rounds):
            _round(loop, cluster, places, seen)
            run.say(f"mount: round {number + 1} of {run.rounds}: read {seen.reads[-1]:.1f} us")
    yield _read(seen)
    yield _write(seen, "replace", "tmp+rename 200 B", REPLACE_BAR_MS, "4.0")
    yield _write(seen, "create", "create+write+close 200 B", CREATE_BAR_MS, "2.5")
    yield _write(seen, "big", "512 KiB file", BIG_BAR_MS, "84")
    yield _chunked(seen)
    yield _visible(seen)


@contextmanager
def compiled(directory: Path) -> Iterator[Loop]:
    with TemporaryDirectory(dir=directory) as place:
        program = Path(place) / "mountloop"
        subprocess.run(["gcc", "-O2", "-o", str(program), str(SOURCE)], check=True, timeout=DEADLINE_S)
        yield Loop(program)


def _round(loop: Loop, cluster: nodes.Cluster, places: list[Path], seen: Seen) -> None:
    with TemporaryDirectory(dir=TMPFS, prefix="kvorum-bench-") as tmpfs:
        # Both halves see the machine's mood.
        for _ in range(2):
            seen.tmpfs_reads.append(loop.p50_us("read", Path(tmpfs), READS))
            seen.reads.append(loop.p50_us("read", places[1], READS))
    for operation, found in seen.writes.items():
        count = BIGS if operation == "big" else WRITES
        for place, values in zip(places, found, strict=True):
            values.append(loop.p50_us(operation, place, count))
    for here, there in (places, reversed(places)):
        seen.lags_us += [lag for _took, lag in loop.run("visible", here, LOOKS, there)]
    before = [nodes.written_bytes(node.pid) for node in cluster.nodes]
    took = loop.run("chunks", places[0], CHUNKED)
    after = [nodes.written_bytes(node.pid) for node in cluster.nodes]
    most = max(end - begin for begin, end in zip(before, after, strict=True))
    seen.chunked.append(most / CHUNKED / CHUNKED_BYTES)
    seen.chunked_ms.append(median([numbers[0] for numbers in took]) / 1e3)


def _read(seen: Seen) -> Row:
    times = of_pairs(seen.reads, seen.tmpfs_reads)
    return Row(
        group="mount",
        name="mount: open+read+close 200 B, unchanged: p50",
        ours=f"{median(seen.reads):.1f} us, {times:.1f}x tmpfs",
        peer=f"tmpfs {median(seen.tmpfs_reads):.1f} us; pmxcfs 16x to 20x",
        ratio=1 / times,
        bar=f"<= {READ_BAR:g}x tmpfs",
        is_met=times <= READ_BAR,
        figures={"ours_us": median(seen.reads), "tmpfs_us": median(seen.tmpfs_reads), "times_tmpfs": times},
    )


def _write(seen: Seen, operation: str, name: str, bar_ms: float, pmxcfs: str) -> Row:
    leader, follower = (median(values) / 1e3 for values in seen.writes[operation])
    return Row(
        group="mount",
        name=f"mount: {name}: p50, leader's / follower's",
        ours=f"{leader:.1f} / {follower:.1f} ms",
        peer=f"pmxcfs {pmxcfs} ms (published)",
        ratio=float(pmxcfs) / max(leader, follower),
        bar=f"<= {bar_ms:g} ms",
        is_met=max(leader, follower) <= bar_ms,
        figures={"leader_ms": leader, "follower_ms": follower},
    )


def _chunked(seen: Seen) -> Row:
    factor = sum(seen.chunked) / len(seen.chunked)
    return Row(
        group="mount",
        name="mount: 500 KB in writes of 512 B: to disk, worst node",
        ours=f"{factor:.1f}x ({median(seen.chunked_ms):.0f} ms)",
        peer="pmxcfs 1,300x (published)",
        ratio=1300 / factor if factor else None,
        bar=f"<= {CHUNKED_BAR:g}x",
        is_met=factor <= CHUNKED_BAR,
        figures={"times_size": factor, "ours_ms": median(seen.chunked_ms)},
    )


def _visible(seen: Seen) -> Row:
    first = sum(lag == 0 for lag in seen.lags_us) / len(seen.lags_us)
    worst_ms = max(seen.lags_us) / 1e3
    return Row(
        group="mount",
        name="mount: seen on another node at the first look / else within",
        ours=f"{first:.1%} / {worst_ms:.1f} ms (of {len(seen.lags_us)})",
        peer="pmxcfs 96 to 100 % / 83 ms (published)",
        bar=f">= {FIRST_LOOK_BAR:.0%} / <= {LAG_BAR_MS:g} ms",
        is_met=first >= FIRST_LOOK_BAR and worst_ms <= LAG_BAR_MS,
        figures={"first_look": first, "worst_lag_ms": worst_ms, "looks": len(seen.lags_us)},
    )
