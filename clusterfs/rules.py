"""The rules of the tree that depend on where an entry lies: names, modes, guests, locks, limits.

They are pmxcfs' rules, which Proxmox VE's users and tools rely on, with its limits enforced rather than reported. Pure:
paths and trees in, verdicts out.
"""

import re
import stat
from dataclasses import dataclass

from clusterfs.outcomes import Code, Refusal
from clusterfs.tree import Directory, File, Node, Parts, join, lookup

# Unless the cluster has set other limits (`clusterfs.settings`).
MAX_FILE_BYTES = 1 << 20
MAX_STORE_BYTES = 128 << 20
MAX_ENTRIES = 262_144
MAX_NAME_BYTES = 255
# Keeps every recursion over the tree far below the interpreter's limit.
MAX_DEPTH = 128

LOCK_LIFE_S = 120.0
LOCKS: Parts = ("priv", "lock")
ARCHIVE = "nodes-archive"

SPECIAL_FILES = (".version", ".members", ".vmlist", ".clusterlog", ".rrd", ".debug")
# `openvz` leads nowhere, but tools of old know the name, and no file may take it.
LINKS = ("local", "qemu-server", "lxc", "openvz")
# The past of every path, read-only (`clusterfs.past`).
HISTORY = ".history"
RESERVED = frozenset((*SPECIAL_FILES, *LINKS, HISTORY))

GUEST_TYPES = {"qemu-server": "qemu", "lxc": "lxc"}
NODE_DIRECTORIES: tuple[Parts, ...] = ((), ("priv",), ("qemu-server",), ("lxc",))

_GUEST_FILE = re.compile(r"([1-9][0-9]*)\.conf")
_NODE = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?")
_MAX_VMID = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class GuestPlace:
    """Where a guest's configuration lies: whose directory it is in says which node owns it."""

    node: str
    directory: str
    vmid: int


def split(path: str) -> Parts | Refusal:
    """`nodes/n1` -> ("nodes", "n1"); the root is the empty path. One leading slash is forgiven."""
    bare = path.removeprefix("/")
    if not bare:
        return ()
    parts = tuple(bare.split("/"))
    for name in parts:
        if name in ("", ".", ".."):
            return Refusal(Code.invalid, f"{path!r} is no path: empty, '.' and '..' are no names", path)
        if "\0" in name:
            return Refusal(Code.invalid, "a name holds no NUL", path)
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            return Refusal(Code.invalid, "a name is UTF-8", path)
        if size > MAX_NAME_BYTES:
            return Refusal(Code.name_too_long, f"a name is at most {MAX_NAME_BYTES} bytes", path)
    if len(parts) > MAX_DEPTH:
        return Refusal(Code.name_too_long, f"at most {MAX_DEPTH} levels", path)
    return parts


def is_private(parts: Parts) -> bool:
    """Below `priv`, or below a node's (or an archived node's) own `priv`: for root's eyes only."""
    return parts[:1] == ("priv",) or (len(parts) >= 3 and parts[0] in ("nodes", ARCHIVE) and parts[2] == "priv")


def mode(parts: Parts, *, is_directory: bool, is_quorate: bool) -> int:
    """The type and mode bits that the mount shows. Without quorum the w bits go, but for the root directory itself."""
    public, private = (0o755, 0o700) if is_directory else (0o640, 0o600)
    bits = private if is_private(parts) else public
    if not is_quorate and parts:
        bits &= 0o555
    return (stat.S_IFDIR if is_directory else stat.S_IFREG) | bits


def chmod_is_harmless(parts: Parts, bits: int, *, is_directory: bool) -> bool:
    """The mode that the entry has anyhow, or the one that Proxmox VE's tools set on everything."""
    own = stat.S_IMODE(mode(parts, is_directory=is_directory, is_quorate=True))
    return stat.S_IMODE(bits) in (own, 0o600 if is_private(parts) else 0o640)


def guest_at(parts: Parts) -> GuestPlace | None:
    """The guest whose configuration a file at `parts` is; None for any other place (temporary names among them)."""
    if len(parts) != 4 or parts[0] != "nodes" or parts[2] not in GUEST_TYPES or not _NODE.fullmatch(parts[1]):
        return None
    match = _GUEST_FILE.fullmatch(parts[3])
    if match is None or len(match[1]) > 10 or int(match[1]) > _MAX_VMID:
        return None
    return GuestPlace(parts[1], parts[2], int(match[1]))


def guests(root: Directory) -> list[tuple[GuestPlace, File]]:
    """Every guest in the tree, by vmid."""
    found: list[tuple[GuestPlace, File]] = []
    nodes = root.entries.get("nodes")
    for node, tree in nodes.entries.items() if isinstance(nodes, Directory) else ():
        for kind in GUEST_TYPES if isinstance(tree, Directory) else ():
            assert isinstance(tree, Directory)
            directory = tree.entries.get(kind)
            for name, child in directory.entries.items() if isinstance(directory, Directory) else ():
                place = guest_at(("nodes", node, kind, name))
                if place is not None and isinstance(child, File):
                    found.append((place, child))
    return sorted(found, key=lambda pair: (pair[0].vmid, pair[0].node, pair[0].directory))


def other_place_of_guest(root: Directory, vmid: int, *besides: Parts) -> str | None:
    """The path at which this vmid is taken by another node or another type; `besides` do not count."""
    nodes = root.entries.get("nodes")
    if not isinstance(nodes, Directory):
        return None
    for node in sorted(nodes.entries):
        for kind in GUEST_TYPES:
            parts = ("nodes", node, kind, f"{vmid}.conf")
            if parts in besides or guest_at(parts) is None:
                continue
            if isinstance(lookup(root, parts), File):
                return join(parts)
    return None


def duplicate_guest(root: Directory) -> str | None:
    """The path of a guest whose vmid occurs before in the tree; for moves of whole directories."""
    seen: set[int] = set()
    for place, _file in guests(root):
        if place.vmid in seen:
            return join(("nodes", place.node, place.directory, f"{place.vmid}.conf"))
        seen.add(place.vmid)
    return None


def is_lock(parts: Parts, node: Node) -> bool:
    """A lock is a directory directly below `priv/lock`."""
    return len(parts) == 3 and parts[:2] == LOCKS and isinstance(node, Directory)


def lock_may_be_broken(age_s: float) -> bool:
    """`age_s`: how long the node that asks has seen the lock unchanged, on its own boot-time clock.

    Not the wall clock: a step of somebody's clock must neither break a lock nor keep one for ever.
    """
    return age_s > LOCK_LIFE_S
