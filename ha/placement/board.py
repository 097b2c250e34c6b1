"""The working copy of a situation: guests are put on nodes one after the other, and each choice sees those before it. Pure.

A board belongs to one round and one caller; what it is asked follows from the situation and from what was put on it alone.
Its sums are kept as guests are put, so that a choice costs one look at each node, and staying where it is often none.
"""

from collections.abc import Collection, Iterable
from copy import copy
from dataclasses import dataclass, replace

from ha.load import NOTHING, Demand, Mode, Use, added_strain
from ha.rules import Affinity, Terms
from kvorum.ids import NodeName, Sid

from .choice import Choice, Ranked, summary
from .situation import NodeFacts, Placed, Preference, Query, Situation

_NO_DEMAND = Demand()
_GIB = 1 << 30


@dataclass(slots=True)
class _Tally:
    """What is on a node or on its way there. `reserved_bytes` counts a moving guest at both ends."""

    guests: int
    cores: float
    memory_bytes: float
    reserved_bytes: float

    def use(self) -> Use:
        """Sums of what came and went again may end a little below nothing."""
        return Use(max(0.0, self.cores), max(0.0, self.memory_bytes))


def choose_node(query: Query, situation: Situation) -> Choice:
    """The best node, with the reasons for and against each."""
    return Board(situation).choose(query, is_explained=True)


