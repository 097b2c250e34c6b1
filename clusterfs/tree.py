"""The tree of small files as an immutable value: who holds the root holds a snapshot, and needs no lock to read it.

A change copies the directories on its path and shares all the rest (path-copying), so an apply costs the sum of the sizes
of those few directories. Every directory carries how many entries and bytes are below it, which makes quotas one
comparison. Nodes are unknown to the garbage collector: a tree has no cycles, and looking through a hundred thousand of them
would stop the whole process for hundreds of milliseconds. Which changes are allowed is for `clusterfs.rules` and
`clusterfs.state`; nothing here refuses.
"""

from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

Parts = tuple[str, ...]


class File(msgspec.Struct, frozen=True, gc=False):
    """`version`: log index of the last change; `placement`: of creation or of the move to this place; `mtime`: seconds."""

    content: bytes
    version: int
    placement: int
    mtime: int


class Directory(msgspec.Struct, frozen=True, gc=False):
    """As a file; `owner` is the node that made it, kept for lock directories only."""

    entries: "Mapping[str, Node]" = msgspec.field(default_factory=dict)
    version: int = 0
    placement: int = 0
    mtime: int = 0
    owner: str = ""
    # Of everything below, this directory itself not counted.
    count: int = 0
    size: int = 0


Node = File | Directory

EMPTY = Directory()


def join(parts: Parts) -> str:
    return "/".join(parts)


def lookup(root: Directory, parts: Parts) -> Node | None:
    """The node at `parts`, or None when it, or a directory on the way, is not there."""
    node: Node = root
    for name in parts:
        if not isinstance(node, Directory):
            return None
        found = node.entries.get(name)
        if found is None:
            return None
        node = found
    return node


def crosses_file(root: Directory, parts: Parts) -> bool:
    """Some proper ancestor of `parts` is a file: ENOTDIR rather than ENOENT."""
    node: Node = root
    for name in parts[:-1]:
        found = node.entries.get(name) if isinstance(node, Directory) else None
        if found is None:
            return False
        node = found
        if isinstance(node, File):
            return True
    return False


def put(root: Directory, parts: Parts, node: Node) -> Directory:
    """The tree with `node` at `parts`; the parent must be there and be a directory."""
    if not parts:
        assert isinstance(node, Directory)
        return node
    return _rebuild(_chain(root, parts), parts, node)


def remove(root: Directory, parts: Parts) -> Directory:
    """The tree without what is at `parts`; it must be there."""
    assert parts, "the root is not removed"
    chain = _chain(root, parts)
    assert parts[-1] in chain[-1].entries, parts
    return _rebuild(chain, parts, None)


def walk(node: Node, parts: Parts = ()) -> Iterator[tuple[Parts, Node]]:
    """`node` itself, then everything below, parents first and siblings sorted by name."""
    yield parts, node
    if isinstance(node, Directory):
        for name in sorted(node.entries):
            yield from walk(node.entries[name], (*parts, name))


def depth(node: Node) -> int:
    """Levels below `node`: 0 for a file or an empty directory."""
    if isinstance(node, File) or not node.entries:
        return 0
    return 1 + max(depth(child) for child in node.entries.values())


def relocated(node: Node, index: int) -> Node:
    """`node` with everything below it placed at log index `index`: each of them is in a new place."""
    if isinstance(node, File):
        return replace(node, placement=index)
    entries = {name: relocated(child, index) for name, child in node.entries.items()}
    return replace(node, placement=index, entries=entries)


def weight(node: Node | None) -> tuple[int, int]:
    """Entries and bytes that `node` adds to the directory it lies in."""
    match node:
        case None:
            return 0, 0
        case File():
            return 1, len(node.content)
        case Directory():
            return 1 + node.count, node.size


def _chain(root: Directory, parts: Parts) -> list[Directory]:
    """The directories from the root to the parent of `parts`."""
    chain = [root]
    for name in parts[:-1]:
        below = chain[-1].entries[name]
        assert isinstance(below, Directory), parts
        chain.append(below)
    return chain


def _rebuild(chain: list[Directory], parts: Parts, node: Node | None) -> Directory:
    for directory, name in zip(reversed(chain), reversed(parts), strict=True):
        before_count, before_size = weight(directory.entries.get(name))
        after_count, after_size = weight(node)
        entries = dict(directory.entries)
        if node is None:
            del entries[name]
        else:
            entries[name] = node
        node = replace(
            directory,
            entries=entries,
            count=directory.count + after_count - before_count,
            size=directory.size + after_size - before_size,
        )
    assert isinstance(node, Directory)
    return node
