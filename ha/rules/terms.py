"""What the rules come to for each resource: where it may run, whom it must avoid, what it would rather. Pure.

Resources that must run together share one `Terms`: what binds one of them binds all. A strict rule that contradicts earlier
ones yields: it is kept as a wish whose weight no other wish reaches, so that guests still run, and obey it where they can.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from kvorum.ids import NodeName, Sid

from .feasible import contradictions, groups_of
from .order import Orders, compile_orders
from .text import MAX_WEIGHT, Affinity, NodeAffinity, PlaceRule, ResourceAffinity, Rule, Rules, StartOrder, named

# Of a strict rule that yields: above a thousand wishes of the greatest weight.
YIELDED_WEIGHT = 1000 * MAX_WEIGHT


@dataclass(frozen=True, slots=True)
class NodeWish:
    """Costs weight x steps: none for nodes of the first choice, one for those of the second, ..."""

    rule: str
    weight: int
    steps: Mapping[NodeName, int]
    # Of nodes that the rule does not name.
    otherwise: int

    def cost(self, node: NodeName) -> int:
        return self.weight * self.steps.get(node, self.otherwise)


@dataclass(frozen=True, slots=True)
class SoftAffinity:
    """Costs its weight for each partner on the same node (negative), or on another one (positive)."""

    rule: str
    weight: int
    affinity: Affinity
    partners: tuple[Sid, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    # The resource and all that must run with it, sorted.
    group: tuple[Sid, ...]
    together_by: tuple[str, ...] = ()
    # None: on any node.
    allowed: frozenset[NodeName] | None = None
    allowed_by: tuple[str, ...] = ()
    # Resources that must not be on the same node, and the rule that says so.
    apart: Mapping[Sid, str] = field(default_factory=dict)
    wishes: tuple[NodeWish, ...] = ()
    affinities: tuple[SoftAffinity, ...] = ()

    @property
    def is_free(self) -> bool:
        """No rule speaks of it."""
        return len(self.group) == 1 and self.allowed is None and not (self.apart or self.wishes or self.affinities)


@dataclass(frozen=True, slots=True)
class Conflict:
    """`rules`, the fewest that cannot be kept all at once, in the file's order; `yields` is the last of them.

    `is_cycle`: each of the resources would start after the one before it, and the first after the last.
    """

    rules: tuple[str, ...]
    yields: str
    resources: tuple[Sid, ...]
    is_cycle: bool = False

    def __str__(self) -> str:
        if self.is_cycle:
            names = " and ".join((", ".join(self.rules[:-1]), self.rules[-1]))
            return f"rules {names} make a cycle: {self.circle}; {self.yields}, the last, orders nothing until one is changed"
        who = ", ".join(self.resources[:5]) + (", ..." if len(self.resources) > 5 else "")
        if len(self.rules) == 1:
            return f"rule {self.yields} cannot be kept by {who}: it asks for more nodes than there are; it counts as a wish"
        names = " and ".join((", ".join(self.rules[:-1]), self.rules[-1]))
        return (
            f"rules {names} contradict each other over {who}; {self.yields}, the last, is a wish until one is changed"
        )

    @property
    def circle(self) -> str:
        """Of a cycle: who waits for whom."""
        return " after ".join((self.resources[0], *reversed(self.resources)))


@dataclass(frozen=True, slots=True)
class Compiled:
    """By resource; one that no rule speaks of is not in it."""

    by_sid: Mapping[Sid, Terms] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    # What is odd but harms nothing, in sentences.
    remarks: tuple[str, ...] = ()
    orders: Orders = field(default_factory=Orders)

    def terms(self, sid: Sid) -> Terms:
        return self.by_sid.get(sid) or Terms((sid,))


def compile_rules(rules: Rules | Iterable[Rule], resources: Collection[Sid], nodes: Collection[NodeName]) -> Compiled:
    """`resources` are those under HA: of others nobody knows where they run. `nodes` are the members, up or down."""
    known = set(resources)
    enabled = [rule for rule in rules if rule.is_enabled]
    orders, cycles = compile_orders(_present_orders(enabled, known))
    placing = [rule for rule in enabled if not isinstance(rule, StartOrder)]
    present = [replace(rule, resources=frozenset(rule.resources & known)) for rule in placing]
    effective = [rule for rule in present if len(rule.resources) > (0 if isinstance(rule, NodeAffinity) else 1)]
    sets = contradictions([rule for rule in effective if rule.is_strict], nodes)
    conflicts = tuple(_conflict(rules_of) for rules_of in sets)
    yielded = {conflict.yields for conflict in conflicts}
    conflicts += tuple(Conflict(cycle.rules, cycle.rules[-1], cycle.guests, is_cycle=True) for cycle in cycles)
    strict = [rule for rule in effective if rule.is_strict and rule.id not in yielded]
    soft = [
        replace(rule, is_strict=False, weight=YIELDED_WEIGHT) if rule.id in yielded else rule
        for rule in effective
        if not rule.is_strict or rule.id in yielded
    ]
    remarks = tuple(_remarks(enabled, known, set(nodes)))
    return Compiled(_terms(strict, soft), conflicts, remarks, orders)


class RuleCache:
    """The last compilation, for as long as the same rules, resources and nodes are asked for."""

    def __init__(self) -> None:
        self._key: tuple[Rules, frozenset[Sid], frozenset[NodeName]] | None = None
        self._compiled = Compiled()

    def compile(self, rules: Rules, resources: Collection[Sid], nodes: Collection[NodeName]) -> Compiled:
        key = (rules, frozenset(resources), frozenset(nodes))
        # By identity where possible: the daemon parses the file only when it has changed.
        is_same = (
            self._key is not None and self._key[1:] == key[1:] and (self._key[0] is rules or self._key[0] == rules)
        )
        if not is_same:
            self._compiled = compile_rules(*key)
        self._key = key
        return self._compiled


def _present_orders(rules: Iterable[Rule], known: set[Sid]) -> list[StartOrder]:
    """As far as they speak of resources under HA."""
    found = (
        replace(rule, resources=frozenset(rule.resources & known), after=frozenset(rule.after & known))
        for rule in rules
        if isinstance(rule, StartOrder)
    )
    return [rule for rule in found if rule.resources and rule.after]


def _conflict(rules: tuple[PlaceRule, ...]) -> Conflict:
    shared = [sid for rule in rules for sid in rule.resources]
    # Those that more than one of the rules speaks of; a rule alone is at odds with the number of nodes.
    concerned = {sid for sid in shared if len(rules) == 1 or shared.count(sid) > 1}
    return Conflict(tuple(rule.id for rule in rules), rules[-1].id, tuple(sorted(concerned)))


def _remarks(rules: Iterable[Rule], known: set[Sid], nodes: set[NodeName]) -> Iterable[str]:
    for rule in rules:
        if unknown := sorted(named(rule) - known):
            yield f"rule {rule.id} names {', '.join(unknown)}, which HA does not manage"
        if isinstance(rule, StartOrder):
            continue
        if isinstance(rule, NodeAffinity):
            if missing := sorted(set(rule.nodes) - nodes):
                yield f"rule {rule.id} names {', '.join(missing)}, no node of this cluster"
        elif len(rule.resources & known) < 2:
            yield f"rule {rule.id} needs two resources under HA and does nothing until then"


def _terms(strict: list[PlaceRule], soft: list[PlaceRule]) -> dict[Sid, Terms]:
    positive = [rule for rule in strict if isinstance(rule, ResourceAffinity) and rule.affinity is Affinity.positive]
    groups = groups_of(positive)
    rules_of: dict[tuple[Sid, ...], list[PlaceRule]] = {}
    for rule in (*strict, *soft):
        for group in {groups.get(sid, (sid,)) for sid in rule.resources}:
            rules_of.setdefault(group, []).append(rule)
    found: dict[Sid, Terms] = {}
    for group in sorted(rules_of):
        terms = _terms_of(group, rules_of[group], groups)
        found.update((sid, terms) for sid in group)
    return found


def _terms_of(group: tuple[Sid, ...], rules: list[PlaceRule], groups: Mapping[Sid, tuple[Sid, ...]]) -> Terms:
    members = set(group)
    together_by: list[str] = []
    allowed: frozenset[NodeName] | None = None
    allowed_by: list[str] = []
    apart: dict[Sid, str] = {}
    wishes: list[NodeWish] = []
    affinities: list[SoftAffinity] = []
    for rule in rules:
        match rule:
            case NodeAffinity():
                if rule.is_strict:
                    allowed = frozenset(rule.nodes) if allowed is None else allowed & frozenset(rule.nodes)
                    allowed_by.append(rule.id)
                if not rule.is_strict or len(set(rule.nodes.values())) > 1:
                    wishes.append(_wish(rule))
            case ResourceAffinity() if not rule.is_strict:
                # One of those that run together stands for all, so that a pair costs the same seen from either side.
                first = {groups.get(sid, (sid,)): sid for sid in sorted(rule.resources - members, reverse=True)}
                partners = tuple(sorted(first.values()))
                if partners:
                    affinities.append(SoftAffinity(rule.id, rule.weight, rule.affinity, partners))
            case ResourceAffinity(affinity=Affinity.positive):
                together_by.append(rule.id)
            case ResourceAffinity():
                # Whoever must run with such a partner brings it along.
                others = {other for sid in rule.resources - members for other in groups.get(sid, (sid,))}
                apart.update({sid: rule.id for sid in sorted(others) if sid not in apart})
    return Terms(group, tuple(together_by), allowed, tuple(allowed_by), apart, tuple(wishes), tuple(affinities))


def _wish(rule: NodeAffinity) -> NodeWish:
    """Steps are counted from the rule's own priorities, not from the nodes that are up, so that no node's going changes them."""
    classes = sorted(set(rule.nodes.values()), reverse=True)
    steps = {node: classes.index(priority) for node, priority in rule.nodes.items()}
    return NodeWish(rule.id, rule.weight, steps, len(classes))
