"""The local resource manager's decisions: `step(memory, view, now) -> (memory, actions, status)`. Pure.

It carries out the manager's orders for this node and answers each under its uid. It starts nothing unless the order is of
the lease that the node holds now, the keeper guards the guest, the config file lies here, and the first write of this
life of the daemon is in the store: that write shuts out whatever an earlier life may still have under way. Having said
that an order failed or is done, it never acts on that order again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from kvorum.errors import Fenced
from kvorum.ids import NodeName, Sid

from .lease_state import KILLED, LIVE, PAUSED, LeaseState, may_start
from .options import Options, ShutdownPolicy
from .resources import Request, Resource
from .rules import Orders
from .status import CAME_BACK, LETTING_GO, LrmStatus, ManagerStatus, Mode, NodeState, Result, Service, State

# A guest that ran this long has started well; what ends it later counts as a new failure, not as one more.
PROVEN_S = 30.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
# For a migration to end its own source; then what is left of the guest is killed here.
RELEASE_GRACE_S = 10.0
DEFAULT_STOP_S = 60
# A node that goes down gives the manager so long to take up what becomes of its guests, then ends them by itself.
FREEZE_GRACE_S = 10.0
FAILOVER_GRACE_S = 60.0
# From the beginning of a shutdown that keeps the guests here: so long one waits for those that stop before it.
FOLLOWERS_S = 40.0


@dataclass(frozen=True, slots=True)
class Start:
    sid: Sid
    uid: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Gracefully, and hard when that takes longer than `timeout_s`; 0 is hard at once."""

    sid: Sid
    uid: str
    timeout_s: int = DEFAULT_STOP_S


@dataclass(frozen=True, slots=True)
class Migrate:
    """Live, to another node. The agents do it; how it ended shows in where the file lies then."""

    sid: Sid
    uid: str
    target: str


@dataclass(frozen=True, slots=True)
class KillLeftover:
    """The guest belongs to another node now; what still runs of it here is ended by signals, not through its owner."""

    sid: Sid
    uid: str


Action = Start | Stop | Migrate | KillLeftover


@dataclass(frozen=True, slots=True)
class Attempt:
    """What has been tried under one order. Times on the boot-time clock."""

    failures: int = 0
    started_at: float | None = None
    next_at: float = 0.0
    cause: str = ""
    # When the order was first seen.
    seen_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What one life of the daemon remembers."""

    session: str
    # Sids on which an action is under way.
    busy: frozenset[str] = frozenset()
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    results: Mapping[str, Result] = field(default_factory=dict)
    # Sids that a write of our status acknowledges of which nobody knows yet whether it took effect, or will.
    unanswered: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The host goes down as it should. Times on the boot-time clock."""

    is_reboot: bool
    since: float


@dataclass(frozen=True, slots=True)
class LocalView:
    """All of one moment; the store's part as this node's replica has applied it, never older than a view before."""

    node: NodeName
    lease: LeaseState
    status: ManagerStatus
    resources: Mapping[Sid, Resource]
    # Guests whose config file lies in this node's directory.
    configs: frozenset[str]
    # Guarded guests of which processes are here, paused ones included.
    running: frozenset[str]
    # As it is in the store.
    written: LrmStatus
    # As it is in guests.json.
    registered: tuple[str, ...]
    is_lease_wanted: bool
    options: Options = field(default_factory=Options)
    shutdown: Shutdown | None = None
    # Who starts after whom, and so stops before.
    orders: Orders = field(default_factory=Orders)
    # Of the member that this node is.
    uid: str = ""
    # Running guests whose config file lies with another node, and no migration holds it.
    strays: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Steps:
    actions: tuple[Action, ...]
    # To be written if it differs from what is there, but for the timestamp.
    status: LrmStatus
    # To be written to guests.json if it differs from what is there.
    register: tuple[str, ...]
    is_lease_wanted: bool
    # The host may go down: nothing that HA looks after runs here any more.
    is_at_rest: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """How an action ended; no cause means well."""

    sid: str
    uid: str
    # Whether its success begins something: a start, or a migration.
    is_start: bool
    cause: str = ""


def hold(memory: Memory, sids: frozenset[str]) -> Memory:
    """The agent still starts these for an earlier life. Nothing is done or answered about them before that has ended:
    "it failed" or "it is stopped" would send them to another node, where the late start must not meet them."""
    return replace(memory, busy=memory.busy | sids)


def let_go_on(memory: Memory, sid: str) -> Memory:
    """After `hold`, when its start has ended."""
    return replace(memory, busy=memory.busy - {sid})


