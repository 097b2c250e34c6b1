"""Follows a task on the terminal: a bar with the present phase for people, its log lines when nobody watches."""

import sys
from typing import TYPE_CHECKING

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kvorum.cli.output import print_json

if TYPE_CHECKING:
    from kvorum.cli.session import Session
    from kvorum.client import Client
    from kvorum.v1 import task_pb2 as pb


def finish(session: "Session", upid: str, *, wait: bool, output: str) -> None:
    """What every command does with the task it started: follow it to its end, or print its UPID and leave.

    Ctrl-C stops watching, not the task; how to cancel it is said.
    """
    if not wait:
        if output == "json":
            print_json({"task": upid})
        else:
            click.echo(upid)
        return
    try:
        task = _follow(session.client, upid, quiet=output == "json")
    except KeyboardInterrupt:
        click.echo(f"\nthe task goes on; 'kvorum task cancel {upid}' ends it", err=True)
        raise click.Abort from None
    if output == "json":
        print_json(task)
    from kvorum.client.tasks import require_success

    require_success(task)


def _follow(client: "Client", upid: str, *, quiet: bool) -> "pb.Task":
    console = Console(stderr=True)
    if quiet or not sys.stderr.isatty():
        for answer in client.tasks.follow(upid):
            if answer.line and not quiet:
                click.echo(answer.text, err=True)
        return client.tasks.get(upid)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[phase]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        kind, subject = upid.split(":")[5:7]
        bar = progress.add_task(f"{kind} {subject}", total=None, phase="")
        for answer in client.tasks.follow(upid):
            if answer.line:
                progress.console.print(answer.text, markup=False, highlight=False)
            if answer.HasField("task"):
                known = answer.task.progress >= 0
                progress.update(
                    bar,
                    total=1.0 if known else None,
                    completed=max(answer.task.progress, 0.0),
                    phase=answer.task.phase,
                )
    return client.tasks.get(upid)
