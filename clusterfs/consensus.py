"""The part of `clusterfs.raft` that the store leans on, as protocols: what a replica is asked, and what it says of itself.

It keeps the rooms apart: the store is tested with a replica that lives in the test, and consensus knows of no tree.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from clusterfs.machine import StoreMachine
from kvorum.node import Identity, Pki


class ReplicaStatus(Protocol):
    """`members`: uid to whether its connection is up; `missing`: uids that do not answer; `failure`: why it stopped by itself."""

    @property
    def role(self) -> str: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def term(self) -> int: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def members(self) -> Mapping[str, bool]: ...
    @property
    def is_quorate(self) -> bool: ...
    @property
    def missing(self) -> "list[str] | tuple[str, ...]": ...
    @property
    def caught_up(self) -> bool: ...
    @property
    def failure(self) -> str | None: ...


class Consensus(Protocol):
    """Blocking calls, each with a deadline in seconds; hosts are IP addresses. See `clusterfs.raft.Replica`."""

    def propose(self, entry: bytes, *, deadline_s: float) -> object: ...
    def barrier(self, *, deadline_s: float) -> int: ...
    def status(self) -> ReplicaStatus: ...


class Replica(Consensus, Protocol):
    """A whole replica, which can be stopped and whose group can be changed."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def add_member(self, uid: str, host: str, *, deadline_s: float) -> None: ...
    def remove_member(self, uid: str, *, deadline_s: float) -> None: ...
    def allow_peer(self, uid: str, host: str) -> None: ...
    def listen(self, on_whisper: Callable[[str, bytes], None], on_links: Callable[[frozenset[str]], None]) -> None: ...
    def whisper(self, payload: bytes, uid: str | None = None) -> None: ...


class ReplicaFactory(Protocol):
    """Makes the replica of this node; `members` are hosts by uid."""

    def __call__(
        self,
        *,
        identity: Identity,
        members: Mapping[str, str],
        directory: Path,
        machine: StoreMachine,
        pki: Pki,
        joining: bool,
    ) -> Replica: ...
