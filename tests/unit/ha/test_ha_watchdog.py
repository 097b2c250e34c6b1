"""The keeper's watchdogs: which one is taken, and what the supervisor of a host that is a container hears."""

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha.keeper import watchdog
from ha.keeper.watchdog import VARIABLE, Device, Supervisor, SystemCall, boot_status, find


class Listener:
    """The supervisor's end."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def heard(self) -> list[str]:
        texts = []
        while True:
            try:
                texts.append(self._socket.recv(128).decode())
            except BlockingIOError:
                return texts

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    one = Listener(path)
    yield one
    one.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(watchdog, "boottime", lambda: now[0])
    return now


def test_nothing_is_sent_before_the_arming(path: Path, listener: Listener) -> None:
    Supervisor(path).pet()
    assert listener.heard() == []


def test_arming_and_each_ping_say_until_when_the_host_may_live(
    path: Path, listener: Listener, clock: list[float]
) -> None:
    one = Supervisor(path)
    one.arm(5.0)
    clock[0] = 101.0
    one.pet()
    assert listener.heard() == ["alive 105.000", "alive 106.000"]


def test_pings_of_a_fast_loop_are_thinned_out_for_a_slow_listener(
    path: Path, listener: Listener, clock: list[float]
) -> None:
    one = Supervisor(path)
    one.arm(5.0)
    for _ in range(100):
        clock[0] += 0.01
        one.pet()
    assert 3 <= len(listener.heard()) <= 5


def test_disarming_is_heard_and_ends_the_pings(path: Path, listener: Listener, clock: list[float]) -> None:
    one = Supervisor(path)
    one.arm(5.0)
    one.disarm()
    clock[0] += 10
    one.pet()
    assert listener.heard() == ["alive 105.000", "off"]


def test_disarming_takes_back_what_a_keeper_before_had_armed(path: Path, listener: Listener) -> None:
    Supervisor(path).arm(5.0)
    Supervisor(path).disarm()
    assert listener.heard()[-1] == "off"


def test_a_reset_is_asked_for_outside_and_tried_inside(
    path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    reboots: list[bool] = []
    monkeypatch.setattr(watchdog, "reboot", lambda: reboots.append(True))
    Supervisor(path).reset()
    assert (listener.heard(), reboots) == (["reset"], [True])


def test_a_listener_that_does_not_read_never_holds_up_the_guard(path: Path, listener: Listener) -> None:
    one = Supervisor(path)
    for _ in range(3000):
        one.arm(5.0)
    assert 0 < len(listener.heard()) < 3000


def test_a_listener_that_is_missing_is_said_once_and_found_when_it_comes(
    path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one = Supervisor(path)
    for _ in range(5):
        one.arm(5.0)
    assert caplog.text.count("NO WATCHDOG") == 1
    for _ in range(2):
        listener = Listener(path)
        clock[0] += 1
        one.pet()
        clock[0] += 1
        one.pet()
        assert listener.heard()[-1] == f"alive {clock[0] + 5:.3f}"
        # A listener that was started anew has another socket of the same name.
        listener.close()
        path.unlink()
    assert "answers again" in caplog.text


def test_who_runs_this_host_is_its_watchdog_if_it_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(path))
    assert isinstance(find(Path(os.devnull)), Supervisor)
    monkeypatch.delenv(VARIABLE)
    assert isinstance(find(Path(os.devnull)), Device)
    assert isinstance(find(path), SystemCall)


def test_a_device_that_is_not_to_be_had_does_not_end_the_keeper(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(path / "missing")
    device.arm(5.0)
    device.pet()
    device.disarm()
    assert "NO WATCHDOG" in caplog.text


class FakeDriver:
    """A device's file and what the kernel says about it; `granted`: seconds that it waits, whatever it is told."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch, *, granted: int = 0, **facts: str) -> None:
        self.device = base / "watchdog"
        self.device.write_bytes(b"")
        self.facts = base / "facts"
        self.facts.mkdir()
        for name, value in facts.items():
            (self.facts / name).write_text(f"{value}\n")
        self._granted = granted
        self._set = 0
        monkeypatch.setattr("fcntl.ioctl", self._ioctl)

    def _ioctl(self, _handle: int, request: int, argument: bytes) -> bytes:
        (value,) = struct.unpack("I", argument)
        if request == 0xC0045706:
            self._set = value
        return struct.pack("I", self._granted or self._set)

    @property
    def written(self) -> bytes:
        return self.device.read_bytes()

    def open(self) -> Device:
        return Device(self.device, facts=self.facts)


def test_a_device_says_what_it_is_and_the_time_that_it_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(tmp_path, monkeypatch, identity="iTCO_wdt")
    device = driver.open()
    assert device.describe() == f"hardware (iTCO_wdt) {driver.device}, not armed"
    device.arm(9.0)
    assert device.describe() == f"hardware (iTCO_wdt) {driver.device}, armed, 9 s"
    device.arm(5.0)
    assert device.describe().endswith("armed, 5 s"), "a shorter profile while it is armed"
    device.pet()
    device.disarm()
    assert driver.written == b"\0V", "only the magic letter lets a closed device rest"


def test_the_kernels_own_watchdog_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FakeDriver(tmp_path, monkeypatch, identity="Software Watchdog").open().describe().startswith("softdog")


def test_a_device_that_waits_longer_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDriver(tmp_path, monkeypatch, granted=30).open()
    device.arm(5.0)
    assert "others may take over before it fires; write 'watchdog: 30'" in device.describe()
    assert device.describe() in caplog.text


def test_a_device_that_a_killed_keeper_left_running_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(tmp_path, monkeypatch, state="active")
    driver.open().disarm()
    assert driver.written == b"V"


def test_a_device_that_nobody_armed_is_not_opened_to_be_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(tmp_path, monkeypatch, state="inactive")
    driver.open().disarm()
    assert driver.written == b""


def test_a_driver_that_cannot_be_switched_off_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDriver(tmp_path, monkeypatch, nowayout="1").open()
    device.arm(5.0)
    device.disarm()
    assert "nowayout" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"), [("32", "its watchdog reset it"), ("0x20", "its watchdog reset it"), ("0", "")]
)
def test_a_reset_by_the_watchdog_is_known_at_the_next_boot(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "bootstatus").write_text(content)
    assert boot_status(tmp_path) == said
    assert boot_status(tmp_path / "none") == ""
