"""Commands that change the tree, one pure function each: (root, command, context) to root, result and events.

The checks run in the order in which a POSIX caller expects its errno: the path, what is there, preconditions, the rules of the
place, limits. Members and leases are `clusterfs.membership`; duplicates and time are `clusterfs.state`.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from clusterfs import rules
from clusterfs.commands import Delete, Mkdir, Move, Touch, Unlock, Write
from clusterfs.outcomes import Code, Deleted, Done, Event, MembersChanged, Moved, Refusal, Result, Written, done
from clusterfs.settings import DEFAULT, ENTRIES_CAP, TREE_BYTES_CAP, Settings, over_limit
from clusterfs.tree import Directory, File, Node, Parts, crosses_file, depth, join, lookup, put, relocated, remove, walk

# The cluster waits while a command is applied.
MAX_FILES_AT_ONCE = 2000


class Context(msgspec.Struct, frozen=True):
    """What a command needs to know besides the tree; `node` is the UUID of the proposer's node, `members` are names."""

    index: int
    now_s: int
    node: str
    members: frozenset[str]
    settings: Settings = DEFAULT
    # Under version 1 a write of what is there already was a change like any other.
    every_write_counts: bool = False


class Change(msgspec.Struct, frozen=True):
    root: Directory
    result: Result
    events: tuple[Event, ...] = ()


def perform(root: Directory, op: Write | Mkdir | Delete | Move | Touch | Unlock, context: Context) -> Change:
    parts = rules.split(op.path)
    if isinstance(parts, Refusal):
        return Change(root, parts)
    if parts and parts[0] in rules.RESERVED:
        return _refuse(root, Code.access, f"{parts[0]} is made by the mount itself", parts)
    match op:
        case Write():
            return _write(root, parts, op, context)
        case Mkdir():
            return _mkdir(root, parts, op, context)
        case Delete():
            return _delete(root, parts, op, context)
        case Move():
            return _move(root, parts, op, context)
        case Touch():
            return _touch(root, parts, op, context)
        case Unlock():
            return _unlock(root, parts, op, context)


def write_all(root: Directory, files: Sequence[tuple[Parts, bytes]], context: Context) -> Change:
    """All of these files with their contents and the directories above them, or none; how many had to be written."""
    # Of the whole only: in between it may be more than in the end.
    each = replace(context, settings=replace(context.settings, max_tree_bytes=TREE_BYTES_CAP, max_entries=ENTRIES_CAP))
    before, count = root, 0
    events: tuple[Event, ...] = ()
    for parts, content in files:
        change = perform(root, Write(join(parts), content, parents=True), each)
        if isinstance(change.result, Refusal):
            return Change(before, change.result)
        count += bool(change.events)
        if count > MAX_FILES_AT_ONCE:
            text = f"more than {MAX_FILES_AT_ONCE} files at once: take the directories below one by one"
            return _refuse(before, Code.too_many_entries, text, parts)
        root, events = change.root, events + change.events
    return _within_limits(before, context, Change(root, Done(context.index, number=count), events))


def make_node_directories(root: Directory, name: str, number: int, context: Context) -> Change:
    """What a member's directory holds from the start; existing parts are left alone."""
    # The locks' directory is nobody's in particular.
    context = replace(context, node="")
    index = context.index
    before = root
    events: tuple[Event, ...] = ()
    for parts in (rules.LOCKS, *(("nodes", name, *below) for below in rules.NODE_DIRECTORIES)):
        change = _mkdir(root, parts, Mkdir(join(parts), parents=True, exist_ok=True), context)
        if isinstance(change.result, Refusal):
            return Change(before, change.result)
        root, events = change.root, events + change.events
    return Change(root, Done(index, f"nodes/{name}", is_directory=True, number=number), (*events, MembersChanged()))


