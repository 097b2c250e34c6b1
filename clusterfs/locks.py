"""Locks over the API: who holds them, who waits, in which order, under which token. Pure.

A lock that is held *is* the directory `priv/lock/<name>`, so that holders over the API and those by `mkdir` exclude each other:
nothing is granted while that directory is there, and whenever it goes (release, rmdir, a broken lock, the end of a session) the
first who waits has it again in the same step. The token is the log index of the grant; it only grows, so that a write with an
older one is known to be late.

Whoever holds or waits has a session, which he renews. How old a session is, is not in here: each replica measures that since it
applied the last renewal, on its own boot-time clock (`clusterfs.machine`), and the leader proposes its end, guarded by the
renewal that it saw. No wall clock is involved.
"""

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from clusterfs import rules
from clusterfs.commands import Envelope, LockAcquire, LockBreak, LockRelease, SessionEnd, SessionExpire, SessionRenew
from clusterfs.outcomes import Code, Deleted, Done, Event, Refusal, Result, Written, done
from clusterfs.settings import Settings, over_limit
from clusterfs.tree import Directory, Parts, join, lookup, put, remove, weight

MIN_TTL_S = 5
MAX_TTL_S = 3600
# Of all locks together: a client that asks without end must not fill the memory of every node.
MAX_CLAIMS = 4096
MAX_TEXT = 255


class Claim(msgspec.Struct, frozen=True):
    """Somebody who holds a lock (`token` is not 0) or waits for it."""

    session: str
    author: str
    source: str
    node: str
    reason: str
    # Since when it waits or, with a token, holds; Unix time, ms.
    since_ms: int
    token: int = 0


class Lock(msgspec.Struct, frozen=True):
    """`holder` None: the lock is held by whoever made its directory."""

    holder: Claim | None = None
    waiters: tuple[Claim, ...] = ()


class Session(msgspec.Struct, frozen=True):
    """`renewed`: log index of the last renewal, which names it for ever."""

    ttl_s: int
    renewed: int


class Locks(msgspec.Struct, frozen=True):
    """Only locks that somebody holds or waits for over the API, and only sessions that have a claim."""

    held: Mapping[str, Lock] = msgspec.field(default_factory=dict)
    sessions: Mapping[str, Session] = msgspec.field(default_factory=dict)

    @property
    def claims(self) -> int:
        return sum((lock.holder is not None) + len(lock.waiters) for lock in self.held.values())


class Context(msgspec.Struct, frozen=True):
    """When and by whom; `settings` bound the tree that a lock's directory goes into."""

    index: int
    clock_ms: int
    envelope: Envelope
    settings: Settings


class Step(msgspec.Struct, frozen=True):
    locks: Locks
    root: Directory
    result: Result
    events: tuple[Event, ...] = ()


LockOp = LockAcquire | LockRelease | LockBreak | SessionRenew | SessionEnd | SessionExpire


def perform(locks: Locks, root: Directory, op: LockOp, context: Context) -> Step:
    match op:
        case LockAcquire():
            return _acquire(locks, root, op, context)
        case LockRelease():
            return _release(locks, root, op, context)
        case LockBreak():
            return _break(locks, root, op, context)
        case SessionRenew(session=name):
            session = locks.sessions.get(name)
            if session is None:
                return Step(locks, root, _no_session(name))
            renewed = Session(session.ttl_s, context.index)
            return Step(replace(locks, sessions={**locks.sessions, name: renewed}), root, Done(context.index))
        case SessionEnd(session=name) | SessionExpire(session=name):
            session = locks.sessions.get(name)
            if session is None:
                return Step(locks, root, _no_session(name))
            if isinstance(op, SessionExpire) and session.renewed != op.renewed:
                return Step(locks, root, Refusal(Code.stale, "the session has been renewed"))
            return _end(locks, root, name, context)


def settle(locks: Locks, root: Directory, names: Iterable[str], context: Context) -> Step:
    """After the directories of `names` may have gone: each goes to the first who waits for it."""
    events: tuple[Event, ...] = ()
    for name in names:
        if name in locks.held and lookup(root, _place(name)) is None:
            step = _pass_on(locks, root, name, context)
            locks, root, events = step.locks, step.root, events + step.events
    return Step(locks, root, Done(context.index), events)


def gone(events: Iterable[Event]) -> tuple[str, ...]:
    """Names of locks whose directories the events have removed."""
    prefix = f"{join(rules.LOCKS)}/"
    paths = [event.path for event in events if isinstance(event, Deleted) and event.path.startswith(prefix)]
    return tuple(name for path in paths if "/" not in (name := path[len(prefix) :]))


