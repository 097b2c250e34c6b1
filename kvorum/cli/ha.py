"""`kvorum ha`: what is kept running when nodes die."""

import rich_click as click

from kvorum.cli.output import output_option, print_fields, print_json, print_table, short
from kvorum.cli.session import Session


@click.group()
def ha() -> None:
    """What is kept running when nodes die.

    \b
    Examples:
      kvorum ha add vm:100
      kvorum ha status
    """


@ha.command()
@click.argument("sid")
@click.option("--state", type=click.Choice(["started", "stopped"]), default="started", show_default=True)
@click.option("--comment", default="")
@output_option
@click.pass_obj
def add(session: Session, sid: str, state: str, comment: str, output: str) -> None:
    """Put guest SID (vm:100, ct:101) under HA.

    \b
    Example:
      kvorum ha add ct:101 --state stopped
    """
    from kvorum.v1 import ha_pb2 as pb

    wanted = pb.HaRequestState.Value(f"HA_REQUEST_STATE_{state.upper()}")
    resource = session.client.ha.add(sid, state=wanted, comment=comment)
    if output == "json":
        print_json(resource)
    else:
        click.echo(f"{sid} is under HA, requested {state}")


@ha.command("set")
@click.argument("sid")
@click.option("--state", type=click.Choice(["started", "stopped"]), required=True)
@click.pass_obj
def set_state(session: Session, sid: str, state: str) -> None:
    """Change what is requested of SID.

    \b
    Example:
      kvorum ha set vm:100 --state stopped
    """
    from kvorum.v1 import ha_pb2 as pb

    session.client.ha.set_state(sid, pb.HaRequestState.Value(f"HA_REQUEST_STATE_{state.upper()}"))
    click.echo(f"{sid} is requested {state}")


@ha.command()
@click.argument("sid")
@click.pass_obj
def remove(session: Session, sid: str) -> None:
    """Take SID out of HA; the guest is left as it is."""
    session.client.ha.remove(sid)
    click.echo(f"{sid} is no longer under HA")


@ha.command()
@output_option
@click.pass_obj
def status(session: Session, output: str) -> None:
    """The manager, the nodes' leases, and every resource with its cause."""
    state = session.client.ha.status()
    if output == "json":
        print_json(state)
        return
    print_fields({"quorum": "yes" if state.quorate else "NO", "manager": short(state.manager_node)})
    click.echo()
    nodes = [
        {
            "node": short(node.name),
            "state": node.state,
            "lease age": node.lease_age_seconds,
            "fence in": node.fence_in_seconds if node.fence_in_seconds >= 0 else "",
        }
        for node in state.nodes
    ]
    print_table(nodes, columns=("node", "state", "lease age", "fence in"))
    click.echo()
    print_table(
        [resource_row(resource) for resource in state.resources], columns=("sid", "requested", "state", "node", "cause")
    )


def resource_row(resource: object) -> dict[str, object]:
    from kvorum.cli.output import as_json

    fields = as_json(resource)
    assert isinstance(fields, dict)
    return {
        "sid": fields["sid"],
        "requested": fields["request_state"].removeprefix("HA_REQUEST_STATE_").lower(),
        "state": fields["state"],
        "node": short(fields["node"]),
        "cause": fields["cause"],
    }
