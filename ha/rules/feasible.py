"""Whether strict rules can be kept all at once, and if not, which few of them contradict each other. Pure.

Guests that must run together are one *unit*. Each unit needs a node that its node rules allow, and units that must be apart
need different ones. That is colouring a graph, hard in general and easy here: each negative rule is first checked by matching
(exact: five units do not fit on four nodes, whatever the rest), then all together by a search with a limit. What the search
does not finish counts as feasible: then no rule yields for nothing, and placement still never violates one.

Room on the nodes and their being up are no matter of rules, so they are not asked here.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from kvorum.ids import NodeName, Sid

from .text import Affinity, NodeAffinity, PlaceRule, ResourceAffinity

# Steps of one search, and subsets tried for the smallest contradiction; beyond it the contradiction is irreducible, perhaps
# not the smallest.
_SEARCH_LIMIT = 20_000
_SUBSET_LIMIT = 2_000


@dataclass(slots=True)
class _Unit:
    """Guests on one node: where they may run, as bits, and the negative rules that they stand in."""

    domain: int
    rules: list[int]


def contradictions(strict: Sequence[PlaceRule], nodes: Collection[NodeName]) -> list[tuple[PlaceRule, ...]]:
    """Smallest sets of rules that cannot be kept together; the last one of each set is the one that came last.

    Without those last ones the rest can be kept.
    """
    found: list[tuple[PlaceRule, ...]] = []
    for component in _components(strict):
        if is_feasible(component, nodes):
            continue
        kept: list[PlaceRule] = []
        for rule in component:
            if is_feasible([*kept, rule], nodes):
                kept.append(rule)
            else:
                found.append((*_smallest(kept, rule, nodes), rule))
    return found


def is_feasible(rules: Sequence[PlaceRule], nodes: Collection[NodeName]) -> bool:
    """A node that a rule names and that is no member counts: it may come back, and its rule contradicts nobody."""
    named = {node for rule in rules if isinstance(rule, NodeAffinity) for node in rule.nodes}
    bits = {node: 1 << index for index, node in enumerate(sorted({*nodes, *named}))}
    members = sum(bits[node] for node in set(nodes))
    units = _units(rules, bits, members)
    if units is None:
        return False
    cliques: dict[int, list[_Unit]] = {}
    for unit in units:
        for index in unit.rules:
            cliques.setdefault(index, []).append(unit)
    if not all(_matches(clique) for clique in cliques.values()):
        return False
    if all(len(unit.rules) <= 1 for unit in units):
        return True  # The rules share no unit, so each one's matching stands.
    return _search([unit for unit in units if unit.rules])


def groups_of(positive: Iterable[ResourceAffinity]) -> dict[Sid, tuple[Sid, ...]]:
    """Resources that must run together, by each of their members: overlapping sets merge."""
    found: dict[Sid, set[Sid]] = {}
    for rule in positive:
        merged = set(rule.resources)
        for sid in rule.resources:
            merged |= found.get(sid, set())
        for sid in merged:
            found[sid] = merged
    ordered = {id(group): tuple(sorted(group)) for group in found.values()}
    return {sid: ordered[id(group)] for sid, group in found.items()}


def _components(rules: Sequence[PlaceRule]) -> list[list[PlaceRule]]:
    """Rules that are linked by shared resources, each list in the order of the file."""
    root: dict[Sid, int] = {}
    parent = list(range(len(rules)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, rule in enumerate(rules):
        for sid in rule.resources:
            other = find(root.setdefault(sid, index))
            parent[max(other, find(index))] = min(other, find(index))
    found: dict[int, list[PlaceRule]] = {}
    for index, rule in enumerate(rules):
        found.setdefault(find(index), []).append(rule)
    return list(found.values())


def _units(rules: Sequence[PlaceRule], bits: Mapping[NodeName, int], members: int) -> list[_Unit] | None:
    """None: two that must be apart must be together, or one is allowed nowhere."""
    groups = groups_of(
        rule for rule in rules if isinstance(rule, ResourceAffinity) and rule.affinity is Affinity.positive
    )
    units: dict[Sid, _Unit] = {}

    def unit(sid: Sid) -> _Unit:
        first = groups[sid][0] if sid in groups else sid
        return units.setdefault(first, _Unit(-1, []))

    for index, rule in enumerate(rules):
        if isinstance(rule, NodeAffinity):
            allowed = sum(bits[node] for node in rule.nodes)
            for sid in sorted(rule.resources):
                unit(sid).domain &= allowed
        elif rule.affinity is Affinity.negative:
            for sid in sorted(rule.resources):
                apart = unit(sid)
                if index in apart.rules:
                    return None
                apart.rules.append(index)
    for one in units.values():
        one.domain = members if one.domain == -1 else one.domain
    return None if any(one.domain == 0 and members for one in units.values()) else list(units.values())


def _matches(clique: Sequence[_Unit]) -> bool:
    """Whether each unit gets a node of its own (Kuhn's algorithm)."""
    holder: dict[int, int] = {}

    def take(index: int, seen: set[int]) -> bool:
        rest = clique[index].domain
        while rest:
            bit = rest & -rest
            rest ^= bit
            if bit in seen:
                continue
            seen.add(bit)
            if bit not in holder or take(holder[bit], seen):
                holder[bit] = index
                return True
        return False

    return all(take(index, set()) for index in range(len(clique)))


def _search(units: list[_Unit]) -> bool:
    """A node for each, most constrained first, by backtracking without recursion."""
    order = sorted(units, key=lambda unit: (unit.domain.bit_count(), -len(unit.rules)))
    used: dict[int, int] = {}
    chosen: list[int] = []
    untried = [order[0].domain] if order else []
    for _ in range(_SEARCH_LIMIT):
        if len(chosen) == len(order):
            return True
        if not untried[-1]:
            untried.pop()
            if not chosen:
                return False
            bit = chosen.pop()
            for rule in order[len(chosen)].rules:
                used[rule] &= ~bit
            continue
        bit = untried[-1] & -untried[-1]
        untried[-1] ^= bit
        for rule in order[len(chosen)].rules:
            used[rule] = used.get(rule, 0) | bit
        chosen.append(bit)
        if len(chosen) < len(order):
            taken = 0
            for rule in order[len(chosen)].rules:
                taken |= used.get(rule, 0)
            untried.append(order[len(chosen)].domain & ~taken)
    return True


def _smallest(kept: Sequence[PlaceRule], rule: PlaceRule, nodes: Collection[NodeName]) -> tuple[PlaceRule, ...]:
    """Fewest of the kept rules that contradict this one."""
    tried = 0
    for size in range(len(kept)):
        for subset in combinations(kept, size):
            tried += 1
            if tried > _SUBSET_LIMIT:
                return _irreducible(kept, rule, nodes)
            if not is_feasible([*subset, rule], nodes):
                return subset
    return tuple(kept)


def _irreducible(kept: Sequence[PlaceRule], rule: PlaceRule, nodes: Collection[NodeName]) -> tuple[PlaceRule, ...]:
    """A contradiction of which no rule can be left out."""
    core = list(kept)
    for candidate in kept:
        rest = [other for other in core if other is not candidate]
        if not is_feasible([*rest, rule], nodes):
            core = rest
    return tuple(core)
