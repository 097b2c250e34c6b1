"""`kvorum node`: the machines of the cluster."""

import rich_click as click

from kvorum.cli.cluster import NODE_COLUMNS, node_row
from kvorum.cli.output import local_time, output_option, print_fields, print_json, print_table, short
from kvorum.cli.session import Session
from kvorum.errors import NotFound


@click.group()
def node() -> None:
    """The machines of the cluster."""


@node.command("list")
@output_option
@click.pass_obj
def list_nodes(session: Session, output: str) -> None:
    """All nodes; * marks the one that answers."""
    nodes = session.client.cluster.nodes()
    if output == "json":
        print_json(nodes)
    else:
        print_table([node_row(member) for member in nodes], columns=NODE_COLUMNS)


@node.command()
@click.argument("name")
@output_option
@click.pass_obj
def show(session: Session, name: str, output: str) -> None:
    """One node, with what runs on it.

    \b
    Example:
      kvorum node show n1
    """
    for member in session.client.cluster.nodes():
        if short(member.name) == name:
            break
    else:
        raise NotFound(f"there is no node {name}", remedy="'kvorum node list' shows all")
    guests = session.client.guests.list(node=name).guests
    if output == "json":
        print_json([member, list(guests)])
        return
    row = node_row(member)
    print_fields(
        {**row, "joined": local_time(member.join_time), "guests": ", ".join(str(guest.vmid) for guest in guests)}
    )


@node.command()
@click.argument("old")
@click.argument("new")
@click.pass_obj
def rename(session: Session, old: str, new: str) -> None:
    """Call node OLD NEW from now on; its guests go on where they are.

    Refused while HA manages a guest of that node. Tasks of the past keep the old name.

    \b
    Example:
      kvorum node rename n3 rack2
    """
    session.client.cluster.rename_node(old, new)
    click.echo(f"{old} is called {new} now")


@node.command("set-address")
@click.argument("name")
@click.argument("address")
@click.pass_obj
def set_address(session: Session, name: str, address: str) -> None:
    """Have node NAME change over to the IP address ADDRESS, which its host must have already.

    \b
    Example:
      kvorum node set-address n3 192.168.1.33
    """
    session.client.cluster.set_node_address(name, address)
    click.echo(f"{name} changes over to {address}")
