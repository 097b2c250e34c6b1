"""Holders that renew whenever they began to come into step, and stay so although their clocks and timers differ."""

import random

import pytest

from clusterfs.commands import Envelope, LeaseAcquire, LeaseRenew, Op, Write, encode, is_renewal, stamped
from clusterfs.machine import LeaseView
from clusterfs.meeting import next_in_s
from clusterfs.membership import Lease
from clusterfs.raft.company import WINDOW_S
from clusterfs.services.replica import _next_in_ms
from ha.keeper.core import next_after_s
from kvorum.v1.replica_pb2 import RenewLeaseRequest

COMMIT_S = 0.005


@pytest.mark.parametrize(
    ("own", "ages_s", "hint_s"),
    [
        ("a", {"a": 0.0}, 3.0),
        ("b", {"a": 1.0, "b": 0.0}, 2.0),
        ("b", {"a": 2.0, "b": 0.0}, 1.0),
        # Of one group, or so nearly that it is no matter.
        ("b", {"a": 0.0, "b": 0.0}, 3.0),
        ("b", {"a": 0.04, "b": 0.0}, 3.0),
        ("b", {"a": 0.0, "b": 0.04}, 3.0),
        # A little ahead of the first, which comes to it.
        ("b", {"a": 2.8, "b": 0.0}, 3.0),
        ("a", {"a": 0.0, "b": 0.2}, 2.8),
        ("a", {"a": 0.0, "b": 0.2, "c": 0.6}, 2.4),
        # Too far ahead: it will come to the first.
        ("a", {"a": 0.0, "b": 1.0}, 3.0),
        # One that has missed a round.
        ("b", {"a": 4.0, "b": 0.0}, 2.0),
    ],
)
def test_everybody_comes_to_the_first_by_name(own: str, ages_s: dict[str, float], hint_s: float) -> None:
    assert next_in_s(own, ages_s, 3.0) == pytest.approx(hint_s)


@pytest.mark.parametrize(
    ("uid", "interval_ms", "held", "hint_ms"),
    [
        ("b", 3000, [LeaseView("a", Lease(1, pause_ms=8000), 1.0), LeaseView("b", Lease(1, pause_ms=8000), 0.0)], 2000),
        # Whoever does not say its interval, or nonsense, takes no hint.
        ("b", 0, [LeaseView("a", Lease(1), 1.0), LeaseView("b", Lease(1), 0.0)], 0),
        ("b", 3_600_000, [LeaseView("a", Lease(1), 1.0), LeaseView("b", Lease(1), 0.0)], 0),
        # Whom nobody renews any more is not waited for.
        ("b", 3000, [LeaseView("a", Lease(1, fenced=True), 1.0), LeaseView("b", Lease(1), 0.0)], 3000),
        ("b", 3000, [LeaseView("a", Lease(1, resting=True), 1.0), LeaseView("b", Lease(1), 0.0)], 3000),
        ("b", 3000, [LeaseView("a", Lease(1, pause_ms=8000), 8.5), LeaseView("b", Lease(1), 0.0)], 3000),
        # Its own was fenced on the way.
        ("b", 3000, [LeaseView("a", Lease(1), 1.0), LeaseView("b", Lease(1, fenced=True), 0.0)], 0),
        ("b", 3000, [], 0),
    ],
)
def test_a_hint_is_told_from_the_leases_that_live(
    uid: str, interval_ms: int, held: list[LeaseView], hint_ms: int
) -> None:
    assert _next_in_ms(RenewLeaseRequest(uid=uid, interval_ms=interval_ms), held) == hint_ms


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    ("op", "is_one"),
    [
        (LeaseRenew("6b1f3cf0-4a1e-4a37-9d0e-5a9b0a4f7c11", 7, 123_456_789, 8000, 18018), True),
        (LeaseRenew("u", 1), True),
        (LeaseAcquire("u"), False),
        (Write("lease_renew", b"lease_renew"), False),
    ],
)
def test_renewals_are_known_by_their_entries(version: int, op: Op, is_one: bool) -> None:
    bare = encode(Envelope(op, version=version))
    full = encode(Envelope(op, author="root@pam", node="n", reason="lease_renew", seq=2**40, version=version))
    assert [is_renewal(entry) for entry in (bare, full, stamped(full, time_ms=2**41))] == [is_one] * 3


@pytest.mark.parametrize("entry", [b"", b"\x02", b"\x09" + b"x" * 40, encode(Envelope(LeaseRenew("u", 1)))[:-3]])
def test_what_is_no_command_is_no_renewal(entry: bytes) -> None:
    assert not is_renewal(entry)


class Cluster:
    """Holders whose renewals take a moment to a leader that waits for company, and apply everywhere at once."""

    def __init__(self, seed: int, holders: int, interval_s: float, drift: float) -> None:
        self.luck = random.Random(seed)
        self.interval_s = interval_s
        names = [f"n{number}" for number in range(holders)]
        self.due = {name: self.luck.uniform(0, interval_s) for name in names}
        self.rate = {name: 1 + self.luck.uniform(-drift, drift) for name in names}
        self.applied = dict.fromkeys(names, -100.0)
        self.groups = 0

    def one_group(self) -> float:
        """When it is applied."""
        arriving = {name: at + self.luck.uniform(0.002, 0.012) for name, at in self.due.items()}
        first = min(arriving.values())
        closes = first + WINDOW_S
        members = [name for name, at in arriving.items() if at <= closes]
        now = closes + COMMIT_S
        self.groups += 1
        for name in members:
            self.applied[name] = now
        for name in members:
            ages_s = {other: now - at for other, at in self.applied.items() if now - at < 2.6 * self.interval_s}
            hint_s = next_in_s(name, ages_s, self.interval_s)
            after_s = next_after_s(hint_s, self.interval_s)
            assert self.interval_s / 2 <= after_s <= self.interval_s
            self.due[name] += after_s * self.rate[name] + self.luck.uniform(0, 0.002)
        return now

    def groups_within(self, rounds: int) -> int:
        self.groups = 0
        end = max(self.due.values()) + rounds * self.interval_s
        while self.one_group() < end:
            pass
        return self.groups


@pytest.mark.parametrize("interval_s", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("holders", [2, 3, 5, 16])
def test_wherever_they_begin_they_meet_and_stay_together(holders: int, interval_s: float) -> None:
    for seed in range(40):
        cluster = Cluster(seed, holders, interval_s, drift=5e-5)
        for _ in range(6 * holders):
            cluster.one_group()
        # Now and then one has drifted too far away, and is back a round later.
        assert cluster.groups_within(200) <= 202 + holders, f"seed {seed}"


def test_one_that_was_late_is_back_in_step_in_two_rounds() -> None:
    cluster = Cluster(1, 3, 3.0, drift=0.0)
    for _ in range(30):
        cluster.one_group()
    for late_s in (0.3, 1.0, 1.5, 2.9):
        cluster.due["n1"] += late_s
        cluster.groups_within(3)
        assert cluster.groups_within(10) <= 11, late_s
