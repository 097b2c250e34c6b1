"""A look at a name whose change is under way waits for that change, for a moment.

A writer's close returns when its own node has applied the change. On another node the entry lies in the log by then, or nearly
so, but that it is committed comes with the leader's next word, and to apply it takes a processor: half a millisecond, in which
who looks there at once would see what was before. So a look at the path of an entry that is in this node's log and not applied
yet waits until it is. Nothing of consensus depends on it, and no reader on a writer's fate: it ends after PATIENCE_S, and what
was not applied by then (there is no quorum) holds nobody up again.
"""

from collections.abc import Callable

import msgspec

from clusterfs.tree import Parts, join

# An entry is applied within a millisecond or two on a machine that is not crowded. In seconds.
PATIENCE_S = 0.01


class UnderWay:
    """`is_behind` and `unapplied_with` are the replica's: whether the log holds more than is applied, and an index by which
    all is applied that is not and holds some bytes (0: nothing). `wait_applied` returns False when time is up."""

    def __init__(
        self,
        *,
        is_behind: Callable[[], bool],
        unapplied_with: Callable[[bytes], int],
        wait_applied: Callable[[int, float], bool],
    ) -> None:
        self.is_behind = is_behind
        self._unapplied_with = unapplied_with
        self._wait_applied = wait_applied
        self._in_vain = 0

    def index_for(self, parts: Parts) -> int:
        """What to wait for before `parts` is looked at; 0, nearly always, for nothing."""
        if not self.is_behind():
            return 0
        # As a command has it: a path is a string with its length before it, so that none is found in a longer one.
        index = self._unapplied_with(msgspec.msgpack.encode(join(parts)))
        return index if index > self._in_vain else 0

    def wait(self, index: int) -> None:
        """Not for the session's thread."""
        if not self._wait_applied(index, PATIENCE_S):
            self._in_vain = max(self._in_vain, index)


# Of a store that applies whatever it holds at once.
NOTHING = UnderWay(
    is_behind=lambda: False, unapplied_with=lambda _needle: 0, wait_applied=lambda _index, _timeout_s: True
)
