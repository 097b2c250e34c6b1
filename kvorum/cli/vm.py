"""`kvorum vm`: virtual machines."""

import rich_click as click

from kvorum.cli.guest_verbs import add_verbs, parse_settings, wait_option
from kvorum.cli.output import output_option
from kvorum.cli.progress import finish
from kvorum.cli.session import Session


@click.group(cls=click.RichGroup)
def vm() -> None:
    """Virtual machines."""


add_verbs(vm)


@vm.command()
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--id", "vmid", type=int, default=0, help="Guest id. Default: the lowest that is free.")
@click.option("--node", default="", help="Where to make it. Default: the node that answers.")
@click.option("--start", is_flag=True, help="Start it when it is made.")
@wait_option
@output_option
@click.pass_obj
def create(
    session: Session, settings: tuple[str, ...], vmid: int, node: str, start: bool, wait: bool, output: str
) -> None:
    """Make a VM from settings as in its config file. A disk STORAGE:GIB is allocated.

    \b
    Examples:
      kvorum vm create name=web memory=512 scsi0=local:4 net0=virtio,bridge=vmbr0
      kvorum vm create --id 100 name=db memory=2048 cores=2 scsi0=shared:32,format=qcow2 --start
    """
    from kvorum.v1 import guest_pb2 as pb

    vmid = vmid or session.client.guests.next_id()
    upid = session.client.guests.create(vmid, pb.GUEST_KIND_VM, parse_settings(settings), node=node, start=start)
    finish(session, upid, wait=wait, output=output)
