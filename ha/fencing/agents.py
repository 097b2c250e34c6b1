"""Runs fence agents: `off`, and then `status` until it says off. Their parameters go to standard input, never to a
command line.

An agent that says that it has switched something off has said so, no more; some return before it is. What counts is a
look afterwards. The agents' convention: `status` ends with 0 when the power is on, with 2 when it is off, with
anything else when nobody knows.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from .config import AgentCall, Method

log = logging.getLogger(__name__)

# For one call of an agent, and for all of a method.
CALL_S = 20.0
METHOD_S = 60.0
LOOK_S = 0.5
_ON, _OFF = 0, 2
# Of what an agent prints; it may hold more than anybody wants to read.
_SAID_MAX = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """`is_off`: read back, from every device of the method. `cause`: why not."""

    method: str
    is_off: bool
    cause: str = ""
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ended:
    status: int
    said: str


async def switch_off(method: Method, *, timeout_s: float = METHOD_S) -> Outcome:
    """All devices of the method at once. Never raises but when cancelled."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            causes = await asyncio.gather(*(_switch_off(call) for call in method.calls))
    except TimeoutError:
        causes = [f"no confirmation within {timeout_s:g} s"]
    cause = "; ".join(cause for cause in causes if cause)
    return Outcome(method.name, bool(method.calls) and not cause, cause, time.monotonic() - began)


async def prove(method: Method, *, timeout_s: float = CALL_S) -> Outcome:
    """Whether its devices answer with our parameters: the self-test, which switches nothing."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            ended = await asyncio.gather(*(_run(call, "status") for call in method.calls))
    except TimeoutError:
        return Outcome(method.name, False, f"no answer within {timeout_s:g} s", time.monotonic() - began)
    cause = "; ".join(one.said or f"exit status {one.status}" for one in ended if one.status not in (_ON, _OFF))
    return Outcome(method.name, not cause, cause, time.monotonic() - began)


async def _switch_off(call: AgentCall) -> str:
    """Why it is not known to be off; empty when it is."""
    done = await _run(call, "off")
    if done.status != 0:
        # It may be off for all that; only a look tells.
        log.warning("%s: off failed: %s", call.agent, done.said or f"exit status {done.status}")
    while True:
        looked = await _run(call, "status")
        if looked.status == _OFF:
            return ""
        if done.status != 0:
            return f"{call.agent}: {done.said or 'off failed'}"
        await asyncio.sleep(LOOK_S)


async def _run(call: AgentCall, action: str) -> _Ended:
    program = shutil.which(call.agent, path="/usr/sbin:/usr/bin:/sbin")
    if program is None:
        return _Ended(127, f"{call.agent} is not installed; it is in Debian's package fence-agents")
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    except OSError as error:
        # No memory, no more processes, a damaged file: a reason like any other, and not the end of the daemon.
        return _Ended(126, f"{call.agent} cannot be run: {error.strerror or error}")
    try:
        async with asyncio.timeout(CALL_S):
            output, _ = await process.communicate(question(call.parameters, action))
    except TimeoutError:
        return _Ended(124, f"{call.agent} did not end within {CALL_S:g} s")
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode is not None
    return _Ended(process.returncode, without_secrets(output.decode(errors="replace"), call.parameters))


def question(parameters: Mapping[str, str], action: str) -> bytes:
    return "".join(f"{key}={value}\n" for key, value in {**parameters, "action": action}.items()).encode()


def without_secrets(said: str, parameters: Mapping[str, str]) -> str:
    """The last line that an agent has printed, for a log that others read."""
    for key, value in parameters.items():
        if "pass" in key.lower() and value:
            said = said.replace(value, "***")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:_SAID_MAX] if lines else ""
