"""The verbs that `guest`, `vm` and `ct` share, made once for each noun."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rich_click as click

from kvorum.cli.output import output_option, print_fields, print_json, print_table, short
from kvorum.cli.progress import finish
from kvorum.cli.session import Session
from kvorum.errors import InvalidInput, NotFound
from kvorum.ids import parse_vmid

if TYPE_CHECKING:
    from kvorum.v1 import guest_pb2 as pb

COLUMNS = ("id", "kind", "name", "node", "state", "ha", "lock")

# What each noun accepts, in the API's words; empty: both kinds.
KINDS = {"guest": "", "vm": "GUEST_KIND_VM", "ct": "GUEST_KIND_CONTAINER"}


def guest_row(guest: "pb.Guest") -> dict[str, object]:
    from kvorum.v1 import guest_pb2 as pb

    return {
        "id": guest.vmid,
        "kind": "vm" if guest.kind == pb.GUEST_KIND_VM else "ct",
        "name": guest.display_name,
        "node": short(guest.node),
        "state": pb.GuestState.Name(guest.state).removeprefix("GUEST_STATE_").lower(),
        "ha": guest.ha_managed,
        "lock": guest.lock,
    }


def wait_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--wait/--no-wait", default=True, show_default=True, help="Follow the task, or print its UPID."
    )(command)


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """`memory=512` -> {"memory": "512"}; the value may hold further equal signs."""
    config = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InvalidInput(
                f"{setting!r} is no setting", field="KEY=VALUE", remedy="write memory=512, net0=virtio,bridge=vmbr0"
            )
        config[key] = value
    return config


def check_kind(session: Session, vmid: int, noun: str) -> None:
    """`kvorum vm stop 101` must not stop a container."""
    from kvorum.v1 import guest_pb2 as pb

    wanted = KINDS[noun]
    if wanted and pb.GuestKind.Name(session.client.guests.get(vmid).kind) != wanted:
        other = "ct" if noun == "vm" else "vm"
        raise NotFound(f"{vmid} is no {noun}", remedy=f"use 'kvorum {other}' or 'kvorum guest'")


def add_verbs(group: click.RichGroup) -> None:
    """Give a noun its verbs."""
    _add_reads(group)
    _add_power(group)
    _add_moves(group)


def _add_reads(group: click.RichGroup) -> None:
    noun = group.name or "guest"

    @group.command("list")
    @click.option("--node", default="", help="Only those of this node.")
    @output_option
    @click.pass_obj
    def list_guests(session: Session, node: str, output: str) -> None:
        """All of them, and what could not be asked."""
        from kvorum.v1 import guest_pb2 as pb

        kind = pb.GuestKind.Value(KINDS[noun] or "GUEST_KIND_UNSPECIFIED")
        answer = session.client.guests.list(node=node, kind=kind)
        if output == "json":
            print_json(answer)
            return
        print_table([guest_row(guest) for guest in answer.guests], columns=COLUMNS)
        if answer.unreachable_nodes:
            names = ", ".join(short(name) for name in answer.unreachable_nodes)
            click.echo(f"no answer from {names}: the state of guests there is unknown", err=True)

    @group.command()
    @click.argument("vmid", type=int)
    @output_option
    @click.pass_obj
    def status(session: Session, vmid: int, output: str) -> None:
        """State and configuration."""
        check_kind(session, parse_vmid(vmid), noun)
        guest = session.client.guests.get(vmid)
        if output == "json":
            print_json(guest)
            return
        row = guest_row(guest)
        print_fields({**row, "pid": guest.pid or "", "uptime": f"{guest.uptime_seconds} s", "version": guest.version})
        click.echo()
        print_fields(dict(sorted(guest.config.items())))

    @group.command("log")
    @click.argument("vmid", type=int)
    @click.option("--bytes", "tail_bytes", default=65536, show_default=True, help="From the end.")
    @click.pass_obj
    def console_log(session: Session, vmid: int, tail_bytes: int) -> None:
        """What the guest printed on its first console."""
        check_kind(session, parse_vmid(vmid), noun)
        sys.stdout.buffer.write(session.client.guests.console_log(vmid, tail_bytes=tail_bytes))

    @group.command("set")
    @click.argument("vmid", type=int)
    @click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
    @click.option("--delete", "delete_keys", multiple=True, metavar="KEY", help="Remove a key; may be repeated.")
    @output_option
    @click.pass_obj
    def set_config(
        session: Session, vmid: int, settings: tuple[str, ...], delete_keys: tuple[str, ...], output: str
    ) -> None:
        """Change the configuration.

        \b
        Example:
          kvorum vm set 100 memory=1024 --delete description
        """
        check_kind(session, parse_vmid(vmid), noun)
        guest = session.client.guests.update(vmid, parse_settings(settings), delete_keys=delete_keys)
        if output == "json":
            print_json(guest)
        else:
            print_fields(dict(sorted(guest.config.items())))


def _add_power(group: click.RichGroup) -> None:
    noun = group.name or "guest"

    @group.command()
    @click.argument("vmid", type=int)
    @wait_option
    @output_option
    @click.pass_obj
    def start(session: Session, vmid: int, wait: bool, output: str) -> None:
        """Start it."""
        check_kind(session, parse_vmid(vmid), noun)
        finish(session, session.client.guests.start(vmid), wait=wait, output=output)

    @group.command()
    @click.argument("vmid", type=int)
    @click.option("--timeout", "timeout_s", default=60, show_default=True, help="Seconds to wait for it to power off.")
    @click.option("--force-stop", is_flag=True, help="Stop it hard when the time is over.")
    @wait_option
    @output_option
    @click.pass_obj
    def shutdown(session: Session, vmid: int, timeout_s: int, force_stop: bool, wait: bool, output: str) -> None:
        """Ask it to power off, and wait."""
        check_kind(session, parse_vmid(vmid), noun)
        upid = session.client.guests.shutdown(vmid, timeout_s=timeout_s, force_stop=force_stop)
        finish(session, upid, wait=wait, output=output)

    @group.command()
    @click.argument("vmid", type=int)
    @wait_option
    @output_option
    @click.pass_obj
    def stop(session: Session, vmid: int, wait: bool, output: str) -> None:
        """End it at once, like pulling the plug."""
        check_kind(session, parse_vmid(vmid), noun)
        finish(session, session.client.guests.stop(vmid), wait=wait, output=output)


def _add_moves(group: click.RichGroup) -> None:
    noun = group.name or "guest"

    @group.command()
    @click.argument("vmid", type=int)
    @click.argument("target_node")
    @click.option("--with-local-disks", is_flag=True, help="Copy disks that the target does not share.")
    @click.option("--bandwidth", default=0, metavar="MIB_S", help="MiB per second; 0: no limit.")
    @click.option("--restart", is_flag=True, help="A running container: stop it, move it, start it again.")
    @wait_option
    @output_option
    @click.pass_obj
    def migrate(
        session: Session,
        vmid: int,
        target_node: str,
        with_local_disks: bool,
        bandwidth: int,
        restart: bool,
        wait: bool,
        output: str,
    ) -> None:
        """Move it to TARGET_NODE; a running VM keeps running.

        \b
        Examples:
          kvorum vm migrate 100 n2
          kvorum vm migrate 100 n2 --with-local-disks --bandwidth 100
        """
        check_kind(session, parse_vmid(vmid), noun)
        upid = session.client.guests.migrate(
            vmid,
            target_node,
            with_local_disks=with_local_disks,
            bandwidth_limit=bandwidth << 20,
            restart=restart,
        )
        finish(session, upid, wait=wait, output=output)

    @group.command()
    @click.argument("vmid", type=int)
    @click.option("--purge", is_flag=True, help="Also take it out of HA.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @wait_option
    @output_option
    @click.pass_obj
    def delete(session: Session, vmid: int, purge: bool, yes: bool, wait: bool, output: str) -> None:
        """Remove it and free its disks."""
        check_kind(session, parse_vmid(vmid), noun)
        if not yes:
            click.confirm(f"Delete {noun} {vmid} and everything on its disks?", abort=True)
        finish(session, session.client.guests.delete(vmid, purge=purge), wait=wait, output=output)
