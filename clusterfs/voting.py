"""Which step brings consensus nearer to what the state says of its members: pure; the leader's chores take it (`tending`).

The state says who is a member; consensus follows it. Members begin as learners. Three to seven of them vote, by an odd number
where there are enough of them: a fourth voter would make writes slower and tolerate no more failures than three. A
witness votes before others, for that is all it is there for; then the lower number.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from clusterfs.membership import Member

MIN_VOTERS = 3
MAX_VOTERS = 7


@dataclass(frozen=True, slots=True)
class Learn:
    """A member of the state that consensus does not know, or knows at another address."""

    uid: str


@dataclass(frozen=True, slots=True)
class Move:
    uid: str


@dataclass(frozen=True, slots=True)
class Promote:
    uid: str


@dataclass(frozen=True, slots=True)
class Forget:
    """One that consensus still has and the state has no more."""

    uid: str


Step = Learn | Move | Promote | Forget


def next_step(
    members: Mapping[str, Member], addresses: Mapping[str, str], voters: Collection[str], ready: Collection[str]
) -> Step | None:
    """`addresses`: hosts of all whom consensus has; `ready`: learners that have the log."""
    if not members:
        return None
    ordered = sorted(members.values(), key=lambda member: (not member.witness, member.number))
    for member in ordered:
        if member.uid not in addresses:
            return Learn(member.uid)
        if addresses[member.uid] != member.address:
            return Move(member.uid)
    able = [member.uid for member in ordered if member.uid in ready and member.uid not in voters]
    # Of those who stay: whoever is to be forgotten may be kept by the quorum until another one has its vote.
    count = sum(uid in members for uid in voters)
    is_short = count < MIN_VOTERS or count % 2 == 0 or (len(able) > 1 and count + 2 <= MAX_VOTERS)
    if able and is_short and len(voters) < MAX_VOTERS:
        return Promote(able[0])
    for uid in sorted(addresses.keys() - members.keys()):
        if uid not in voters or len(voters) > 1:
            return Forget(uid)
    return None
