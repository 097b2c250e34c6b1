"""Waits between the starts of a daemon that keeps ending."""

from lab.backoff import FIRST_S, LIMIT_S, next_delay


def test_a_daemon_that_dies_at_once_waits_longer_each_time_up_to_the_limit() -> None:
    delays, delay = [], 0.0
    for _ in range(12):
        delay = next_delay(delay, ran_s=0.1)
        delays.append(delay)
    assert delays[0] == FIRST_S
    assert delays == sorted(delays)
    assert delays[-1] == LIMIT_S


def test_a_daemon_that_ran_well_starts_again_quickly() -> None:
    assert next_delay(LIMIT_S, ran_s=3600) == FIRST_S
