"""What PID 1 of a node does for the rest of its life: keeps daemons running, reaps orphans, answers on a socket.

A daemon is signalled alone, never its children: guests outlive whoever started them and are re-parented here. Standard
library only. What a node's world looks like is `lab.init`'s business.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from lab.backoff import next_delay

STOP_TIMEOUT_S = 10.0
LOG_LIMIT_BYTES = 16 * 2**20


class State(StrEnum):
    running = "running"
    stopping = "stopping"
    waiting = "waiting"
    stopped = "stopped"
    missing = "missing"


@dataclass(slots=True)
class Unit:
    """A daemon: what starts it (`needs` must all exist) and how it stands."""

    name: str
    command: Sequence[str]
    needs: Sequence[Path]
    log: Path
    ready: Path | None = None
    state: State = State.stopped
    is_wanted: bool = True
    pid: int = 0
    started: float = 0.0
    delay_s: float = 0.0
    # When to act next: start (waiting) or kill (stopping); monotonic seconds.
    due: float | None = None
    starts: int = 0
    last_status: int | None = None

    def report(self) -> dict[str, object]:
        is_ready = self.state is State.running and (self.ready is None or self.ready.exists())
        return {
            "unit": self.name,
            "state": self.state.value,
            "pid": self.pid,
            "starts": self.starts,
            "ready": is_ready,
            "last_status": self.last_status,
            "missing": [str(path) for path in self.needs if not path.exists()],
        }


@dataclass(slots=True)
class Supervisor:
    units: Mapping[str, Unit]
    environment: Mapping[str, str]
    socket_path: Path
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _listener: socket.socket = field(init=False)
    _is_ending: bool = False

    def start_all(self) -> None:
        """From its return on the socket can be connected to; answers come from `run_forever`."""
        self._listener = self._listen()
        for unit in self.units.values():
            self._start(unit)

    def run_forever(self) -> None:
        """Returns after SIGTERM, once every daemon has ended."""
        waker, listener = self._wake_on_signals(), self._listener
        self._selector.register(waker, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)
        self._reap()  # whoever ended before there was a waker
        while not (self._is_ending and all(unit.pid == 0 for unit in self.units.values())):
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj is waker:
                    self._take_signals(waker.recv(4096))
                else:
                    self._answer(listener)
            self._reap()
            self._act_on_time()

    def _start(self, unit: Unit) -> None:
        unit.due = None
        if any(not path.exists() for path in unit.needs):
            unit.state = State.missing
            say(f"{unit.name}: missing")
            return
        unit.log.parent.mkdir(parents=True, exist_ok=True)
        if unit.log.exists() and unit.log.stat().st_size > LOG_LIMIT_BYTES:
            unit.log.replace(unit.log.with_suffix(".log.1"))
        unit.pid = os.posix_spawn(
            unit.command[0],
            list(unit.command),
            dict(self.environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(unit.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them, and ignoring is inherited
        )
        unit.state, unit.started, unit.starts = State.running, time.monotonic(), unit.starts + 1
        say(f"{unit.name}: started, pid {unit.pid}")

    def _stop(self, unit: Unit) -> None:
        unit.due = None
        if unit.pid == 0:
            unit.state = State.stopped
            return
        unit.state, unit.due = State.stopping, time.monotonic() + STOP_TIMEOUT_S
        os.kill(unit.pid, signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for unit in self.units.values():
                if unit.pid == pid:
                    self._note_end(unit, os.waitstatus_to_exitcode(status))

    def _note_end(self, unit: Unit, status: int) -> None:
        now = time.monotonic()
        was_stopping = unit.state is State.stopping
        unit.pid, unit.last_status, unit.due = 0, status, None
        say(f"{unit.name}: ended with {status} after {now - unit.started:.1f} s")
        if not unit.is_wanted or self._is_ending:
            unit.state = State.stopped
        elif was_stopping:
            unit.delay_s = 0.0
            self._start(unit)
        else:
            unit.delay_s = next_delay(unit.delay_s, ran_s=now - unit.started)
            unit.state, unit.due = State.waiting, now + unit.delay_s

    def _act_on_time(self) -> None:
        now = time.monotonic()
        for unit in self.units.values():
            if unit.due is None or unit.due > now:
                continue
            if unit.state is State.waiting:
                self._start(unit)
            elif unit.state is State.stopping:
                say(f"{unit.name}: does not stop, killed")
                unit.due = None
                os.kill(unit.pid, signal.SIGKILL)

    def _wait_s(self) -> float | None:
        dues = [unit.due for unit in self.units.values() if unit.due is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _wake_on_signals(self) -> socket.socket:
        waker, signalled = socket.socketpair()
        for end in (waker, signalled):
            end.setblocking(False)
        signal.set_wakeup_fd(signalled.detach())
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        return waker

    def _take_signals(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers:
            self._is_ending = True
            for unit in self.units.values():
                unit.is_wanted = False
                self._stop(unit)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.socket_path))
        self.socket_path.chmod(0o600)
        listener.listen(16)
        return listener

    def _answer(self, listener: socket.socket) -> None:
        """One request a connection, one line of JSON each way; a caller that dawdles is dropped."""
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(1.0)
            try:
                request = json.loads(connection.makefile("rb").readline(65536))
                reply = self._handle(str(request["do"]), str(request.get("unit", "")))
            except (ValueError, KeyError, TypeError) as error:
                reply = {"error": f"bad request: {error!r}"}
            connection.sendall(json.dumps(reply).encode() + b"\n")

    def _handle(self, verb: str, name: str) -> dict[str, object]:
        if verb == "units":
            return {"units": [unit.report() for unit in self.units.values()]}
        if name not in self.units:
            return {"error": f"no unit {name!r}"}
        unit = self.units[name]
        match verb:
            case "restart" if unit.pid:
                unit.is_wanted = True
                self._stop(unit)
            case "restart" | "start":
                unit.is_wanted, unit.delay_s = True, 0.0
                if unit.pid == 0:
                    self._start(unit)
            case "stop":
                unit.is_wanted = False
                self._stop(unit)
            case _:
                return {"error": f"unknown request {verb!r}"}
        return {"units": [unit.report()]}


def say(line: str) -> None:
    """PID 1's own log is the node's console."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()
