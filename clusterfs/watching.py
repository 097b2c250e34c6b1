"""What a watcher of one path is told of an event: pure.

A watcher of a directory must end up with that directory as it is, whatever was moved into it, out of it, or away above it.
"""

from collections.abc import Iterator

from clusterfs.outcomes import Deleted, Event, MembersChanged, Moved, Written
from clusterfs.tree import Directory, Node, Parts, join, lookup, walk


def seen_from(event: Event, watched: Parts) -> Iterator[Written | Deleted | Moved]:
    """The changes at or below `watched` that `event` means."""
    match event:
        case Written(path=path):
            if _covers(watched, _parts(path)):
                yield event
        case Deleted(path=path):
            if _covers(watched, _parts(path)):
                yield event
            elif _covers(_parts(path), watched):
                yield Deleted(join(watched))
        case Moved(path=path, new_path=new_path, node=node):
            source, target = _parts(path), _parts(new_path)
            if _covers(watched, source) and _covers(watched, target):
                yield event
                return
            if _covers(watched, source):
                yield Deleted(path)
            elif _covers(source, watched):
                yield Deleted(join(watched))
            yield from _arrived(node, target, watched)
        case MembersChanged():
            return


def _arrived(node: Node, target: Parts, watched: Parts) -> Iterator[Written]:
    """Everything that a move has brought to `watched` from elsewhere."""
    if _covers(watched, target):
        at: Parts = target
        top: Node | None = node
    elif _covers(target, watched):
        at = watched
        top = lookup(node, watched[len(target) :]) if isinstance(node, Directory) else None
    else:
        return
    if top is None:
        return
    for parts, below in walk(top, at):
        yield Written(join(parts), below)


def _parts(path: str) -> Parts:
    return tuple(path.split("/"))


def _covers(upper: Parts, lower: Parts) -> bool:
    return lower[: len(upper)] == upper