def finish(memory: Memory, done: Done, now: float) -> Memory:
    """Takes in the end of an action."""
    memory = replace(memory, busy=memory.busy - {done.sid})
    attempt = memory.attempts.get(done.uid, Attempt(seen_at=now))
    if not done.cause:
        attempt = replace(attempt, started_at=now if done.is_start else None, cause="")
    else:
        attempt = replace(attempt, failures=attempt.failures + 1, cause=done.cause, started_at=None)
        attempt = replace(attempt, next_at=now + _delay(attempt.failures))
    return replace(memory, attempts={**memory.attempts, done.uid: attempt})


def step(memory: Memory, view: LocalView, now: float) -> tuple[Memory, Steps]:
    """`now` on the boot-time clock."""
    mine = {sid: order for sid, order in sorted(view.status.service_status.items()) if _is_mine(view, order)}
    memory = _forget(memory, mine)
    mode = _mode(view, now)
    actions: list[Action] = []
    # Disarmed, nothing is guarded, so nothing is known about what runs; and a person may be at work.
    for sid, order in () if view.status.is_disarmed else mine.items():
        memory, action = _carry_out(memory, view, Sid(sid), order, now, mode=mode)
        if action is not None:
            memory = replace(memory, busy=memory.busy | {sid})
            actions.append(action)
    for stray in _strays(memory, view):
        memory = replace(memory, busy=memory.busy | {stray.sid})
        actions.append(stray)
    wanted = _wanted(view)
    status = _status(memory, view, mine, mode, wanted)
    is_at_rest = not (view.running or memory.busy or actions)
    return memory, Steps(tuple(actions), status, _register(memory, view, wanted), bool(wanted), is_at_rest)


def _strays(memory: Memory, view: LocalView) -> list[KillLeftover]:
    """What runs here though the file and the order are another node's, and nothing is to bring it here: a start that was
    given up and came up late. It ends at once, for the guest may run where it belongs."""
    if view.status.is_disarmed:
        return []
    orders = ((Sid(sid), view.status.service_status.get(sid)) for sid in sorted(view.strays - memory.busy))
    return [
        KillLeftover(sid, order.uid)
        for sid, order in orders
        if order is not None and view.node not in (order.node, order.target, order.carried_to)
    ]


def _mode(view: LocalView, now: float) -> Mode:
    """What becomes of the guests here. One in maintenance that goes down lets them go on moving."""
    is_drained = view.status.is_drained(view.node)
    if view.status.is_disarmed:
        return Mode.disarm
    if view.shutdown is None:
        return Mode.maintenance if is_drained else Mode.active
    policy = view.options.shutdown_policy
    if policy is ShutdownPolicy.conditional:
        policy = ShutdownPolicy.freeze if view.shutdown.is_reboot else ShutdownPolicy.failover
    if is_drained or policy is ShutdownPolicy.migrate:
        is_over = now - view.shutdown.since >= view.options.shutdown_deadline_s
        return Mode.shutdown if is_over else Mode.maintenance
    return Mode.restart if policy is ShutdownPolicy.freeze else Mode.shutdown


def _patience_s(view: LocalView, mode: Mode) -> float:
    """From the beginning of a shutdown: then guests are stopped here, whatever the manager says."""
    if mode is Mode.restart:
        return FREEZE_GRACE_S
    is_draining = view.status.is_drained(view.node) or view.options.shutdown_policy is ShutdownPolicy.migrate
    return (view.options.shutdown_deadline_s if is_draining else 0.0) + FAILOVER_GRACE_S


def _wanted(view: LocalView) -> set[str]:
    """Every resource of the cluster is guarded on every node: a guest may migrate in at any time. None while disarmed."""
    if view.status.is_disarmed:
        return set()
    looked_after = {sid for sid, resource in view.resources.items() if resource.request is not Request.ignored}
    return {*looked_after, *view.status.service_status}


def _register(memory: Memory, view: LocalView, wanted: set[str]) -> tuple[str, ...]:
    """What the store says is acknowledged stays on the list, whatever happens, and so does what a write says that may take
    effect yet: of ours, or of an earlier life of the daemon until our first write has shut that out. What is new comes on
    it under a lease: it may run already, and the keeper ends what runs without one."""
    is_live = view.lease.phase == LIVE
    if view.lease.phase in (PAUSED, KILLED):
        # Whom the keeper has stopped it must wake or end as well.
        return tuple(sorted({*view.registered, *view.written.tracked, *memory.unanswered}))
    listed = wanted if is_live else wanted & set(view.registered)
    if view.written.session != memory.session:
        listed = {*listed, *view.registered}
    return tuple(sorted({*listed, *view.written.tracked, *memory.unanswered}))


