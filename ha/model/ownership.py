"""Lease, generation and switch-over: one guest on X, which may be cut off, stalled, reset, powered off by an agent,
or migrate to Y while Z may recover it. The rule: at most one of X, Y, Z runs it.

X's lease is modelled step by step: calls that are late, lost or answered late; a keeper that acts when it likes; a
watchdog that does not wait. Of Y and Z only what they do with the guest. The log is one order of commits; what is on
its way to it may be applied at any later moment or never. Time goes in ticks; ages count up to where they make no
difference any more.
"""

from collections.abc import Iterator
from typing import NamedTuple

# Ticks: pause, kill, reset, and when survivors may fence. X's age when anything runs is less than RESET.
PAUSE, KILL, RESET, TAKEOVER = 2, 3, 4, 4
NONE, RUNS, PAUSED = "-", "R", "P"
OUT, DONE, REFUSED = "out", "done", "refused"
MAX_INCARNATION = 2


class Rules(NamedTuple):
    """True or as it is: honest. Each can be broken on purpose."""

    takeover: int = TAKEOVER
    # The holder's age counts from sending, not from the answer.
    counts_from_sending: bool = True
    # A fence is refused when the lease was renewed since the fencer looked.
    is_fence_guarded: bool = True
    # A move of the guest is refused when somebody else has moved it since: the generation.
    is_move_guarded: bool = True
    # A new lease only when nothing of the last one is left.
    clears_before_rejoining: bool = True
    # The copy at the target runs only when the store says that the guest is the target's.
    reads_before_resuming: bool = True
    # A lease is given back only when nothing runs; and that it was is no release.
    rests_when_clear: bool = True
    # An agent says "off" only when it is; and its confirmation is for one incarnation.
    is_agent_honest: bool = True
    confirms_incarnation: bool = True


class Call(NamedTuple):
    kind: str
    incarnation: int
    age: int = 0
    status: str = OUT


class State(NamedTuple):
    # X: on, age of its lease (-1: none) and the incarnation that it holds, calls, and its copy of the guest.
    is_on: bool = True
    age: int = 0
    held: int = 1
    calls: tuple[Call, ...] = ()
    x: str = RUNS
    # The log: X's lease, whose guest it is, and under which incarnation of X it was given to X.
    incarnation: int = 1
    is_fenced: bool = False
    is_resting: bool = False
    owner: str = "X"
    version: int = 0
    order: int = 1
    # Stands in the guest's config file while it migrates: nobody starts it then.
    is_locked: bool = False
    # Since a survivor applied X's last renewal.
    silence: int = 0
    # On its way: a fence (incarnation, whether nothing was renewed since), X's move (the version that it expects).
    fence: tuple[int, bool] | None = None
    move: int | None = None
    # The agent: what it was told to switch off, and whether it has said that it did.
    agent: tuple[int, bool] | None = None
    y: str = NONE
    z: str = NONE
    # What may go wrong yet.
    crashes: int = 0
    migrations: int = 0
    fencings: int = 0
    # Calls of X under way at one time.
    width: int = 2


def broken(state: State) -> str:
    running = [name for name, copy in (("X", state.x), ("Y", state.y), ("Z", state.z)) if copy == RUNS]
    return f"the guest runs on {' and '.join(running)}" if len(running) > 1 else ""


