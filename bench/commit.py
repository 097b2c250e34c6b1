"""Writes and reads through consensus, beside etcd's in alternating bursts: one caller, 64 outstanding, reads."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench import etcd, load, nodes
from bench.rows import Burst, Row, median, of_pairs
from bench.run import Run

BURST_S = 3.0
READ_BURST_S = 1.0
OUTSTANDING = 64
SMALL, LARGE = 200, 4096
PARALLEL_BAR = {SMALL: 1.5, LARGE: 1.0}
LOCAL_READ_BAR_MS = 0.3


@dataclass(frozen=True, slots=True)
class Series:
    """The bursts of one kind, one a round: of us, and of the peer in the same seconds."""

    ours: list[Burst] = field(default_factory=list)
    peers: list[Burst] = field(default_factory=list)

    def p50_ms(self) -> tuple[float, float, float]:
        """Ours, the peer's, and how many times faster we are."""
        ours, peers = [burst.p50_ms for burst in self.ours], [burst.p50_ms for burst in self.peers]
        return median(ours), median(peers), of_pairs(peers, ours)

    def rate(self) -> tuple[float, float, float]:
        ours, peers = [burst.rate for burst in self.ours], [burst.rate for burst in self.peers]
        return median(ours), median(peers), of_pairs(ours, peers)


Kind = tuple[Callable[[nodes.Node], Burst], Callable[[etcd.Server], Burst]]


def rows(run: Run) -> Iterator[Row]:
    run.say("commit: three nodes of ours, three of etcd")
    with (
        nodes.cluster(run.directory / "commit", module=nodes.HOSTED) as cluster,
        etcd.cluster(run.directory / "commit-etcd") as peer,
    ):
        cluster.leader().store.WriteEntry(nodes.directory_request("bench"), timeout=10.0)
        series = {name: Series() for name in _kinds()}
        for number in range(run.rounds):
            for name, (ours, theirs) in _kinds().items():
                pair = series[name]
                # Who comes first changes by turns, so that what the first leaves behind meets both alike.
                if number % 2:
                    pair.peers.append(theirs(peer.leader()))
                    pair.ours.append(ours(cluster.leader()))
                else:
                    pair.ours.append(ours(cluster.leader()))
                    pair.peers.append(theirs(peer.leader()))
            one = series["one"]
            run.say(
                f"commit: round {number + 1} of {run.rounds}: one caller {one.ours[-1].p50_ms:.2f} ms, "
                f"etcd {one.peers[-1].p50_ms:.2f} ms"
            )
    yield _one(series["one"])
    for size in (SMALL, LARGE):
        yield from _parallel(series, size)
    yield from _reads(series)


def _kinds() -> dict[str, Kind]:
    small, large = os.urandom(SMALL), os.urandom(LARGE)
    found: dict[str, Kind] = {
        "one": (
            lambda node: load.our_writes(node, small, BURST_S),
            lambda server: load.etcd_writes(server, small, BURST_S),
        ),
        "linearizable": (
            lambda node: load.our_reads(node, READ_BURST_S, linearizable=True),
            lambda server: load.etcd_reads(server, READ_BURST_S, linearizable=True),
        ),
        "local": (
            lambda node: load.our_reads(node, READ_BURST_S, linearizable=False),
            lambda server: load.etcd_reads(server, READ_BURST_S, linearizable=False),
        ),
    }
    for size, content in ((SMALL, small), (LARGE, large)):

        def inside(node: nodes.Node, size: int = size) -> Burst:
            return load.our_many_inside(node, size, OUTSTANDING, BURST_S)

        def through(node: nodes.Node, content: bytes = content) -> Burst:
            return load.our_many(node, content, OUTSTANDING, BURST_S)

        def theirs(server: etcd.Server, content: bytes = content) -> Burst:
            return load.etcd_many(server, content, OUTSTANDING, BURST_S)

        found[f"inside {size}"] = (inside, theirs)
        found[f"api {size}"] = (through, theirs)
    return found


def _one(series: Series) -> Row:
    ours, peer, ratio = series.p50_ms()
    our_p99, peer_p99 = median([b.p99_ms for b in series.ours]), median([b.p99_ms for b in series.peers])
    return Row(
        group="commit",
        name="commit, one client, 200 B, API: p50 (p99)",
        ours=f"{ours:.2f} ({our_p99:.1f}) ms",
        peer=f"etcd {peer:.2f} ({peer_p99:.1f}) ms",
        ratio=ratio,
        bar=">= 1.0x etcd",
        is_met=ratio >= 1.0,
        figures={
            "ours_p50_ms": ours,
            "peer_p50_ms": peer,
            "ours_p99_ms": our_p99,
            "peer_p99_ms": peer_p99,
            "ours_per_s": median([b.rate for b in series.ours]),
            "peer_per_s": median([b.rate for b in series.peers]),
        },
    )


def _parallel(series: dict[str, Series], size: int) -> Iterator[Row]:
    label = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
    for kind, what in (("inside", "inside the leader's process"), ("api", "API")):
        found = series[f"{kind} {size}"]
        ours, peer, ratio = found.rate()
        bar = PARALLEL_BAR[size]
        yield Row(
            group="commit",
            name=f"{OUTSTANDING} outstanding, {label}, {what}",
            ours=f"{ours:,.0f}/s",
            peer=f"etcd {peer:,.0f}/s",
            ratio=ratio,
            bar=f">= {bar:.1f}x etcd" if kind == "inside" else "(beside it)",
            is_met=ratio >= bar if kind == "inside" else None,
            figures={
                "ours_per_s": ours,
                "peer_per_s": peer,
                "ours_p50_ms": median([b.p50_ms for b in found.ours]),
                "peer_p50_ms": median([b.p50_ms for b in found.peers]),
                "ours_p99_ms": median([b.p99_ms for b in found.ours]),
                "peer_p99_ms": median([b.p99_ms for b in found.peers]),
            },
        )


def _reads(series: dict[str, Series]) -> Iterator[Row]:
    commit = series["one"].p50_ms()[0]
    ours, peer, ratio = series["linearizable"].p50_ms()
    yield Row(
        group="commit",
        name="linearizable read, API: p50",
        ours=f"{ours:.2f} ms",
        peer=f"etcd {peer:.2f} ms",
        ratio=ratio,
        bar=f"<= 1 commit ({commit:.2f} ms)",
        is_met=ours <= commit,
        figures={"ours_p50_ms": ours, "peer_p50_ms": peer, "commit_p50_ms": commit},
    )
    ours, peer, ratio = series["local"].p50_ms()
    yield Row(
        group="commit",
        name="local read, API: p50",
        ours=f"{ours:.2f} ms",
        peer=f"etcd {peer:.2f} ms",
        ratio=ratio,
        bar=f"<= {LOCAL_READ_BAR_MS} ms",
        is_met=ours <= LOCAL_READ_BAR_MS,
        figures={"ours_p50_ms": ours, "peer_p50_ms": peer},
    )
