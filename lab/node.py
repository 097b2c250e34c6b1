"""One node of a lab, from the outside: run commands on it, cut its power, freeze it, ask its PID 1.

State is looked up on each call (who is PID 1, is it frozen), so that several processes may drive one lab.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kvorum.errors import CommandFailed, InvalidInput, NotFound, Refused, Timeout, Unreachable
from lab import boot, cgroups, processes, relay, watchdog_control
from lab.layout import INIT_SOCKET, NodeLayout
from lab.locks import held
from lab.switch import Switch

# A daemon that ended so often will not come up by itself.
_HOPELESS_STARTS = 5


class Node:
    def __init__(self, layout: NodeLayout) -> None:
        self.layout = layout

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def address(self) -> str:
        """On the lab's network; reachable from other nodes only."""
        return self.layout.address

    @property
    def pid(self) -> int:
        """PID 1 of the node as the machine sees it. Raises NotFound when the node is off."""
        noted = processes.recall(self.layout.record)
        if noted is None:
            cause = watchdog_control.cause(self.layout)
            raise NotFound(
                f"node {self.name} is off{cause and f': {cause}'}", remedy=f"run 'kvorum lab start {self.name}'"
            )
        return noted.pid

    @property
    def is_on(self) -> bool:
        return processes.recall(self.layout.record) is not None

    @property
    def is_frozen(self) -> bool:
        return cgroups.is_frozen(self.layout.cgroup)

    def path(self, inside: str | Path) -> Path:
        """Where a path of the node is seen from the machine, mounts and sockets of the node included."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    # Commands

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on the node, in its namespaces and cgroups."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        setting = [f"{key}={value}" for key, value in boot.environment(self.layout).items()]
        keep = [f"TERM={os.environ['TERM']}"] if "TERM" in os.environ else []
        entered = ["nsenter", f"--target={self.pid}", *namespaces, "--wdns=/root"]
        return cgroups.joining(self.layout.cgroup, [*entered, "env", "-i", *setting, *keep, *command])

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: str = "",
        timeout_s: float = 60.0,
        is_checked: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node to its end. Raises CommandFailed (unless not `is_checked`), Timeout, NotFound."""
        extra = ["env", *(f"{key}={value}" for key, value in environment.items())] if environment else []
        try:
            done = subprocess.run(
                self.command([*extra, *command]),
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Timeout(f"{self.name}: {command[0]} did not end within {timeout_s:g} s") from error
        done.args = list(command)  # how it got there is nobody's business
        if is_checked and done.returncode != 0:
            raise CommandFailed(
                f"{self.name}: {' '.join(command)}: {_complaint(done)}",
                details={"status": str(done.returncode), "stderr": done.stderr[-2000:]},
            )
        return done

    def popen(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Start a command on the node; options are subprocess.Popen's. A killed node takes it along."""
        return subprocess.Popen(self.command(command), **options)

    def connect(self, port: int, *, timeout_s: float = 5.0) -> socket.socket:
        """A TCP connection that starts inside the node, to the node's own address. Raises OSError."""
        return relay.connect_inside(self.pid, self.address, port, timeout_s=timeout_s)

    # Power

    def start(self) -> None:
        """Power on; the disk is as the last power cut left it. Raises Refused when it is on."""
        with self._power():
            if self.is_on:
                raise Refused(f"node {self.name} is on")
            cgroups.destroy(self.layout.cgroup)
            boot.install(self.layout)
            watchdog_control.ensure(self.layout.lab)
            watchdog_control.switch_off(self.layout)
            boot.Booting(self.layout, switch_pid=Switch(self.layout.lab).pid).wait()

    def kill(self) -> None:
        """Power cut: at once, without a last instruction of anything on the node. Off already is fine."""
        with self._power():
            self._cut_power()

    def kill_unless_fed(self, is_still_due: Callable[[], bool], note: str) -> bool:
        """For its watchdog: as `kill`, with a note of the cause, if it is on and due once nobody else has its power."""
        if not self.is_on:
            return False  # nor does a node that boots, with its power held, hold up the watchdog of the others
        with self._power():
            if not self.is_on or not is_still_due():
                return False
            self.layout.watchdog_note.write_text(note)
            self._cut_power()
            return True

    def _cut_power(self) -> None:
        noted = processes.recall(self.layout.record)
        # The cable first: dying processes close their connections, and a host without power says no farewell.
        with contextlib.suppress(NotFound):
            Switch(self.layout.lab).unplug(self.layout)
        if noted is not None and not self.is_frozen:
            processes.kill(noted)  # the kernel ends all others of the PID namespace before it lets go of this one
        cgroups.destroy(self.layout.cgroup)
        self.layout.record.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop every process of the node where it is, guests included; its clocks go on."""
        assert self.pid
        cgroups.freeze(self.layout.cgroup)

    def thaw(self) -> None:
        with self._power():
            assert self.pid
            cgroups.thaw(self.layout.cgroup)

    def _power(self) -> AbstractContextManager[None]:
        return held(self.layout.power_lock, f"somebody else switches the power of {self.name}")

    # Units

    def units(self) -> list[dict[str, Any]]:
        """How libvirtd and the daemons stand: unit, state, pid (inside), starts, ready, last_status, missing."""
        units: list[dict[str, Any]] = self._ask("units")["units"]
        return units

    def unit(self, name: str) -> dict[str, Any]:
        full = unit_name(name)
        return next(unit for unit in self.units() if unit["unit"] == full)

    def stop_unit(self, name: str) -> None:
        """Stop a daemon until it is started again; waits until it is gone."""
        self._ask("stop", unit_name(name))
        self._wait(lambda: self.unit(name)["state"] == "stopped", f"{name} does not stop", 15.0)

    def start_unit(self, name: str) -> None:
        self._ask("start", unit_name(name))

    def restart(self, name: str) -> None:
        """Stop and start one daemon; returns when the new process runs. Raises NotFound when the program is missing."""
        before = self.unit(name)
        self._ask("restart", unit_name(name))
        self._wait(lambda: self._has_restarted(name, before["starts"]), f"{name} does not restart", 20.0)

    def kill_unit(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a daemon's process a signal; PID 1 starts it again after its usual wait."""
        unit = self.unit(name)
        if unit["pid"]:
            self.run(["kill", f"-{int(number)}", str(unit["pid"])])

    def wait_ready(self, units: Sequence[str], *, timeout_s: float = 60.0) -> None:
        """Until these units run and their sockets are there.

        Raises NotFound for a missing program, CommandFailed for one that keeps failing, Timeout.
        """
        names = {unit_name(name) for name in units}

        def are_ready() -> bool:
            found = [unit for unit in self.units() if unit["unit"] in names]
            for unit in found:
                _refuse_missing(self.name, unit)
                if unit["state"] == "waiting" and unit["starts"] >= _HOPELESS_STARTS:
                    raise self._hopeless(unit)
            return all(unit["ready"] for unit in found)

        self._wait(are_ready, f"{', '.join(sorted(names))} not ready", timeout_s)

    def log(self, unit: str = "") -> Path:
        """The log of a unit, or of PID 1; on the node's disk, so it can be read while the node is off."""
        if not unit or unit == "console":
            return self.layout.console_log
        return self.layout.disk / "var/log/kvorum" / f"{unit_name(unit)}.log"

    def _hopeless(self, unit: Mapping[str, Any]) -> CommandFailed:
        log = self.log(unit["unit"])
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        said = f": {lines[-1]}" if lines else ""
        return CommandFailed(
            f"{self.name}: {unit['unit']} ended {unit['starts']} times with {unit['last_status']}{said}",
            remedy=f"run 'kvorum lab --name {self.layout.lab.name} logs {self.name} {unit['unit']}'",
        )

    def _has_restarted(self, name: str, starts_before: int) -> bool:
        unit = self.unit(name)
        _refuse_missing(self.name, unit)
        return bool(unit["starts"] > starts_before)

    def _wait(self, condition: Any, complaint: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise Timeout(f"{self.name}: {complaint} within {timeout_s:g} s", remedy=f"read {self.log().parent}")
            time.sleep(0.02)

    def _ask(self, verb: str, unit: str = "") -> dict[str, Any]:
        """One question to PID 1. Raises Unreachable when it does not answer, e.g. frozen."""
        if self.is_frozen:
            raise Unreachable(f"node {self.name} is frozen", remedy=f"run 'kvorum lab thaw {self.name}'")
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5.0)
                connection.connect(str(self.path(INIT_SOCKET)))
                connection.sendall(json.dumps({"do": verb, "unit": unit}).encode() + b"\n")
                reply: dict[str, Any] = json.loads(connection.makefile("rb").readline())
        except (OSError, ValueError) as error:
            raise Unreachable(f"PID 1 of {self.name} does not answer: {error}") from error
        if "error" in reply:
            raise InvalidInput(str(reply["error"]), field="unit")
        return reply


def unit_name(text: str) -> str:
    """`agent` and `kvorum-agent` are the same; libvirtd has no prefix. Raises InvalidInput."""
    known = ("libvirtd", *boot.DAEMONS)
    for name in known:
        if text in (name, name.removeprefix("kvorum-")):
            return name
    raise InvalidInput(f"{text!r} is no unit of a node", field="unit", remedy=f"one of: {', '.join(known)}")


def _complaint(done: "subprocess.CompletedProcess[str]") -> str:
    """The line that says what went wrong: the first that begins so, or else the last."""
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    return next((line for line in lines if line.lower().startswith("error")), lines[-1])


def _refuse_missing(node: str, unit: Mapping[str, Any]) -> None:
    if unit["state"] == "missing":
        raise NotFound(
            f"{node}: {unit['unit']} is not installed", remedy=f"missing: {', '.join(unit['missing'])}; see 'make dev'"
        )
