"""Whom to switch off now. Pure.

Not before the node's own profile has surely lost it its guests: a stall that is to be sat out costs no host. Not more
nodes at once than a majority can spare: if half of them fall silent, the fault is rather where we look from. Never
the own node.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ha.leases import Lease, Terms

# Of the way from A to T: after the kill in every profile (`tests`), long before the lease path.
SHARE = 0.45


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that holds guests of HA, and its lease as this manager knows it."""

    name: str
    uid: str
    lease: Lease


@dataclass(frozen=True, slots=True)
class Target:
    """`incarnation`: the life that is to be ended; the confirmation is for this one and no other."""

    name: str
    uid: str
    incarnation: int
    renewal: int


def switch_off_after_s(terms: Terms) -> float:
    return terms.pause_after_s + SHARE * (terms.takeover_after_s - terms.pause_after_s)


def targets(candidates: Mapping[str, Candidate], *, own: str, members: int) -> tuple[Target, ...]:
    silent = [
        one
        for name, one in sorted(candidates.items())
        if name != own
        and not one.lease.is_fenced
        and not one.lease.is_resting
        and not one.lease.is_excused
        and one.lease.age_s > switch_off_after_s(one.lease.terms)
    ]
    if len(silent) > (members - 1) // 2:
        return ()
    return tuple(Target(one.name, one.uid, one.lease.incarnation, one.lease.renewal) for one in silent)
