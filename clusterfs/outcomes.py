"""What applying a command leads to: a result that every replica computes alike, and the events that watchers see.

A refusal is a value here, never an exception: a replica that raised where another answered would have diverged. What a
refusal means to a caller (an errno at the mount, a `KvorumError` over the API) is decided at the edges, in
`clusterfs.refusals`; no text of another layer belongs here.
"""

from enum import StrEnum

import msgspec

from clusterfs.tree import Directory, Node


class Code(StrEnum):
    """Why a command was refused; the words are written into snapshots, so they stay."""

    not_found = "not_found"
    exists = "exists"
    stale = "stale"
    not_directory = "not_directory"
    is_directory = "is_directory"
    not_empty = "not_empty"
    access = "access"
    invalid = "invalid"
    name_too_long = "name_too_long"
    file_too_big = "file_too_big"
    store_full = "store_full"
    too_many_entries = "too_many_entries"
    refused = "refused"
    fenced = "fenced"
    forgotten = "forgotten"
    locked = "locked"


class Done(msgspec.Struct, frozen=True, tag="done", omit_defaults=True, gc=False):
    """The command took effect at log index `index`; the rest describes the entry that it left behind, if it left one.

    `number` is what the command counts: a member's number, a lease's incarnation or renewal.
    """

    index: int
    path: str = ""
    is_directory: bool = False
    version: int = 0
    placement: int = 0
    mtime: int = 0
    size: int = 0
    number: int = 0


class Refusal(msgspec.Struct, frozen=True, tag="refusal", omit_defaults=True, gc=False):
    """The command changed nothing."""

    code: Code
    message: str
    path: str = ""


Result = Done | Refusal


class Written(msgspec.Struct, frozen=True, gc=False):
    """A file or directory has been created, replaced or touched."""

    path: str
    node: Node


class Deleted(msgspec.Struct, frozen=True, gc=False):
    """`path` is gone, and everything below it."""

    path: str


class Moved(msgspec.Struct, frozen=True, gc=False):
    """`path` and everything below it is now at `new_path`."""

    path: str
    new_path: str
    node: Node


class MembersChanged(msgspec.Struct, frozen=True, gc=False):
    """The list of members differs; never sent to watchers of entries."""


Event = Written | Deleted | Moved | MembersChanged


def done(index: int, path: str, node: Node, *, number: int = 0) -> Done:
    """The result that describes `node` as it is after the command."""
    is_directory = isinstance(node, Directory)
    return Done(
        index=index,
        path=path,
        is_directory=is_directory,
        version=node.version,
        placement=node.placement,
        mtime=node.mtime,
        size=0 if isinstance(node, Directory) else len(node.content),
        number=number,
    )