def held_over_api(locks: Locks, parts: Parts) -> bool:
    return len(parts) == 3 and parts[:2] == rules.LOCKS and parts[2] in locks.held and _holds(locks, parts[2])


def fenced(locks: Locks, name: str, token: int) -> Refusal | None:
    """Why a command under this token comes too late."""
    lock = locks.held.get(name)
    if lock is not None and lock.holder is not None and lock.holder.token == token:
        return None
    return Refusal(Code.fenced, f"the lock {name} is not held under token {token} any more", join(rules.LOCKS))


def _acquire(locks: Locks, root: Directory, op: LockAcquire, context: Context) -> Step:
    refusal = _unfit(op)
    if refusal is not None:
        return Step(locks, root, refusal)
    parts = _place(op.name)
    there = lookup(root, parts)
    if there is not None and not isinstance(there, Directory):
        return Step(locks, root, Refusal(Code.exists, "a file is there", join(parts)))
    lock = locks.held.get(op.name, Lock())
    renewed = replace(locks, sessions={**locks.sessions, op.session: Session(op.ttl_s, context.index)})
    if lock.holder is not None and lock.holder.session == op.session:
        return Step(renewed, root, Done(context.index, join(parts), is_directory=True, number=lock.holder.token))
    if any(claim.session == op.session for claim in lock.waiters):
        return Step(renewed, root, Done(context.index, join(parts)))
    if locks.claims >= MAX_CLAIMS:
        return Step(locks, root, Refusal(Code.too_many_entries, f"{MAX_CLAIMS} wait for locks already"))
    claim = _claim(op, context)
    if there is None:
        step = _granted(renewed, root, op.name, claim, context)
        return step if isinstance(step.result, Done) else replace(step, locks=locks)
    if not op.wait:
        who = lock.holder.author if lock.holder is not None else "whoever made its directory"
        return Step(locks, root, Refusal(Code.locked, f"held by {who}", join(parts)))
    waiting = Lock(lock.holder, (*lock.waiters, claim))
    return Step(replace(renewed, held={**locks.held, op.name: waiting}), root, Done(context.index, join(parts)))


def _granted(locks: Locks, root: Directory, name: str, claim: Claim, context: Context) -> Step:
    """A lock that nobody has, for the one who asks."""
    made = root
    events: tuple[Event, ...] = ()
    for length in range(1, len(rules.LOCKS) + 1):
        above = rules.LOCKS[:length]
        there = lookup(made, above)
        if there is not None and not isinstance(there, Directory):
            return Step(locks, root, Refusal(Code.not_directory, f"{join(above)} is a file", join(_place(name))))
        if there is None:
            node = _directory(context, "")
            made, events = put(made, above, node), (*events, Written(join(above), node))
    node = _directory(context, claim.node)
    path = join(_place(name))
    made = put(made, _place(name), node)
    over = over_limit(root, made, context.settings)
    if over is not None:
        return Step(locks, root, over)
    held = msgspec.structs.replace(claim, token=context.index)
    locks = replace(locks, held={**locks.held, name: Lock(held)})
    return Step(locks, made, done(context.index, path, node, number=context.index), (*events, Written(path, node)))


def _release(locks: Locks, root: Directory, op: LockRelease, context: Context) -> Step:
    lock = locks.held.get(op.name, Lock())
    if lock.holder is not None and lock.holder.session == op.session:
        return _vacated(locks, root, op.name, context)
    left = tuple(claim for claim in lock.waiters if claim.session != op.session)
    if len(left) == len(lock.waiters):
        return Step(locks, root, Refusal(Code.not_found, f"this session neither holds nor awaits the lock {op.name}"))
    return Step(_with(locks, op.name, Lock(lock.holder, left)), root, Done(context.index))


def _break(locks: Locks, root: Directory, op: LockBreak, context: Context) -> Step:
    refusal = _bad_name(op.name)
    if refusal is not None:
        return Step(locks, root, refusal)
    parts = _place(op.name)
    there = lookup(root, parts)
    if there is None or not rules.is_lock(parts, there):
        return Step(locks, root, Refusal(Code.not_found, f"nobody holds the lock {op.name}", join(parts)))
    return _vacated(locks, root, op.name, context)


def _end(locks: Locks, root: Directory, session: str, context: Context) -> Step:
    """Everything that the session has; locks in the order of their names, so that all replicas grant alike.

    In one go: a session may have thousands of claims, and the whole cluster waits while it ends."""
    events: list[Event] = []
    held = dict(locks.held)
    granted: dict[str, Directory | None] = {}
    for name in sorted(held):
        lock = held[name]
        # It waits nowhere any more, lest it be granted one of its own.
        left = tuple(claim for claim in lock.waiters if claim.session != session)
        if lock.holder is not None and lock.holder.session == session:
            after, node = _next(Lock(None, left), context)
            granted[name] = node
            events += _handed_on(root, name, node)
        elif len(left) != len(lock.waiters):
            after = Lock(lock.holder, left)
        else:
            continue
        held[name] = after
    return Step(_pruned(held, locks.sessions), _with_directories(root, granted), Done(context.index), tuple(events))


