"""How long to wait before a daemon that ended is started again. Pure; standard library only."""

FIRST_S = 0.2
LIMIT_S = 20.0
# A run this long counts as healthy: the next failure starts over with the shortest wait.
HEALTHY_S = 10.0


def next_delay(previous_s: float, *, ran_s: float) -> float:
    """Doubles with each quick failure up to the limit, so that a broken daemon costs next to nothing."""
    if previous_s <= 0 or ran_s >= HEALTHY_S:
        return FIRST_S
    return min(previous_s * 2, LIMIT_S)
