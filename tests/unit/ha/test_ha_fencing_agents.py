"""Fence agents of Debian, really run: a file that plays a power switch, and a management controller that speaks IPMI."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha.fencing import agents
from ha.fencing.agents import prove, question, switch_off, without_secrets
from ha.fencing.config import AgentCall, Method

PASSWORD = "fence me in"


def _dummy(path: Path, **more: str) -> Method:
    return Method("dummy", (AgentCall("fence_dummy", {"type": "file", "status_file": str(path), **more}),))


async def test_a_power_switch_is_switched_off_and_read_back(tmp_path: Path) -> None:
    switch = tmp_path / "power"
    switch.write_text("on")
    assert (await prove(_dummy(switch))).is_off, "it answers; nothing is switched"
    assert switch.read_text() == "on"
    outcome = await switch_off(_dummy(switch))
    assert (outcome.is_off, outcome.cause, outcome.method) == (True, "", "dummy")
    assert switch.read_text().strip() == "off"


async def test_one_of_two_supplies_that_stays_on_is_no_confirmation(tmp_path: Path) -> None:
    switch = tmp_path / "power"
    switch.write_text("on")
    broken = Method("both", (*_dummy(switch).calls, AgentCall("fence_dummy", {"type": "fail"})))
    outcome = await switch_off(broken, timeout_s=3.0)
    assert not outcome.is_off
    assert outcome.cause


async def test_an_agent_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "CALL_S", 0.5)
    (tmp_path / "power").write_text("on")
    outcome = await switch_off(_dummy(tmp_path / "power", delay="600"), timeout_s=10.0)
    assert not outcome.is_off
    assert "did not end within 0.5 s" in outcome.cause


async def test_an_agent_that_is_not_there_is_named() -> None:
    outcome = await switch_off(Method("x", (AgentCall("fence_no_such_thing", {}),)))
    assert "fence-agents" in outcome.cause
    assert not (await prove(Method("x", (AgentCall("fence_no_such_thing", {}),)))).is_off


async def test_an_agent_that_cannot_be_started_is_a_reason_and_no_end_of_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuses(*_arguments: object, **_options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(agents.asyncio, "create_subprocess_exec", refuses)
    outcome = await switch_off(Method("x", (AgentCall("fence_dummy", {}),)))
    assert (outcome.is_off, "cannot be run: Cannot allocate memory" in outcome.cause) == (False, True)


async def test_a_method_without_devices_confirms_nothing() -> None:
    assert not (await switch_off(Method("x", ()))).is_off


def test_secrets_go_to_the_standard_input_and_not_to_the_log() -> None:
    parameters = {"passwd": PASSWORD, "ipaddr": "10.0.0.1", "action": "on"}
    assert question(parameters, "off") == f"passwd={PASSWORD}\nipaddr=10.0.0.1\naction=off\n".encode()
    assert without_secrets(f"trying\nlogin with {PASSWORD} failed\n\n", parameters) == "login with *** failed"


CONTROLLER = """
name "controller"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{script}"
  user 1 true "" "" user 10 none md2 md5 straight
  user 2 true "admin" "{password}" admin 10 none md2 md5 straight
"""
# Keeps the power in a file; what the simulator asks for are `get power`, `set power 0`, ...
CHASSIS = """#!/bin/sh
while [ "$1" != get ] && [ "$1" != set ]; do shift; done
if [ "$1" = get ]; then echo "power:$(cat {power})"; else
  shift
  while [ $# -ge 2 ]; do [ "$1" = power ] && echo "$2" >{power}; shift 2; done
fi
"""


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[tuple[Method, Path]]:
    """OpenIPMI's simulator; the power is a file."""
    power, script, config = tmp_path / "power", tmp_path / "chassis", tmp_path / "lan.conf"
    power.write_text("1\n")
    script.write_text(CHASSIS.format(power=power))
    script.chmod(0o755)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config.write_text(CONTROLLER.format(port=port, script=script, password="secret"))
    commands = tmp_path / "commands"
    commands.write_text("mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n")
    state = tmp_path / "state"
    state.mkdir()
    command = ["ipmi_sim", "-c", str(config), "-f", str(commands), "-s", str(state), "-n"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        parameters = {
            "ip": "127.0.0.1",
            "ipport": str(port),
            "username": "admin",
            "password": "secret",
            "lanplus": "1",
            # Else ipmitool asks for a list that the simulator does not have, for ten seconds.
            "cipher": "3",
            "power_wait": "0",
        }
        _wait_until_it_listens(port)
        yield Method("ipmi", (AgentCall("fence_ipmilan", parameters),)), power
        one.kill()


def _wait_until_it_listens(port: int) -> None:
    end = time.monotonic() + 10
    wanted = f":{port:04X} "
    while wanted not in Path("/proc/net/udp").read_text():
        assert time.monotonic() < end, "ipmi_sim does not listen"
        time.sleep(0.02)


async def test_a_controller_that_speaks_ipmi_switches_its_host_off(controller: tuple[Method, Path]) -> None:
    method, power = controller
    assert (await prove(method)).cause == ""
    outcome = await switch_off(method)
    assert outcome.cause == ""
    assert outcome.is_off
    assert power.read_text().strip() == "0"


async def test_a_controller_that_refuses_the_password_confirms_nothing(controller: tuple[Method, Path]) -> None:
    method, power = controller
    wrong = Method("ipmi", (AgentCall("fence_ipmilan", {**method.calls[0].parameters, "password": "wrong"}),))
    outcome = await switch_off(wrong)
    assert not outcome.is_off
    assert "wrong" not in outcome.cause
    assert power.read_text().strip() == "1"
    assert os.access(power, os.R_OK)