def _status(memory: Memory, view: LocalView, mine: Mapping[str, Service], mode: Mode, wanted: set[str]) -> LrmStatus:
    is_live = view.lease.phase == LIVE
    acknowledged = wanted & set(view.lease.sids) & set(view.registered)
    uids = {order.uid for order in mine.values()}
    kept = {uid: result for uid, result in view.written.results.items() if uid in uids}
    return LrmStatus(
        # pve-ha-lrm's words: waiting is what a node does that has nothing to guard.
        state="active" if is_live else "lost_agent_lock" if view.registered else "wait_for_agent_lock",
        mode=mode,
        results={**kept, **memory.results},
        timestamp=view.written.timestamp,
        incarnation=view.lease.incarnation if is_live else view.written.incarnation,
        tracked=tuple(sorted(acknowledged)),
        session=memory.session,
        uid=view.uid,
    )


def _is_mine(view: LocalView, order: Service) -> bool:
    """Not what a node was ordered that was removed and had our name before us."""
    return order.node == view.node and order.node_uid in ("", view.uid)


def _forget(memory: Memory, mine: Mapping[str, Service]) -> Memory:
    uids = {order.uid for order in mine.values()}
    if memory.attempts.keys() <= uids and memory.results.keys() <= uids:
        return memory
    attempts = {uid: attempt for uid, attempt in memory.attempts.items() if uid in uids}
    results = {uid: result for uid, result in memory.results.items() if uid in uids}
    return replace(memory, attempts=attempts, results=results)


def _carry_out(
    memory: Memory, view: LocalView, sid: Sid, order: Service, now: float, *, mode: Mode
) -> tuple[Memory, Action | None]:
    if sid in memory.busy or view.written.session != memory.session:
        return memory, None
    if order.uid not in memory.attempts:
        memory = replace(memory, attempts={**memory.attempts, order.uid: Attempt(seen_at=now)})
    if view.shutdown is not None and now - view.shutdown.since >= _patience_s(view, mode):
        return _end_for_shutdown(memory, view, sid, order, now)
    match order.state:
        case State.request_start if order.waits_for:
            return _answer_running(memory, view, sid, order), None
        case State.started:
            # A guest that was ended for the shutdown must not come up again.
            return _keep_running(memory, view, sid, order, now) if view.shutdown is None else (memory, None)
        case State.request_stop | State.stopped | State.relocate:
            return _keep_stopped(memory, view, sid, order, now)
        case State.migrate:
            if order.cmd and sid in view.configs:
                return _carry_away(memory, view, sid, order, now)
            return _let_go(memory, view, sid, order, now)
        case State.freeze if mode is Mode.restart:
            return _end_for_shutdown(memory, view, sid, order, now)
        case _:
            return memory, None


def _answer_running(memory: Memory, view: LocalView, sid: Sid, order: Service) -> Memory:
    """The manager makes it wait for others before it starts. Carried over live, say, it runs already: then there is nothing to
    wait for. That ends no order and lets nothing go."""
    is_here = sid in view.running and sid in view.configs and _is_of_this_life(view, order)
    return _answer(memory, sid, order, 0) if is_here else memory


def _end_for_shutdown(
    memory: Memory, view: LocalView, sid: Sid, order: Service, now: float
) -> tuple[Memory, Action | None]:
    """Ends what runs, and answers nothing: the order stays with this node unless the manager asked for it back."""
    if order.state in LETTING_GO:
        return _keep_stopped(memory, view, sid, order, now)
    if sid not in view.running or now < memory.attempts[order.uid].next_at or _is_needed(view, sid, now):
        return memory, None
    return memory, Stop(sid, order.uid) if sid in view.configs else KillLeftover(sid, order.uid)


def _is_needed(view: LocalView, sid: Sid, now: float) -> bool:
    """Whether others here that start after it, and so stop before it, still run; for a while only."""
    if view.shutdown is None or now - view.shutdown.since >= FOLLOWERS_S:
        return False
    return any(wait.then in view.running for wait in view.orders.followers.get(sid, ()))


def _carry_away(memory: Memory, view: LocalView, sid: Sid, order: Service, now: float) -> tuple[Memory, Action | None]:
    """One try; what comes of it shows in where the file lies. Here still after the try: it stays here."""
    attempt = memory.attempts[order.uid]
    if not _is_of_this_life(view, order) or _has_failed(memory, view, order):
        return memory, None
    if attempt.failures:
        return _answer(memory, sid, order, 1, attempt.cause), None
    if attempt.started_at is not None:
        # The agent says that it went well; the file's new place is on its way to us, unless somebody moved it back.
        if now - attempt.started_at >= RELEASE_GRACE_S:
            return _answer(memory, sid, order, CAME_BACK, "its config file is here again"), None
        return memory, None
    if view.status.node_status.get(order.target) is NodeState.fence:
        return _answer(memory, sid, order, 1, f"{order.target} is being fenced"), None
    if not _may_begin(view, sid, order, now):
        return memory, None
    return memory, Migrate(sid, order.uid, order.target)


