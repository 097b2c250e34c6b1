"""A second path of renewal: X writes its slot in a file on shared storage, and lives by whichever path is fresh. The rule:
when the log says that X is fenced, X has had its time.

A disk has no compare-and-swap, so nobody can refuse a slot write that comes late. What stands against that: a write counts
for X from its *sending*, once X knows that it is there, and only if X lives still by what counted before; so between two
that count a reader never sees the slot unchanged for as long as X has. Whoever takes over has seen, by reads of its own, that
it did not change for T, in the same T in which the log had no renewal. The log says whether X uses its slot: before X
counts a write, and X stops before it says that it does not.

What a slot holds is unique to each write, so all that a reader knows is whether it has changed. A write that was given up may
become visible at any later moment, or never. X may do more here than the keeper does, which counts nothing beyond A.
"""

from collections.abc import Iterator
from typing import NamedTuple

# Ticks: X is surely gone, and survivors may fence.
GONE, TAKEOVER = 3, 3
# A read takes no longer, and is too old to prove anything after as much; ages count up to what that can use.
READ = 1
OUT, DONE, REFUSED = "out", "done", "refused"
SAME, NEW, TORN = "same", "new", "torn"


class Rules(NamedTuple):
    """True or as it is: honest. Each can be broken on purpose."""

    takeover: int = TAKEOVER
    # The holder's age counts from sending, on either path.
    counts_from_sending: bool = True
    writes_count_from_sending: bool = True
    # A slot counts once the log has said so, and no more from the moment when it says otherwise.
    declares_first: bool = True
    stops_before_saying_so: bool = True
    # It says so only when another node has seen its slot change.
    is_seen_first: bool = True
    # The log: a late renewal, an acquisition and X's removal say nothing about the slot; a fence asks for the renewal count.
    late_says_nothing: bool = True
    acquiring_keeps_slot: bool = True
    removing_keeps_slot: bool = True
    is_fence_guarded: bool = True
    # The reader.
    asks_for_both: bool = True
    measures_together: bool = True
    counts_from_first_end: bool = True
    counts_to_last_begin: bool = True
    torn_is_change: bool = True
    needs_to_read: bool = True
    starts_as_fresh: bool = True


class Call(NamedTuple):
    """A renewal. `says`: that the slot is in use. `is_late`: one that was sent after it has been applied. `is_awaited`: X has
    sent none since."""

    says: bool
    age: int = 0
    status: str = OUT
    is_late: bool = False
    is_awaited: bool = True


class Write(NamedTuple):
    """`is_awaited`: not given up by X."""

    age: int = 0
    is_visible: bool = False
    is_awaited: bool = True


class Read(NamedTuple):
    age: int = 0
    taken: str = ""
    # The slot still holds what was taken.
    is_current: bool = False


class State(NamedTuple):
    # X: the age of its lease over both paths, whether its slot counts, what it has sent.
    age: int = 0
    uses: bool = False
    calls: tuple[Call, ...] = ()
    writes: tuple[Write, ...] = ()
    # The log: whether survivors have to ask for the slot, and whether X's incarnation is the present one. What the survivor knows
    # of the first, and whether it has not applied the last renewal yet.
    declared: bool = False
    known: bool = False
    is_behind: bool = False
    is_present: bool = True
    is_fenced: bool = False
    # The survivor: since it applied a renewal; since the end of the read that first showed what the slot holds; since the
    # begin of the last read that showed the same (-1: there is none); whether the slot still holds that.
    silence: int = 0
    still: int = -1
    last: int = -1
    is_current: bool = False
    read: Read | None = None
    # A fence on its way; whether nothing was renewed since the fencer looked.
    fence: bool | None = None
    # Another node has seen X's slot change. Not when what X takes for shared storage is a directory of its own.
    is_seen: bool = True
    is_shared: bool = True
    # What may happen yet: reads; renewals that the survivor applies late; writes that are given up and hang; the end of X's
    # incarnation behind its back; renewals that say that there is no slot; renewals under way at one time.
    reads: bool = True
    delays: int = 0
    hanging: int = 0
    endings: int = 0
    denials: int = 0
    width: int = 1


def broken(state: State) -> str:
    return "X is fenced and lives" if state.is_fenced and state.age < GONE else ""


