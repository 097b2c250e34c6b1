"""Watches from outside which nodes of a lab run which guests, and says when one ran twice.

It believes nobody: it reads the machine's own process table, where the processes of all nodes show, with the node in their
control group. A stopped (SIGSTOP) or frozen process does not run. While a VM migrates, the target's QEMU waits for it
(`-incoming`) beside the source's; that pair is no double run, since QEMU lets the target's processor go only after the
source's is gone, and is told apart by that argument. A QEMU keeps the argument for life: once it was seen alone it has arrived,
and counts like any other. The judgement is pure (`verdict`); sampling is a thread.
"""

import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.layout import LabLayout

INTERVAL_S = 0.05

_VM = re.compile(rb"guest=kvorum-(\d+)")
_CONTAINER = re.compile(r"kvorum-ct-(\d+)")


@dataclass(frozen=True, slots=True)
class Run:
    """One process (or container) that runs a guest at the moment of a sample."""

    sid: str
    node: str
    is_incoming: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    time_s: float
    runs: frozenset[Run]


def verdict(samples: Iterable[Sample]) -> list[str]:
    """A line for each guest that ran on two nodes at one time; empty when all is well. `samples` in order of time."""
    found: dict[tuple[str, frozenset[str]], float] = {}
    arrived: set[Run] = set()
    for sample in samples:
        arrived &= sample.runs
        by_sid: dict[str, set[Run]] = {}
        for run in sample.runs:
            by_sid.setdefault(run.sid, set()).add(run)
        for sid, runs in by_sid.items():
            if len(runs) == 1:
                arrived |= runs
            own = {run.node for run in runs if not run.is_incoming or run in arrived}
            waiting = {run.node for run in runs} - own
            if len(own) > 1 or len(waiting) > 1:
                found.setdefault((sid, frozenset(own | waiting)), sample.time_s)
    return [f"{sid} ran on {' and '.join(sorted(nodes))} at {time_s:.2f} s" for (sid, nodes), time_s in found.items()]


class SingleRunWatch:
    """Samples in a thread from `with` to its end; `doubles` tells what it found so far."""

    def __init__(self, layout: LabLayout) -> None:
        self._layout = layout
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="single-run", daemon=True)
        # Of the machine's monotonic clock; samples count from it.
        self.began = time.monotonic()
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def doubles(self) -> list[str]:
        return verdict(list(self.samples))

    def where(self, sid: str) -> set[str]:
        """Nodes that run the guest right now."""
        return {run.node for run in look(self._layout) if run.sid == sid}

    def last_seen(self, sid: str, node: str) -> float | None:
        """When the guest was last seen running there, in seconds since the watch began."""
        times = [s.time_s for s in list(self.samples) if any(r.sid == sid and r.node == node for r in s.runs)]
        return max(times, default=None)

    def first_seen(self, sid: str, node: str) -> float | None:
        times = [s.time_s for s in list(self.samples) if any(r.sid == sid and r.node == node for r in s.runs)]
        return min(times, default=None)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.samples.append(Sample(time.monotonic() - self.began, look(self._layout)))


def look(layout: LabLayout) -> frozenset[Run]:
    """Which nodes run which guests at this moment."""
    runs = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            groups = (entry / "cgroup").read_text()
            if not command or _node(layout, groups) is None or _is_stopped((entry / "stat").read_text()):
                continue
        except OSError:  # ended meanwhile
            continue
        node = _node(layout, groups)
        assert node is not None
        container, vm = _CONTAINER.search(groups), _VM.search(command)
        if vm is not None:
            runs.add(Run(f"vm:{vm[1].decode()}", node, is_incoming=b"\0-incoming\0" in command))
        elif container is not None:
            runs.add(Run(f"ct:{container[1]}", node))
    return frozenset(runs)


def by_guest(runs: Iterable[Run]) -> Mapping[str, set[str]]:
    nodes: dict[str, set[str]] = {}
    for run in runs:
        nodes.setdefault(run.sid, set()).add(run.node)
    return nodes


def _node(layout: LabLayout, groups: str) -> str | None:
    """`n2` when a line of /proc/PID/cgroup says that the process belongs to that node of this lab."""
    match = re.search(rf"/{re.escape(layout.cgroup_prefix)}(n\d+)(?:/|$)", groups, re.MULTILINE)
    return match[1] if match else None


def _is_stopped(stat: str) -> bool:
    """State T (stopped), Z (zombie) or X (dead) in the text of /proc/PID/stat; proc(5)."""
    return stat.rpartition(") ")[2][:1] in "TZXx"
