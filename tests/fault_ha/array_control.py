"""The lab's shared storage put behind an array of our own, so that one node can lose it while its network is well.

A node of the lab sees the shared directory by a bind mount, which cannot fail. Here the directory's files move out of the
nodes' reach, to an array (array_server.py), and each node mounts the array over /srv/shared (array_mount.py). Below that mount
is an empty directory: nothing gets around the array. Each mount keeps its own file locks, as hosts of their own do, so that
no lock of this one kernel stops a second copy of a guest.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import ha_stamps
from ha_stamps import Entry

from kvorum.errors import Timeout
from lab import cgroups, processes
from lab.cluster import Lab
from lab.layout import SHARED
from lab.node import Node

HERE = Path(__file__).resolve().parent
_READY_S = 20.0


class StorageArray:
    """Of a lab that is up and whose shared storage nobody uses yet. It ends with the lab."""

    def __init__(self, lab: Lab) -> None:
        directory = lab.layout.directory / "array"
        self.files, self._cuts, self.journal = directory / "files", directory / "cuts", directory / "journal"
        self._socket, self._log = directory / "socket", directory / "log"
        self._cgroup = f"{lab.layout.cgroup_prefix}array"
        self._mounts: dict[str, subprocess.Popen[bytes]] = {}
        self._read, self._entries = 0, list[Entry]()
        self._cuts.mkdir(parents=True)
        lab.shared.rename(self.files)
        lab.shared.mkdir()
        self._start(lab.layout.name)
        for node in lab.nodes:
            self.mount(node)

    def mount(self, node: Node) -> None:
        """At each power on. Raises Timeout."""
        self._reap()
        # Below the array's mount there is an empty directory, also where the bind mount shows the one that has moved.
        script = f'mount --bind "$0" {SHARED} && exec "$@"'
        command = [sys.executable, str(HERE / "array_mount.py"), str(self._socket), node.name, str(SHARED)]
        with self._log.open("ab") as log:
            self._mounts[node.name] = node.popen(
                ["sh", "-c", script, str(node.layout.lab.shared), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _wait(lambda: is_mounted(node), f"{node.name}'s mount of the array", self._log)

    def cut(self, node: Node) -> None:
        """From now on nothing of the node reaches the array, and nothing from there the node; what waits, waits."""
        (self._cuts / node.name).touch()

    def mend(self) -> None:
        for cut in self._cuts.iterdir():
            cut.unlink()

    def entries(self) -> Sequence[Entry]:
        """All that has reached the disks so far."""
        with self.journal.open("rb") as journal:
            journal.seek(self._read)
            data = journal.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        self._entries += ha_stamps.parse(whole.decode())
        return self._entries

    def _start(self, lab: str) -> None:
        cgroups.make(self._cgroup, has_leaf=False)
        arguments = [str(self._socket), str(self.files), str(self._cuts), str(self.journal)]
        command = cgroups.joining(self._cgroup, [sys.executable, str(HERE / "array_server.py"), *arguments], leaf=False)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "KVORUM_LAB": lab}
        processes.spawn_detached(command, environment=environment, log=self._log)
        _wait(lambda: self._socket.exists() and self.journal.exists(), "the array", self._log)

    def _reap(self) -> None:
        for mount in self._mounts.values():
            with suppress(subprocess.TimeoutExpired):
                mount.wait(timeout=0)


def is_mounted(node: Node) -> bool:
    lines = Path(f"/proc/{node.pid}/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(SHARED) and " - fuse.array " in line for line in lines)


def _wait(is_so: Callable[[], bool], what: str, log: Path) -> None:
    """Raises Timeout."""
    deadline = time.monotonic() + _READY_S
    while not is_so():
        if time.monotonic() > deadline:
            raise Timeout(f"waited in vain for {what}", remedy=f"it said: {log.read_text()[-500:]}")
        time.sleep(0.01)
