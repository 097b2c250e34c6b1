"""The whole replicated state and the one function that changes it: `apply(state, envelope, index)`.

Every replica computes the same state, result and events from the same log. So nothing here reads a clock, draws a random
number, logs or raises for what a caller did wrong: time comes with the envelope (stamped by the leader, and never allowed to
run backwards), and a refusal is a result. Duplicates of a command are answered from memory, not applied twice.
"""

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from clusterfs import changes, forgetting, locks, membership
from clusterfs.commands import (
    BASE_VERSION,
    Configure,
    Delete,
    Envelope,
    Forget,
    LeaseAcquire,
    LeaseFence,
    LeaseRenew,
    LeaseRest,
    LockAcquire,
    LockBreak,
    LockRelease,
    MemberPut,
    MemberRemove,
    MemberRename,
    Mkdir,
    Move,
    RaiseFormat,
    Restore,
    SessionEnd,
    SessionExpire,
    SessionRenew,
    Touch,
    Unlock,
    Write,
)
from clusterfs.history import History, recorded
from clusterfs.locks import Locks
from clusterfs.membership import Lease, Member, Removed
from clusterfs.outcomes import Code, Done, Event, Refusal, Result
from clusterfs.settings import DEFAULT, Settings, configured
from clusterfs.tree import EMPTY, Directory

# How many answers are remembered for each client, and for how many clients. A client is one run of a daemon, which bounds what it
# has under way to much less (`clusterfs.pending`).
REMEMBERED_RESULTS = 512
REMEMBERED_CLIENTS = 128


class ClientMemory(msgspec.Struct, frozen=True):
    """The latest answers to one client by sequence number; everything up to `floor` has been forgotten."""

    results: Mapping[int, Result]
    floor: int = 0
    last_index: int = 0


class State(msgspec.Struct, frozen=True):
    root: Directory = EMPTY
    members: Mapping[str, Member] = msgspec.field(default_factory=dict)
    # Who was a member once: never again under the same UUID.
    removed: Mapping[str, Removed] = msgspec.field(default_factory=dict)
    leases: Mapping[str, Lease] = msgspec.field(default_factory=dict)
    clients: Mapping[str, ClientMemory] = msgspec.field(default_factory=dict)
    # Unix time of the latest command, ms.
    clock_ms: int = 0
    next_number: int = 1
    # Log index at which the list of members last changed.
    members_version: int = 0
    settings: Settings = DEFAULT
    history: History = msgspec.field(default_factory=History)
    locks: Locks = msgspec.field(default_factory=Locks)
    # The highest version of an entry so far, which all members know: what is written is of this one.
    format: int = BASE_VERSION


Step = tuple[State, Result, tuple[Event, ...]]


def apply(state: State, envelope: Envelope, index: int) -> Step:
    """The state after the command at log index `index`, its result, and what watchers are told."""
    state = replace(state, clock_ms=max(state.clock_ms, envelope.time_ms), format=max(state.format, envelope.version))
    remembered = recall(state, envelope)
    if remembered is not None:
        return state, remembered, ()
    before, settings = state.root, state.settings
    state, result, events = _perform(state, envelope, index)
    timed = envelope if envelope.time_ms == state.clock_ms else replace(envelope, time_ms=state.clock_ms)
    kept = recorded(state.history, timed, index, before=before, events=events)
    if events or state.settings is not settings:
        kept = kept.trimmed(state.settings, state.clock_ms)
    return _remember(replace(state, history=kept), envelope, index, result), result, events


def check(state: State, envelope: Envelope) -> Refusal | None:
    """The refusal that the command would meet now. Another command may still come first: `apply` decides."""
    _state, result, _events = _perform(state, envelope, state.members_version)
    return result if isinstance(result, Refusal) else None


def recall(state: State, envelope: Envelope) -> Result | None:
    """The answer that a command with this name has had already."""
    memory = state.clients.get(envelope.client) if envelope.client else None
    if memory is None:
        return None
    if envelope.seq <= memory.floor:
        return Refusal(Code.forgotten, "this command is too old to tell whether it has been applied")
    return memory.results.get(envelope.seq)


def _perform(state: State, envelope: Envelope, index: int) -> Step:
    late = locks.fenced(state.locks, envelope.lock, envelope.token) if envelope.lock else None
    if late is not None:
        return state, late, ()
    op = envelope.op
    match op:
        case Write() | Mkdir() | Delete() | Move() | Touch() | Unlock():
            return _change_tree(state, op, envelope, index)
        case LockAcquire() | LockRelease() | LockBreak() | SessionRenew() | SessionEnd() | SessionExpire():
            step = locks.perform(state.locks, state.root, op, _lock_context(state, envelope, index))
            return replace(state, locks=step.locks, root=step.root), step.result, step.events
        case MemberPut():
            return _put_member(state, op, _context(state, envelope, index))
        case MemberRename():
            return _rename_member(state, op, index)
        case MemberRemove():
            return _remove_member(state, op, index)
        case LeaseAcquire() | LeaseRenew() | LeaseRest() | LeaseFence():
            leases, result = membership.lease(state.leases, state.members, op, index)
            return replace(state, leases=leases), result, ()
        case Configure():
            settings = configured(state.settings, op)
            if isinstance(settings, Refusal):
                return state, settings, ()
            return replace(state, settings=settings), Done(index), ()
        case Restore():
            return _restore(state, op, _context(state, envelope, index))
        case Forget():
            return _forget(state, op, envelope, index)
        case RaiseFormat():
            return state, Done(index, number=envelope.version), ()