def _keep_running(
    memory: Memory, view: LocalView, sid: Sid, order: Service, now: float
) -> tuple[Memory, Action | None]:
    if not _is_of_this_life(view, order) or sid not in view.configs or _has_failed(memory, view, order):
        return memory, None
    attempt = memory.attempts[order.uid]
    if sid in view.running:
        if attempt.started_at is None:
            memory = _remember(memory, order, replace(attempt, started_at=now))
        elif attempt.failures and now - attempt.started_at >= PROVEN_S:
            memory = _remember(memory, order, replace(attempt, failures=0))
        return _answer(memory, sid, order, 0), None
    if attempt.started_at is not None:
        # It ran and runs no more. At once again the first time, later and later when that goes on.
        next_at = now if attempt.failures == 0 else now + _delay(attempt.failures)
        attempt = replace(attempt, started_at=None, failures=attempt.failures + 1, next_at=next_at, cause="it ended")
        memory = _remember(memory, order, attempt)
    resource = view.resources.get(sid)
    allowed = resource.max_restart if resource is not None else 1
    has_run = order.uid in memory.results or order.uid in view.written.results
    if attempt.failures > allowed and not has_run:
        return _answer(memory, sid, order, 1, attempt.cause), None
    if attempt.failures > allowed + 3 and attempt.cause != "it ended":
        return _answer(memory, sid, order, 1, attempt.cause), None
    if not _may_begin(view, sid, order, now) or now < attempt.next_at:
        return memory, None
    return memory, Start(sid, order.uid, order.incarnation)


def _keep_stopped(
    memory: Memory, view: LocalView, sid: Sid, order: Service, now: float
) -> tuple[Memory, Action | None]:
    if sid not in view.running:
        return (_answer(memory, sid, order, 0) if _is_guarded(view, sid) else memory), None
    if now < memory.attempts[order.uid].next_at:
        return memory, None
    timeout_s = order.timeout if order.timeout is not None else DEFAULT_STOP_S
    return memory, Stop(sid, order.uid, timeout_s) if sid in view.configs else KillLeftover(sid, order.uid)


def _let_go(memory: Memory, view: LocalView, sid: Sid, order: Service, now: float) -> tuple[Memory, Action | None]:
    if sid in view.configs:
        return memory, None
    if sid not in view.running:
        return (_answer(memory, sid, order, 0) if _is_guarded(view, sid) else memory), None
    if now - memory.attempts[order.uid].seen_at < RELEASE_GRACE_S:
        return memory, None
    return memory, KillLeftover(sid, order.uid)


def _is_of_this_life(view: LocalView, order: Service) -> bool:
    return view.lease.phase == LIVE and order.incarnation == view.lease.incarnation


def _may_begin(view: LocalView, sid: Sid, order: Service, now: float) -> bool:
    """Also by the time: a keeper that is dead has not said that its lease ran out."""
    try:
        may_start(view.lease, now, sid, incarnation=order.incarnation)
    except Fenced:
        return False
    return True


def _is_guarded(view: LocalView, sid: Sid) -> bool:
    """Only of guests that are registered do we know whether they run."""
    return sid in view.registered


def _has_failed(memory: Memory, view: LocalView, order: Service) -> bool:
    said = memory.results.get(order.uid) or view.written.results.get(order.uid)
    return said is not None and said.exit_code != 0


def _answer(memory: Memory, sid: Sid, order: Service, exit_code: int, cause: str = "") -> Memory:
    result = Result(sid=sid, state=order.state, exit_code=exit_code, cause=cause)
    if memory.results.get(order.uid) == result:
        return memory
    return replace(memory, results={**memory.results, order.uid: result})


def _remember(memory: Memory, order: Service, attempt: Attempt) -> Memory:
    return replace(memory, attempts={**memory.attempts, order.uid: attempt})


def _delay(failures: int) -> float:
    return min(RETRY_MAX_S, RETRY_FIRST_S * float(2 ** min(max(failures - 1, 0), 10)))


def must_write(memory: Memory, status: LrmStatus, written: LrmStatus) -> bool:
    """Also what is no news, when an earlier write may take effect yet: at the same version, only one of them does."""
    return bool(memory.unanswered) or is_news(status, written)


def writing(memory: Memory, status: LrmStatus) -> Memory:
    """Before each write."""
    return replace(memory, unanswered=memory.unanswered | set(status.tracked))


def answered(memory: Memory) -> Memory:
    """The last write took effect, so no earlier one will: all are guarded by the version that was read."""
    return replace(memory, unanswered=frozenset())


def is_news(status: LrmStatus, written: LrmStatus) -> bool:
    """Whether it differs in anything but the timestamp."""
    return msgspec.structs.replace(status, timestamp=0) != msgspec.structs.replace(written, timestamp=0)
