"""Consensus: a log of opaque entries that every member of the cluster applies in the same order, kept on a majority's disks.

pysyncobj 0.3.17 is the state machine of Raft inside; the journal, the snapshots, the transport and every byte on wire and
disk are ours, and so are the methods of it that lose entries (`docs/internals/raft-changes.md`). What an entry means, who may
propose it and how it is recognised when it comes twice stays out: that is the user's `StateMachine`.
"""

from . import upstream  # noqa: F401  first, for it says how pysyncobj is loaded
from .replica import Replica
from .values import Address, ApplyFailed, Options, Role, StateMachine, Status, StorageDamaged, TlsFiles

__all__ = [
    "Address",
    "ApplyFailed",
    "Options",
    "Replica",
    "Role",
    "StateMachine",
    "Status",
    "StorageDamaged",
    "TlsFiles",
]