def rename_node_directory(root: Directory, old: str, new: str, *, index: int, now_s: int, number: int) -> Change:
    """A renamed member's directory. What is below keeps its placement: its guests have not moved, their node has another name."""
    parts, target = ("nodes", old), ("nodes", new)
    result = Done(index, join(target), is_directory=True, number=number)
    if parts == target:
        return Change(root, result)
    if lookup(root, target) is not None:
        return _refuse(root, Code.exists, f"{join(target)} is there already, left by a node of that name", target)
    tree = lookup(root, parts)
    if tree is None:
        return Change(root, result, (MembersChanged(),))
    moved = replace(tree, version=index, mtime=now_s)
    root = put(remove(root, parts), target, moved)
    return Change(root, result, (Moved(join(parts), join(target), moved), MembersChanged()))


def enter_witness(root: Directory, number: int, *, index: int) -> Change:
    """A member that has no place in the tree."""
    return Change(root, Done(index, number=number), (MembersChanged(),))


def retire_node_directory(root: Directory, name: str, *, index: int, now_s: int, number: int) -> Change:
    """A removed member's directory: kept while guests are in it, for they must still be moved; else archived, or gone
    when there is nothing in it but empty directories."""
    parts = ("nodes", name)
    result = Done(index, number=number)
    tree = lookup(root, parts)
    if not isinstance(tree, Directory) or any(place.node == name for place, _file in rules.guests(root)):
        return Change(root, result, (MembersChanged(),))
    kept, emptied = _without_empty_directories(tree, parts)
    if kept is None:
        return Change(remove(root, parts), result, (Deleted(join(parts)), MembersChanged()))
    archive = (rules.ARCHIVE, f"{name}.{number}")
    made = _make_parents(root, archive, Context(index, now_s, "", frozenset()))
    if isinstance(made, Refusal) or lookup(root, archive) is not None:
        # Somebody put something else there; nothing is lost by leaving the tree where it is.
        return Change(root, result, (MembersChanged(),))
    root, events = made
    moved = replace(relocated(kept, index), version=index, mtime=now_s)
    root = put(remove(root, parts), archive, moved)
    left = Moved(join(parts), join(archive), moved)
    return Change(root, result, (*events, *(Deleted(path) for path in emptied), left, MembersChanged()))


def _write(root: Directory, parts: Parts, op: Write, context: Context) -> Change:
    there = lookup(root, parts)
    refusal = _precondition(there, parts, expected=op.expected_version, absent=op.absent)
    if refusal is not None:
        return Change(root, refusal)
    if isinstance(there, Directory):
        return _refuse(root, Code.is_directory, "a directory is there", parts)
    if there is not None and there.content == op.content and not context.every_write_counts:
        return Change(root, done(context.index, join(parts), there))
    if len(op.content) > context.settings.max_file_bytes:
        return _refuse(root, Code.file_too_big, f"a file is at most {context.settings.max_file_bytes} bytes", parts)
    taken = _taken_guest(root, parts, parts)
    if taken is not None:
        return Change(root, taken)
    made = _make_parents(root, parts, context) if op.parents else _need_parent(root, parts)
    if isinstance(made, Refusal):
        return Change(root, made)
    under, events = made
    placement = there.placement if there is not None else context.index
    node = File(op.content, context.index, placement, context.now_s)
    path = join(parts)
    result = done(context.index, path, node)
    return _within_limits(root, context, Change(put(under, parts, node), result, (*events, Written(path, node))))


def _mkdir(root: Directory, parts: Parts, op: Mkdir, context: Context) -> Change:
    there = lookup(root, parts)
    if isinstance(there, Directory) and op.exist_ok:
        return Change(root, done(context.index, join(parts), there))
    if there is not None:
        return _refuse(root, Code.exists, "something is there already", parts)
    made = _make_parents(root, parts, context) if op.parents else _need_parent(root, parts)
    if isinstance(made, Refusal):
        return Change(root, made)
    under, events = made
    node = Directory(version=context.index, placement=context.index, mtime=context.now_s)
    if rules.is_lock(parts, node):
        node = replace(node, owner=context.node)
    path = join(parts)
    result = done(context.index, path, node)
    return _within_limits(root, context, Change(put(under, parts, node), result, (*events, Written(path, node))))


