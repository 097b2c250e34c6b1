"""`kvorum cluster`: form, join, leave, look."""

import sys
from pathlib import Path
from typing import Any

import rich_click as click

from kvorum import epochs
from kvorum.cli.output import as_json, local_time, output_option, print_fields, print_json, print_table, short
from kvorum.cli.session import Session


@click.group()
def cluster() -> None:
    """Form, join and leave a cluster.

    \b
    Three commands make one:
      n1# kvorum cluster init home
      n1# kvorum cluster token
      n2# kvorum cluster join n1 TOKEN
    """


@cluster.command()
@click.argument("name")
@click.option(
    "--address",
    default="",
    help="IP address of this node on the cluster network. Default: what the host name resolves to.",
)
@output_option
@click.pass_obj
def init(session: Session, name: str, address: str, output: str) -> None:
    """Make this node the first of a new cluster NAME.

    \b
    Example:
      kvorum cluster init home --address 192.168.1.10
    """
    node = session.client.cluster.init(name, address=address)
    if output == "json":
        print_json(node)
        return
    click.echo(f"cluster {name} runs on {short(node.name)} ({node.address})")
    click.echo("next: 'kvorum cluster token', and on another node 'kvorum cluster join " + node.address + " TOKEN'")


@cluster.command()
@click.option("--ttl", "ttl_s", default=3600, show_default=True, help="Seconds until it expires.")
@output_option
@click.pass_obj
def token(session: Session, ttl_s: int, output: str) -> None:
    """Print a token that lets one node join, once.

    \b
    Example:
      kvorum cluster token --ttl 600
    """
    made = session.client.cluster.create_join_token(ttl_s=ttl_s)
    if output == "json":
        print_json(made)
    else:
        click.echo(made.token)
        click.echo(f"valid until {local_time(made.expire_time)}, for one node", err=True)


@cluster.command()
@click.argument("address")
@click.argument("token")
@click.option("--address", "local_address", default="", help="IP address of this node on the cluster network.")
@click.option("--name", "node_name", default="", help="Name to join under. Default: the host name.")
@click.option("--witness", is_flag=True, help="Vote and keep the log, but mount nothing and run no guests.")
@output_option
@click.pass_obj
def join(
    session: Session, address: str, token: str, local_address: str, node_name: str, witness: bool, output: str
) -> None:
    """Let this node join the cluster that ADDRESS belongs to.

    TOKEN may be - to read it from standard input, so that it does not show in the process list. A small third machine
    that joins as a witness makes a quorum of two nodes and itself.

    \b
    Examples:
      kvorum cluster join 192.168.1.10 TOKEN
      kvorum cluster join --witness 192.168.1.10 TOKEN
      kvorum cluster join n1 - < token.txt
    """
    if token == "-":  # noqa: S105
        token = sys.stdin.read().strip()
    node = session.client.cluster.join(
        address, token, local_address=local_address, node_name=node_name, witness=witness
    )
    if output == "json":
        print_json(node)
    else:
        click.echo(f"joined as {short(node.name)} ({node.address})")


@cluster.command()
@click.option("--force", is_flag=True, help="Leave although this node owns guests; their configs stay in the cluster.")
@click.pass_obj
def leave(session: Session, force: bool) -> None:
    """Take this node out of its cluster and clean up after it."""
    session.client.cluster.leave(force=force)
    click.echo("this node has left its cluster")


@cluster.command()
@click.argument("node")
@click.option("--force", is_flag=True, help="Remove it although it is online or owns guests.")
@click.pass_obj
def remove(session: Session, node: str, force: bool) -> None:
    """Take another NODE out of the cluster; its certificate counts no more.

    \b
    Example:
      kvorum cluster remove n3
    """
    session.client.cluster.remove_node(node, force=force)
    click.echo(f"{node} is no longer a member")


