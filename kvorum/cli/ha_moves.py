"""`kvorum ha migrate`, `relocate`, `stop`: commands about one resource, and following a command to its end."""

from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli import live_names
from kvorum.cli.output import output_option, print_json
from kvorum.cli.session import Session
from kvorum.errors import TaskFailed

if TYPE_CHECKING:
    from kvorum.cli.output import Command
    from kvorum.v1 import ha_pb2 as pb


def wait_option(command: "Command") -> "Command":
    option = click.option("--wait/--no-wait", default=True, show_default=True, help="Follow it to its end.")
    return option(command)


@click.command()
@click.argument("sid", shell_complete=live_names.resources)
@click.argument("node", shell_complete=live_names.nodes)
@wait_option
@output_option
@click.pass_obj
def migrate(session: Session, sid: str, node: str, wait: bool, output: str) -> None:
    """Move SID to NODE; a running VM keeps running, a container stops for it.

    What must run together moves together. Refused where a strict rule forbids it.

    \b
    Examples:
      kvorum ha migrate vm:100 n2
      kvorum ha migrate vm:100 n2 --no-wait
    """
    finish(session, session.client.ha.migrate(sid, node), wait=wait, output=output)


@click.command()
@click.argument("sid", shell_complete=live_names.resources)
@click.argument("node", shell_complete=live_names.nodes)
@wait_option
@output_option
@click.pass_obj
def relocate(session: Session, sid: str, node: str, wait: bool, output: str) -> None:
    """Stop SID, and start it on NODE.

    \b
    Example:
      kvorum ha relocate ct:101 n3
    """
    finish(session, session.client.ha.relocate(sid, node), wait=wait, output=output)


@click.command()
@click.argument("sid", shell_complete=live_names.resources)
@click.option("--timeout", "timeout_s", default=60, show_default=True, type=click.IntRange(0, 86400), metavar="SECONDS",
              help="For a graceful stop; 0 pulls the plug.")  # fmt: skip
@wait_option
@output_option
@click.pass_obj
def stop(session: Session, sid: str, timeout_s: int, wait: bool, output: str) -> None:
    """Stop SID and keep it stopped.

    \b
    Examples:
      kvorum ha stop vm:100
      kvorum ha stop vm:100 --timeout 0
      kvorum ha set vm:100 --state started      starts it again
    """
    finish(session, session.client.ha.stop(sid, timeout_s=timeout_s), wait=wait, output=output)


def finish(session: Session, command: "pb.HaCommand", *, wait: bool, output: str = "table") -> None:
    """Raises TaskFailed when the command does not succeed. Ctrl-C stops watching, not the command."""
    last = command
    try:
        for last in session.client.ha.follow(command) if wait else (command,):
            if output != "json":
                click.echo(f"{last.state}: {last.cause}", err=last.state != "done")
    except KeyboardInterrupt:
        click.echo("\nit goes on; 'kvorum ha status' shows how", err=True)
        raise click.Abort from None
    if output == "json":
        print_json(last)
    if last.state == "failed":
        raise TaskFailed(f"{last.text}: {last.cause}", remedy="'kvorum task list' shows what its node tried")


COMMANDS = (migrate, relocate, stop)