def _delete(root: Directory, parts: Parts, op: Delete, context: Context) -> Change:
    there = lookup(root, parts)
    if there is None:
        return Change(root, _missing(root, parts))
    if op.expected_version not in (0, there.version):
        return _refuse(root, Code.stale, f"it has version {there.version}", parts)
    if isinstance(there, Directory):
        if op.only == "file":
            return _refuse(root, Code.is_directory, "it is a directory", parts)
        if there.entries and not op.recursive:
            return _refuse(root, Code.not_empty, "the directory is not empty", parts)
        if _is_protected(parts, context):
            return _refuse(root, Code.access, "the cluster needs this directory", parts)
    elif op.only == "directory":
        return _refuse(root, Code.not_directory, "it is a file", parts)
    path = join(parts)
    return Change(remove(root, parts), done(context.index, path, there), (Deleted(path),))


def _move(root: Directory, parts: Parts, op: Move, context: Context) -> Change:
    target = rules.split(op.new_path)
    if isinstance(target, Refusal):
        return Change(root, target)
    if not target or target[0] in rules.RESERVED:
        return _refuse(root, Code.access, "nothing is moved there", target)
    # rename(2) looks for both directories before it looks for the entry.
    for place in (parts, target) if parts else ():
        parent = _need_parent(root, place)
        if isinstance(parent, Refusal):
            return Change(root, parent)
    node = lookup(root, parts)
    if node is None:
        return Change(root, _missing(root, parts))
    if op.expected_version not in (0, node.version):
        return _refuse(root, Code.stale, f"it has version {node.version}", parts)
    if parts == target:
        return Change(root, done(context.index, join(parts), node))
    if target[: len(parts)] == parts:
        return _refuse(root, Code.invalid, "a directory cannot go below itself", target)
    if _is_protected(parts, context) or rules.is_lock(parts, node) or rules.is_lock(target, node):
        return _refuse(root, Code.access, "this directory stays where it is", parts)
    refusal = _replaceable(root, node, target, may_replace=op.replace) or _taken_guest(root, target, parts, target)
    if refusal is not None:
        return Change(root, refusal)
    if isinstance(node, Directory) and len(target) + depth(node) > rules.MAX_DEPTH:
        return _refuse(root, Code.name_too_long, f"at most {rules.MAX_DEPTH} levels", target)
    moved = replace(relocated(node, context.index), version=context.index, mtime=context.now_s)
    after = put(remove(root, parts), target, moved)
    if isinstance(moved, Directory):
        twice = rules.duplicate_guest(after)
        if twice is not None:
            return _refuse(root, Code.exists, f"the guest of {twice} is elsewhere already", target)
    path = join(target)
    return Change(after, done(context.index, path, moved), (Moved(join(parts), path, moved),))


def _touch(root: Directory, parts: Parts, op: Touch, context: Context) -> Change:
    if not parts:
        return _refuse(root, Code.access, "the root directory has no time of its own", parts)
    there = lookup(root, parts)
    if there is None:
        return Change(root, _missing(root, parts))
    mtime = context.now_s if op.mtime is None else op.mtime
    if mtime < 0:
        return _refuse(root, Code.invalid, "no time before 1970", parts)
    if isinstance(there, Directory) and rules.is_lock(parts, there):
        if there.owner != context.node:
            return _refuse(root, Code.access, "only the node that made the lock renews it", parts)
        if mtime < there.mtime:
            return _refuse(root, Code.access, "a lock is not renewed backwards", parts)
    elif mtime == there.mtime and not context.every_write_counts:
        return Change(root, done(context.index, join(parts), there))
    node: Node = replace(there, version=context.index, mtime=mtime)
    path = join(parts)
    return Change(put(root, parts, node), done(context.index, path, node), (Written(path, node),))


def _unlock(root: Directory, parts: Parts, op: Unlock, context: Context) -> Change:
    there = lookup(root, parts)
    if there is None:
        return Change(root, _missing(root, parts))
    if not isinstance(there, Directory) or not rules.is_lock(parts, there):
        return _refuse(root, Code.invalid, "it is no lock", parts)
    if there.version != op.expected_version:
        return _refuse(root, Code.stale, "the lock has been renewed", parts)
    if there.entries:
        return _refuse(root, Code.not_empty, "the lock directory is not empty", parts)
    path = join(parts)
    return Change(remove(root, parts), done(context.index, path, there), (Deleted(path),))