def steps(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    yield _tick(state)
    yield from _calls(rules, state)
    if state.is_on:
        yield from _keeper(rules, state)
        yield from _guest_on_x(state)
    yield from _power(rules, state)
    yield from _manager(rules, state)
    yield from _migration(rules, state)
    yield from _survivors(rules, state)


def _tick(state: State) -> tuple[str, State]:
    calls = tuple(call._replace(age=min(call.age + 1, RESET)) for call in state.calls)
    age = state.age if state.age < 0 else min(state.age + 1, RESET)
    after = state._replace(calls=calls, age=age, silence=min(state.silence + 1, TAKEOVER))
    if state.is_on and age >= RESET:
        return "time passes, and the watchdog resets X", _off(after)
    return "time passes", after


def _off(state: State) -> State:
    waiting = tuple(call for call in state.calls if call.status == OUT)
    return state._replace(is_on=False, age=-1, held=0, calls=waiting, x=NONE)


def _calls(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    for number, call in enumerate(state.calls):
        others = state.calls[:number] + state.calls[number + 1 :]
        if call.status == OUT:
            yield f"the log applies {call.kind} {call.incarnation or ''}".rstrip(), _applied(state, call, others)
            yield f"{call.kind} is lost", state._replace(calls=others)
        elif state.is_on:
            yield f"X hears: {call.kind} {call.status}", _heard(rules, state._replace(calls=others), call)


def _applied(state: State, call: Call, others: tuple[Call, ...]) -> State:
    if call.kind == "acquire":
        if state.incarnation >= MAX_INCARNATION:
            return state._replace(calls=others)
        number = state.incarnation + 1
        answered = call._replace(status=DONE, incarnation=number)
        state = state._replace(incarnation=number, is_fenced=False, is_resting=False, silence=0, fence=_stale(state))
        return state._replace(calls=(*others, answered) if state.is_on else others)
    if call.incarnation != state.incarnation or state.is_fenced or state.is_resting:
        answered = call._replace(status=REFUSED)
    elif call.kind == "rest":
        state, answered = state._replace(is_resting=True), call._replace(status=DONE)
    else:
        state, answered = state._replace(silence=0, fence=_stale(state)), call._replace(status=DONE)
    return state._replace(calls=(*others, answered) if state.is_on else others)


def _stale(state: State) -> tuple[int, bool] | None:
    return (state.fence[0], False) if state.fence is not None else None


def _heard(rules: Rules, state: State, call: Call) -> State:
    age = call.age if rules.counts_from_sending else 0
    if call.kind == "acquire":
        is_clear = state.x == NONE or not rules.clears_before_rejoining
        if state.age >= 0 or not is_clear or age >= PAUSE:
            return state
        return state._replace(age=age, held=call.incarnation)
    if call.kind == "rest" or state.age < 0 or call.incarnation != state.held:
        return state
    if call.status == REFUSED:
        return state._replace(age=-1, held=0, x=NONE)
    return state._replace(age=min(state.age, age))


def _keeper(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    """It acts in time or late; only the watchdog does not wait."""
    if len(state.calls) < state.width and not any(call.age == 0 for call in state.calls):
        if state.age >= 0:
            yield "X sends a renewal", state._replace(calls=(*state.calls, Call("renew", state.held)))
        elif state.x == NONE or not rules.clears_before_rejoining:
            yield "X asks for a new lease", state._replace(calls=(*state.calls, Call("acquire", 0)))
        if state.age >= 0 and (state.x == NONE or not rules.rests_when_clear):
            resting = state._replace(calls=(*state.calls, Call("rest", state.held)))
            yield "X gives its lease back", resting._replace(age=-1, held=0)
    if state.age >= PAUSE and state.x == RUNS:
        yield "X pauses the guest", state._replace(x=PAUSED)
    if state.age >= KILL:
        # A mutant keeps the copy and forgets the lease.
        if rules.clears_before_rejoining:
            yield "X kills the guest", state._replace(x=NONE, age=-1, held=0)
        else:
            yield "X forgets its lease", state._replace(age=-1, held=0)
    if 0 <= state.age < PAUSE and state.x == PAUSED:
        yield "X resumes the guest", state._replace(x=RUNS)


def _guest_on_x(state: State) -> Iterator[tuple[str, State]]:
    if state.x == RUNS:
        yield "the guest ends on X", state._replace(x=NONE)
    # What X knows of the log may be old, but not older than what it holds its lease by.
    may_start = 0 <= state.age < PAUSE and state.owner == "X" and state.order == state.held and not state.is_locked
    if state.x == NONE and may_start:
        yield "X starts the guest", state._replace(x=RUNS)


def _power(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if state.is_on and state.crashes:
        yield "X loses its power", _off(state._replace(crashes=state.crashes - 1))
    if not state.is_on:
        yield "X boots", state._replace(is_on=True)
    if state.agent is None and state.fencings:
        yield (
            "the agent is told to switch X off",
            state._replace(agent=(state.incarnation, False), fencings=state.fencings - 1),
        )
    elif state.agent is not None and not state.agent[1]:
        said = state._replace(agent=(state.agent[0], True))
        yield "the agent switches X off and says so", _off(said)
        if not rules.is_agent_honest:
            yield "the agent says that X is off", said


def _manager(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if state.fence is None and state.silence >= rules.takeover and not state.is_fenced and not state.is_resting:
        yield "a manager sends a fence", state._replace(fence=(state.incarnation, True))
    if state.fence is not None:
        incarnation, is_current = state.fence
        counts = (incarnation == state.incarnation and is_current) or not rules.is_fence_guarded
        yield (
            ("the log applies the fence", state._replace(fence=None, is_fenced=True))
            if counts
            else ("the log refuses the fence", state._replace(fence=None))
        )
    if state.agent is not None and state.agent[1]:
        counts = state.agent[0] == state.incarnation or not rules.confirms_incarnation
        yield "the log applies what the agent confirms", state._replace(agent=None, is_fenced=state.is_fenced or counts)
    is_released = state.is_fenced or (state.is_resting and not rules.rests_when_clear)
    if state.owner == "X" and is_released and state.incarnation >= state.order:
        # Y is like Z, but for the copy that it may have.
        for target in ("Y", "Z") if state.y == PAUSED else ("Z",):
            yield (
                f"a manager gives the guest to {target}",
                state._replace(owner=target, version=state.version + 1, is_locked=False),
            )
    if state.owner == "X" and state.incarnation > state.order and not state.is_fenced:
        yield "a manager orders the guest on X anew", state._replace(order=state.incarnation)


def _migration(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if state.migrations and state.owner == "X" and state.x == RUNS and state.y == NONE and not state.is_locked:
        yield "a migration begins", state._replace(is_locked=True, migrations=state.migrations - 1)
    if state.is_locked and state.owner == "X" and state.is_on:
        if state.x == RUNS and state.y == NONE and state.move is None:
            yield "the guest has arrived at Y, paused; X has it no more", state._replace(x=NONE, y=PAUSED)
            yield "the migration is given up", state._replace(is_locked=False)
        if state.x == NONE and state.y == PAUSED and state.move is None:
            yield "X sends the move to Y", state._replace(move=state.version)
    if state.move is not None:
        counts = state.move == state.version or not rules.is_move_guarded
        yield (
            (
                "the log applies X's move",
                state._replace(move=None, owner="Y", version=state.version + 1, is_locked=False),
            )
            if counts
            else ("the log refuses X's move", state._replace(move=None))
        )


def _survivors(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if state.y == PAUSED and (state.owner == "Y" or not rules.reads_before_resuming):
        yield "Y resumes its copy", state._replace(y=RUNS)
    if state.y == PAUSED and state.owner == "Z":
        yield "Y destroys its copy", state._replace(y=NONE)
    if state.y == NONE and state.owner == "Y":
        yield "Y starts the guest", state._replace(y=RUNS)
    if state.z == NONE and state.owner == "Z":
        yield "Z starts the guest", state._replace(z=RUNS)


# One kind of trouble at a time, or the states are too many: what one does to another is for the simulation.
STARTS: dict[str, State] = {
    "cuts, delays and power cuts": State(crashes=1),
    "a migration": State(migrations=1, width=1),
    "a fencing agent": State(fencings=1, width=1),
}

MUTATIONS: dict[str, Rules] = {
    "survivors fence one tick too early": Rules(takeover=TAKEOVER - 1),
    "the holder's age counts from the answer": Rules(counts_from_sending=False),
    "a fence does not ask whether the lease was renewed": Rules(is_fence_guarded=False),
    "a move does not ask for the generation": Rules(is_move_guarded=False),
    "a new lease is taken before the guest is gone": Rules(clears_before_rejoining=False),
    "the target resumes before it owns the guest": Rules(reads_before_resuming=False),
    "a lease is given back while the guest runs": Rules(rests_when_clear=False),
    "an agent lies": Rules(is_agent_honest=False),
    "a confirmation is for any life of the node": Rules(confirms_incarnation=False),
}
