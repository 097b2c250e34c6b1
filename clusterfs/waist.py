"""What the mount needs of the daemon, and all that it needs: so that tests mount a store without one.

Functions only; who fills them is `clusterfs.running`, and the tests' own fixture.
"""

from collections.abc import Callable

from clusterfs.commands import Op
from clusterfs.following import EventsAfter
from clusterfs.outcomes import Result
from clusterfs.state import State
from clusterfs.underway import NOTHING, UnderWay


class Store:
    """The narrow waist; everything here may be called by any thread."""

    def __init__(
        self,
        *,
        state: Callable[[], State],
        propose: Callable[[Op, float], Result],
        is_quorate: Callable[[], bool],
        is_disk_full: Callable[[], bool],
        lock_age_s: Callable[[str, int], float],
        specials: dict[str, Callable[[], bytes]],
        links: dict[str, str],
        index: Callable[[], int],
        events_after: EventsAfter,
        set_debug: Callable[[bool], None] = lambda _on: None,
        node_uid: str = "",
        under_way: UnderWay = NOTHING,
    ) -> None:
        self.state = state
        self.propose = propose
        self.is_quorate = is_quorate
        self.is_disk_full = is_disk_full
        self.lock_age_s = lock_age_s
        self.specials = specials
        self.links = links
        self.index = index
        self.events_after = events_after
        self.set_debug = set_debug
        self.node_uid = node_uid
        self.under_way = under_way
