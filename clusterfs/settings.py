"""What the cluster has agreed on about its store: how big it may grow and how much of the past it keeps.

A value of the replicated state, so that every replica enforces the same limits from the same log index on. Pure: settings and
trees in, verdicts and warnings out. How a caller hears of a refusal is for `clusterfs.refusals`.
"""

import msgspec

from clusterfs import rules
from clusterfs.commands import Configure
from clusterfs.outcomes import Code, Refusal
from clusterfs.tree import Directory

# A command with its content must fit into one entry of the log (`clusterfs.raft`: 4 MiB), the envelope's own fields included.
FILE_BYTES_CAP = 3 << 20
TREE_BYTES_CAP = 4 << 30
ENTRIES_CAP = 16 << 20
HISTORY_DAYS_CAP = 36_500
HISTORY_BYTES_CAP = 4 << 30
HISTORY_CHANGES_CAP = 1 << 20


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All three bounds of the history hold at once; 0 keeps nothing."""

    max_file_bytes: int = rules.MAX_FILE_BYTES
    max_tree_bytes: int = rules.MAX_STORE_BYTES
    max_entries: int = rules.MAX_ENTRIES
    history_days: int = 90
    # Of content that is no longer in the tree.
    history_bytes: int = 16 << 20
    history_changes: int = 20_000


DEFAULT = Settings()

# Name of a setting: the least and the most it can be.
BOUNDS = {
    "max_file_bytes": (4 << 10, FILE_BYTES_CAP),
    "max_tree_bytes": (1 << 20, TREE_BYTES_CAP),
    "max_entries": (1_000, ENTRIES_CAP),
    "history_days": (0, HISTORY_DAYS_CAP),
    "history_bytes": (0, HISTORY_BYTES_CAP),
    "history_changes": (0, HISTORY_CHANGES_CAP),
}


def configured(settings: Settings, op: Configure) -> Settings | Refusal:
    """The settings after the command. A limit below the present use is taken: what is there stays, and may only shrink."""
    wanted = {name: value for name in BOUNDS if (value := getattr(op, name)) is not None}
    for name, value in wanted.items():
        least, most = BOUNDS[name]
        if not least <= value <= most:
            return Refusal(Code.invalid, f"{name} is {least} to {most}, not {value}")
    return msgspec.structs.replace(settings, **wanted)


def over_limit(before: Directory, after: Directory, settings: Settings) -> Refusal | None:
    """A refusal when the change makes the store grow beyond its limits; shrinking is always allowed."""
    if after.size > settings.max_tree_bytes and after.size > before.size:
        return Refusal(Code.store_full, f"the store holds at most {size_text(settings.max_tree_bytes)}")
    if after.count > settings.max_entries and after.count > before.count:
        return Refusal(Code.too_many_entries, f"the store holds at most {settings.max_entries} entries")
    return None


def size_text(size: int) -> str:
    """`1048576` -> `1 MiB`; bytes when it is no whole number of a larger unit."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"
