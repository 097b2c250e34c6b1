"""Renewals that a majority keeps in memory, not on disks: would it be safe? X renews its lease with three replicas;
none of that is in the log. The rule: when the log says that X is fenced, X has had its time.

What the log still has to say is *suspicion*. A replica that has applied "X is suspected" answers no renewal any more:
a promise that a restart does not break, since the log has it. Then it may report that it has heard nothing for T, and
a majority of such reports is a fence. X escapes through the log alone: a renewal there ends the suspicion and with it
all reports. A replica that starts counts X as heard just now, and answers nothing before it knows the log to its end.
"""

from collections.abc import Iterator
from typing import NamedTuple

# Ticks: X is surely gone, and a report may be made.
GONE, TAKEOVER = 2, 2
MAJORITY = 2
OUT, KEPT, VOID = 0, 1, 2


class Rules(NamedTuple):
    """True or as it is: honest. Each can be broken on purpose."""

    keeps_promise: bool = True
    starts_as_fresh: bool = True
    waits_until_caught_up: bool = True
    counts_from_sending: bool = True
    reports_end_with_suspicion: bool = True
    takeover: int = TAKEOVER
    acks: int = MAJORITY
    reports: int = MAJORITY


class Renewal(NamedTuple):
    age: int = 0
    at: tuple[int, ...] = (OUT, OUT, OUT)


class State(NamedTuple):
    # X: age of its lease, renewals under way, and one through the log (age, whether it was applied).
    age: int = 0
    renewals: tuple[Renewal, ...] = ()
    logged: tuple[int, bool] | None = None
    # Replicas: since when each has heard nothing, what it has applied, whether it knows the log's end since it started.
    heard: tuple[int, ...] = (0, 0, 0)
    applied: tuple[int, ...] = (0, 0, 0)
    is_ready: tuple[bool, ...] = (True, True, True)
    # The log: odd while X is suspected.
    length: int = 0
    reports: tuple[bool, ...] = (False, False, False)
    is_fenced: bool = False
    # What may happen yet: restarts; entries of the log (suspected, escaped, suspected again).
    restarts: int = 0
    room: int = 1


def broken(state: State) -> str:
    return "X is fenced and lives" if state.is_fenced and state.age < GONE else ""


