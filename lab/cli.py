"""`kvorum lab ...`: the lab from the command line. What the commands do is in `lab.cluster` and `lab.node`."""

import json
import os
from typing import Any

import rich_click as click
from rich.console import Console
from rich.table import Table

from lab.cluster import Lab

_console = Console()
_json = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the answer."
)


@click.group(name="lab")
@click.option("--name", default="lab", envvar="KVORUM_LAB_NAME", show_default=True, help="Which lab; several may run.")
@click.pass_context
def lab(context: click.Context, name: str) -> None:
    """N nodes on this machine, made of namespaces: try things, break things.

    \b
    Examples:
      kvorum lab up --nodes 3
      kvorum lab exec n1 -- kvorum cluster status
      kvorum lab kill n2
      kvorum lab down
    """
    context.obj = Lab(name)


@lab.command()
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 32), help="How many.")
@click.option("--join/--no-join", default=True, help="Form a cluster of them.")
@click.pass_obj
def up(lab: Lab, nodes: int, join: bool) -> None:
    """Power on a lab of fresh nodes and form a cluster.

    \b
    Examples:
      kvorum lab up --nodes 5
      kvorum lab --name second up --no-join
    """
    lab.up(nodes, join=join, progress=click.echo)


@lab.command()
@click.pass_obj
def down(lab: Lab) -> None:
    """End the lab and remove every trace of it, its nodes' disks included."""
    lab.down()


@lab.command()
@_json
@click.pass_obj
def status(lab: Lab, output: str) -> None:
    """Nodes, their daemons, cuts and published ports."""
    found = lab.status()
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    _console.print(_status_table(found))


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(lab: Lab, node: str, command: tuple[str, ...]) -> None:
    """Run a command on a node; its exit status is ours.

    \b
    Examples:
      kvorum lab exec n1 -- ip address
      kvorum lab exec n2 -- bash
    """
    words = lab.node(node).command(command)
    os.execvp(words[0], words)


@lab.command()
@click.argument("node")
@click.pass_obj
def kill(lab: Lab, node: str) -> None:
    """Cut a node's power: everything on it is gone at once, its disk stays."""
    lab.node(node).kill()


@lab.command()
@click.argument("node")
@click.pass_obj
def start(lab: Lab, node: str) -> None:
    """Power a node on again, with its disk."""
    lab.node(node).start()


def _status_table(found: dict[str, Any]) -> Table:
    table = Table(box=None)
    for title in ("NODE", "ADDRESS", "STATE", "UNITS"):
        table.add_column(title)
    for node in found["nodes"]:
        state = node["state"] + (", cut" if node["is_cut"] else "")
        units = " ".join(f"{u['unit'].removeprefix('kvorum-')}:{u['state']}" for u in node["units"])
        table.add_row(node["name"], node["address"], state, units)
    return table
