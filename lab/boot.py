"""Powering a node on: its files on first boot, the boot file that PID 1 reads, and starting that process.

Decides what is in a node (mounts, units, environment); `lab.init` carries it out inside.
"""

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from kvorum.errors import CommandFailed, Timeout
from lab import cgroups, processes
from lab.files import etc_files
from lab.layout import DISK_DIRECTORIES, INIT_SOCKET, PREFIX_LENGTH, SHARED, NodeLayout

BOOT_TIMEOUT_S = 30.0
# Console script -> the module it runs, in the order of starting. One that is not there yet is reported as missing.
DAEMONS: Mapping[str, str] = {
    "kvorum-clusterfs": "clusterfs/main.py",
    "kvorum-agent": "agent/main.py",
    "kvorum-ha": "ha/main.py",
    "kvorum-keeper": "ha/keeper/main.py",
}
_READY = {
    "libvirtd": Path("/run/libvirt/libvirt-sock"),
    "kvorum-clusterfs": Path("/run/kvorum/clusterfs.sock"),
    "kvorum-agent": Path("/run/kvorum/agent.sock"),
}
# Whom this person's command line talks to is no business of the nodes.
_OURS = frozenset({"KVORUM_CONNECT", "KVORUM_CREDENTIALS", "KVORUM_LAB_NAME"})


def install(node: NodeLayout) -> None:
    """What an installer would have left on the node's disk; an existing disk is not touched."""
    if node.etc.exists():
        return
    for directory in DISK_DIRECTORIES:
        (node.disk / directory).mkdir(parents=True, exist_ok=True)
    # libvirt's QEMU driver refuses to start without it; the agent fills it when the node gets certificates.
    (node.disk / "var/lib/kvorum/pki/qemu").mkdir(parents=True, mode=0o700)
    (node.disk / "var/log/kvorum").mkdir()
    (node.disk / "var/log/libvirt").mkdir()
    node.etc_work.mkdir(exist_ok=True)
    fresh = node.directory / "etc.new"
    for name, text in etc_files(node, machine_id=uuid.uuid4().hex).items():
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / name).write_text(text)
    (fresh / "kvorum").mkdir(exist_ok=True)
    fresh.rename(node.etc)  # last: its presence means that the installation is whole


class Booting:
    """A node between power on and ready. Several may boot at a time; `wait` for each."""

    def __init__(self, node: NodeLayout, *, switch_pid: int) -> None:
        self._node = node
        node.boot_file.write_text(json.dumps(boot_description(node, switch_pid=switch_pid), indent=1))
        cgroups.make(node.cgroup, has_leaf=True)
        for target in (*DISK_DIRECTORIES, str(SHARED)):
            Path("/", target).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-S", "-m", "lab.init", str(node.boot_file)]
        with node.console_log.open("ab") as console:
            self._launcher = subprocess.Popen(
                cgroups.joining(node.cgroup, command, leaf=False),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                env={"PATH": _path(), "PYTHONPATH": str(_packages()), "KVORUM_LAB": node.lab.name},
                start_new_session=True,
            )

    def wait(self, *, timeout_s: float = BOOT_TIMEOUT_S) -> processes.Recorded:
        """PID 1 of the node, noted down. Raises CommandFailed with the console's last line, Timeout."""
        deadline = time.monotonic() + timeout_s
        assert self._launcher.stdout is not None
        with self._launcher.stdout as pipe:
            pid = int(self._hear(pipe, deadline, "pid"))
            noted = processes.record(pid, self._node.record)
            self._hear(pipe, deadline, "ready")
        self._launcher.wait(timeout=5.0)
        if noted is None:
            raise self._failure()
        return noted

    def _hear(self, pipe: IO[bytes], deadline: float, key: str) -> Any:
        line = _read_line(pipe.fileno(), deadline)
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launcher.wait(timeout=1.0)
            raise self._failure()
        return json.loads(line)[key]

    def _failure(self) -> CommandFailed:
        said = self._node.console_log.read_text(errors="replace").strip().splitlines() or ["nothing on its console"]
        return CommandFailed(
            f"node {self._node.name} does not boot: {said[-1]}", remedy=f"read {self._node.console_log}"
        )


def boot_description(node: NodeLayout, *, switch_pid: int) -> dict[str, Any]:
    """Everything PID 1 needs to know, as JSON values."""
    found = cgroups.hierarchies()
    return {
        "name": node.name,
        "console_log": str(node.console_log),
        "socket": str(INIT_SOCKET),
        "network": {
            "switch_pid": switch_pid,
            "switch_port": node.switch_port,
            "hardware_address": node.hardware_address,
            "address": f"{node.address}/{PREFIX_LENGTH}",
        },
        "etc": {"upper": str(node.etc), "work": str(node.etc_work)},
        "binds": [
            *([str(node.disk / directory), f"/{directory}"] for directory in DISK_DIRECTORIES),
            [str(node.lab.shared), str(SHARED)],
        ],
        "cgroups": {
            "root": str(cgroups.ROOT),
            "leaves": [str(h.path / node.cgroup / cgroups.LEAF / "cgroup.procs") for h in found if h.is_v2],
            "hierarchies": [{"path": str(h.path), "options": h.mount_options, "is_v2": h.is_v2} for h in found],
            "links": [[path.name, str(path.readlink())] for path in cgroups.ROOT.iterdir() if path.is_symlink()],
        },
        "environment": environment(node),
        "units": [_libvirtd(), *(_daemon(script, module) for script, module in DAEMONS.items())],
    }


def environment(node: NodeLayout) -> dict[str, str]:
    """What daemons and commands on the node see: nothing of ours but settings meant for Kvorum."""
    settings = {key: value for key, value in os.environ.items() if key.startswith("KVORUM_") and key not in _OURS}
    return {
        "PATH": _path(),
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **settings,
        "KVORUM_LAB": node.lab.name,
        # A node is no host with a device of its own: see lab.watchdog.
        "KVORUM_WATCHDOG": str(node.watchdog_socket),
    }


def _libvirtd() -> dict[str, Any]:
    return _unit("libvirtd", "/usr/sbin/libvirtd", needs=[])


def _daemon(script: str, module: str) -> dict[str, Any]:
    package, _, rest = module.partition("/")
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    source = Path(places[0], rest) if places else Path("/nonexistent", module)
    return _unit(script, str(_programs() / script), needs=[str(source)])


def _unit(name: str, program: str, *, needs: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "command": [program],
        "needs": [program, *needs],
        "log": f"/var/log/kvorum/{name}.log",
        "ready": str(_READY[name]) if name in _READY else "",
    }


def _programs() -> Path:
    """The virtual environment's directory of programs (its python is a link elsewhere: not to be followed)."""
    return Path(sys.executable).parent


def _path() -> str:
    return f"{_programs()}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _packages() -> Path:
    return Path(__file__).resolve().parent.parent


def _read_line(handle: int, deadline: float) -> bytes:
    """One line, or what came before the end. Raises Timeout."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise Timeout("the node does not boot in time")
        byte = os.read(handle, 1)
        if not byte:
            break
        line += byte
    return line