def _restore(state: State, op: Restore, context: changes.Context) -> Step:
    wanted = forgetting.restored(state.history, state.root, op)
    if isinstance(wanted, Refusal):
        return state, wanted, ()
    change = changes.write_all(state.root, wanted, context)
    return replace(state, root=change.root), change.result, change.events


def _forget(state: State, op: Forget, envelope: Envelope, index: int) -> Step:
    mark = forgetting.mark(index, envelope.author)
    outcome = forgetting.without(state.history, state.root, op, mark)
    if isinstance(outcome, Refusal):
        return state, outcome, ()
    history, count = outcome
    return replace(state, history=history), Done(index, op.path, number=count), ()


def _change_tree(
    state: State, op: Write | Mkdir | Delete | Move | Touch | Unlock, envelope: Envelope, index: int
) -> Step:
    if isinstance(op, Unlock) and locks.held_over_api(state.locks, tuple(op.path.strip("/").split("/"))):
        refusal = Refusal(Code.access, "it is held over the API, until its session ends", op.path)
        return state, refusal, ()
    change = changes.perform(state.root, op, _context(state, envelope, index))
    left = locks.gone(change.events) if state.locks.held else ()
    if not left:
        return replace(state, root=change.root), change.result, change.events
    step = locks.settle(state.locks, change.root, left, _lock_context(state, envelope, index))
    return replace(state, locks=step.locks, root=step.root), change.result, change.events + step.events


def _lock_context(state: State, envelope: Envelope, index: int) -> locks.Context:
    return locks.Context(index, state.clock_ms, envelope, state.settings)


def _context(state: State, envelope: Envelope, index: int) -> changes.Context:
    return changes.Context(
        index=index,
        now_s=state.clock_ms // 1000,
        node=envelope.node,
        members=frozenset(member.name for member in state.members.values()),
        settings=state.settings,
        every_write_counts=envelope.version < 2,
    )


def _put_member(state: State, op: MemberPut, context: changes.Context) -> Step:
    # Entries of version 1 were written before anybody remembered who was removed.
    removed = {} if context.every_write_counts else state.removed
    outcome = membership.put(state.members, removed, op, state.next_number)
    if isinstance(outcome, Refusal):
        return state, outcome, ()
    if outcome.witness:
        change = changes.enter_witness(state.root, outcome.number, index=context.index)
    else:
        change = changes.make_node_directories(state.root, outcome.name, outcome.number, context)
    if isinstance(change.result, Refusal):
        return state, change.result, ()
    state = replace(
        state,
        root=change.root,
        members={**state.members, outcome.uid: outcome},
        next_number=max(state.next_number, outcome.number + 1),
        members_version=context.index,
    )
    return state, change.result, change.events


def _rename_member(state: State, op: MemberRename, index: int) -> Step:
    outcome = membership.renamed(state.members, op)
    if isinstance(outcome, Refusal):
        return state, outcome, ()
    before = state.members[op.uid].name
    change = changes.rename_node_directory(
        state.root, before, outcome.name, index=index, now_s=state.clock_ms // 1000, number=outcome.number
    )
    if isinstance(change.result, Refusal):
        return state, change.result, ()
    members = {**state.members, op.uid: outcome}
    state = replace(state, root=change.root, members=members, members_version=index)
    return state, change.result, change.events


def _remove_member(state: State, op: MemberRemove, index: int) -> Step:
    member = state.members.get(op.uid)
    if member is None:
        return state, Refusal(Code.not_found, f"no member has the uid {op.uid}"), ()
    change = changes.retire_node_directory(
        state.root, member.name, index=index, now_s=state.clock_ms // 1000, number=member.number
    )
    state = replace(
        state,
        root=change.root,
        members={uid: other for uid, other in state.members.items() if uid != op.uid},
        removed=membership.remembered(state.removed, member, index),
        leases={uid: lease for uid, lease in state.leases.items() if uid != op.uid},
        members_version=index,
    )
    return state, change.result, change.events


def _remember(state: State, envelope: Envelope, index: int, result: Result) -> State:
    """Keeps the answer. What is forgotten depends on numbers only, so that all replicas forget the same."""
    if not envelope.client:
        return state
    memory = state.clients.get(envelope.client, ClientMemory({}))
    results = {**memory.results, envelope.seq: result}
    floor = memory.floor
    while len(results) > REMEMBERED_RESULTS:
        # The next number is the lowest unless some were never used: of renewals, or of commands that got lost.
        floor = floor + 1 if floor + 1 in results else min(results)
        del results[floor]
    clients = {**state.clients, envelope.client: ClientMemory(results, floor, index)}
    while len(clients) > REMEMBERED_CLIENTS:
        del clients[min(clients, key=lambda client: (clients[client].last_index, client))]
    return replace(state, clients=clients)
