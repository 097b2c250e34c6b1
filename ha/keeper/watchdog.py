"""The last resort: a device, a supervisor, or else a system call, that ends the host when guests cannot be ended.

A watchdog works even when the keeper does not; a system call only when it does. Without a device or a supervisor a keeper
that dies for good leaves guests unguarded, so their absence is said loudly at the start.
"""

import ctypes
import fcntl
import logging
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ha.lease_state import boottime

log = logging.getLogger(__name__)

DEVICE = Path("/dev/watchdog")
# Names the socket of the supervisor that is this host's watchdog.
VARIABLE = "KVORUM_WATCHDOG"
# The guard loop turns faster than anybody needs to hear: a supervisor that is held up finds few datagrams waiting.
PET_PERIOD_S = 0.25
# What the kernel says about the first device, without its being opened.
FACTS = Path("/sys/class/watchdog/watchdog0")
SOFTDOG = "Software Watchdog"
# linux/watchdog.h
_WDIOC_SETTIMEOUT = 0xC0045706
_WDIOC_GETTIMEOUT = 0x80045707
_WDIOF_CARDRESET = 0x20
# linux/reboot.h
_LINUX_REBOOT_MAGIC1 = 0xFEE1DEAD
_LINUX_REBOOT_MAGIC2 = 672274793
_LINUX_REBOOT_CMD_RESTART = 0x01234567


class Watchdog(Protocol):
    def arm(self, timeout_s: float) -> None:
        """From now on the host is reset when `pet` is not called for this long; again, to change the time."""

    def pet(self) -> None: ...

    def disarm(self) -> None:
        """Only when no guest runs or may run."""

    def reset(self) -> None:
        """Ends the host now. In a PID namespace: everything in it."""

    def describe(self) -> str:
        """Which it is, and whether it is armed, in a sentence; for people."""


class SystemCall:
    """No device: reset is reboot(2), which in a PID namespace kills its init and with it all of the node."""

    def arm(self, timeout_s: float) -> None:
        pass

    def pet(self) -> None:
        pass

    def disarm(self) -> None:
        pass

    def reset(self) -> None:
        reboot()

    def describe(self) -> str:
        return "none: if the keeper itself dies, nothing resets this host"


class Device:
    """A Linux watchdog. Opening it arms it; only the letter V before the closing disarms it."""

    def __init__(self, path: Path = DEVICE, *, facts: Path = FACTS) -> None:
        self._path = path
        self._facts = facts
        # Read once: the description is asked for at each step of the guard.
        self._identity = self._fact("identity")
        self._handle: int | None = None
        self._trouble = ""
        self._wanted_s = 0.0
        # As the driver says it waits, once it is open.
        self._granted_s = 0

    def arm(self, timeout_s: float) -> None:
        if self._handle is None:
            try:
                self._handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            except OSError as error:
                # Guarding without it is better than not guarding; EBUSY: systemd or another program has it.
                self._trouble = f"cannot be opened: {error.strerror}"
                log.error("NO WATCHDOG: %s %s", self._path, self._trouble)
                return
        self._wanted_s = timeout_s
        try:
            fcntl.ioctl(self._handle, _WDIOC_SETTIMEOUT, struct.pack("I", int(timeout_s)))
            self._trouble = ""
        except OSError as error:
            self._trouble = f"does not take {int(timeout_s)} s: {error.strerror}"
        self._granted_s = _timeout_of(self._handle)
        log.log(logging.ERROR if self._is_slow() or self._trouble else logging.INFO, "watchdog: %s", self.describe())

    def pet(self) -> None:
        if self._handle is not None:
            os.write(self._handle, b"\0")

    def disarm(self) -> None:
        if self._handle is None and self._fact("state") == "active":
            # A keeper that was killed has left it running.
            with suppress(OSError):
                self._handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        if self._handle is not None:
            os.write(self._handle, b"V")
            os.close(self._handle)
            self._handle = None
            if self._fact("nowayout") == "1":
                # The driver runs on whatever we say; only the magic letter has been in vain.
                log.error(
                    "%s cannot be switched off (nowayout): this host is reset unless something feeds it", self._path
                )
            log.info("watchdog disarmed")

    def reset(self) -> None:
        # Not fed any more it fires by itself; do not wait for it if the kernel still obeys.
        reboot()

    def describe(self) -> str:
        named = self._identity or "its driver does not say which"
        kind = "softdog" if self._identity == SOFTDOG else f"hardware ({named})"
        if self._handle is None:
            return f"{kind} {self._path}, " + (f"NOT ARMED: it {self._trouble}" if self._trouble else "not armed")
        if self._is_slow():
            return (
                f"{kind} {self._path}, armed, but it waits {self._granted_s} s instead of {self._wanted_s:g} s: others may take "
                f"over before it fires; write 'watchdog: {self._granted_s}' to /etc/kvorum/ha/settings.cfg"
            )
        trouble = f", but it {self._trouble}" if self._trouble else ""
        return f"{kind} {self._path}, armed, {self._granted_s} s{trouble}"

    def _is_slow(self) -> bool:
        return self._granted_s > self._wanted_s

    def _fact(self, name: str) -> str:
        with suppress(OSError):
            return (self._facts / name).read_text().strip()
        return ""


