"""The checker of histories against brute force, and against histories whose verdict is known."""

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st
from linearizable import Fate, Operation, Value, fault_of


def w(value: str, call: float, end: float, fate: Fate = Fate.done, key: str = "k") -> Operation:
    return Operation(key, True, value, call, end, fate)


def r(value: Value, call: float, end: float, key: str = "k") -> Operation:
    return Operation(key, False, value, call, end)


def brute(history: list[Operation]) -> bool:
    """Every set of unknown writes that happened, in every order that respects time."""
    certain = [one for one in history if one.fate is Fate.done]
    unknown = [one for one in history if one.fate is Fate.unknown]
    for chosen in range(2 ** len(unknown)):
        some = [one for number, one in enumerate(unknown) if chosen >> number & 1]
        if any(_is_order(order) for order in permutations([*certain, *some])):
            return True
    return False


def _is_order(order: tuple[Operation, ...]) -> bool:
    state: Value = None
    for number, one in enumerate(order):
        if any(later.fate is Fate.done and later.end < one.call for later in order[number + 1 :]):
            return False
        if one.is_write:
            state = one.value
        elif one.value != state:
            return False
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        call = draw(st.integers(0, 12))
        end = call + draw(st.integers(1, 8))
        if draw(st.booleans()):
            found.append(w(f"v{number}", call, end, draw(st.sampled_from(Fate))))
        else:
            found.append(r(draw(st.sampled_from([None, "v0", "v1", "v2", "v3"])), call, end))
    return found


@settings(max_examples=1500, deadline=None)
@given(histories())
def test_the_verdict_is_that_of_brute_force(history: list[Operation]) -> None:
    assert (fault_of(history) == "") == brute(history)


def test_a_lost_write_a_stale_read_and_a_value_from_nowhere_are_seen() -> None:
    assert fault_of([w("a", 0, 1), w("b", 2, 3), r("a", 4, 5)])
    assert fault_of([w("a", 0, 1), r(None, 2, 3)])
    assert fault_of([r("x", 0, 1)])
    assert "was told" in fault_of([w("a", 0, 1, Fate.failed), r("a", 2, 3)])
    assert fault_of([w("a", 0, 10), r("a", 1, 2), r(None, 3, 4)]), "seen once, it is there for everybody"


def test_an_unknown_write_may_appear_late_or_never_but_not_go_again() -> None:
    unknown = w("a", 0, 1, Fate.unknown)
    assert fault_of([unknown, r(None, 5, 6), r("a", 7, 8)]) == ""
    assert fault_of([unknown, r(None, 5, 6)]) == ""
    assert fault_of([unknown, r("a", 5, 6), r(None, 7, 8)])


def test_keys_are_judged_apart() -> None:
    assert fault_of([w("a", 0, 1), r("b", 2, 3, key="other"), w("b", 0, 1, key="other"), r("a", 2, 3)]) == ""


def test_a_long_history_with_much_at_once_is_judged() -> None:
    history = []
    for number in range(4000):
        history += [w(f"v{number}", number, number + 3.5), r(f"v{number}", number + 0.2, number + 4.5)]
    assert fault_of(history) == ""
    assert fault_of([*history, r("v3", 3990, 3991)])
