"""`kvorum store`: the replicated configuration files, from anywhere."""

import sys
from importlib.metadata import entry_points

import rich_click as click

from kvorum.cli import store_history
from kvorum.cli.output import local_time, output_option, print_json, print_table
from kvorum.cli.session import Session
from kvorum.cli.store_limits import limits, usage
from kvorum.cli.store_locks import lock, locks, unlock
from kvorum.cli.store_status import cluster_log, status

_MORE = "kvorum.store_commands"


class _Store(click.RichGroup):
    """Has verbs of another room as well, which it finds by name: those for a node whose daemon is stopped."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *sorted(point.name for point in entry_points(group=_MORE))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (found := super().get_command(ctx, cmd_name)) is not None:
            return found
        command = next((point.load() for point in entry_points(group=_MORE) if point.name == cmd_name), None)
        assert command is None or isinstance(command, click.Command)
        return command


@click.group(cls=_Store)
def store() -> None:
    """The replicated configuration files (on a node: /etc/kvorum).

    \b
    Examples:
      kvorum store get storage.cfg
      kvorum store put datacenter.cfg < datacenter.cfg
      kvorum store watch nodes
      kvorum store log storage.cfg
      kvorum store restore storage.cfg@1042
      kvorum store status n1
      kvorum store clusterlog --follow
      kvorum store verify                   on a node whose kvorum-clusterfs is stopped
    """


for command in (*store_history.COMMANDS, limits, usage, locks, lock, unlock):
    store.add_command(command)
store.add_command(status)
store.add_command(cluster_log)


@store.command()
@click.argument("path")
@click.option(
    "--linearizable", is_flag=True, help="As new as the newest acknowledged write, at the cost of a round trip."
)
@click.pass_obj
def get(session: Session, path: str, linearizable: bool) -> None:
    """Print a file."""
    sys.stdout.buffer.write(session.client.store.get(path, linearizable=linearizable).content)


@store.command("list")
@click.argument("path", default="")
@click.option("-r", "--recursive", is_flag=True)
@output_option
@click.pass_obj
def list_entries(session: Session, path: str, recursive: bool, output: str) -> None:
    """What is in a directory."""
    entries = list(session.client.store.list(path, recursive=recursive))
    if output == "json":
        print_json(entries)
        return
    rows = [
        {
            "version": entry.version,
            "size": entry.size_bytes,
            "changed": local_time(entry.modify_time),
            "path": entry.path + ("/" if entry.kind == 2 else ""),
        }
        for entry in entries
    ]
    print_table(rows, columns=("version", "size", "changed", "path"))


@store.command()
@click.argument("path")
@click.option("--expect", "expected_version", type=int, help="Only if the file has this version.")
@click.option("--new", "absent", is_flag=True, help="Only if there is no such file.")
@click.option("--parents", is_flag=True, help="Make missing directories.")
@click.option("--reason", default="", help="Why; kept with the change.")
@click.pass_obj
def put(session: Session, path: str, expected_version: int | None, absent: bool, parents: bool, reason: str) -> None:
    """Write standard input to a file."""
    content = sys.stdin.buffer.read()
    entry = session.client.store.write(
        path, content, expected_version=expected_version, absent=absent, parents=parents, reason=reason
    )
    click.echo(f"{path} is at version {entry.version}")


@store.command()
@click.argument("path")
@click.argument("new_path")
@click.option("--replace", is_flag=True, help="Replace a file that is there.")
@click.option("--reason", default="", help="Why; kept with the change.")
@click.pass_obj
def move(session: Session, path: str, new_path: str, replace: bool, reason: str) -> None:
    """Rename, in one step that everybody sees whole."""
    session.client.store.move(path, new_path, replace=replace, reason=reason)


@store.command()
@click.argument("path")
@click.option("-r", "--recursive", is_flag=True, help="A directory with all that is in it.")
@click.option("--reason", default="", help="Why; kept with the change.")
@click.pass_obj
def delete(session: Session, path: str, recursive: bool, reason: str) -> None:
    """Remove a file or directory; `kvorum store restore` brings it back."""
    session.client.store.delete(path, recursive=recursive, reason=reason)


@store.command()
@click.argument("path", default="")
@click.option("--from", "from_index", default=0, help="Log index after which to start. Default: now.")
@output_option
@click.pass_obj
def watch(session: Session, path: str, from_index: int, output: str) -> None:
    """Print changes as they happen, until interrupted."""
    for change in session.client.store.watch(path, from_index=from_index):
        if output == "json":
            print_json(change)
            continue
        match change.WhichOneof("change"):
            case "written":
                click.echo(f"{change.index}\twritten\t{change.written.path}")
            case "deleted":
                click.echo(f"{change.index}\tdeleted\t{change.deleted}")
            case "moved":
                click.echo(f"{change.index}\tmoved\t{change.moved.path} -> {change.moved.entry.path}")
            case _:
                continue