class Board:
    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.placed: dict[Sid, Placed] = dict(situation.placed)
        self._ready = {name for name, facts in situation.nodes.items() if not facts.unready}
        capacities = [situation.nodes[name].capacity for name in self._ready]
        is_known = all(capacity.cores > 0 and capacity.memory_bytes > 0 for capacity in capacities)
        self._mode = situation.policy.mode if is_known else Mode.basic
        self._limits = {name: self._limit(facts) for name, facts in situation.nodes.items()}
        self._tallies = self._bases()
        for sid, placed in self.placed.items():
            self._count(sid, placed, 1)

    def put(self, sid: Sid, placed: Placed) -> None:
        """What was chosen, or found out, in this round."""
        if (old := self.placed.get(sid)) is not None:
            self._count(sid, old, -1)
        self.placed[sid] = placed
        self._count(sid, placed, 1)

    def without(self, nodes: Collection[NodeName]) -> "Board":
        """Another board, on which these nodes take nothing any more. This one stays as it is."""
        facts = {
            name: replace(one, unready="is gone") if name in nodes else one
            for name, one in self.situation.nodes.items()
        }
        other = copy(self)
        other.situation = replace(self.situation, nodes=facts)
        other.placed = dict(self.placed)
        other._ready = self._ready - set(nodes)
        other._tallies = {name: replace(tally) for name, tally in self._tallies.items()}
        return other

    def without_guests(self, sids: Collection[Sid]) -> "Board":
        """Another board, on which these are nowhere. This one stays as it is."""
        other = copy(self)
        other.placed = dict(self.placed)
        other._tallies = {name: replace(tally) for name, tally in self._tallies.items()}
        for sid in sids:
            if (placed := other.placed.pop(sid, None)) is not None:
                other._count(sid, placed, -1)
        return other

    def choose(self, query: Query, *, is_explained: bool = False) -> Choice:
        """`is_explained` adds to the answer what is to be said of every node; that takes longer than the answer."""
        terms = self.situation.rules.terms(query.sid)
        if query.preference is Preference.none and (stay := self._stay(query, terms)) is not None:
            return stay
        home, home_why = self._home(query, terms)
        fit = self._fit(query, terms, home)
        refused: dict[NodeName, str] = {}
        if is_explained or not fit:
            for name in self.situation.nodes.keys() - set(fit):
                why_not = self._refusal(name, query, terms)
                if not why_not and home and name != home:
                    why_not = home_why
                refused[name] = why_not or self._lacks_room(name, query, terms)
        if not fit:
            nobody = (
                f"none of {len(self.situation.nodes)} nodes can take it now: {summary(refused) or 'there are none'}"
            )
            return Choice("", nobody, refused=refused)
        ranked = self._rank(fit, query, terms)
        first = ranked[0]
        if query.maintenance_node in fit:
            first = next(one for one in ranked if one[3] == query.maintenance_node)
            why = f"{first[3]} is where it was before the node's maintenance"
        else:
            why = home_why if home else self._why(ranked, terms)
        cost, score, _, node = first
        told = tuple(Ranked(n, c, s, self._unfulfilled(n, terms)) for c, s, _, n in ranked) if is_explained else ()
        return Choice(node, why, cost, score, told, refused)

    def cost(self, sid: Sid, node: NodeName) -> int:
        """The weight of the wishes that would not be fulfilled with the resource there."""
        return self._cost(node, self.situation.rules.terms(sid))

    def is_allowed(self, sid: Sid, node: str) -> bool:
        """Whether strict rules let it be there, given where the others are going."""
        terms = self.situation.rules.terms(sid)
        if terms.allowed is not None and node not in terms.allowed:
            return False
        if any(self._destination(other) == node for other in terms.apart):
            return False
        partners = [self._destination(other) for other in terms.group if other != sid]
        return all(not place or place == node for place in partners)

    def lacks_room(self, node: NodeName, query: Query) -> str:
        """Why the node has no memory for it, as a sentence's end; empty when it has."""
        return self._lacks_room(node, query, self.situation.rules.terms(query.sid))

    def demand(self, sid: Sid) -> Demand:
        return self.situation.demands.get(sid, _NO_DEMAND)

    def may_move(self, group: tuple[Sid, ...], target: NodeName) -> bool:
        """Whether those that run together on one node may go to another one: no strict rule broken, no more wishes."""
        query = Query(group[0])
        terms = self.situation.rules.terms(group[0])
        if self._refusal(target, query, terms) or self._lacks_room(target, query, terms):
            return False
        source = NodeName(self.placed[group[0]].destination)
        return self._cost(target, terms) <= self._cost(source, terms)

    def guests_on(self, node: NodeName) -> int:
        return self._tallies[node].guests

    def use(self, node: NodeName) -> Use:
        """Expected once all moves have ended."""
        return self._tallies[node].use()

    def reserved_bytes(self, node: NodeName) -> float:
        """Memory that is given away there."""
        return self._tallies[node].reserved_bytes

    def free_bytes(self, node: NodeName) -> float:
        """Memory that may still be given away; without end where it is not known or not limited."""
        return self._limits[node] - self._tallies[node].reserved_bytes

    def _limit(self, facts: NodeFacts) -> float:
        limit = facts.capacity.memory_bytes * self.situation.policy.memory_limit
        return limit if limit > 0 else float("inf")

    # Staying

    def _stay(self, query: Query, terms: Terms) -> Choice | None:
        """The answer when it may stay where it is; None when it must go, or would rather."""
        here = NodeName(query.current)
        if here not in self.situation.nodes or here in query.failed or self._unready(here, query):
            return None
        if query.is_idle and self._lacks_room(here, query, terms):
            return None
        wants_back = query.failback and bool(query.maintenance_node) and query.maintenance_node != here
        if terms.is_free and not wants_back:
            return Choice(here, f"it stays on {here}")
        if terms.allowed is not None and here not in terms.allowed:
            return None
        # A partner that is leaving is no reason to leave as well.
        if any(self._destination(other) == here for other in terms.apart):
            return None
        home, _ = self._home(query, terms)
        if home and home != here:
            return None
        if not query.failback:
            return Choice(here, f"it stays on {here}, where it may be; failback is off")
        if wants_back and query.maintenance_node in self._fit(query, terms, home):
            return None
        cost = self._cost(here, terms)
        if not cost:
            return Choice(here, f"it stays on {here}")
        if any(self._cost(name, terms) < cost for name in self._fit(query, terms, home)):
            return None
        return Choice(here, f"it stays on {here}, though {self._unfulfilled(here, terms)}", cost)

    # What may not be

    def _unready(self, name: NodeName, query: Query) -> str:
        facts = self.situation.nodes.get(name)
        return "is no node of the cluster" if facts is None else facts.unready or query.barred.get(name, "")

    def _refusal(self, name: NodeName, query: Query, terms: Terms) -> str:
        if why := self._unready(name, query):
            return why
        if name in query.failed:
            return "did not start it"
        if terms.allowed is not None and name not in terms.allowed:
            return f"is not allowed by {_rules(terms.allowed_by)}"
        for other, rule in terms.apart.items():
            placed = self.placed.get(other)
            if placed is not None and placed.is_active and name in (placed.node, placed.target):
                return f"has {other}, which rule {rule} keeps apart from it"
        return ""

    def _fit(self, query: Query, terms: Terms, home: str) -> list[NodeName]:
        """Nodes of which neither `_refusal` nor `_lacks_room` says anything. The busiest lines of placement."""
        blocked: set[str] = set()
        for other in terms.apart:
            if (placed := self.placed.get(other)) is not None and placed.is_active:
                blocked |= {placed.node, placed.target}
        candidates: Iterable[NodeName] = self._ready if terms.allowed is None else terms.allowed & self._ready
        if home:
            candidates = {NodeName(home)} & set(candidates)
        barred, failed = query.barred, query.failed
        fit = [name for name in candidates if name not in blocked and name not in failed and name not in barred]
        if len(terms.group) == 1 and not (query.is_new and self.situation.policy.reserve_nodes):
            needed, tallies, limits = self._most_bytes(query.sid), self._tallies, self._limits
            roomy = [name for name in fit if tallies[name].reserved_bytes + needed <= limits[name]]
            if len(roomy) == len(fit):
                return fit
        return [name for name in fit if not self._lacks_room(name, query, terms)]

    def _lacks_room(self, name: NodeName, query: Query, terms: Terms) -> str:
        """Memory for it and for those that must follow it. Where it runs already it needs no more."""
        policy = self.situation.policy
        if policy.memory_limit <= 0 or (name == query.current and not query.is_idle):
            return ""
        needed, free = self._most_bytes(query.sid), self.free_bytes(name)
        followers = 0
        for sid in terms.group if len(terms.group) > 1 else ():
            if sid != query.sid and self._follows(sid, name):
                # One that leaves this node or comes to it has its memory there still.
                needed += 0 if self._is_on(sid, name) else self._most_bytes(sid)
                followers += 1
        if needed > free and not (self._is_on(query.sid, name) and needed - self._most_bytes(query.sid) <= free):
            whom = f"the {followers + 1} guests that run together" if followers else "it"
            return f"has no room: {whom} may use {needed / _GIB:.1f} GiB, {max(0.0, free) / _GIB:.1f} GiB are free"
        if query.is_new and policy.reserve_nodes and not self._keeps_reserve(self._most_bytes(query.sid)):
            return f"would leave no room for the loss of {policy.reserve_nodes} nodes"
        return ""

    def _keeps_reserve(self, more_bytes: float) -> bool:
        """Whether all guests and one more fit when the largest nodes are gone."""
        policy = self.situation.policy
        capacities = sorted(self.situation.nodes[name].capacity.memory_bytes for name in self._ready)
        left = sum(capacities[: max(0, len(capacities) - policy.reserve_nodes)]) * policy.memory_limit
        used = sum(self._tallies[name].reserved_bytes for name in self._ready)
        return used + more_bytes <= left

    def _home(self, query: Query, terms: Terms) -> tuple[str, str]:
        """Where it must be because of those that it must run with, and the reason; empty when nothing binds it.

        A partner binds where it may stay itself. All members of a group come to the same answer, so they do not chase
        each other: most members, least cost, name.
        """
        if len(terms.group) == 1:
            return "", ""
        there: dict[NodeName, list[Sid]] = {}
        for sid in terms.group:
            place = self._destination(sid) if sid != query.sid else query.current
            if not place or (sid == query.sid and query.preference is not Preference.none):
                continue
            name = NodeName(place)
            facts = self.situation.nodes.get(name)
            if facts is None or facts.unready or (terms.allowed is not None and name not in terms.allowed):
                continue
            if not any(self._destination(other) == name for other in terms.apart):
                there.setdefault(name, []).append(sid)
        if not there:
            return "", ""
        home = min(there, key=lambda name: (-len(there[name]), self._cost(name, terms), name))
        partners = ", ".join(sid for sid in there[home] if sid != query.sid) or "it"
        return home, f"is not {home}, where {partners} runs; {_rules(terms.together_by)} keeps them together"

    # What is better

    def _rank(self, fit: Iterable[NodeName], query: Query, terms: Terms) -> list[tuple[int, float, bool, NodeName]]:
        """Best first: cost, score, not where it is, name."""
        own = self.placed.get(query.sid)
        if own is not None:
            self._count(query.sid, own, -1)
        use = self.demand(query.sid).expected(self._mode)
        ranked = [(self._cost(name, terms), self._score(name, use), name != query.current, name) for name in fit]
        if own is not None:
            self._count(query.sid, own, 1)
        ranked.sort()
        return ranked

    def _score(self, name: NodeName, use: Use) -> float:
        tally = self._tallies[name]
        if self._mode is Mode.basic:
            return float(tally.guests)
        return added_strain(tally, self.situation.nodes[name].capacity, use)

    def _cost(self, name: NodeName, terms: Terms) -> int:
        """The weight of unfulfilled wishes."""
        cost = 0
        for wish in terms.wishes:
            cost += wish.cost(name)
        for affinity in terms.affinities:
            is_positive = affinity.affinity is Affinity.positive
            for partner in affinity.partners:
                place = self._destination(partner)
                if place and (place == name) is not is_positive:
                    cost += affinity.weight
        return cost

    def _unfulfilled(self, name: NodeName, terms: Terms) -> str:
        """The first of the wishes that would not be fulfilled there, in words."""
        for wish in terms.wishes:
            if wish.cost(name):
                return f"rule {wish.rule} would rather have it elsewhere"
        for affinity in terms.affinities:
            is_positive = affinity.affinity is Affinity.positive
            for partner in affinity.partners:
                place = self._destination(partner)
                if place and (place == name) is not is_positive:
                    relation = "is on another node" if is_positive else "is there too"
                    return f"{partner} {relation}, against the wish {affinity.rule}"
        return ""

    def _why(self, ranked: list[tuple[int, float, bool, NodeName]], terms: Terms) -> str:
        cost, score, _, node = ranked[0]
        if len(ranked) == 1:
            return f"{node} is the only node that will do"
        if ranked[1][0] > cost:
            return f"{node} suits the rules best: of {ranked[1][3]}, {self._unfulfilled(ranked[1][3], terms)}"
        if self._mode is Mode.basic:
            return f"{node} has the fewest guests ({score:.0f})"
        return f"{node} is strained least by it ({score:.3g})"

    # Sums

    def _destination(self, sid: Sid) -> str:
        placed = self.placed.get(sid)
        return placed.destination if placed is not None and placed.is_active else ""

    def _follows(self, sid: Sid, name: NodeName) -> bool:
        """Whether it would have to come as well if the rest of its group were there."""
        placed = self.placed.get(sid)
        if placed is None:
            return False
        return placed.destination != name if placed.is_active else not placed.destination

    def _is_on(self, sid: Sid, node: NodeName) -> bool:
        placed = self.placed.get(sid)
        return placed is not None and placed.is_active and node in (placed.node, placed.target)

    def _most_bytes(self, sid: Sid) -> float:
        return self.demand(sid).most.memory_bytes

    def _bases(self) -> dict[NodeName, _Tally]:
        """What is there besides the resources: guests without HA, and in the dynamic mode whatever was measured on top."""
        measured: dict[str, Use] = {}
        if self._mode is Mode.dynamic:
            for sid, placed in self.placed.items():
                if placed.is_active and (use := self.demand(sid).measured) is not None:
                    measured[placed.node] = measured.get(placed.node, NOTHING) + use
        tallies = {}
        for name, facts in self.situation.nodes.items():
            use = facts.other_use
            if self._mode is Mode.dynamic and facts.measured is not None:
                use = facts.measured - measured.get(name, NOTHING)
            tallies[name] = _Tally(facts.other_guests, use.cores, use.memory_bytes, facts.other_use.memory_bytes)
        return tallies

    def _count(self, sid: Sid, placed: Placed, sign: int) -> None:
        """Memory is reserved at both ends of a move, and counts double on no node."""
        if not placed.is_active:
            return
        demand = self.demand(sid)
        destination = placed.target or placed.node
        if (tally := self._tallies.get(NodeName(destination))) is not None:
            use = demand.expected(self._mode)
            tally.guests += sign
            tally.cores += sign * use.cores
            tally.memory_bytes += sign * use.memory_bytes
            tally.reserved_bytes += sign * demand.most.memory_bytes
        if destination != placed.node and (source := self._tallies.get(NodeName(placed.node))) is not None:
            source.reserved_bytes += sign * demand.most.memory_bytes


def _rules(names: tuple[str, ...]) -> str:
    return f"rule {names[0]}" if len(names) == 1 else f"rules {', '.join(names)}"
