"""After a time without a majority: nobody could renew a lease then, so that a node's silence says nothing about it yet. Pure but
for what it remembers of its last look.

When the network is whole again, the first leader finds leases of which all are older than T, and its first round would fence
(and switch off) nodes that are up and about to renew. An outage is known by this: the own replica had no majority, and no lease
at all was fresh any more; had there been a majority elsewhere, somebody would have renewed. Then nobody's silence counts for as
long as any holder sits out a lost renewal, A. When a leader dies, the others' leases are still fresh at the election, and
nothing is waited for. A fence that comes later than it might is never wrong.

Nor does a replica know how old leases are that it finds at its start, and counts from there. After a power cut of all nodes
they look fresh, though their holders may not be back. Those that a manager has not seen renewed are unproven: guests there may
be down.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from .leases import Lease, is_fresh
from .view import Node, View


@dataclass(slots=True)
class Outage:
    """As one node sees it. Times on the boot-time clock."""

    _is_cut: bool = True
    _was_silent: bool = False
    _until: float = 0.0
    # By member, as this manager found them: incarnation and renewal.
    _found: dict[str, tuple[int, int]] = field(default_factory=dict)

    def look(self, leases: Iterable[Lease], *, is_quorate: bool, now: float) -> None:
        """In every round, whether or not this node leads: it may be the next to."""
        if not self.is_of_use(is_quorate=is_quorate):
            return
        held = [lease for lease in leases if _is_in_force(lease)]
        is_silent = bool(held) and not any(is_fresh(lease) for lease in held)
        # Others' renewals may come in before the own replica knows that it has a majority again.
        self._was_silent = self._was_silent or is_silent
        if is_quorate and self._was_silent:
            self._until = now + _longest_s(held)
        self._is_cut, self._was_silent = not is_quorate, self._was_silent and not is_quorate

    def is_of_use(self, *, is_quorate: bool) -> bool:
        """Whether a look would change anything."""
        return self._is_cut or not is_quorate

    def is_excusing(self, now: float) -> bool:
        return now < self._until

    def excuse(self, view: View, now: float) -> View:
        """The view, in which leases that are not fresh are excused for a while after an outage, and all are unproven until they
        are renewed."""
        nodes = {name: self._proven(node) for name, node in view.nodes.items()}
        if self.is_excusing(now):
            nodes = {name: _excused(node) for name, node in nodes.items()}
        return replace(view, nodes=nodes)

    def _proven(self, node: Node) -> Node:
        if node.lease is None:
            return node
        seen = node.lease.incarnation, node.lease.renewal
        if self._found.setdefault(node.uid, seen) != seen:
            return node
        return replace(node, lease=replace(node.lease, is_unproven=True))


def _longest_s(held: Collection[Lease]) -> float:
    """Whoever lives has renewed by then."""
    return max((lease.terms.pause_after_s for lease in held), default=0.0)


def _excused(node: Node) -> Node:
    lease = node.lease
    if lease is None or not _is_in_force(lease) or is_fresh(lease):
        return node
    return replace(node, lease=replace(lease, is_excused=True))


def _is_in_force(lease: Lease) -> bool:
    return not lease.is_fenced and not lease.is_resting
