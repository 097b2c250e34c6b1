"""Who starts after whom: the start-order rules as a graph without cycles. Pure.

A rule that closes a cycle with earlier ones yields: it orders nothing until one of them is changed. Else all of the cycle's
guests would wait for each other. Whether somebody runs, and how long to wait, is the manager's to say.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvorum.ids import Sid

from .text import StartOrder


@dataclass(frozen=True, slots=True)
class Wait:
    """`then` starts once `first` has run for `delay_s`, and stops before it. `patience_s` 0: waits without an end."""

    rule: str
    first: Sid
    then: Sid
    delay_s: int
    patience_s: int
    is_strict: bool


@dataclass(frozen=True, slots=True)
class Orders:
    # By the one that waits, and by the one that is waited for; in the order of the file, then of the names.
    waits: Mapping[Sid, tuple[Wait, ...]] = field(default_factory=dict)
    followers: Mapping[Sid, tuple[Wait, ...]] = field(default_factory=dict)
    # How many come one after the other before it; of those that wait or are waited for.
    depth: Mapping[Sid, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.waits)

    def told(self, sid: Sid) -> tuple[str, ...]:
        """What they ask of a resource, a sentence each."""
        found = []
        for wait in self.waits.get(sid, ()):
            when = f"has run for {wait.delay_s} s" if wait.delay_s else "runs"
            most = f", waits {wait.patience_s} s at most" if wait.patience_s else ""
            found.append(f"starts after {wait.first} {when}{most} ({wait.rule}{', strict' if wait.is_strict else ''})")
        for wait in self.followers.get(sid, ()):
            found.append(f"{wait.then} starts after it, and stops before it ({wait.rule})")
        return tuple(found)

    def with_inherited(self, priorities: Mapping[Sid, int]) -> dict[Sid, int]:
        """Priorities of those that an order names: who is waited for has at least that of each who waits for it."""
        found = {sid: priorities.get(sid, 0) for sid in self.depth}
        for sid in sorted(found, key=lambda sid: (-self.depth[sid], sid)):
            for wait in self.waits.get(sid, ()):
                found[wait.first] = max(found[wait.first], found[sid])
        return found


@dataclass(frozen=True, slots=True)
class Cycle:
    """`guests`: each starts after the one before it, and the first after the last. `rules` in the file's order."""

    rules: tuple[str, ...]
    guests: tuple[Sid, ...]


def compile_orders(rules: Sequence[StartOrder]) -> tuple[Orders, tuple[Cycle, ...]]:
    """The last rule of each cycle is left out."""
    after: dict[Sid, dict[Sid, str]] = {}
    kept: list[StartOrder] = []
    cycles: list[Cycle] = []
    for rule in rules:
        if _reaches(after, rule.resources, rule.after):
            cycles.append(_smallest(after, rule, [one.id for one in rules]))
            continue
        kept.append(rule)
        for first in sorted(rule.after):
            after.setdefault(first, {}).update(dict.fromkeys(rule.resources, rule.id))
    waits: dict[Sid, list[Wait]] = {}
    followers: dict[Sid, list[Wait]] = {}
    for rule in kept:
        for then in sorted(rule.resources):
            for first in sorted(rule.after):
                wait = Wait(rule.id, first, then, rule.delay_s, rule.patience_s, rule.is_strict)
                waits.setdefault(then, []).append(wait)
                followers.setdefault(first, []).append(wait)
    frozen = {sid: tuple(found) for sid, found in waits.items()}
    orders = Orders(frozen, {sid: tuple(found) for sid, found in followers.items()}, _depths(frozen, followers))
    return orders, tuple(cycles)


def _reaches(after: Mapping[Sid, Mapping[Sid, str]], sources: Iterable[Sid], goals: Collection[Sid]) -> bool:
    """Whether one of the goals starts, by way of others, after one of the sources."""
    seen = set(sources)
    todo = list(seen)
    while todo:
        for following in after.get(todo.pop(), ()):
            if following in goals:
                return True
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return False


def _smallest(after: Mapping[Sid, Mapping[Sid, str]], rule: StartOrder, ids: Sequence[str]) -> Cycle:
    """The shortest way from one that waits by the rule back to one that it waits for."""
    came_from: dict[Sid, Sid] = {}
    seen = set(rule.resources)
    layer = sorted(seen)
    while layer:
        following_layer: list[Sid] = []
        for sid in layer:
            for following in sorted(after.get(sid, ())):
                if following in seen:
                    continue
                seen.add(following)
                came_from[following] = sid
                following_layer.append(following)
                if following in rule.after:
                    return _cycle(after, came_from, following, rule, ids)
        layer = following_layer
    raise AssertionError(f"rule {rule.id} closes no cycle")


def _cycle(
    after: Mapping[Sid, Mapping[Sid, str]], came_from: Mapping[Sid, Sid], end: Sid, rule: StartOrder, ids: Sequence[str]
) -> Cycle:
    guests = [end]
    names = set()
    while guests[-1] in came_from:
        before = came_from[guests[-1]]
        names.add(after[before][guests[-1]])
        guests.append(before)
    return Cycle((*(one for one in ids if one in names), rule.id), tuple(reversed(guests)))


def _depths(waits: Mapping[Sid, Sequence[Wait]], followers: Mapping[Sid, Sequence[Wait]]) -> dict[Sid, int]:
    """Longest chains, from those that wait for nobody on."""
    depth = dict.fromkeys({*waits, *followers}, 0)
    left = {sid: len(waits.get(sid, ())) for sid in depth}
    todo = sorted(sid for sid in depth if not left[sid])
    while todo:
        sid = todo.pop()
        for wait in followers.get(sid, ()):
            depth[wait.then] = max(depth[wait.then], depth[sid] + 1)
            left[wait.then] -= 1
            if not left[wait.then]:
                todo.append(wait.then)
    return depth