@cluster.command()
@click.option(
    "--from-this-node", is_flag=True, required=True, help="What this node holds is what the cluster goes on with."
)
@click.option("--confirm", default="", metavar="NAME", help="The cluster's name. Default: it is asked for.")
@click.option("--force", is_flag=True, help="Although there is a quorum or other members can be reached.")
@click.option("--dry-run", is_flag=True, help="Only show what it would mean.")
@output_option
@click.pass_obj
def recover(session: Session, from_this_node: bool, confirm: str, force: bool, dry_run: bool, output: str) -> None:
    """Go on from this node alone, when the majority is lost for good.

    What other nodes acknowledged and this one never received is lost. The cluster gets a new epoch: the lost nodes cannot
    take part any more with what they hold; should they come back, 'kvorum cluster rejoin' brings each in again.

    \b
    Examples:
      kvorum cluster recover --from-this-node --dry-run
      kvorum cluster recover --from-this-node
      kvorum cluster recover --from-this-node --confirm home
    """
    plan = session.client.cluster.plan_recovery()
    if dry_run and output == "json":
        print_json(plan)
        return
    if output != "json":
        print_fields(
            {
                "cluster": plan.cluster_name,
                "new epoch": epochs.text(plan.epoch),
                "last change here": f"{plan.last_index}, at {local_time(plan.last_change_time)}",
                "given up": ", ".join(short(name) for name in plan.lost_nodes) or "nobody",
                "but": "; ".join(plan.obstacles),
            }
        )
    if dry_run:
        return
    if not confirm:
        confirm = click.prompt("Type the cluster's name to recover it from this node alone", err=True)
    done = session.client.cluster.recover(confirm=confirm, force=force)
    if output == "json":
        print_json(done)
        return
    click.echo(f"recovered as epoch {epochs.text(done.epoch)}, with everything up to entry {done.last_index}")
    click.echo(f"the data from before is in {done.archive_path}")


@cluster.command()
@click.option("--local", "address", required=True, metavar="IP", help="The address that this host has now.")
@click.pass_obj
def readdress(session: Session, address: str) -> None:
    """Tell this node that its host's address has changed already; it tells the others.

    While the host still has its old address, 'kvorum node set-address' is the better way.

    \b
    Example:
      kvorum cluster readdress --local 192.168.1.33
    """
    session.client.cluster.readdress(address)
    click.echo(f"this node is at {address} now")


@cluster.command()
@click.pass_obj
def rejoin(session: Session) -> None:
    """Come back into the cluster that was recovered without this node.

    What this node holds is put aside, not merged; the path is printed.

    \b
    Example:
      kvorum cluster rejoin
    """
    done = session.client.cluster.rejoin()
    click.echo("this node takes part again")
    click.echo(f"what it held before is in {done.archive_path}")


@cluster.command()
@output_option
@click.pass_obj
def status(session: Session, output: str) -> None:
    """Quorum, leader and members."""
    state = session.client.cluster.status()
    if output == "json":
        print_json(state)
        return
    if not state.cluster_name:
        click.echo("this node is in no cluster; 'kvorum cluster init' or 'kvorum cluster join' puts it into one")
        return
    print_fields(
        {
            "cluster": state.cluster_name,
            "quorum": "yes" if state.quorate else "NO: nothing can be written",
            "leader": short(state.leader),
            "term": state.term,
            "applied": state.applied_index,
            "missing": ", ".join(short(name) for name in state.missing_nodes),
            "epoch": epochs.text(state.epoch) if state.epoch else "",
            "stopped": state.failure,
        }
    )
    click.echo()
    print_table([node_row(node) for node in state.nodes], columns=NODE_COLUMNS)


@cluster.command()
@click.option(
    "--out", "path", type=click.Path(path_type=Path), required=True, help="File to write, readable by you only."
)
@click.option("--user", default="root@pam", show_default=True)
@click.option("--ttl", "ttl_s", default=86400, show_default=True, help="Seconds until they expire.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    help="HOST:PORT to put into the file; may be repeated. Default: every node.",
)
@click.pass_obj
def credentials(session: Session, path: Path, user: str, ttl_s: int, addresses: tuple[str, ...]) -> None:
    """Make credentials with which a client elsewhere may call this cluster.

    \b
    Example:
      kvorum cluster credentials --out admin.json
      kvorum --credentials admin.json guest list
    """
    from kvorum.cli.certificate_request import new_key_and_request
    from kvorum.client import Credentials
    from kvorum.node import AGENT_PORT

    key, request = new_key_and_request(user)
    issued = session.client.cluster.issue_client_certificate(request, user=user, ttl_s=ttl_s)
    if not addresses:
        addresses = tuple(f"{node.address}:{AGENT_PORT}" for node in session.client.cluster.nodes())
    Credentials(ca=issued.ca_certificate, certificate=issued.certificate, key=key, addresses=list(addresses)).save(path)
    click.echo(f"wrote {path}; use it with 'kvorum --credentials {path} ...'")


NODE_COLUMNS = ("name", "address", "state", "role", "acceleration", "uid")


def node_row(node: object) -> dict[str, object]:
    fields = as_json(node)
    assert isinstance(fields, dict)
    return {
        "name": short(fields["name"]) + (" *" if fields["local"] else ""),
        "address": fields["address"],
        "state": fields["state"].removeprefix("NODE_STATE_").lower(),
        "role": _role(fields),
        "acceleration": fields["acceleration"],
        "uid": fields["uid"],
    }


def _role(fields: dict[str, Any]) -> str:
    role = "leader" if fields["leader"] else "voter" if fields["voter"] else "learner"
    return f"witness ({role})" if fields["witness"] else role
