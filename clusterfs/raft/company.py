"""Entries that may wait a moment for others of their kind, so that one write to the disks carries all of them. Pure.

Holders renew their leases at the same moment (`clusterfs.meeting`), but what they send takes a few milliseconds more or less to
come here. A renewal that went into the log at once would be on each node's disk alone, and so would the next. Whatever else
comes takes those that wait along, and is never kept waiting by them.
"""

from collections.abc import Sequence

# From the first one on. Keepers send at the moment that is due, and what they send is here within 20 ms on a crowded machine too;
# the rest is for their clocks, which part by 0.15 ms in a round: the longer the window, the rarer is one too far away. A call has
# 0.8 s at least, so nobody gives up for it.
WINDOW_S = 0.1


def left_s(may_wait: Sequence[bool], since: float, now: float) -> float:
    """How long what waits for its place in the log stays where it is; 0: all of it goes now.

    `may_wait`: of each of them; `since`: when the first was seen.
    """
    if not may_wait or not all(may_wait):
        return 0.0
    # A clock that stands still or was set back must keep nobody waiting for longer.
    return min(max(0.0, since + WINDOW_S - now), WINDOW_S)
