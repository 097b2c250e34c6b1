"""The guard's end of the line to its courier: nothing here waits longer than it is told to."""

import math
import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from ha.lease_state import boottime

from . import core, wire

# After the deadline of the call itself; then the courier hangs and is replaced.
PATIENCE_S = 0.5


class LineLost(Exception):
    """The nursery is gone: nobody will ever answer on this line again."""


Call = core.Renew | core.Acquire | core.Rest


@dataclass(frozen=True, slots=True)
class Asked:
    number: int
    call: Call
    sent_at: float
    until: float


class Link:
    """Turns the core's calls into questions and what comes back into the core's events."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._number = 0
        self._asked: Asked | None = None
        # A handle of its process, which never comes to mean another.
        self._courier: int | None = None

    def ask(self, call: Call, *, rest_deadline_s: float) -> None:
        now = boottime()
        self._number += 1
        deadline_s = rest_deadline_s if isinstance(call, core.Rest) else call.profile.call_deadline_s
        self._asked = Asked(self._number, call, now, now + deadline_s + PATIENCE_S)
        # Whoever cannot take it answers nothing, which is what is waited for anyhow.
        with suppress(OSError):
            self._socket.send(wire.encode(question(self._number, call, now, deadline_s)))

    def wait(self, timeout_s: float) -> core.Event | None:
        """The next event, if one comes in time. Also the end of patience is one. Raises LineLost."""
        ready, _, _ = select.select([self._socket], [], [], timeout_s)
        if ready and (datagram := self._receive()):
            with suppress(msgspec.DecodeError):
                return self._take(wire.decode_answer(datagram))
        if self._asked is not None and boottime() > self._asked.until:
            self._asked = None
            self._replace_courier()
            return core.Failed("the courier does not answer")
        return None

    def _receive(self) -> bytes:
        try:
            datagram = self._socket.recv(wire.MAX_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise LineLost(str(error)) from error
        if not datagram:
            raise LineLost("the process that brings forth couriers has ended")
        return datagram

    def _take(self, answer: wire.Answer) -> core.Event | None:
        if answer.kind == wire.HELLO:
            self._forget_courier()
            with suppress(OSError):
                self._courier = os.pidfd_open(answer.value)
            return None
        if answer.kind == wire.LEFT:
            return core.Left()
        asked = self._asked
        if asked is None or answer.number != asked.number:
            return None
        self._asked = None
        return event_of(asked, answer)

    def _replace_courier(self) -> None:
        """Whoever it is the child of brings forth the next one."""
        if self._courier is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._courier, signal.SIGKILL)
        self._forget_courier()

    def _forget_courier(self) -> None:
        if self._courier is not None:
            os.close(self._courier)
            self._courier = None


def question(number: int, call: Call, now: float, deadline_s: float) -> wire.Ask:
    kind = {core.Renew: wire.RENEW, core.Acquire: wire.ACQUIRE, core.Rest: wire.REST}[type(call)]
    incarnation = 0 if isinstance(call, core.Acquire) else call.incarnation
    terms = None if isinstance(call, core.Rest) else call.profile.terms
    return wire.Ask(
        number,
        kind,
        incarnation,
        int(now * 1000),
        int(terms.pause_after_s * 1000) if terms is not None else 0,
        # Never earlier than T: rounded up.
        math.ceil(terms.takeover_after_s * 1000) if terms is not None else 0,
        deadline_s,
        int(call.profile.renew_period_s * 1000) if isinstance(call, core.Renew) else 0,
    )


def event_of(asked: Asked, answer: wire.Answer) -> core.Event:
    call = asked.call
    match answer.kind, call:
        case wire.DONE, core.Acquire():
            return core.Acquired(asked.sent_at, answer.value)
        case wire.DONE, core.Renew():
            return core.Renewed(asked.sent_at, call.incarnation, answer.next_in_ms / 1000)
        case wire.DONE, core.Rest():
            return core.Rested(call.incarnation)
        case wire.REFUSED, core.Renew() | core.Rest():
            return core.Refused(asked.sent_at, call.incarnation)
        case _:
            return core.Failed(answer.cause or "an answer that means nothing")