def steps(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if state.is_fenced:
        return
    yield "time passes", _tick(rules, state)
    if state.age < GONE:
        for label, after in (*_renewals(rules, state), *_log(rules, state), *_slot(rules, state)):
            yield label, after if after.age < GONE else _gone(after)
    yield from _reader(rules, state)
    yield from _manager(rules, state)


def _gone(state: State) -> State:
    """X has had its time. What it has sent makes no difference but that survivors have to wait longer."""
    return state._replace(age=GONE, uses=False, calls=(), writes=(), is_present=True, hanging=0, endings=0, denials=0)


def _tick(rules: Rules, state: State) -> State:
    longest = rules.takeover + READ
    read = state.read
    if read is not None:
        # One that takes longer fails.
        read = read._replace(age=read.age + 1) if read.age < READ else None
    after = state._replace(
        age=min(state.age + 1, GONE),
        calls=tuple(call._replace(age=min(call.age + 1, GONE)) for call in state.calls),
        writes=tuple(sorted(write._replace(age=min(write.age + 1, GONE)) for write in state.writes)),
        silence=min(state.silence + 1, longest),
        still=state.still if state.still < 0 else min(state.still + 1, longest),
        last=state.last + 1 if 0 <= state.last < READ else -1,
        read=read,
    )
    return after if after.age < GONE else _gone(after)


def _renewals(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    """X sends one after the other, and listens only for the answer to the last. One that is lost without a trace is as one that
    was never sent, unless it says that there is no slot."""
    if len(state.calls) < state.width and not any(call.age == 0 for call in state.calls):
        earlier = tuple(call._replace(is_awaited=False) for call in state.calls if call.status == OUT)
        if state.is_seen or not rules.is_seen_first:
            uses = state.uses or not rules.declares_first
            yield "X renews: the slot is in use", state._replace(calls=(*earlier, Call(True)), uses=uses)
        if state.denials:
            uses = state.uses and not rules.stops_before_saying_so
            after = state._replace(uses=uses, denials=state.denials - 1)
            yield "X renews: no slot", after._replace(calls=(*earlier, Call(False)))
            yield "X renews, and it is lost: no slot", after._replace(calls=earlier)
    for call in state.calls:
        if not call.is_awaited or call.status == OUT:
            continue
        others = tuple(other for other in state.calls if other is not call)
        if call.status == REFUSED:
            yield "X hears: refused, and ends its guest", state._replace(calls=others, age=GONE)
            continue
        age = call.age if rules.counts_from_sending else 0
        yield "X hears: renewed", state._replace(calls=others, age=min(state.age, age), uses=call.says)


def _log(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    fence = None if state.fence is None else False
    for number, call in enumerate(state.calls):
        if call.status != OUT:
            continue
        before, after = state.calls[:number], state.calls[number + 1 :]
        if not state.is_present:
            refused = (*before, *([call._replace(status=REFUSED)] if call.is_awaited else []), *after)
            yield "the log refuses a renewal", state._replace(calls=refused)
            continue
        late = tuple(one._replace(is_late=True) for one in before)
        says_nothing = call.is_late and rules.late_says_nothing
        applied = state._replace(
            calls=(*late, *([call._replace(status=DONE)] if call.is_awaited else []), *after),
            declared=state.declared if says_nothing else call.says,
            fence=fence,
        )
        yield f"the log applies a renewal: {'the slot is in use' if call.says else 'no slot'}", _caught_up(applied)
        if state.delays:
            yield (
                "the log applies a renewal, the survivor does not yet",
                applied._replace(is_behind=True, delays=state.delays - 1),
            )
    if state.is_behind:
        yield "the survivor catches up", _caught_up(state)
    if state.endings:
        # Either way X's incarnation is over and X does not know, and the silence counts anew.
        over = state._replace(endings=state.endings - 1, is_present=False, fence=fence)
        kept = state.declared and rules.acquiring_keeps_slot
        yield "the log applies an acquisition that X gave up long ago", _caught_up(over._replace(declared=kept))
        kept = state.declared and rules.removing_keeps_slot
        yield "the log removes X from the cluster", _caught_up(over._replace(declared=kept))


def _caught_up(state: State) -> State:
    return state._replace(known=state.declared, is_behind=False, silence=0)


def _slot(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    """X writes one after the other. One that was given up may hang for as long as it likes."""
    writes = state.writes
    if not any(write.is_awaited for write in writes):
        yield "X writes its slot", state._replace(writes=tuple(sorted((*writes, Write()))))
    for number, write in enumerate(writes):
        others = writes[:number] + writes[number + 1 :]
        if not write.is_visible:
            seen = state
            if state.is_shared:
                read = state.read._replace(is_current=False) if state.read is not None else None
                seen = state._replace(is_current=False, read=read)
            left = (*others, write._replace(is_visible=True)) if write.is_awaited else others
            yield "a write becomes visible", seen._replace(writes=tuple(sorted(left)))
            if write.is_awaited and state.hanging:
                left = tuple(sorted((*others, Write(GONE, is_awaited=False))))
                yield "X gives a write up, which hangs", state._replace(writes=left, hanging=state.hanging - 1)
        else:
            age = write.age if rules.writes_count_from_sending else 0
            age = min(state.age, age) if state.uses else state.age
            yield "X hears: written", state._replace(writes=others, age=age)


def _reader(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    read = state.read
    if not state.reads:
        return
    if read is None:
        yield "a survivor begins to read", state._replace(read=Read())
        return
    if not read.taken:
        is_known = state.still >= 0 or not rules.starts_as_fresh
        taken = SAME if state.is_current and is_known else NEW
        yield "it takes what is there", state._replace(read=read._replace(taken=taken, is_current=True))
        if state.is_shared and any(not write.is_visible for write in state.writes):
            torn = SAME if not rules.torn_is_change else TORN
            yield "it takes half of what is written", state._replace(read=read._replace(taken=torn))
        return
    if read.taken == SAME:
        last = read.age if rules.counts_to_last_begin else 0
        yield "the read ends: nothing has changed", state._replace(read=None, last=last)
        return
    still = 0 if rules.counts_from_first_end else read.age
    if state.still < 0 and not rules.starts_as_fresh:
        still = rules.takeover + READ
    is_seen = state.is_seen or (state.is_shared and state.still >= 0)
    yield (
        "the read ends: it has changed",
        state._replace(read=None, last=-1, still=still, is_current=read.is_current, is_seen=is_seen),
    )


def _manager(rules: Rules, state: State) -> Iterator[tuple[str, State]]:
    if state.fence is None and _may_fence(rules, state):
        yield "a survivor sends a fence", state._replace(fence=not state.is_behind)
    if state.fence is not None:
        counts = state.fence or not rules.is_fence_guarded
        yield (
            ("the log applies the fence", state._replace(fence=None, is_fenced=True))
            if counts
            else ("the log refuses the fence", state._replace(fence=None))
        )


def _may_fence(rules: Rules, state: State) -> bool:
    if not state.known or not rules.asks_for_both:
        return state.silence >= rules.takeover
    if state.still < 0 or state.last < 0:
        return not rules.needs_to_read and state.silence >= rules.takeover
    if not rules.measures_together:
        return state.silence >= rules.takeover and state.still - state.last >= rules.takeover
    return min(state.silence, state.still) - state.last >= rules.takeover


# One kind of trouble at a time, or the states are too many.
_IN_USE = State(uses=True, declared=True, known=True, still=0, is_current=True)
STARTS: dict[str, State] = {
    "storage that is not shared": State(is_shared=False, is_seen=False),
    "a slot that is given up": _IN_USE._replace(width=2, denials=1, reads=False),
    "a survivor that is behind": State(width=2, delays=2, reads=False),
    "a slot that is taken up": State(),
    "a slot": _IN_USE,
    "an incarnation that ends behind its holder's back": _IN_USE._replace(endings=1),
    "a write that hangs": _IN_USE._replace(hanging=1),
}

MUTATIONS: dict[str, Rules] = {
    "the holder's age counts from the answer": Rules(counts_from_sending=False),
    "a slot write counts from its confirmation": Rules(writes_count_from_sending=False),
    "the slot counts before the log says so": Rules(declares_first=False),
    "the slot counts until the log says otherwise": Rules(stops_before_saying_so=False),
    "the slot is used though nobody else sees it": Rules(is_seen_first=False),
    "a renewal that comes late says that there is no slot": Rules(late_says_nothing=False),
    "an acquisition says that there is no slot": Rules(acquiring_keeps_slot=False),
    "who is removed from the cluster has no slot": Rules(removing_keeps_slot=False),
    "a fence does not ask whether the lease was renewed": Rules(is_fence_guarded=False),
    "survivors fence one tick too early": Rules(takeover=TAKEOVER - 1),
    "survivors ask for the log alone": Rules(asks_for_both=False),
    "survivors measure each path by itself": Rules(measures_together=False),
    "the slot's silence counts from the begin of the first read": Rules(counts_from_first_end=False),
    "the slot's silence counts to the end of the last read": Rules(counts_to_last_begin=False),
    "a torn read is no change": Rules(torn_is_change=False),
    "a slot that cannot be read is silent": Rules(needs_to_read=False),
    "who begins to read counts the slot as silent": Rules(starts_as_fresh=False),
}
