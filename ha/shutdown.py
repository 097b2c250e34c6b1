"""Whether this host is going down, or only kvorum-ha ends: asked of systemd, which knows what it has begun.

Without systemd, or without an answer, nothing is known, and then the daemon's end touches no guest.
"""

import asyncio
import logging
from contextlib import suppress

log = logging.getLogger(__name__)

ASK_S = 5.0
_REBOOTS = ("reboot.target", "kexec.target", "soft-reboot.target")
_POWEROFFS = ("poweroff.target", "halt.target", "shutdown.target")


async def going_down() -> str:
    """`reboot`, `poweroff`, or nothing."""
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            "list-jobs",
            "--no-legend",
            "--plain",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(ASK_S):
            output, _ = await process.communicate()
    except TimeoutError:
        log.warning("systemd does not say whether the host goes down")
        with suppress(ProcessLookupError):
            process.kill()
        return ""
    return parse_jobs(output.decode(errors="replace"))


def parse_jobs(text: str) -> str:
    """From lines `JOB UNIT TYPE STATE`. Pure."""
    starting = {words[1] for line in text.splitlines() if len(words := line.split()) >= 3 and words[2] == "start"}
    if starting & set(_REBOOTS):
        return "reboot"
    return "poweroff" if starting & set(_POWEROFFS) else ""
