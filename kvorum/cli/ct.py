"""`kvorum ct`: containers."""

import rich_click as click

from kvorum.cli.guest_verbs import add_verbs, parse_settings, wait_option
from kvorum.cli.output import output_option
from kvorum.cli.progress import finish
from kvorum.cli.session import Session


@click.group(cls=click.RichGroup)
def ct() -> None:
    """Containers."""


add_verbs(ct)


@ct.command()
@click.argument("template")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--id", "vmid", type=int, default=0, help="Guest id. Default: the lowest that is free.")
@click.option("--node", default="", help="Where to make it. Default: the node that answers.")
@click.option("--start", is_flag=True, help="Start it when it is made.")
@wait_option
@output_option
@click.pass_obj
def create(
    session: Session,
    template: str,
    settings: tuple[str, ...],
    vmid: int,
    node: str,
    start: bool,
    wait: bool,
    output: str,
) -> None:
    """Make a container from TEMPLATE and settings as in its config file.

    \b
    Example:
      kvorum ct create local:vztmpl/busybox.tar.gz hostname=box rootfs=local:1 memory=64 --start
    """
    from kvorum.v1 import guest_pb2 as pb

    vmid = vmid or session.client.guests.next_id()
    upid = session.client.guests.create(
        vmid, pb.GUEST_KIND_CONTAINER, parse_settings(settings), node=node, template=template, start=start
    )
    finish(session, upid, wait=wait, output=output)
