"""Runs last, as its folder's name sorts last: whatever the tests before it made is gone."""

import time

from leftovers import Traces, observe


def test_tests_leave_no_namespace_mount_loop_device_control_group_or_process(traces_before: Traces) -> None:
    deadline = time.monotonic() + 10  # processes that were killed a moment ago may still be ending
    while (left := observe().added_since(traces_before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
