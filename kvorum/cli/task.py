"""`kvorum task`: long work."""

import rich_click as click

from kvorum.cli.output import local_time, output_option, print_fields, print_json, print_table, short
from kvorum.cli.progress import finish
from kvorum.cli.session import Session


@click.group()
def task() -> None:
    """Long work: watch, wait, cancel."""


@task.command("list")
@click.option("--node", default="", help="Only those of this node.")
@click.option("--guest", "vmid", default=0, help="Only those on this guest.")
@click.option("--running", is_flag=True, help="Only those that run.")
@click.option("--limit", default=20, show_default=True)
@output_option
@click.pass_obj
def list_tasks(session: Session, node: str, vmid: int, running: bool, limit: int, output: str) -> None:
    """The newest first."""
    from kvorum.v1 import task_pb2 as pb

    tasks = session.client.tasks.list(node=node, vmid=vmid, running_only=running, limit=limit)
    if output == "json":
        print_json(tasks)
        return
    rows = [
        {
            "start": local_time(item.start_time),
            "node": short(item.node),
            "type": item.type,
            "subject": item.subject,
            "user": item.user,
            "state": pb.TaskState.Name(item.state).removeprefix("TASK_STATE_").lower(),
            "upid": item.upid,
        }
        for item in tasks
    ]
    print_table(rows, columns=("start", "node", "type", "subject", "user", "state", "upid"))


@task.command()
@click.argument("upid")
@output_option
@click.pass_obj
def show(session: Session, upid: str, output: str) -> None:
    """One task."""
    from kvorum.v1 import task_pb2 as pb

    item = session.client.tasks.get(upid)
    if output == "json":
        print_json(item)
        return
    print_fields(
        {
            "upid": item.upid,
            "state": pb.TaskState.Name(item.state).removeprefix("TASK_STATE_").lower(),
            "phase": item.phase,
            "progress": "" if item.progress < 0 else f"{item.progress:.0%}",
            "started": local_time(item.start_time),
            "ended": local_time(item.end_time),
            "error": item.error,
        }
    )


@task.command("log")
@click.argument("upid")
@click.pass_obj
def show_log(session: Session, upid: str) -> None:
    """What it wrote down so far."""
    for line in session.client.tasks.log(upid):
        click.echo(line)


@task.command()
@click.argument("upid")
@output_option
@click.pass_obj
def wait(session: Session, upid: str, output: str) -> None:
    """Follow it until it ends; exits with 9 when it failed."""
    finish(session, upid, wait=True, output=output)


@task.command()
@click.argument("upid")
@click.pass_obj
def cancel(session: Session, upid: str) -> None:
    """Ask it to end and to undo what it began."""
    session.client.tasks.cancel(upid)
    click.echo("asked to end; 'kvorum task wait' tells how it ended")
