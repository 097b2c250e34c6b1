"""`kvorum ha`: what is kept running when nodes die. The verbs for resources; the others join from their modules."""

from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli import ha_moves, ha_rule, ha_status, ha_whole, ha_why, live_names
from kvorum.cli.output import output_option, print_json
from kvorum.cli.session import Session
from kvorum.errors import InvalidInput

if TYPE_CHECKING:
    from kvorum.v1 import ha_pb2 as pb

STATES = ("started", "stopped", "disabled", "ignored")

state_type = click.Choice(STATES)
tries_type = click.IntRange(0, 10)
priority_type = click.IntRange(-1000, 1000)


@click.group()
def ha() -> None:
    """What is kept running when nodes die.

    \b
    Examples:
      kvorum ha add vm:100                    keep it running, wherever
      kvorum ha status                        nodes, resources, what is wrong
      kvorum ha explain vm:100                why it is there, and what if its node dies
      kvorum ha simulate --kill n2            what would start where
      kvorum ha maintenance enable n2         empty a node
      kvorum ha disarm --for 30m              before work on the network
    """


def request_state(word: str) -> "pb.HaRequestState.ValueType":
    from kvorum.v1 import ha_pb2 as pb

    return pb.HaRequestState.Value(f"HA_REQUEST_STATE_{word.upper()}")


@ha.command()
@click.argument("sid", shell_complete=live_names.guests)
@click.option("--state", type=state_type, default="started", show_default=True, help="What is asked for.")
@click.option("--max-restart", type=tries_type, default=None, help="Tries on one node before another one. Default: 1.")
@click.option("--max-relocate", type=tries_type, default=None, help="Other nodes to try. Default: 1.")
@click.option("--failback/--no-failback", default=None, help="Go back to a better node by itself. Default: yes.")
@click.option(
    "--priority", type=priority_type, default=None, help="Higher: first to get room when a node dies. Default: 0."
)
@click.option("--comment", default="")
@click.option(
    "--force", is_flag=True, help="Also when that uses up the reserve for nodes that die (crs: reserve-nodes)."
)
@output_option
@click.pass_obj
def add(
    session: Session,
    sid: str,
    state: str,
    max_restart: int | None,
    max_relocate: int | None,
    failback: bool | None,
    priority: int | None,
    comment: str,
    force: bool,
    output: str,
) -> None:
    """Put guest SID (vm:100, ct:101) under HA.

    Warns when there is a node without which some guest would find no place any more.

    \b
    Examples:
      kvorum ha add vm:100
      kvorum ha add ct:101 --state stopped --max-relocate 2 --comment "the mail server"
    """
    answer = session.client.ha.add(
        sid,
        state=request_state(state),
        comment=comment,
        max_restart=max_restart,
        max_relocate=max_relocate,
        failback=failback,
        priority=priority,
        force=force,
    )
    if output == "json":
        print_json(answer.resource)
    else:
        click.echo(f"{sid} is under HA, requested {state}")
    for warning in answer.warnings:
        click.echo(f"warning: {warning}", err=True)


@ha.command("set")
@click.argument("sid", shell_complete=live_names.resources)
@click.option("--state", type=state_type, default=None, help="What is asked for; disabled also forgets an error.")
@click.option("--max-restart", type=tries_type, default=None, help="Tries on one node before another one.")
@click.option("--max-relocate", type=tries_type, default=None, help="Other nodes to try.")
@click.option("--failback/--no-failback", default=None, help="Go back to a better node by itself.")
@click.option("--priority", type=priority_type, default=None, help="Higher: first to get room when a node dies.")
@click.option("--comment", default=None, help="An empty one removes it.")
@output_option
@click.pass_obj
def set_resource(
    session: Session,
    sid: str,
    state: str | None,
    max_restart: int | None,
    max_relocate: int | None,
    failback: bool | None,
    priority: int | None,
    comment: str | None,
    output: str,
) -> None:
    """Change what is requested of SID; what is not given stays.

    \b
    Examples:
      kvorum ha set vm:100 --state stopped
      kvorum ha set vm:100 --max-restart 3 --no-failback
      kvorum ha set vm:100 --state disabled      gives up what went wrong
    """
    if all(value is None for value in (state, max_restart, max_relocate, failback, priority, comment)):
        raise InvalidInput("there is nothing to change", remedy="give --state or another option; --help lists them")
    resource = session.client.ha.update(
        sid,
        state=request_state(state or "unspecified"),
        comment=comment,
        max_restart=max_restart,
        max_relocate=max_relocate,
        failback=failback,
        priority=priority,
    )
    if output == "json":
        print_json(resource)
    elif state is not None:
        click.echo(f"{sid} is requested {state}")
    else:
        click.echo(f"{sid} is changed")


@ha.command()
@click.argument("sid", shell_complete=live_names.resources)
@click.pass_obj
def remove(session: Session, sid: str) -> None:
    """Take SID out of HA; the guest is left as it is.

    \b
    Example:
      kvorum ha remove vm:100
    """
    session.client.ha.remove(sid)
    click.echo(f"{sid} is no longer under HA")


for command in (
    *ha_status.COMMANDS,
    *ha_moves.COMMANDS,
    *ha_rule.COMMANDS,
    *ha_whole.COMMANDS,
    *ha_why.COMMANDS,
):
    ha.add_command(command)