def _vacated(locks: Locks, root: Directory, name: str, context: Context) -> Step:
    """The directory goes, and to the next at once."""
    parts = _place(name)
    events: tuple[Event, ...] = ()
    if lookup(root, parts) is not None:
        root, events = remove(root, parts), (Deleted(join(parts)),)
    step = _pass_on(locks, root, name, context)
    return replace(step, events=events + step.events)


def _pass_on(locks: Locks, root: Directory, name: str, context: Context) -> Step:
    """The lock has no directory any more."""
    lock, node = _next(locks.held.get(name, Lock()), context)
    locks = _with(locks, name, lock)
    if node is None:
        return Step(locks, root, Done(context.index))
    parts = _place(name)
    return Step(locks, put(root, parts, node), Done(context.index), (Written(join(parts), node),))


def _next(lock: Lock, context: Context) -> tuple[Lock, Directory | None]:
    """A lock whose holder is gone, and the directory of the one who has it now."""
    if not lock.waiters:
        return Lock(), None
    first = msgspec.structs.replace(lock.waiters[0], token=context.index, since_ms=context.clock_ms)
    return Lock(first, lock.waiters[1:]), _directory(context, first.node)


def _handed_on(root: Directory, name: str, node: Directory | None) -> list[Event]:
    """What is seen of a lock that goes to the next one, or to nobody."""
    path = join(_place(name))
    events: list[Event] = [Deleted(path)] if lookup(root, _place(name)) is not None else []
    return [*events, Written(path, node)] if node is not None else events


def _with_directories(root: Directory, nodes: Mapping[str, Directory | None]) -> Directory:
    """The tree with these directories of locks, or without them; those of the other locks as they are."""
    before = lookup(root, rules.LOCKS)
    if not nodes or not isinstance(before, Directory):
        return root
    entries = {name: node for name, node in before.entries.items() if nodes.get(name, node) is not None}
    entries.update({name: node for name, node in nodes.items() if node is not None})
    weights = [weight(node) for node in entries.values()]
    after = msgspec.structs.replace(
        before,
        entries=entries,
        count=sum(count for count, _size in weights),
        size=sum(size for _count, size in weights),
    )
    return put(root, rules.LOCKS, after)


def _with(locks: Locks, name: str, lock: Lock) -> Locks:
    return _pruned({**locks.held, name: lock}, locks.sessions)


def _pruned(held: Mapping[str, Lock], sessions: Mapping[str, Session]) -> Locks:
    """Without locks that nobody has or wants, and without sessions that have nothing left."""
    kept = {name: lock for name, lock in held.items() if lock.holder is not None or lock.waiters}
    used = {claim.session for one in kept.values() for claim in (*one.waiters, *([one.holder] if one.holder else []))}
    return Locks(kept, {name: session for name, session in sessions.items() if name in used})


def _claim(op: LockAcquire, context: Context) -> Claim:
    who = context.envelope
    texts = (who.author[:MAX_TEXT], who.source[:MAX_TEXT], who.node[:MAX_TEXT], who.reason[:MAX_TEXT])
    return Claim(op.session, *texts, since_ms=context.clock_ms)


def _directory(context: Context, owner: str) -> Directory:
    return Directory(
        version=context.index, placement=context.index, mtime=context.clock_ms // 1000, owner=owner[:MAX_TEXT]
    )


def _holds(locks: Locks, name: str) -> bool:
    return locks.held[name].holder is not None


def _unfit(op: LockAcquire) -> Refusal | None:
    if not op.session or len(op.session) > MAX_TEXT:
        return Refusal(Code.invalid, f"a session has a name of at most {MAX_TEXT} characters")
    if not MIN_TTL_S <= op.ttl_s <= MAX_TTL_S:
        return Refusal(Code.invalid, f"a session lives {MIN_TTL_S} to {MAX_TTL_S} s without a renewal")
    return _bad_name(op.name)


def _bad_name(name: str) -> Refusal | None:
    parts = rules.split(f"{join(rules.LOCKS)}/{name}")
    if isinstance(parts, Refusal):
        return parts
    return None if len(parts) == 3 else Refusal(Code.invalid, "the name of a lock has no slash in it", name)


def _no_session(name: str) -> Refusal:
    return Refusal(Code.not_found, f"the session {name} is over: it holds and awaits nothing")


def _place(name: str) -> Parts:
    return (*rules.LOCKS, name)
