"""`kvorum store status` and `kvorum store clusterlog`: what nodes tell each other and no disk keeps."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli.output import local_time, output_option, print_json, print_table
from kvorum.cli.session import Session

if TYPE_CHECKING:
    from kvorum.client.status import StatusApi
    from kvorum.v1 import status_pb2 as pb

# How often a follower looks for new lines.
POLL_S = 1.0
FOLLOW_LINES = 500
_PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")


@click.command("status")
@click.argument("node", default="")
@click.argument("key", default="")
@click.option("--prefix", default="", help="Only keys that begin so.")
@output_option
@click.pass_obj
def status(session: Session, node: str, key: str, prefix: str, output: str) -> None:
    """What nodes say of themselves: load, tasks, addresses. With NODE and KEY, print that value.

    AGE is the time since anybody heard the node; its values are its last words until then.
    """
    api = session.client.status
    if key:
        sys.stdout.buffer.write(api.get(key, node=node).value.value)
        return
    answer = api.list(node=node, prefix=prefix, with_values=output == "json")
    if output == "json":
        print_json(answer)
        return
    rows = [
        {"node": one.node, "age": f"{one.age_seconds:.0f} s", "size": value.size_bytes, "key": value.key}
        for one in answer.nodes
        for value in one.values
    ]
    print_table(rows, columns=("node", "age", "size", "key"))


@click.command("clusterlog")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(1, 5000), help="At most so many.")
@click.option("--user", default="", help="Only of this user.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until interrupted; the oldest comes first.")
@output_option
@click.pass_obj
def cluster_log(session: Session, lines: int, user: str, follow: bool, output: str) -> None:
    """The log of all nodes, the newest line first."""
    api = session.client.status
    if follow:
        for line in followed(api, lines, user):
            _print_line(line, output)
        return
    found = list(api.log(limit=lines, user=user))
    if output == "json":
        print_json(found)
        return
    rows = [
        {
            "time": local_time(line.time),
            "node": line.node,
            "priority": _PRIORITIES[line.priority % 8],
            "tag": line.tag,
            "user": line.user,
            "message": line.message,
        }
        for line in found
    ]
    print_table(rows, columns=("time", "node", "priority", "tag", "user", "message"))


def followed(
    api: "StatusApi", lines: int, user: str, *, pause: Callable[[float], None] = time.sleep
) -> "Iterator[pb.LogLine]":
    """The newest lines, oldest first, and then each one that comes, once."""
    limit = max(lines, FOLLOW_LINES)
    found = api.log(limit=limit, user=user)
    yield from reversed(found[:lines])
    seen = _ids(found)
    while True:
        pause(POLL_S)
        found = api.log(limit=limit, user=user)
        # Lines of a node that was away come late, between older ones.
        yield from (line for line in reversed(found) if _id(line) not in seen)
        # Not for ever: a line that is not among the newest any more does not come back.
        seen = _ids(found) | (seen if len(seen) < 20 * limit else set())


def _ids(lines: "Sequence[pb.LogLine]") -> set[tuple[int, str, int]]:
    return {_id(line) for line in lines}


def _id(line: "pb.LogLine") -> tuple[int, str, int]:
    return line.time.seconds, line.node, line.uid


def _print_line(line: "pb.LogLine", output: str) -> None:
    if output == "json":
        print_json(line)
        return
    priority = _PRIORITIES[line.priority % 8]
    click.echo(f"{local_time(line.time)} {line.node} {line.tag}[{line.pid}] {priority}: <{line.user}> {line.message}")
