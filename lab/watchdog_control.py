"""The lab's watchdog from outside: start it, ask for it, tell it that a node's power was switched. Itself: `lab.watchdog`."""

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from kvorum.errors import Timeout
from lab import cgroups, processes
from lab.layout import NODES_MAX, LabLayout, NodeLayout


def ensure(layout: LabLayout) -> None:
    """It runs, or is started."""
    if is_on(layout):
        return
    cgroups.make(layout.watchdog_cgroup, has_leaf=False)
    command = [sys.executable, "-m", "lab.watchdog", str(layout.base), layout.name]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "KVORUM_LAB": layout.name,
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    joined = cgroups.joining(layout.watchdog_cgroup, command, leaf=False)
    pid = processes.spawn_detached(joined, environment=environment, log=layout.watchdog_log)
    processes.record(pid, layout.watchdog_record)


def wait_ready(layout: LabLayout, *, timeout_s: float = 20.0) -> None:
    """Until it listens for each node. Raises Timeout."""
    deadline = time.monotonic() + timeout_s
    while not all(node.watchdog_socket.exists() for node in nodes(layout)):
        if time.monotonic() > deadline:
            raise Timeout("the lab's watchdog does not start", remedy=f"read {layout.watchdog_log}")
        time.sleep(0.01)


def is_on(layout: LabLayout) -> bool:
    return processes.recall(layout.watchdog_record) is not None


def switch_off(node: NodeLayout) -> None:
    """At power on: what the life before was armed with is void, and so is the note of how it ended."""
    node.watchdog_note.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
        one.settimeout(5.0)
        one.sendto(b"off", str(node.watchdog_socket))


def cause(node: NodeLayout) -> str:
    """Why its watchdog cut its power; empty when it did not."""
    try:
        return node.watchdog_note.read_text().strip()
    except FileNotFoundError:
        return ""


def nodes(layout: LabLayout) -> list[NodeLayout]:
    """Those that have a directory."""
    every = (layout.node(number) for number in range(1, NODES_MAX + 1))
    return [node for node in every if node.directory.is_dir()]
