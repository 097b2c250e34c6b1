"""The session's thread beside a program that asks again and again, and away from it as soon as that does harm."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from clusterfs import nearness as module
from clusterfs.nearness import LOOK_EVERY, Nearness, running

MANY = os.cpu_count() or 1


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads run on the machine; of the real one only the tests that ask for it want to know."""
    many = [1]
    monkeypatch.setattr(module, "running", lambda: many[0])
    return many


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def nearness(clock: list[float]) -> Iterator[Nearness]:
    made = Nearness(clock=lambda: clock[0])
    made.begin()
    yield made
    made.leave()


def is_beside() -> bool:
    return os.sched_getscheduler(0) == os.SCHED_IDLE and len(os.sched_getaffinity(0)) == 1


def test_it_is_on_the_programs_processor_and_gives_way_to_it(nearness: Nearness) -> None:
    everywhere = os.sched_getaffinity(0)
    nearness.look(threading.get_native_id())
    assert nearness.is_near == is_beside() == (len(everywhere) > 1)
    nearness.leave()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert os.sched_getaffinity(0) == everywhere


def test_a_program_that_has_ended_is_not_followed(nearness: Nearness) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    nearness.look(ended.pid)
    assert not nearness.is_near
    assert not is_beside()


def test_a_request_that_comes_late_ends_it_for_a_while_and_for_longer_each_time(
    nearness: Nearness, clock: list[float]
) -> None:
    pauses = []
    for _time in range(3):
        while not nearness.is_near and MANY > 1:
            nearness.look(threading.get_native_id())
            clock[0] += 0.001
        began = clock[0]
        assert not nearness.is_late()
        clock[0] += 0.003
        assert nearness.is_late() or MANY == 1
        assert not is_beside()
        left = clock[0]
        while not nearness.is_near and MANY > 1:
            clock[0] += 0.001
            nearness.look(threading.get_native_id())
        pauses.append(clock[0] - left)
        assert left > began
    assert pauses == sorted(pauses)
    assert pauses[-1] > 3 * pauses[0] or MANY == 1


def test_it_does_not_begin_where_more_is_to_run_than_there_are_processors(nearness: Nearness, runs: list[int]) -> None:
    runs[0] = len(os.sched_getaffinity(0)) + 1
    nearness.look(threading.get_native_id())
    assert not nearness.is_near
    runs[0] -= 1
    nearness.look(threading.get_native_id())
    assert nearness.is_near == (MANY > 1)


def test_what_runs_is_counted_this_test_included() -> None:
    assert running() >= 1


def test_nobody_asking_ends_it(nearness: Nearness) -> None:
    nearness.look(threading.get_native_id())
    nearness.leave_if_idle()
    assert nearness.is_near == (MANY > 1)
    nearness.leave_if_idle()
    assert not nearness.is_near
    assert not is_beside()


def test_reading_one_file_again_and_again_brings_the_session_there_and_a_pause_sends_it_away(store: Any) -> None:
    """Also: what the kernel says at each close in nobody's name does not break the row."""
    (store.root / "read").write_bytes(b"content")
    session = next(thread for thread in threading.enumerate() if thread.name == "fuse")
    assert session.native_id is not None
    was_near = False
    for _read in range(200 * LOOK_EVERY):
        assert (store.root / "read").read_bytes() == b"content"
        was_near = was_near or os.sched_getscheduler(session.native_id) == os.SCHED_IDLE
        if was_near:
            break
    assert was_near == (MANY > 1)
    for _wait in range(2000):
        if os.sched_getscheduler(session.native_id) == os.SCHED_OTHER:
            break
        time.sleep(0.005)
    assert os.sched_getscheduler(session.native_id) == os.SCHED_OTHER
