"""Moves that even out the load of the nodes, a few at a time, each with its reason. Pure.

Balancing begins when the imbalance has stayed above `threshold` for `hold_s`, goes on until it is below four fifths of that,
and rests then. Each move lowers the sum of the nodes' strains (`ha.load`): it burdens the new node less than it relieves the
old one, by `margin` at least. It breaks no strict rule and fulfils no fewer wishes. So the same guest cannot go to and fro,
and the moves come to an end. No more than `max_moves` are under way at once, and a guest that was moved rests for `cooldown_s`.

What must stay out: how a guest is moved.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kvorum.ids import NodeName, Sid

from .load import Mode, Use, added_strain, imbalance, load, strain
from .placement import Board, Placed, Preference, Query, Situation

# Of the threshold: below it balancing has reached its end.
_CALM = 0.8
# Guests are taken from this many of the fullest nodes, and go to one of so many of the emptiest.
_SOURCES = 4
_TARGETS = 20


@dataclass(frozen=True, slots=True)
class Budget:
    """`crs:` of datacenter.cfg; `threshold` and `margin` between 0 and 1."""

    is_enabled: bool = True
    threshold: float = 0.3
    margin: float = 0.1
    hold_s: float = 30.0
    cooldown_s: float = 300.0
    max_moves: int = 2


@dataclass(frozen=True, slots=True)
class History:
    """What balancing remembers from round to round. Times on the clock of `now`."""

    # Since when the imbalance is above the threshold; None when it is not.
    over_since: float | None = None
    is_balancing: bool = False
    moved_at: Mapping[Sid, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Move:
    """`group`: those that must run together go together, `sid` first."""

    sid: Sid
    group: tuple[Sid, ...]
    source: NodeName
    target: NodeName
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    moves: tuple[Move, ...]
    history: History
    imbalance: float
    # Why there are no (more) moves, as a sentence.
    why: str = ""


def balance(situation: Situation, budget: Budget, now: float, history: History, movable: Iterable[Sid]) -> Plan:
    """`movable` are those that run undisturbed: started, answered, no order or operator's wish under way."""
    moved_at = {sid: at for sid, at in history.moved_at.items() if now - at < budget.cooldown_s}
    board = Board(situation)
    ready = [name for name, facts in situation.nodes.items() if not facts.unready]
    if not budget.is_enabled or situation.policy.mode is Mode.basic or len(ready) < 2:
        return Plan((), History(moved_at=moved_at), 0.0, "balancing is off")
    found = _imbalance(board, ready)
    limit = budget.threshold * (_CALM if history.is_balancing else 1.0)
    if found <= limit:
        return Plan((), History(moved_at=moved_at), found, f"the imbalance of {found:.0%} is within its limit")
    since = history.over_since if history.over_since is not None else now
    if not history.is_balancing and now - since < budget.hold_s:
        return Plan((), History(since, False, moved_at), found, f"the imbalance of {found:.0%} has not lasted yet")
    moves: list[Move] = []
    under_way = sum(1 for placed in situation.placed.values() if placed.target and placed.target != placed.node)
    why = f"{budget.max_moves} moves are under way"
    candidates = {sid for sid in movable if sid not in moved_at}
    while under_way < budget.max_moves:
        move = _best_move(board, ready, candidates, budget)
        if move is None:
            why = f"no move would lower the imbalance of {found:.0%} enough"
            break
        moves.append(move)
        for sid in move.group:
            board.put(sid, Placed(move.source, move.target))
            moved_at[sid] = now
        candidates.difference_update(move.group)
        under_way += len(move.group)
    return Plan(tuple(moves), History(since, True, moved_at), found, why)


def _imbalance(board: Board, ready: Iterable[NodeName]) -> float:
    return imbalance([load(board.use(name), board.situation.nodes[name].capacity) for name in ready])


def _best_move(board: Board, ready: list[NodeName], candidates: set[Sid], budget: Budget) -> Move | None:
    """The move that lowers the strain most, of those that lower it by the margin; the first by name of equal ones."""
    capacity = {name: board.situation.nodes[name].capacity for name in ready}
    loads = {name: load(board.use(name), capacity[name]) for name in ready}
    mean = sum(loads.values()) / len(loads)
    sources = [name for name in sorted(ready, key=lambda name: (-loads[name], name))[:_SOURCES] if loads[name] > mean]
    targets = sorted(ready, key=lambda name: (loads[name], name))[:_TARGETS]
    used = {name: board.use(name) for name in ready}
    best: tuple[float, Sid] | None = None
    chosen: Move | None = None
    for sid in sorted(candidates):
        placed = board.placed.get(sid)
        terms = board.situation.rules.terms(sid)
        if (
            placed is None
            or not placed.is_active
            or placed.target
            or placed.node not in sources
            or sid != terms.group[0]
        ):
            continue
        source = NodeName(placed.node)
        group = tuple(one for one in terms.group if (p := board.placed.get(one)) is not None and p.is_active)
        if any(one not in candidates or board.placed[one].destination != source for one in group):
            continue
        use = Use()
        for one in group:
            use = use + board.demand(one).expected(board.situation.policy.mode)
        relief = strain(used[source], capacity[source]) - strain(used[source] - use, capacity[source])
        for target in targets:
            gain = relief - added_strain(used[target], capacity[target], use)
            if (
                target == source
                or gain < max(budget.margin * relief, 1e-9)
                or (best is not None and (-gain, sid) >= best)
            ):
                continue
            if board.may_move(group, target):
                best = (-gain, sid)
                why = f"{source} is at {loads[source]:.0%} and {target} at {loads[target]:.0%}; the mean is {mean:.0%}"
                chosen = Move(sid, group, source, target, why)
    return chosen


def start_query(sid: Sid, current: str) -> Query:
    """For `ha-rebalance-on-start`: the best node, the present one among equals."""
    return Query(sid, Preference.best_score, current)