def steps(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if state.is_fenced or state.age >= GONE:
        return
    yield "time passes", _tick(rules, state)
    yield from _holder(rules, state)
    yield from _log(rules, state)
    for number in range(len(state.heard)):
        for label, after in _replica(rules, state, number):
            yield label, _sorted(after)


def _sorted(state: State) -> State:
    """Which of the replicas is which makes no difference."""
    if len(state.renewals) > 0:
        (renewal,) = state.renewals
        replicas = sorted(zip(renewal.at, state.heard, state.applied, state.is_ready, state.reports, strict=True))
        at, heard, applied, is_ready, reports = zip(*replicas, strict=True)
        renewals: tuple[Renewal, ...] = (renewal._replace(at=at),)
    else:
        replicas_ = sorted(zip(state.heard, state.applied, state.is_ready, state.reports, strict=True))
        heard, applied, is_ready, reports = zip(*replicas_, strict=True)
        renewals = ()
    return state._replace(renewals=renewals, heard=heard, applied=applied, is_ready=is_ready, reports=reports)


def _tick(rules: Rules, state: State) -> State:
    return state._replace(
        age=min(state.age + 1, GONE),
        heard=tuple(min(age + 1, rules.takeover) for age in state.heard),
        renewals=tuple(renewal._replace(age=min(renewal.age + 1, GONE)) for renewal in state.renewals),
        logged=(min(state.logged[0] + 1, GONE), state.logged[1]) if state.logged is not None else None,
    )


def _holder(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if not state.renewals:
        yield "X sends a renewal", state._replace(renewals=(*state.renewals, Renewal()))
    for number, renewal in enumerate(state.renewals):
        others = state.renewals[:number] + state.renewals[number + 1 :]
        yield "X gives a renewal up", state._replace(renewals=others)
        if renewal.at.count(KEPT) >= rules.acks:
            age = renewal.age if rules.counts_from_sending else 0
            yield (
                "X hears that enough replicas keep its renewal",
                state._replace(renewals=others, age=min(state.age, age)),
            )
    if state.logged is None:
        yield "X sends a renewal to the log", state._replace(logged=(0, False))
    elif state.logged[1]:
        age = state.logged[0] if rules.counts_from_sending else 0
        yield "X hears that the log has it", state._replace(logged=None, age=min(state.age, age))


def _log(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    is_suspected = state.length % 2 == 1
    nobody = (False, False, False)
    reports = nobody if rules.reports_end_with_suspicion else state.reports
    if not is_suspected and state.length < state.room:
        yield "the log: X is suspected", state._replace(length=state.length + 1, reports=reports)
    if state.logged is not None and not state.logged[1]:
        # Without a suspicion it would renew what no replica has in its memory.
        if not is_suspected:
            yield "the log refuses a renewal without need", state._replace(logged=None)
        elif state.length < state.room:
            yield (
                "the log: X renews, and is suspected no more",
                state._replace(logged=(state.logged[0], True), length=state.length + 1, reports=reports),
            )
    if is_suspected and sum(state.reports) >= rules.reports:
        yield "the log: X is fenced", state._replace(is_fenced=True)


def _replica(rules: Rules, state: State, number: int) -> Iterator[tuple[str, State]]:
    name = "a replica"
    at = state.applied[number]
    is_bound = at % 2 == 1 and rules.keeps_promise
    may_answer = (state.is_ready[number] or not rules.waits_until_caught_up) and not is_bound
    for index, renewal in enumerate(state.renewals):
        if renewal.at[number] == OUT:
            kept = renewal._replace(at=_with(renewal.at, number, KEPT if may_answer else VOID))
            after = state._replace(renewals=_with(state.renewals, index, kept))
            if may_answer:
                yield f"{name} keeps the renewal", after._replace(heard=_with(state.heard, number, 0))
            else:
                yield f"{name} refuses the renewal", after
    if at < state.length:
        heard = 0 if (at + 1) % 2 == 0 else state.heard[number]
        yield (
            f"{name} applies the next entry",
            state._replace(applied=_with(state.applied, number, at + 1), heard=_with(state.heard, number, heard)),
        )
    elif not state.is_ready[number]:
        yield f"{name} has caught up", state._replace(is_ready=_with(state.is_ready, number, True))
    is_informed = at == state.length and at % 2 == 1
    if is_informed and state.heard[number] >= rules.takeover and not state.reports[number]:
        yield f"{name} reports that X is silent", state._replace(reports=_with(state.reports, number, True))
    if state.restarts:
        heard = 0 if rules.starts_as_fresh else rules.takeover
        yield (
            f"{name} restarts",
            state._replace(
                heard=_with(state.heard, number, heard),
                # What was committed it learns anew from a leader.
                applied=_with(state.applied, number, 0),
                is_ready=_with(state.is_ready, number, False),
                restarts=state.restarts - 1,
            ),
        )


def _with(values: tuple, number: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:number], value, *values[number + 1 :])


# One kind of trouble at a time, or the states are too many.
STARTS: dict[str, State] = {
    "replicas that restart": State(restarts=1),
    "a holder that escapes": State(room=3),
}

MUTATIONS: dict[str, Rules] = {
    "who knows of the suspicion answers renewals": Rules(keeps_promise=False),
    "a replica that starts counts the lease as old": Rules(starts_as_fresh=False),
    "a replica that starts answers before it knows the log": Rules(waits_until_caught_up=False),
    "the holder's age counts from the answer": Rules(counts_from_sending=False),
    "reports outlive the suspicion": Rules(reports_end_with_suspicion=False),
    "reports are made one tick too early": Rules(takeover=TAKEOVER - 1),
    "one replica's memory is enough for a renewal": Rules(acks=1),
    "one replica's report is enough for a fence": Rules(reports=1),
}
