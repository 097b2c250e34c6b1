"""The one module that runs programs: every command of the agent goes through here, and nothing else may start a process.

A command is a list of strings, never a shell's line. It has a deadline, gets no terminal and no stray descriptors, runs in a
session of its own with the C locale (we parse what it says), and is gone when the caller is: on timeout and on cancellation
its whole process group is killed. What it said last on stderr becomes the error's message.

Programs are started by vfork (no hooks between fork and exec), so that gRPC's threads and fork handlers stay out of it.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvorum.errors import CommandFailed, Timeout

log = logging.getLogger(__name__)

# A killed process that does not go within this time is stuck in the kernel; waiting longer helps nobody.
_REAP_TIMEOUT_S = 5.0
# Characters of stderr that an error carries in its details; they travel in gRPC metadata, which is small.
STDERR_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended. `returncode` is negative for the signal that killed it, as in subprocess."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


async def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    input: bytes | BinaryIO | None = None,  # noqa: A002 - subprocess calls it so
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ok_codes: Collection[int] = (0,),
    remedy: str = "",
) -> Completed:
    """Run to the end. `input` is fed to stdin, or is an open file to read from; `env` adds to the environment.

    Raises CommandFailed when the program cannot be started or its exit status is not in `ok_codes`, Timeout when it was
    killed after `timeout_s` seconds.
    """
    command = tuple(str(part) for part in argv)
    log.debug("run: %s", shlex.join(command))
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=_stdin(input),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise _not_started(command, error) from error
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate(input if isinstance(input, bytes) else None)
    except TimeoutError:
        await _kill_and_reap(process)
        raise _too_late(command, timeout_s) from None
    except BaseException:
        await asyncio.shield(_kill_and_reap(process))
        raise
    assert process.returncode is not None
    return _checked(Completed(command, process.returncode, stdout, stderr), ok_codes, remedy)


def run_blocking(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    input: bytes | BinaryIO | None = None,  # noqa: A002
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ok_codes: Collection[int] = (0,),
    remedy: str = "",
) -> Completed:
    """The same for code that runs in a thread or has no event loop."""
    command = tuple(str(part) for part in argv)
    log.debug("run: %s", shlex.join(command))
    try:
        process = subprocess.Popen(
            command,
            stdin=_stdin(input),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise _not_started(command, error) from error
    with process:
        try:
            stdout, stderr = process.communicate(input if isinstance(input, bytes) else None, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            raise _too_late(command, timeout_s) from None
        except BaseException:
            _kill_group(process.pid)
            raise
    return _checked(Completed(command, process.returncode, stdout, stderr), ok_codes, remedy)


def last_line(output: bytes) -> str:
    """The last line that says anything."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _stdin(source: bytes | BinaryIO | None) -> int | BinaryIO:
    if source is None:
        return subprocess.DEVNULL
    return subprocess.PIPE if isinstance(source, bytes) else source


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    # A translated message or a decimal comma would break the parsers of what programs say.
    return {**os.environ, "LC_ALL": "C", **(extra or {})}


def _checked(completed: Completed, ok_codes: Collection[int], remedy: str) -> Completed:
    if completed.returncode in ok_codes:
        return completed
    program = Path(completed.argv[0]).name
    how = f"exit status {completed.returncode}"
    if completed.returncode < 0:
        how = f"killed by {signal.Signals(-completed.returncode).name}"
    stderr = completed.stderr.decode(errors="replace").strip()
    said = last_line(completed.stderr) or last_line(completed.stdout) or "no message"
    details = {"command": shlex.join(completed.argv), "status": how, "stderr": stderr[:STDERR_KEPT]}
    raise CommandFailed(f"{program}: {said} ({how})", remedy=remedy, details=details)


def _not_started(command: tuple[str, ...], error: OSError) -> CommandFailed:
    return CommandFailed(
        f"cannot run {command[0]}: {error.strerror}",
        remedy=f"install the package that has {Path(command[0]).name}" if isinstance(error, FileNotFoundError) else "",
        details={"command": shlex.join(command)},
    )


def _too_late(command: tuple[str, ...], timeout_s: float) -> Timeout:
    return Timeout(
        f"{Path(command[0]).name} did not end within {timeout_s:g} s and was killed",
        details={"command": shlex.join(command)},
    )


def _kill_group(pid: int) -> None:
    # The program leads a session of its own, so that its helpers (tar's decompressor) go with it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _kill_and_reap(process: asyncio.subprocess.Process) -> None:
    _kill_group(process.pid)
    try:
        async with asyncio.timeout(_REAP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        log.warning("process %d does not end after SIGKILL", process.pid)
