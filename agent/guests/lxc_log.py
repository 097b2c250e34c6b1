"""What liblxc writes: its log, and the names of signals in its configuration. Pure."""

import re
import signal

# lxc-start 101 20261123033840.227 ERROR    start - ../src/lxc/start.c:__lxc_start:2042 - Failed to create monitor cgroup
_ERROR = re.compile(r"^\S+ \S+ [0-9.]+ (?:ERROR|FATAL|CRIT) +(\S+) - \S+ - (.*)$", re.MULTILINE)
# They only report that somebody else has failed.
_REPORTERS = frozenset(("lxc_start", "lxccontainer"))
_SIGNAL = re.compile(r"(?:SIG)?([A-Z0-9]+?)([+-][0-9]+)?")


def first_error(text: str) -> str:
    """The first error of a start: the cause. Those after it tell how each caller gave up in turn."""
    found = [(module, message.strip()) for module, message in _ERROR.findall(text)]
    causes = [message for module, message in found if module not in _REPORTERS]
    return causes[0] if causes else found[0][1] if found else ""


def signal_number(text: str) -> int:
    """`SIGUSR1`, `10` or `SIGRTMIN+3`; 0 for what is none."""
    if text.isdigit():
        return int(text)
    match = _SIGNAL.fullmatch(text)
    if match is None or f"SIG{match[1]}" not in signal.Signals.__members__:
        return 0
    return int(signal.Signals[f"SIG{match[1]}"]) + int(match[2] or 0)
