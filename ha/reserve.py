"""Whether the cluster can do without some of its nodes: whichever they are, all their guests are put on the others. Pure.

The choices are those of `ha.placement`, in the order in which the manager recovers, so a guest that finds no place here finds
none when it happens. It is a look at room and rules only, a thousand times as fast as `ha.foresight`, which plays the whole
manager: time, fences and start-orders are not asked.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

from kvorum.ids import NodeName, Sid

from .manager.placing import Placing
from .manager.round import in_order
from .placement import Board, Placed, Query
from .view import View

# Sets of nodes that are looked at; all pairs of 31 nodes.
MAX_SETS = 500


@dataclass(frozen=True, slots=True)
class Homeless:
    sid: Sid
    node: NodeName
    why: str


@dataclass(frozen=True, slots=True)
class Loss:
    """Of these nodes together; `homeless` would start nowhere. Without a majority nobody is asked: none would."""

    nodes: tuple[NodeName, ...]
    homeless: tuple[Homeless, ...] = ()
    keeps_quorum: bool = True


@dataclass(frozen=True, slots=True)
class Survey:
    """`losses` are those that the cluster does not bear, the worst first; `asked`, of `every`, are the sets looked at."""

    size: int
    asked: frozenset[tuple[NodeName, ...]]
    every: int
    losses: tuple[Loss, ...]

    @property
    def looked_at(self) -> int:
        return len(self.asked)

    @property
    def is_survived(self) -> bool:
        return not self.losses and self.looked_at == self.every


def survey(
    view: View, size: int, keeps_quorum: Callable[[frozenset[NodeName]], bool], *, new: Collection[Sid] = ()
) -> Survey:
    """The loss of any `size` nodes that take guests now. `new`: resources that no node guards yet, but will.

    Where there are too many sets, those of the fullest nodes are looked at.
    """
    placing = Placing(view)
    situation = placing.situation
    held: dict[NodeName, list[tuple[int, Sid]]] = {name: [] for name in view.nodes}
    order = in_order(view.resources or {}, view.status.service_status, view.rules.orders)
    for rank, sid in enumerate(order):
        placed = situation.placed.get(sid)
        if placed is not None and placed.is_active and placed.node:
            held.setdefault(NodeName(placed.node), []).append((rank, sid))
    board = Board(situation)
    ready = [name for name, facts in situation.nodes.items() if not facts.unready]
    ready.sort(key=lambda name: (-board.reserved_bytes(name), -len(held[name]), name))
    every = comb(len(ready), size)
    losses, asked = [], set()
    for nodes in islice(combinations(ready, size), MAX_SETS):
        asked.add(tuple(sorted(nodes)))
        if not keeps_quorum(frozenset(nodes)):
            losses.append(Loss(tuple(sorted(nodes)), keeps_quorum=False))
            continue
        gone = sorted((rank, sid, name) for name in nodes for rank, sid in held[name])
        barred = {sid: {} if sid in new else placing.barred(sid) for _, sid, _ in gone}
        if homeless := tuple(_homeless(board.without(nodes), [one[1:] for one in gone], barred)):
            losses.append(Loss(tuple(sorted(nodes)), homeless))
    losses.sort(key=lambda loss: (loss.keeps_quorum, -len(loss.homeless), loss.nodes))
    return Survey(size, frozenset(asked), every, tuple(losses))


def worse(before: Survey, after: Survey) -> Sequence[Loss]:
    """Losses that were borne, or borne better, before. Of sets that were not looked at both times nothing is known."""
    known = {loss.nodes: len(loss.homeless) for loss in before.losses}
    return [
        loss
        for loss in after.losses
        if loss.keeps_quorum and loss.nodes in before.asked and len(loss.homeless) > known.get(loss.nodes, 0)
    ]


def _homeless(
    board: Board, gone: Sequence[tuple[Sid, NodeName]], barred: Mapping[Sid, Mapping[NodeName, str]]
) -> Iterator[Homeless]:
    """As the manager has it: all of them are free first, then they are put one after the other."""
    for sid, _ in gone:
        board.put(sid, Placed("", is_active=False))
    for sid, name in gone:
        choice = board.choose(Query(sid, barred=barred[sid]))
        if choice.node:
            board.put(sid, Placed(choice.node))
        else:
            yield Homeless(sid, name, choice.why)
