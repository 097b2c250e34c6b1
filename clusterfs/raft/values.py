"""The values that cross this package's border: addresses, options, status, and what the state machine must be able to do.

Nothing here acts. Whoever uses consensus needs this module and `replica`, and no other.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from kvorum.errors import KvorumError


class StorageDamaged(KvorumError):
    """The log or snapshot on disk is not what was written, or belongs to another node. Never repaired by forgetting."""

    reason = "STORAGE_DAMAGED"


class ApplyFailed(KvorumError):
    """The state machine raised on a committed entry: a bug, but the log goes on without it on every replica alike."""

    reason = "APPLY_FAILED"


class Superseded(KvorumError):
    """The cluster goes on under a higher epoch, recovered without this replica: it must not take part with what it holds.
    Of two recoveries with the same number one mark is the higher one; so one half stops and never both."""

    reason = "SUPERSEDED"


class Role(StrEnum):
    follower = "follower"
    candidate = "candidate"
    leader = "leader"
    # Without a vote, or in no configuration: about to be added, or removed. Follows a log, never stands for election.
    learner = "learner"
    failed = "failed"
    stopped = "stopped"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens. `host` is an IP address: resolving a name would block the thread that carries all peers."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. They are read again when they change on disk, so a renewed certificate needs no restart."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds. The defaults suit a LAN and tolerate hosts that starve us of CPU for half a second."""

    election_timeout_min_s: float = 0.7
    election_timeout_max_s: float = 1.4
    heartbeat_s: float = 0.15
    tick_s: float = 0.04
    # A leader without answers from a majority for this long steps down; a follower waits a little longer.
    leader_quorum_s: float = 1.0
    follower_quorum_s: float = 1.5
    keepalive_s: float = 0.4
    link_timeout_s: float = 3.0
    dial_timeout_s: float = 0.8
    handshake_timeout_s: float = 4.0
    redial_s: float = 0.25
    # How long a removed node is still told of its removal.
    farewell_s: float = 5.0
    max_entry_bytes: int = 4 * 2**20
    max_frame_bytes: int = 16 * 2**20
    batch_bytes: int = 2**20
    batch_entries: int = 1024
    # Of one follower's commands that wait for their place in the log, each counted with `consensus.COMMAND_COST_BYTES` more.
    forwarded_bytes: int = 32 * 2**20
    # Entries sent to a follower and not acknowledged yet.
    window_entries: int = 8192
    queue_bytes: int = 64 * 2**20
    # A snapshot is due after so much log. It costs as much as the state has, and the log in between only disk: its commands leave
    # memory (`journal.MEMORY_BYTES`).
    compact_entries: int = 20_000
    compact_bytes: int = 32 * 2**20
    # Entries kept behind a snapshot, so that a node which was away shortly catches up by the log.
    keep_entries: int = 1000
    keep_bytes: int = 8 * 2**20
    snapshot_chunk_bytes: int = 256 * 2**10
    snapshot_window_bytes: int = 2**20
    # A node is made a voter once it lacks no more entries than this.
    promote_lag_entries: int = 200

    def __post_init__(self) -> None:
        assert 0 < self.heartbeat_s * 3 < self.election_timeout_min_s < self.election_timeout_max_s
        assert self.leader_quorum_s <= self.follower_quorum_s
        assert self.max_frame_bytes >= self.max_entry_bytes + self.batch_bytes + 2**16
        assert self.forwarded_bytes >= self.max_entry_bytes + self.batch_bytes
        assert self.compact_entries > 0
        assert self.keep_entries >= 0


@dataclass(frozen=True, slots=True)
class Status:
    """How this replica sees the cluster now."""

    uid: str
    role: Role
    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    # Every voting member and whether it is connected; this node counts itself connected.
    members: Mapping[str, bool]
    addresses: Mapping[str, Address]
    is_quorate: bool
    # Members not heard of within `follower_quorum_s`.
    missing: tuple[str, ...]
    # Applied all that the leader had committed when it last spoke.
    caught_up: bool
    # Why the replica stopped by itself, if it did.
    failure: str | None = None
    # There is no space for the log: this node only reads until somebody makes some.
    disk_full: bool = False
    # Members without a vote, and whether each is connected (as in `members`).
    learners: Mapping[str, bool] = field(default_factory=dict)
    # As the leader knows them: learners that have the log, so that they may be given a vote.
    ready_learners: tuple[str, ...] = ()
    epoch: int = 0
    # The higher epoch because of which the replica stopped; 0 when it did not.
    superseded_by: int = 0

    @property
    def hosts(self) -> Mapping[str, str]:
        return {uid: address.host for uid, address in self.addresses.items()}


class StateMachine(Protocol):
    def apply(self, index: int, entry: bytes) -> object:
        """Called in the raft thread, in log order, once per index and process life. Must not raise and not block."""
        ...

    def settled(self) -> None:
        """Called in the raft thread after each row of `apply`, when those who proposed have their answers. Must not block."""
        ...

    def snapshot(self) -> Callable[[], Iterable[bytes]]:
        """Capture the state now, cheaply; the returned callable serialises the capture in another thread."""
        ...

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        """Replace the state by what a snapshot made at `index` holds."""
        ...
