"""`kvorum store log, show, diff, blame, restore`: what the store was, who changed it, and back to it."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli.output import local_time, output_option, print_json, print_table
from kvorum.cli.session import Session
from kvorum.errors import InvalidInput, KvorumError, NotFound, Refused

if TYPE_CHECKING:
    from kvorum.v1 import history_pb2 as pb

_KINDS = ("?", "write", "mkdir", "touch", "delete", "move", "unlock", "earlier")


@click.command("log")
@click.argument("path", default="")
@click.option(
    "-n", "--changes", "limit", default=50, show_default=True, type=click.IntRange(1), help="At most so many."
)
@output_option
@click.pass_obj
def log(session: Session, path: str, limit: int, output: str) -> None:
    """Who changed a file, or anything below a directory, the newest change first.

    A file is followed back to the names that it had before.

    \b
    Examples:
      kvorum store log                                  every change of the store
      kvorum store log storage.cfg
      kvorum store log nodes/n1/qemu-server -o json
    """
    found = list(islice(session.client.history.changes(path, page_size=min(limit, 500)), limit))
    if output == "json":
        print_json(found)
        return
    nodes = node_names(session) if found else {}
    rows = [
        {
            "index": change.index,
            "time": local_time(change.time),
            "author": change.author,
            "from": change.source,
            "node": nodes.get(change.node_uid, change.node_uid),
            "what": _KINDS[change.kind],
            "size": "" if change.gone or change.directory else change.size_bytes,
            "path": _path(change),
            "reason": change.reason,
        }
        for change in found
    ]
    print_table(rows, columns=("index", "time", "author", "from", "node", "what", "size", "path", "reason"))


@click.command("show")
@click.argument("place", metavar="PATH@INDEX")
@output_option
@click.pass_obj
def show(session: Session, place: str, output: str) -> None:
    """Print a file as it was at a log index; without an index, as it was last.

    \b
    Examples:
      kvorum store show storage.cfg@1042
      kvorum store show nodes/n1/qemu-server/100.conf     also when it has been deleted
    """
    path, index = split_place(place)
    version = _version(session, path, index)
    if output == "json":
        print_json(version)
        return
    sys.stdout.buffer.write(version.content)


@click.command("diff")
@click.argument("path")
@click.argument("old", type=click.IntRange(1), required=False)
@click.argument("new", type=click.IntRange(1), required=False)
@output_option
@click.pass_obj
def diff(session: Session, path: str, old: int | None, new: int | None, output: str) -> None:
    """What changed in a file: from index OLD to index NEW, to the present one, or with the last change.

    \b
    Examples:
      kvorum store diff storage.cfg                the last change
      kvorum store diff storage.cfg 1042           since then
      kvorum store diff storage.cfg 1042 2077      between the two
    """
    before, after = _pair(session, path, old, new)
    lines = list(unified(before, after, path))
    if output == "json":
        print_json({"path": path, "old": _brief(before), "new": _brief(after), "diff": "".join(lines)})
        return
    for line in lines:
        colour = next((colour for start, colour in _COLOURS if line.startswith(start)), None)
        # click leaves the colours out when nobody is there to see them.
        click.echo(click.style(line, fg=colour), nl=False)


@click.command("blame")
@click.argument("path")
@output_option
@click.pass_obj
def blame(session: Session, path: str, output: str) -> None:
    """Who brought each line of a file, when, and with which change.

    \b
    Example:
      kvorum store blame storage.cfg
    """
    lines = session.client.history.blame(path)
    if output == "json":
        print_json(list(lines))
        return
    who = max((len(line.author) for line in lines), default=0)
    for line in lines:
        text = line.text.decode(errors="replace").rstrip("\r\n")
        click.echo(f"{line.index:>8} {local_time(line.time)} {line.author:<{who}}  {text}")


@click.command("restore")
@click.argument("place", metavar="PATH@INDEX")
@click.option("--reason", default="", help="Why; kept with the change.  [default: restore of INDEX]")
@output_option
@click.pass_obj
def restore(session: Session, place: str, reason: str, output: str) -> None:
    """Write what a file held at a log index; without an index, what it held last before it was deleted.

    Of a directory, all files that it held then are written again, or none; files that were made since stay.

    \b
    Examples:
      kvorum store restore storage.cfg@1042
      kvorum store restore nodes/n1/qemu-server/100.conf
      kvorum store restore sdn@1042 --reason "back to last week"
    """
    path, index = split_place(place)
    entries = list(session.client.history.restore(path, index, reason=reason))
    if output == "json":
        print_json(entries)
        return
    for entry in entries:
        click.echo(f"{entry.path} is at version {entry.version}")
    if not entries:
        click.echo(f"{path} is as it was then")


@click.command("forget")
@click.argument("place", metavar="PATH[@INDEX]")
@click.option("--reason", default="", help="Why; kept in the log of the store.")
@click.pass_obj
def forget(session: Session, place: str, reason: str) -> None:
    """Take out of the history what a file held up to a log index, or ever before: a secret that has been replaced.

    It goes wherever the history has the same bytes, unless some file still holds them. Who changed what and when is kept.
    On the nodes' disks it stays until the log is cut the next time, and in copies of the store that were put aside.

    \b
    Examples:
      kvorum store forget priv/storage/backup.pw
      kvorum store forget priv/shadow.cfg@1042 --reason "leaked"
    """
    path, index = split_place(place)
    count = session.client.history.forget(path, index, reason=reason)
    click.echo(f"{count} version{'' if count == 1 else 's'} of {path} forgotten")


COMMANDS = (log, show, diff, blame, restore, forget)

_COLOURS = (("--- ", None), ("+++ ", None), ("@@", "cyan"), ("-", "red"), ("+", "green"))


def node_names(session: Session) -> dict[str, str]:
    """By uid; nothing when the cluster does not say, for then the uid must do."""
    try:
        return {node.uid: node.name.rpartition("/")[2] for node in session.client.cluster.nodes()}
    except KvorumError:
        return {}


def split_place(place: str) -> tuple[str, int]:
    """`storage.cfg@12` -> ("storage.cfg", 12); an `@` that no number follows is part of the name."""
    path, at, digits = place.rpartition("@")
    if at and digits.isascii() and digits.isdigit():
        if not int(digits):
            raise InvalidInput("a log index is at least 1", field="PATH@INDEX")
        return path, int(digits)
    return place, 0


def unified(before: "pb.Change | None", after: "pb.Change | None", path: str) -> Iterator[str]:
    """The lines of a unified diff; None: there was no file."""
    old, new = (_lines(before), _lines(after))
    lines = difflib.unified_diff(old, new, _label(before, path), _label(after, path))
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _pair(session: Session, path: str, old: int | None, new: int | None) -> "tuple[pb.Change | None, pb.Change | None]":
    if old is None:
        last = list(islice(session.client.history.changes(path, with_content=True, page_size=2), 2))
        if last and any(change.directory for change in last):
            raise Refused(f"{path} is a directory", remedy=f"see 'kvorum store log {path}'")
        if not last:
            raise NotFound(f"nothing is known of {path}")
        return (last[1] if len(last) > 1 and not last[1].gone else None), (None if last[0].gone else last[0])
    after = _version_or_none(session, path, new) if new else _newest(session, path)
    return _version_or_none(session, path, old), after


def _newest(session: Session, path: str) -> "pb.Change | None":
    newest = next(iter(session.client.history.changes(path, with_content=True, page_size=1)), None)
    return None if newest is None or newest.gone else newest


def _version_or_none(session: Session, path: str, index: int) -> "pb.Change | None":
    try:
        version = session.client.history.version(path, index)
    except NotFound:
        return None
    return None if version.gone else version


def _version(session: Session, path: str, index: int) -> "pb.Change":
    version = session.client.history.version(path, index)
    if version.gone:
        raise NotFound(f"{path} was deleted or moved at {version.index}", remedy=f"see 'kvorum store log {path}'")
    if version.directory:
        raise Refused(f"{path} was a directory at {version.index}", remedy=f"see 'kvorum store log {path}'")
    return version


def _path(change: "pb.Change") -> str:
    slash = "/" if change.directory else ""
    if not change.other_path:
        return f"{change.path}{slash}"
    if change.gone:
        return f"{change.path}{slash} -> {change.other_path}{slash}"
    return f"{change.other_path}{slash} -> {change.path}{slash}"


def _lines(change: "pb.Change | None") -> Sequence[str]:
    # Not splitlines(): what it takes for ends of lines are characters like others in a configuration.
    text = change.content.decode(errors="replace") if change is not None else ""
    return [line for line in text.replace("\n", "\n\0").split("\0") if line]


def _label(change: "pb.Change | None", path: str) -> str:
    if change is None:
        return "/dev/null"
    return f"{change.path}@{change.index}\t{local_time(change.time)} {change.author}".rstrip()


def _brief(change: "pb.Change | None") -> dict[str, object] | None:
    if change is None:
        return None
    return {"path": change.path, "index": change.index, "author": change.author, "reason": change.reason}