def _timeout_of(handle: int) -> int:
    """What the driver says itself; it may have rounded, or not have listened."""
    try:
        return int(struct.unpack("I", fcntl.ioctl(handle, _WDIOC_GETTIMEOUT, struct.pack("I", 0)))[0])
    except OSError:
        return 0


def boot_status(facts: Path = FACTS) -> str:
    """Whether the watchdog's driver says that it was the watchdog that reset this host."""
    with suppress(OSError, ValueError):
        if int((facts / "bootstatus").read_text(), 0) & _WDIOF_CARDRESET:
            return "its watchdog reset it"
    return ""


class Supervisor:
    """The watchdog of a host that is itself a container or a set of namespaces: whoever runs it ends it from outside.

    Datagrams to a UNIX socket: `alive UNTIL` (boot-time second of this kernel at which to end the host, unless told
    otherwise before), `off`, `reset`. They carry their own time, so that one that waits in the queue grants no more time
    than was meant. Sending never waits; without a listener it is said once, and tried again with each ping.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._timeout_s = 0.0
        self._pet_at = 0.0
        self._socket: socket.socket | None = None
        self._is_heard = True

    def arm(self, timeout_s: float) -> None:
        if not self._timeout_s:
            log.info("watchdog armed: %s s without a ping end this host from outside", timeout_s)
        self._timeout_s = timeout_s
        self._pet_at = 0.0
        self.pet()

    def pet(self) -> None:
        now = boottime()
        if self._timeout_s and now >= self._pet_at:
            self._pet_at = now + PET_PERIOD_S
            self._send(f"alive {now + self._timeout_s:.3f}")

    def disarm(self) -> None:
        self._timeout_s = 0.0
        self._send("off")

    def reset(self) -> None:
        self._send("reset")
        reboot()

    def describe(self) -> str:
        heard = "" if self._is_heard else ", but it DOES NOT ANSWER"
        state = f"armed, {self._timeout_s:g} s" if self._timeout_s else "not armed"
        return f"the supervisor of this host at {self._path}, {state}{heard}"

    def _send(self, text: str) -> None:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
                self._socket.connect(str(self._path))
            self._socket.send(text.encode())
        except BlockingIOError:
            return  # its queue is full of earlier pings, which it has yet to read
        except OSError as error:
            self._forget_socket()
            if self._is_heard:
                log.error("NO WATCHDOG: %s does not answer: %s", self._path, error)
            self._is_heard = False
            return
        if not self._is_heard:
            log.info("the watchdog at %s answers again", self._path)
        self._is_heard = True

    def _forget_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def find(path: Path = DEVICE) -> Watchdog:
    """The supervisor that runs this host, if it says so; else the device; else nothing but a system call."""
    if supervisor := os.environ.get(VARIABLE):
        return Supervisor(Path(supervisor))
    if path.is_char_device():
        return Device(path)
    log.warning(
        "NO WATCHDOG: %s is not there. If the keeper itself dies, nothing resets this host while HA guests run elsewhere. "
        "Load the driver of your hardware's watchdog, or softdog.",
        path,
    )
    return SystemCall()


def reboot() -> None:
    """reboot(2) without a sync, which could hang for ever on the very disk that is in trouble; then its harder friend."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(169, _LINUX_REBOOT_MAGIC1, _LINUX_REBOOT_MAGIC2, _LINUX_REBOOT_CMD_RESTART, None)
    log.error("reboot(2) failed: %s", os.strerror(ctypes.get_errno()))
    with suppress(OSError):
        Path("/proc/sysrq-trigger").write_text("b")
