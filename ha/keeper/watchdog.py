"""The last resort: a device, or else a system call, that ends the host when guests cannot be ended.

A watchdog works even when the keeper does not; a system call only when it does. Without a device a keeper that dies for
good leaves guests unguarded, so its absence is said loudly at the start.
"""

import ctypes
import fcntl
import logging
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

DEVICE = Path("/dev/watchdog")
# linux/watchdog.h
_WDIOC_SETTIMEOUT = 0xC0045706
# linux/reboot.h
_LINUX_REBOOT_MAGIC1 = 0xFEE1DEAD
_LINUX_REBOOT_MAGIC2 = 672274793
_LINUX_REBOOT_CMD_RESTART = 0x01234567


class Watchdog(Protocol):
    def arm(self, timeout_s: float) -> None:
        """From now on the host is reset when `pet` is not called for this long."""

    def pet(self) -> None: ...

    def disarm(self) -> None:
        """Only when no guest runs or may run."""

    def reset(self) -> None:
        """Ends the host now. In a PID namespace: everything in it."""


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


class Device:
    """A Linux watchdog. Opening it arms it; only the letter V before the closing disarms it."""

    def __init__(self, path: Path = DEVICE) -> None:
        self._path = path
        self._handle: int | None = None

    def arm(self, timeout_s: float) -> None:
        if self._handle is not None:
            return
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        granted = struct.unpack("I", fcntl.ioctl(self._handle, _WDIOC_SETTIMEOUT, struct.pack("I", int(timeout_s))))[0]
        if granted > timeout_s:
            log.error(
                "the watchdog waits %s s instead of %s s: a takeover may come before the reset", granted, timeout_s
            )
        log.info("watchdog armed: %s s without a ping resets this host", granted)

    def pet(self) -> None:
        if self._handle is not None:
            os.write(self._handle, b"\0")

    def disarm(self) -> None:
        if self._handle is not None:
            os.write(self._handle, b"V")
            os.close(self._handle)
            self._handle = None
            log.info("watchdog disarmed")

    def reset(self) -> None:
        # Not fed any more it fires by itself; do not wait for it if the kernel still obeys.
        reboot()


def find(path: Path = DEVICE) -> Watchdog:
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
