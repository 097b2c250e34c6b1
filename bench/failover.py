"""A leader is killed: how long until a write through another node is acknowledged, and is everything acknowledged still there.

The clock starts with SIGKILL. Our client makes one call and waits, as callers do; etcd's is asked again every quarter of a
second, since a call that it has passed on to a dead leader would wait for seconds.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import grpc

from bench import etcd, nodes
from bench.rows import Row, median
from bench.run import Broken, Run, until
from kvorum.v1 import store_pb2

TRIALS, ETCD_TRIALS = 20, 5
MEDIAN_BAR_S, WORST_BAR_S = 0.8, 2.0
GIVE_UP_S = 30.0
ETCD_TRY_S = 0.25
# Between two kills: time for the killed one to be a healthy member again.
SETTLE_S = 0.5


def rows(run: Run) -> Iterator[Row]:
    ours = _ours(run)
    theirs = _theirs(run)
    yield Row(
        group="failover",
        name=f"leader killed: next commit, median / worst of {len(ours)}",
        ours=f"{median(ours):.2f} / {max(ours):.2f} s",
        peer=f"etcd {median(theirs):.2f} / {max(theirs):.2f} s (of {len(theirs)})",
        ratio=median(theirs) / median(ours),
        bar=f"<= {MEDIAN_BAR_S} / {WORST_BAR_S} s",
        is_met=median(ours) <= MEDIAN_BAR_S and max(ours) <= WORST_BAR_S,
        figures={
            "ours_median_s": median(ours),
            "ours_worst_s": max(ours),
            "peer_median_s": median(theirs),
            "peer_worst_s": max(theirs),
        },
    )


def _ours(run: Run) -> list[float]:
    run.say(f"failover: killing our leader {TRIALS} times")
    took: list[float] = []
    with nodes.cluster(run.directory / "failover") as cluster:
        acknowledged = []
        for trial in range(TRIALS):
            leader = cluster.leader()
            through = cluster.followers()[trial % 2]
            path, content = f"failover-{trial}", b"%d" % trial
            through.write(f"before-{trial}", content)
            acknowledged.append((f"before-{trial}", content))
            leader.kill()
            took.append(_until_acknowledged(partial(through.write, path, content)))
            acknowledged.append((path, content))
            leader.start()
            until(leader.is_ready, timeout_s=60.0, what="the killed node getting ready again")
            time.sleep(SETTLE_S)
            if trial % 5 == 4:
                run.say(f"failover: {trial + 1} of {TRIALS}, median {median(took):.2f} s, worst {max(took):.2f} s")
        for node in cluster.nodes:
            check(node, acknowledged)
    return took


def check(node: nodes.Node, acknowledged: list[tuple[str, bytes]]) -> None:
    """Raises Broken when a write that was acknowledged is not there."""
    for path, content in acknowledged:
        request = store_pb2.GetEntryRequest(path=path, linearizable=True)
        found = node.store.GetEntry(request, timeout=10.0).entry.content
        if found != content:
            raise Broken(f"LOST: {path} was acknowledged and {node.identity.name} has {found!r}")


def _theirs(run: Run) -> list[float]:
    run.say(f"failover: killing etcd's leader {ETCD_TRIALS} times")
    took: list[float] = []
    with etcd.cluster(run.directory / "failover-etcd") as cluster:
        for trial in range(ETCD_TRIALS):
            leader = cluster.leader()
            through = cluster.followers()[trial % 2]
            request = etcd.put(b"failover", b"%d" % trial)
            through.put(request, timeout=10.0)
            leader.kill()
            took.append(_until_acknowledged(partial(through.put, request, timeout=ETCD_TRY_S)))
            leader.start()
            until(leader.is_up, timeout_s=60.0, what="etcd's killed server coming back")
            # As long as an etcd server may need to be a healthy follower, by its own election timeout.
            time.sleep(1.5)
    return took


def _until_acknowledged(write: Callable[[], object]) -> float:
    begin = time.monotonic()
    while True:
        with contextlib.suppress(grpc.RpcError):
            write()
            return time.monotonic() - begin
        if time.monotonic() - begin > GIVE_UP_S:
            raise Broken(f"no write was acknowledged within {GIVE_UP_S:g} s after the leader was killed")
        time.sleep(0.01)
