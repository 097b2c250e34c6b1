"""Why a guest is where it is, and why on no other node: the choice asked once more, and told. Pure.

What would become of guests if nodes died is for the manager's own rounds to say (`ha.foresight`).
"""

from dataclasses import dataclass, replace

from ha.rules import Affinity, Terms
from kvorum.ids import Sid

from .board import Board
from .choice import Choice
from .situation import Placed, Preference, Query, Situation


@dataclass(frozen=True, slots=True)
class Explanation:
    sid: Sid
    place: Placed | None
    # What the rules ask of it, a sentence each.
    asks: tuple[str, ...]
    stays: Choice

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
        return tuple(lines)


def explain(query: Query, situation: Situation) -> Explanation:
    place = situation.placed.get(query.sid)
    asks = describe(situation.rules.terms(query.sid))
    stays = Board(situation).choose(query, is_explained=True)
    if query.preference is Preference.none and stays.node and not stays.ranked:
        # Staying was decided without a look at the others; the reader wants one.
        others = Board(situation).choose(replace(query, preference=Preference.best_score), is_explained=True)
        stays = replace(stays, ranked=others.ranked, refused=others.refused)
    return Explanation(query.sid, place, asks, stays)


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
