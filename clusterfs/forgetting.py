"""What is done to the past: files brought back as they were, and contents taken out of the history. Pure.

A secret that was replaced can be read in the history for as long as that is kept. To forget it, whatever holds the same bytes
goes, under whichever name: an editor writes them to a temporary file first and renames that. In their place stays a mark that
says when and by whom they were forgotten, so that nobody takes it for the file, and nothing is restored from it.
"""

from msgspec import structs

from clusterfs import history as reading
from clusterfs import rules
from clusterfs.commands import Forget, Restore
from clusterfs.history import History
from clusterfs.outcomes import Code, Refusal
from clusterfs.tree import Directory, File, Node, Parts, join, lookup, walk, weight

# No configuration begins like this.
_MARK = b"\0forgotten"


def mark(index: int, author: str) -> bytes:
    return b"%s at %d by %s\n" % (_MARK, index, author.encode(errors="replace")[:255])


def is_mark(content: bytes) -> bool:
    return content.startswith(_MARK)


def restored(history: History, root: Directory, op: Restore) -> list[tuple[Parts, bytes]] | Refusal:
    """The files at or below a path as they were, in the order of their names."""
    parts = rules.split(op.path)
    if isinstance(parts, Refusal):
        return parts
    tree = reading.tree_at(history, root, op.at)
    then = lookup(tree, parts) if tree is not None else None
    if then is None:
        why = "there was nothing" if tree is not None else "it is compacted, what there was"
        return Refusal(Code.not_found, f"{why} at {op.at}", join(parts))
    files = [(at, node.content) for at, node in walk(then, parts) if isinstance(node, File)]
    for at, content in files:
        if is_mark(content):
            return Refusal(Code.refused, f"what it held at {op.at} was forgotten", join(at))
    return files


def without(history: History, root: Directory, op: Forget, mark: bytes) -> tuple[History, int] | Refusal:
    """The history with the mark in place of what the file held, and how many versions of it that were."""
    parts = rules.split(op.path)
    if isinstance(parts, Refusal):
        return parts
    found = [
        version.content
        for version in reading.versions(history, root, join(parts))
        if version.content and not is_mark(version.content) and (not op.at or version.index <= op.at)
    ]
    # What a file holds now, this one or another, can be read anyhow.
    present = {node.content for _at, node in walk(root) if isinstance(node, File)} if found else set()
    secrets = set(found) - present
    if not secrets:
        return Refusal(Code.not_found, "the history holds nothing of it that is not in a file now", join(parts))
    records = [
        structs.replace(
            record,
            before=_without(record.before, secrets, mark),
            after=_without(record.after, secrets, mark),
        )
        for record in history
    ]
    return History.of(history.since, records), sum(content in secrets for content in found)


def _without(node: Node | None, secrets: set[bytes], mark: bytes) -> Node | None:
    match node:
        case File(content=content):
            return structs.replace(node, content=mark) if content in secrets else node
        case Directory(entries=entries) if entries:
            below = {name: _without(child, secrets, mark) for name, child in entries.items()}
            kept = {name: child for name, child in below.items() if child is not None}
            if all(kept[name] is child for name, child in entries.items()):
                return node
            return structs.replace(node, entries=kept, size=sum(weight(child)[1] for child in kept.values()))
        case _:
            return node
