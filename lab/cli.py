"""`kvorum lab ...`: the lab from the command line. What the commands do is in `lab.cluster` and `lab.node`."""

import json
import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from kvorum.errors import NotFound
from lab import relay, requirements
from lab.cluster import Lab
from lab.images import provide

_json = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the answer."
)
_PORT = click.IntRange(1, 65535)


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
@click.option("--images/--no-images", default=True, help="Build the test guests and put them in the storages.")
@click.option("--witness", is_flag=True, help="The last node joins as a witness.")
@click.pass_obj
def up(lab: Lab, nodes: int, join: bool, images: bool, witness: bool) -> None:
    """Power on a lab of fresh nodes and form a cluster.

    \b
    Examples:
      kvorum lab up --nodes 5
      kvorum lab --name second up --no-join
      kvorum lab up --nodes 3 --witness
    """
    lab.up(nodes, join=join, images=images, witness=witness, progress=click.echo)


@lab.command()
@click.pass_obj
def down(lab: Lab) -> None:
    """End the lab and remove every trace of it, its nodes' disks included.

    \b
    Examples:
      kvorum lab down
      kvorum lab --name second down
    """
    lab.down()


@lab.command()
@_json
@click.pass_obj
def status(lab: Lab, output: str) -> None:
    """Nodes, their daemons, cuts and published ports.

    \b
    Examples:
      kvorum lab status
      kvorum lab status -o json
    """
    found = lab.status()
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    rows, notes = status_rows(found)
    table = Table(box=None)
    for title in ("NODE", "ADDRESS", "STATE", "UNITS"):
        table.add_column(title)
    for row in rows:
        table.add_row(*row)
    Console().print(table, *notes, sep="\n")


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
    os.execvp(words[0], words)  # noqa: S606 -- becoming the command passes signals, terminal and status through


@lab.command()
@click.argument("node")
@click.pass_obj
def kill(lab: Lab, node: str) -> None:
    """Cut a node's power: everything on it is gone at once, its disk stays.

    \b
    Examples:
      kvorum lab kill n2
      kvorum lab start n2
    """
    lab.node(node).kill()


@lab.command()
@click.argument("node")
@click.pass_obj
def start(lab: Lab, node: str) -> None:
    """Power a node on again, with the disk that it had.

    \b
    Examples:
      kvorum lab start n2
    """
    lab.node(node).start()


@lab.command()
@click.argument("node")
@click.argument("other", required=False, default="")
@click.option("--one-way", is_flag=True, help="Only what NODE sends to OTHER is lost.")
@click.pass_obj
def cut(lab: Lab, node: str, other: str, one_way: bool) -> None:
    """Partition the network: NODE from all others, or from OTHER only.

    \b
    Examples:
      kvorum lab cut n3
      kvorum lab cut n1 n3
      kvorum lab cut n1 n3 --one-way
    """
    if not one_way:
        lab.cut(node, other)
    elif other:
        lab.cut_one_way(node, other)
    else:
        raise click.UsageError("--one-way needs two nodes")


@lab.command()
@click.argument("nodes", nargs=-1)
@click.pass_obj
def heal(lab: Lab, nodes: tuple[str, ...]) -> None:
    """Undo cuts: all of one node, those between two, or (without nodes) every one.

    \b
    Examples:
      kvorum lab heal n3
      kvorum lab heal
    """
    if len(nodes) > 2:
        raise click.UsageError("name one node, two, or none")
    lab.heal(*nodes)


@lab.command()
@click.argument("node")
@click.pass_obj
def freeze(lab: Lab, node: str) -> None:
    """Stop every process of a node where it is, guests too, while the others go on.

    \b
    Examples:
      kvorum lab freeze n1
      kvorum lab thaw n1
    """
    lab.node(node).freeze()


@lab.command()
@click.argument("node")
@click.pass_obj
def thaw(lab: Lab, node: str) -> None:
    """Let a frozen node go on.

    \b
    Examples:
      kvorum lab thaw n1
    """
    lab.node(node).thaw()


@lab.command()
@click.argument("node")
@click.argument("port", type=_PORT)
@click.option(
    "--port",
    "local_port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on this machine; without it a free one.",
)
@_json
@click.pass_obj
def publish(lab: Lab, node: str, port: int, local_port: int, output: str) -> None:
    """Make a node's TCP port reachable on this machine's loopback, and print where.

    \b
    Examples:
      kvorum lab publish n1 8005
      kvorum lab publish n1 8006 --port 8006
    """
    published = relay.publish(lab.node(node).layout, port, local_port=local_port)
    click.echo(json.dumps(msgspec.to_builtins(published)) if output == "json" else published.address)


@lab.command()
@click.argument("node")
@click.argument("port", type=_PORT)
@click.pass_obj
def unpublish(lab: Lab, node: str, port: int) -> None:
    """End what `publish` began.

    \b
    Examples:
      kvorum lab unpublish n1 8005
    """
    relay.unpublish(lab.node(node).layout, port)


@lab.command()
@click.argument("node")
@click.argument("unit", required=False, default="")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(1), help="How many, from the end.")
@click.pass_obj
def logs(lab: Lab, node: str, unit: str, lines: int) -> None:
    """Print the log of a daemon, or of the node's PID 1; also when the node is off.

    \b
    Examples:
      kvorum lab logs n1
      kvorum lab logs n1 agent -n 200
    """
    path = lab.node(node).log(unit)
    if not path.exists():
        raise NotFound(f"{node} has no log of {unit} yet")
    with path.open(errors="replace") as log:
        for line in deque(log, maxlen=lines):
            click.echo(line, nl=False)


@lab.command()
@click.argument("node")
@click.argument("unit")
@click.pass_obj
def restart(lab: Lab, node: str, unit: str) -> None:
    """Restart one daemon; guests do not notice.

    \b
    Examples:
      kvorum lab restart n1 agent
      kvorum lab restart n1 libvirtd
    """
    lab.node(node).restart(unit)


@lab.command()
@_json
def images(output: str) -> None:
    """Build the test guests' images, or find them built, and print where they are.

    \b
    Examples:
      kvorum lab images
    """
    requirements.check(requirements.IMAGE_PROGRAMS)
    found = {name: str(path) for name, path in provide.build_all().items()}
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        for name, path in found.items():
            click.echo(f"{name:10} {path}")


def status_rows(found: Mapping[str, Any]) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Rows for the table of nodes, and lines for below it."""
    rows = []
    for node in found["nodes"]:
        state = node["state"] + (", cut off" if node["is_cut"] else "")
        state += f" ({node['cause']})" if node.get("cause") else ""
        units = " ".join(f"{unit['unit'].removeprefix('kvorum-')}:{unit['state']}" for unit in node["units"])
        rows.append((node["name"], node["address"], state, units))
    notes = [f"{sender} cannot send to {receiver}" for sender, receiver in found["cuts"]]
    if found.get("watchdog") == "off":
        notes.append("the watchdog is off: a node that hangs keeps its power; 'kvorum lab start' of any node starts it")
    notes += [f"{one['node']}:{one['port']} is {one['address']} here" for one in found["published"]]
    return rows, notes