def _precondition(there: Node | None, parts: Parts, *, expected: int | None, absent: bool) -> Refusal | None:
    if absent and there is not None:
        return Refusal(Code.exists, "something is there already", join(parts))
    if expected is not None and (there is None or there.version != expected):
        found = f"it has version {there.version}" if there is not None else "it is gone"
        return Refusal(Code.stale, f"{found}, expected was {expected}", join(parts))
    return None


def _replaceable(root: Directory, node: Node, target: Parts, *, may_replace: bool) -> Refusal | None:
    """Why `node` cannot take the place of what is at `target`."""
    path = join(target)
    match lookup(root, target):
        case None:
            return None
        case _ if not may_replace:
            return Refusal(Code.exists, "something is there already", path)
        case Directory() as there:
            if isinstance(node, File):
                return Refusal(Code.is_directory, "a directory is there", path)
            if rules.is_lock(target, there):
                return Refusal(Code.access, "a lock is there", path)
            return Refusal(Code.not_empty, "the directory is not empty", path) if there.entries else None
        case File():
            return Refusal(Code.not_directory, "a file is there", path) if isinstance(node, Directory) else None


def _taken_guest(root: Directory, parts: Parts, *besides: Parts) -> Refusal | None:
    """A file at `parts` would be a guest that exists elsewhere."""
    place = rules.guest_at(parts)
    taken = rules.other_place_of_guest(root, place.vmid, *besides) if place is not None else None
    if place is None or taken is None:
        return None
    return Refusal(Code.exists, f"guest {place.vmid} exists as {taken}", join(parts))


def _need_parent(root: Directory, parts: Parts) -> tuple[Directory, tuple[Event, ...]] | Refusal:
    if not parts:
        return Refusal(Code.is_directory, "that is the root directory")
    parent = lookup(root, parts[:-1])
    if parent is None:
        return _missing(root, parts[:-1])
    if isinstance(parent, File):
        return Refusal(Code.not_directory, f"{join(parts[:-1])} is a file", join(parts))
    return root, ()


def _make_parents(root: Directory, parts: Parts, context: Context) -> tuple[Directory, tuple[Event, ...]] | Refusal:
    if not parts:
        return Refusal(Code.is_directory, "that is the root directory")
    events: tuple[Event, ...] = ()
    for length in range(1, len(parts)):
        above = parts[:length]
        there = lookup(root, above)
        if isinstance(there, File):
            return Refusal(Code.not_directory, f"{join(above)} is a file", join(parts))
        if there is None:
            node = Directory(version=context.index, placement=context.index, mtime=context.now_s)
            if rules.is_lock(above, node):
                node = replace(node, owner=context.node)
            root, events = put(root, above, node), (*events, Written(join(above), node))
    return root, events


def _within_limits(before: Directory, context: Context, change: Change) -> Change:
    over = over_limit(before, change.root, context.settings)
    return Change(before, over) if over is not None else change


def _is_protected(parts: Parts, context: Context) -> bool:
    """Directories without which a member, its guests or the locks would have no place."""
    if parts in ((), ("nodes",), ("priv",), rules.LOCKS):
        return True
    return len(parts) == 2 and parts[0] == "nodes" and parts[1] in context.members


def _without_empty_directories(tree: Directory, at: Parts) -> tuple[Directory | None, list[str]]:
    """The rest, None when there is none, and the paths of those that went; `at` is where the tree lies."""
    kept = tree
    gone: list[str] = []
    # Deepest first, so that a directory that became empty goes too.
    for parts, node in reversed(list(walk(tree))):
        if parts and isinstance(node, Directory):
            now = lookup(kept, parts)
            assert isinstance(now, Directory)
            if not now.entries:
                kept = remove(kept, parts)
                gone.append(join((*at, *parts)))
    return (kept if kept.entries else None), gone


def _missing(root: Directory, parts: Parts) -> Refusal:
    if crosses_file(root, parts):
        return Refusal(Code.not_directory, "a part of the path is a file", join(parts))
    return Refusal(Code.not_found, f"{join(parts)} does not exist", join(parts))


def _refuse(root: Directory, code: Code, message: str, parts: Parts) -> Change:
    return Change(root, Refusal(code, message, join(parts)))
