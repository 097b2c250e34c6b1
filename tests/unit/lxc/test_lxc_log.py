"""What liblxc says, as it said it."""

import signal

from agent.guests.lxc_log import first_error, signal_number

RECORDED = """\
lxc-start 101 20261123033840.227 WARN     cgfsng - ../src/lxc/cgroups/cgfsng.c:__cgroup_tree_create:748 - File exists - Creating the final cgroup 10(kvorum-lxc-101) failed
lxc-start 101 20261123033840.227 ERROR    cgfsng - ../src/lxc/cgroups/cgfsng.c:cgfsng_monitor_create:1388 - Numerical result out of range - Failed to create monitor cgroup
lxc-start 101 20261123033840.227 ERROR    start - ../src/lxc/start.c:__lxc_start:2042 - Failed to create monitor cgroup
lxc-start 101 20261123033840.227 ERROR    lxccontainer - ../src/lxc/lxccontainer.c:wait_on_daemonized_start:878 - Received container state "ABORTING" instead of "RUNNING"
lxc-start 101 20261123033840.228 ERROR    lxc_start - ../src/lxc/tools/lxc_start.c:main:306 - The container failed to start
"""  # noqa: E501


def test_the_cause_is_the_first_error_that_is_not_a_report_of_another() -> None:
    assert first_error(RECORDED) == "Numerical result out of range - Failed to create monitor cgroup"
    only_reports = "\n".join(RECORDED.splitlines()[3:])
    assert first_error(only_reports) == 'Received container state "ABORTING" instead of "RUNNING"'
    assert first_error("") == first_error(RECORDED.splitlines()[0]) == ""


def test_signals_are_understood_as_liblxc_writes_them() -> None:
    assert signal_number("SIGUSR1") == signal_number("USR1") == signal_number("10") == signal.SIGUSR1
    assert signal_number("SIGRTMIN+3") == signal.SIGRTMIN + 3
    assert signal_number("nonsense") == signal_number("SIG_BLOCK") == 0
