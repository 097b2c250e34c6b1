"""Members and leases of the replicated state: pure rules, one function a kind.

A member is a UUID; name, address and number are its attributes, and neither UUID nor number is used twice: who was removed
stays known, so that its certificate is worth nothing for ever. A lease says that a node may
run guests under HA: it is acquired under a new incarnation, renewed, and fenced for ever by whoever saw it grow too old. The
fence is guarded by what the fencer saw, so that a leader which slept cannot fence a node that has renewed meanwhile.
How old a lease is, is not in here: each replica measures that on its own boot-time clock (`clusterfs.machine`).
"""

from collections.abc import Mapping

import msgspec

from clusterfs.commands import (
    BARE_PAUSE_MS,
    BARE_TAKEOVER_MS,
    LeaseAcquire,
    LeaseFence,
    LeaseRenew,
    LeaseRest,
    MemberPut,
    MemberRename,
)
from clusterfs.outcomes import Code, Done, Refusal, Result
from kvorum.errors import InvalidInput
from kvorum.ids import parse_node_name, parse_node_uid

MAX_NUMBER = 65_535


class Member(msgspec.Struct, frozen=True):
    """A node of the cluster; `address` is an IP address, `number` is the id in `.members`."""

    uid: str
    name: str
    address: str
    number: int
    # Votes and keeps the log, mounts nothing and runs no guests.
    witness: bool = False


class Removed(msgspec.Struct, frozen=True):
    """Who was a member; `index` is that of the removal."""

    name: str
    number: int
    index: int


class Lease(msgspec.Struct, frozen=True):
    incarnation: int
    renewal: int = 0
    fenced: bool = False
    # Given back by its holder: never renewed again, and nothing runs under it.
    resting: bool = False
    # The terms of the holder's newest call, and when that was sent on the holder's clock.
    pause_ms: int = BARE_PAUSE_MS
    takeover_ms: int = BARE_TAKEOVER_MS
    sent_ms: int = 0


Leases = Mapping[str, Lease]
Members = Mapping[str, Member]
# Of so many is remembered that they were removed; whoever is no member is turned away in any case.
MAX_REMOVED = 1000
# No holder is waited for longer than this, whatever it says.
MAX_TAKEOVER_MS = 600_000


def put(members: Members, removed: Mapping[str, Removed], op: MemberPut, next_number: int) -> Member | Refusal:
    """The member as it will be: new under the next free number, or known with another address."""
    try:
        parse_node_uid(op.uid)
        parse_node_name(op.name)
    except InvalidInput as error:
        return Refusal(Code.invalid, error.message)
    if not op.address:
        return Refusal(Code.invalid, "a member has an address")
    if op.uid in removed:
        return Refusal(Code.exists, f"{op.uid} was removed as {removed[op.uid].name}: join it anew, under a new UUID")
    known = members.get(op.uid)
    if known is not None:
        if known.name != op.name or op.number not in (0, known.number):
            return Refusal(Code.exists, f"{op.uid} is a member already, as {known.name} with number {known.number}")
        return msgspec.structs.replace(known, address=op.address)
    for other in members.values():
        if other.name.lower() == op.name.lower():
            return Refusal(Code.exists, f"a node named {other.name} is in the cluster already")
    number = op.number or next_number
    if number < next_number:
        return Refusal(Code.exists, f"the node number {number} has been used")
    if number > MAX_NUMBER:
        return Refusal(Code.invalid, f"a node number is at most {MAX_NUMBER}")
    return Member(op.uid, op.name, op.address, number, op.witness)


def renamed(members: Members, op: MemberRename) -> Member | Refusal:
    member = members.get(op.uid)
    if member is None:
        return Refusal(Code.not_found, f"no member has the uid {op.uid}")
    try:
        parse_node_name(op.name)
    except InvalidInput as error:
        return Refusal(Code.invalid, error.message)
    for other in members.values():
        if other.uid != op.uid and other.name.lower() == op.name.lower():
            return Refusal(Code.exists, f"a node named {other.name} is in the cluster already")
    return msgspec.structs.replace(member, name=op.name)


def remembered(removed: Mapping[str, Removed], member: Member, index: int) -> Mapping[str, Removed]:
    """With one more, and without those that are too many."""
    after = {**removed, member.uid: Removed(member.name, member.number, index)}
    while len(after) > MAX_REMOVED:
        del after[min(after, key=lambda uid: (after[uid].index, uid))]
    return after


def lease(
    leases: Leases, members: Members, op: LeaseAcquire | LeaseRenew | LeaseRest | LeaseFence, index: int
) -> tuple[Leases, Result]:
    """The leases after the command and its result, which counts incarnations (acquire) or renewals (the others)."""
    held = leases.get(op.uid)
    match op:
        case LeaseAcquire():
            if op.uid not in members:
                return leases, Refusal(Code.not_found, f"no member has the uid {op.uid}")
            if refusal := _unfit(op):
                return leases, refusal
            # Never shorter than before: this may be a call that was given up, and another one, answered, allowed more.
            before = held if held is not None else Lease(0, pause_ms=0, takeover_ms=0)
            after = Lease(
                incarnation=before.incarnation + 1,
                pause_ms=max(op.pause_ms, before.pause_ms),
                takeover_ms=max(op.takeover_ms, before.takeover_ms),
            )
            number = after.incarnation
        case LeaseRenew():
            if held is None or held.fenced or held.resting or held.incarnation != op.incarnation:
                return leases, Refusal(Code.fenced, f"incarnation {op.incarnation} of this lease is over")
            if refusal := _unfit(op):
                return leases, refusal
            after = msgspec.structs.replace(held, renewal=held.renewal + 1)
            # A call that comes late says nothing about the terms of those that were sent after it.
            if op.sent_ms >= held.sent_ms:
                after = msgspec.structs.replace(
                    after, sent_ms=op.sent_ms, pause_ms=op.pause_ms, takeover_ms=op.takeover_ms
                )
            number = after.renewal
        case LeaseRest():
            if held is None or held.fenced or held.incarnation != op.incarnation:
                return leases, Refusal(Code.fenced, f"incarnation {op.incarnation} of this lease is over")
            after = msgspec.structs.replace(held, resting=True)
            number = after.renewal
        case LeaseFence():
            if held is None:
                return leases, Refusal(Code.not_found, f"{op.uid} holds no lease")
            went_on = held.renewal != op.renewal and not held.fenced and not op.confirmed
            if held.incarnation != op.incarnation or went_on:
                return leases, Refusal(Code.stale, f"the lease went on: {held.incarnation}/{held.renewal}")
            after = msgspec.structs.replace(held, fenced=True)
            number = after.renewal
    return {**leases, op.uid: after}, Done(index=index, number=number)


def _unfit(op: LeaseAcquire | LeaseRenew) -> Refusal | None:
    if 0 < op.pause_ms < op.takeover_ms <= MAX_TAKEOVER_MS:
        return None
    return Refusal(
        Code.invalid, f"no terms of a lease: pause after {op.pause_ms} ms, takeover after {op.takeover_ms} ms"
    )
