"""Is a recorded history of registers linearizable? Pure: operations in, a verdict out.

The search is Wing and Gong's, with Lowe's memory of states that were tried. Keys are judged one by one, which is sound because
linearizability is local (Herlihy and Wing). Each written value is unique, so a read says which write it saw.

Outcomes that nobody knows: such a write may have taken effect at any time after its call, or never. If no read saw it, it can be
left out (no read would tell the difference). If some did, it took effect before the first of them ended.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

Value = str | None


class Fate(Enum):
    done = auto()
    # Certainly without effect.
    failed = auto()
    unknown = auto()


@dataclass(frozen=True, slots=True)
class Operation:
    """`value`: written, or read. `end` has a meaning for `done` ones only."""

    key: str
    is_write: bool
    value: Value
    call: float
    end: float
    fate: Fate = Fate.done
    who: str = ""


def fault_of(history: Iterable[Operation]) -> str:
    """What is wrong with it; "" when it is linearizable."""
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    for key, operations in sorted(by_key.items()):
        if fault := _fault_of_key(key, operations):
            return fault
    return ""


def _fault_of_key(key: str, operations: Sequence[Operation]) -> str:
    reads = [one for one in operations if not one.is_write and one.fate is Fate.done]
    first_end: dict[Value, float] = {}
    for read in reads:
        first_end[read.value] = min(first_end.get(read.value, read.end), read.end)
    writes: list[Operation] = []
    for write in (one for one in operations if one.is_write):
        if write.fate is Fate.failed:
            if write.value in first_end:
                return f"{key}: {write.value} was read, and its writer was told that it is not written"
        elif write.fate is Fate.done:
            writes.append(write)
        elif write.value in first_end:
            if first_end[write.value] < write.call:
                return f"{key}: {write.value} was read before it was written"
            writes.append(replace(write, end=first_end[write.value]))
    written = {write.value for write in writes}
    assert len(written) == len(writes), "values are unique"
    for read in reads:
        if read.value is not None and read.value not in written:
            return f"{key}: {read.value} was read, and nobody wrote it"
    stuck = _search([*writes, *reads])
    return f"{key}: no order explains {_told(stuck)}" if stuck else ""


def _told(operation: Operation) -> str:
    verb = "wrote" if operation.is_write else "read"
    return (
        f"that {operation.who or 'somebody'} {verb} {operation.value} from {operation.call:.3f} to {operation.end:.3f}"
    )


def _search(operations: Sequence[Operation]) -> Operation | None:
    """None when there is an order; else the earliest operation that none could get past."""
    events = sorted(
        [(one.call, 0, number) for number, one in enumerate(operations)]
        + [(one.end, 1, number) for number, one in enumerate(operations)]
    )
    count = len(events)
    # A linked list of calls and returns, out of which the ordered operations are lifted. 0 is its head.
    following, before = list(range(1, count + 2)), list(range(-1, count + 1))
    following[count] = 0
    of_event = [-1] + [number for _, _, number in events]
    is_call = [False] + [kind == 0 for _, kind, _ in events]
    return_of = [0] * len(operations)
    for place in range(1, count + 1):
        if not is_call[place]:
            return_of[of_event[place]] = place

    def lift(place: int) -> None:
        for one in (place, return_of[of_event[place]]):
            following[before[one]], before[following[one]] = following[one], before[one]

    def put_back(place: int) -> None:
        for one in (return_of[of_event[place]], place):
            following[before[one]] = before[following[one]] = one

    state: Value = None
    ordered, furthest = 0, 0
    tried: set[tuple[int, Value]] = set()
    stack: list[tuple[int, Value]] = []
    place = following[0]
    while following[0]:
        if is_call[place]:
            operation = operations[of_event[place]]
            if operation.is_write or operation.value == state:
                now = (ordered | 1 << of_event[place], operation.value)
                if now not in tried:
                    tried.add(now)
                    stack.append((place, state))
                    ordered, state = now
                    lift(place)
                    place = following[0]
                    continue
            place = following[place]
            continue
        furthest = max(furthest, place)
        if not stack:
            return operations[of_event[furthest]]
        place, state = stack.pop()
        ordered ^= 1 << of_event[place]
        put_back(place)
        place = following[place]
    return None
