"""The one module of the lab that runs programs and waits for them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvorum.errors import CommandFailed, Timeout


def run(
    command: Sequence[str],
    *,
    stdin: str = "",
    timeout_s: float = 30.0,
    is_checked: bool = True,
    directory: Path | None = None,
) -> str:
    """What the program printed. Raises CommandFailed with its last line (unless not `is_checked`), Timeout."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            cwd=directory,
        )
    except FileNotFoundError as error:
        raise CommandFailed(
            f"{command[0]} is not installed", remedy="install the packages that `make dev` names"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Timeout(f"{command[0]} did not end within {timeout_s:g} s") from error
    if is_checked and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise CommandFailed(f"{' '.join(command[:4])}: {said}", details={"status": str(done.returncode)})
    return done.stdout
