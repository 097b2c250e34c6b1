"""`kvorum store locks, lock, unlock`: who holds what, who waits, and running a command under a lock."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli.output import local_time, output_option, print_json, print_table
from kvorum.cli.session import Session
from kvorum.cli.store_history import node_names
from kvorum.errors import NotFound, Refused

if TYPE_CHECKING:
    from kvorum.client.locks import HeldLock
    from kvorum.v1 import lock_pb2 as pb

POLL_S = 0.5
KILL_AFTER_S = 10.0


@click.command("locks")
@output_option
@click.pass_obj
def locks(session: Session, output: str) -> None:
    """Who holds which lock since when and what for, and who waits for it in which order.

    \b
    Example:
      kvorum store locks -o json
    """
    found = list(session.client.locks.list())
    if output == "json":
        print_json(found)
        return
    names = node_names(session) if found else {}
    rows: list[dict[str, object]] = []
    for lock in found:
        if lock.HasField("holder"):
            rows.append(_row(lock.name, "holds", lock.holder, names))
        else:
            node = names.get(lock.node_uid, lock.node_uid)
            rows.append({"lock": lock.name, "what": "mkdir", "node": node, "since": local_time(lock.since)})
        rows += [_row(lock.name, f"waits {at}", waiter, names) for at, waiter in enumerate(lock.waiters, start=1)]
    print_table(rows, columns=("lock", "what", "who", "node", "since", "token", "reason"))


@click.command("lock", context_settings={"allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--wait", "timeout_s", type=click.FloatRange(0), help="Give up after so many seconds; 0: at once.")
@click.option("--ttl", "ttl_s", default=30, show_default=True, type=click.IntRange(5, 3600), metavar="SECONDS",
              help="When this node is cut off for longer, the lock goes to the next.")  # fmt: skip
@click.option("--reason", default="", help="What for; shown to those who wait.  [default: the command]")
@click.pass_obj
def lock(session: Session, name: str, command: Sequence[str], timeout_s: float | None, ttl_s: int, reason: str) -> None:
    """Run a command while holding a lock; its exit code is this one's. It is ended when the lock is lost.

    The command finds the lock's name and token in KVORUM_LOCK and KVORUM_LOCK_TOKEN.

    \b
    Examples:
      kvorum store lock nightly -- /usr/local/bin/backup-all
      kvorum store lock --wait 0 nightly -- make report       only if nobody else is at it
    """
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("a command is missing")
    why = reason or " ".join(command)
    with session.client.locks.hold(name, reason=why, ttl_s=ttl_s, timeout_s=timeout_s) as held:
        code = _run(command, held)
    sys.exit(code)


@click.command("unlock")
@click.argument("name")
@click.option("--force", is_flag=True, help="Really take it away.")
@click.option("--reason", default="", help="Why; kept with the change.")
@click.pass_obj
def unlock(session: Session, name: str, force: bool, reason: str) -> None:
    """Take a lock away from whoever holds it; the next in line gets it. Writes under the old token are refused.

    \b
    Example:
      kvorum store unlock nightly --force
    """
    if not force:
        held = next((one for one in session.client.locks.list() if one.name == name), None)
        if held is None:
            raise NotFound(f"nobody holds the lock {name}")
        node = node_names(session).get(held.node_uid, held.node_uid)
        who = f"{held.holder.author} on {node}" if held.HasField("holder") else node
        raise Refused(f"{who} holds the lock {name} since {local_time(held.since)}", remedy="--force takes it away")
    session.client.locks.break_(name, reason=reason)


def _run(command: Sequence[str], held: "HeldLock") -> int:
    names = {"KVORUM_LOCK": held.name, "KVORUM_LOCK_TOKEN": str(held.token)}
    try:
        process = subprocess.Popen(list(command), env={**os.environ, **names})
    except OSError as error:
        raise Refused(f"cannot run {command[0]}: {error.strerror}") from error
    while True:
        try:
            return process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if held.is_lost:
                process.terminate()
                try:
                    process.wait(KILL_AFTER_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                held.check()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _row(name: str, what: str, claim: "pb.Lock.Claim", names: dict[str, str]) -> dict[str, object]:
    return {
        "lock": name,
        "what": what,
        "who": claim.author,
        "node": names.get(claim.node_uid, claim.node_uid),
        "since": local_time(claim.since),
        "token": claim.token or "",
        "reason": claim.reason,
    }
