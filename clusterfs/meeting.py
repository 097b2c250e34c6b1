"""When a holder had better renew its lease next: together with all others, so that one write to the disks carries them. Pure.

Every replica applies the renewals of all holders, at nearly the same moments, and so each of them can tell its own holder how to
get into step, without a word to the others. All follow the holder that comes first by name; they can only come earlier, for
nobody may renew later than its interval, and so that one follows whoever is a little ahead of it. What remains of a few
milliseconds is `raft.company`'s.

It is a hint. A holder that does not follow it costs a write to the disk, nothing else.
"""

from collections.abc import Mapping

# What one group of the log holds is applied within this, and two groups of nothing but renewals are further apart.
TOGETHER_S = 0.05
MAX_INTERVAL_S = 60.0


def next_in_s(own: str, ages_s: Mapping[str, float], interval_s: float) -> float:
    """How long after the last renewal of `own` the next one had better be sent: more than 0, at most its interval.

    `ages_s`: since this replica applied the last renewal, of each lease that is trusted by its holder, `own` among them.
    """
    assert 0 < interval_s <= MAX_INTERVAL_S, interval_s
    # By how much each is ahead of ours, in the round of one interval.
    ahead_s = {uid: (age_s - ages_s[own]) % interval_s for uid, age_s in ages_s.items() if uid != own}
    first = min(ages_s)
    if own == first:
        little = [by_s for by_s in ahead_s.values() if TOGETHER_S < by_s <= interval_s / 4]
        return interval_s - max(little, default=0.0)
    by_s = ahead_s[first]
    # In step with it already, or a little ahead of it, and then it comes to us.
    if by_s <= TOGETHER_S or by_s >= interval_s * 3 / 4:
        return interval_s
    return interval_s - by_s
