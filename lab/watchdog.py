"""The watchdog of a lab's nodes: what a chip on the board is to a real host.

One process a lab, in a cgroup of its own so that frozen nodes do not stop it. A node's keeper feeds it through a socket
(ha/keeper/watchdog.py says what a datagram means); a node that was armed and is not fed in time loses its power as by
`kvorum lab kill`, also when it is frozen, and stays off until it is started. What to do when is pure (`Timers`).
"""

import contextlib
import math
import selectors
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kvorum.errors import KvorumError
from lab.layout import LabLayout
from lab.node import Node
from lab.watchdog_control import nodes

# Longer than anybody arms for: a node whose clock reads otherwise is not kept alive for ever.
LONGEST_S = 60.0
# How often it looks at the clock when nothing else wakes it.
LOOK_S = 0.1
# If its own turn took this long, pings may still be on their way: it listens once more, this long, before it judges.
HELD_UP_S = 1.0
SECOND_LOOK_S = 0.25


@dataclass(slots=True)
class Timers:
    """By node: the boot-time second at which its power is cut. A node that is not in it is not armed."""

    due: dict[int, float] = field(default_factory=dict)
    cause: dict[int, str] = field(default_factory=dict)

    def take(self, number: int, datagram: bytes, now: float) -> None:
        """What is no sentence of ours changes nothing."""
        match datagram.split():
            case [b"alive", until]:
                with contextlib.suppress(ValueError):
                    at = float(until)
                    if not math.isnan(at):  # that would never be due
                        self.due[number] = min(at, now + LONGEST_S)
                        self.cause[number] = "it did not feed its watchdog"
            case [b"off"]:
                self.due.pop(number, None)
            case [b"reset"]:
                self.due[number] = now
                self.cause[number] = "its keeper asked for the reset"

    def overdue(self, now: float) -> list[int]:
        return sorted(number for number, at in self.due.items() if at <= now)


class Power(Protocol):
    def cut(self, number: int, is_still_due: Callable[[], bool], note: str) -> bool:
        """False when it was off already. Raises KvorumError."""


@dataclass(slots=True)
class Watch:
    """The loop's state: sockets by node, timers, and when it last had its turn."""

    sockets: dict[int, socket.socket]
    power: Power
    clock: Callable[[], float]
    timers: Timers = field(default_factory=Timers)
    last_turn: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_turn = self.clock()

    def turn(self, wait: Callable[[float], object]) -> None:
        """Sleep, read everything that has come, then cut what is overdue."""
        wait(LOOK_S)
        self._read()
        if self.clock() - self.last_turn > HELD_UP_S:
            wait(SECOND_LOOK_S)
            self._read()
        for number in self.timers.overdue(self.clock()):
            self._cut(number)
            self._read()
        self.last_turn = self.clock()

    def _read(self) -> None:
        for number, one in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.timers.take(number, one.recv(128), self.clock())

    def _cut(self, number: int) -> None:
        def is_still_due() -> bool:
            self._read()
            return number in self.timers.overdue(self.clock())

        if not is_still_due():
            return
        cause, due = self.timers.cause[number], self.timers.due[number]
        note = f"its watchdog cut its power at {time.strftime('%H:%M:%S')}: {cause}"
        try:
            if self.power.cut(number, is_still_due, note):
                say(f"n{number}: {note} (all of it was gone {self.clock() - due:.2f} s after its time)")
        except KvorumError as error:
            say(f"n{number}: its power cannot be cut: {error}")  # again in the next turn
            return
        # Fed or switched off meanwhile by whoever had its power: then this is not ours to forget.
        if number in self.timers.overdue(self.clock()):
            self.timers.due.pop(number)


@dataclass(frozen=True, slots=True)
class NodePower:
    layout: LabLayout

    def cut(self, number: int, is_still_due: Callable[[], bool], note: str) -> bool:
        return Node(self.layout.node(number)).kill_unless_fed(is_still_due, note)


def listen(layout: LabLayout) -> dict[int, socket.socket]:
    sockets = {}
    for node in nodes(layout):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        node.watchdog_socket.unlink(missing_ok=True)
        one.bind(str(node.watchdog_socket))
        node.watchdog_socket.chmod(0o600)
        sockets[node.number] = one
    return sockets


def main(base: str, name: str) -> None:
    """Until killed."""
    layout = LabLayout(name=name, base=Path(base))
    sockets = listen(layout)
    say(f"watches {len(sockets)} nodes")
    selector = selectors.DefaultSelector()
    for one in sockets.values():
        selector.register(one, selectors.EVENT_READ)
    watch = Watch(sockets, NodePower(layout), lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    while True:
        watch.turn(selector.select)


def say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
