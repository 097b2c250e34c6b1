"""Why a guest is where it is, and what would become of guests if nodes died now: the same choices, asked ahead of time. Pure.

What must stay out: when. How long a fence takes is the leases' matter (`ha.leases`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ha.rules import Affinity, Terms
from kvorum.ids import NodeName, Sid

from .board import Board
from .choice import Choice
from .situation import Placed, Preference, Query, Situation


@dataclass(frozen=True, slots=True)
class Explanation:
    """`stays` is the answer for the running guest, `if_lost` the one if its node died now; None for one that runs nowhere."""

    sid: Sid
    place: Placed | None
    # What the rules ask of it, a sentence each.
    asks: tuple[str, ...]
    stays: Choice
    if_lost: Choice | None

    def lines(self) -> tuple[str, ...]:
        """In plain words, for the command line."""
        where = (
            f"{self.sid} runs nowhere"
            if self.place is None or not self.place.is_active
            else f"{self.sid}: {self.stays.why}"
        )
        lines = [where, *(f"  {ask}" for ask in self.asks)]
        nodes = [one.node for one in self.stays.ranked] + sorted(self.stays.refused)
        lines += [f"  {node} {why}" for node in nodes if (why := self.stays.why_not(node))]
        if self.place is not None and self.if_lost is not None:
            lines.append(f"  if {self.place.destination} dies: {self.if_lost.why}")
        return tuple(lines)


def explain(query: Query, situation: Situation) -> Explanation:
    place = situation.placed.get(query.sid)
    asks = describe(situation.rules.terms(query.sid))
    stays = Board(situation).choose(query, is_explained=True)
    if query.preference is Preference.none and stays.node and not stays.ranked:
        # Staying was decided without a look at the others; the reader wants one.
        others = Board(situation).choose(replace(query, preference=Preference.best_score), is_explained=True)
        stays = replace(stays, ranked=others.ranked, refused=others.refused)
    lost = None
    if place is not None and place.is_active:
        lost = if_lost([NodeName(place.destination)], situation).get(query.sid)
    return Explanation(query.sid, place, asks, stays, lost)


def if_lost(nodes: Collection[NodeName], situation: Situation, *, is_explained: bool = False) -> Mapping[Sid, Choice]:
    """What each guest of these nodes would be told if they all died now, in the order of recovery."""
    facts = {
        name: replace(fact, unready="is dead") if name in nodes else fact for name, fact in situation.nodes.items()
    }
    board = Board(replace(situation, nodes=facts))
    lost = [sid for sid, placed in situation.placed.items() if placed.is_active and placed.destination in nodes]
    choices: dict[Sid, Choice] = {}
    for sid in recovery_order(lost, situation):
        choice = board.choose(Query(sid), is_explained=is_explained)
        choices[sid] = choice
        if choice.node:
            board.put(sid, Placed(situation.placed[sid].destination, choice.node))
    return choices


def recovery_order(sids: Collection[Sid], situation: Situation) -> list[Sid]:
    """Those with a start order first, lowest first; then the larger ones, which find room while there is some."""

    def key(sid: Sid) -> tuple[float, float, Sid]:
        demand = situation.demands.get(sid)
        if demand is None:
            return float("inf"), 0.0, sid
        order = float("inf") if demand.order is None else float(demand.order)
        return order, -demand.most.memory_bytes, sid

    return sorted(sids, key=key)


def describe(terms: Terms) -> tuple[str, ...]:
    """What the rules ask, a sentence each."""
    found = []
    if len(terms.group) > 1:
        found.append(f"must run where {', '.join(terms.group)} run ({', '.join(terms.together_by)})")
    if terms.allowed is not None:
        found.append(f"may run on {', '.join(sorted(terms.allowed)) or 'no node'} only ({', '.join(terms.allowed_by)})")
    by_rule: dict[str, list[Sid]] = {}
    for sid, rule in terms.apart.items():
        by_rule.setdefault(rule, []).append(sid)
    found += [f"must not run where {', '.join(sids)} run ({rule})" for rule, sids in by_rule.items()]
    for wish in terms.wishes:
        best = ", ".join(sorted(node for node, steps in wish.steps.items() if not steps))
        found.append(f"would rather run on {best} ({wish.rule}, weight {wish.weight})")
    for affinity in terms.affinities:
        relation = "with" if affinity.affinity is Affinity.positive else "apart from"
        partners = ", ".join(affinity.partners)
        found.append(f"would rather run {relation} {partners} ({affinity.rule}, weight {affinity.weight})")
    return tuple(found)
