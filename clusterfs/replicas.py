"""Where the store meets consensus: makes the real replica and hands hosts over as the addresses that it wants."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from clusterfs.commands import is_renewal
from clusterfs.consensus import ReplicaStatus
from clusterfs.machine import StoreMachine
from clusterfs.raft import Address, Replica, StorageDamaged, TlsFiles, segments
from clusterfs.raft.files import LocalFiles
from clusterfs.raft.membership import Change
from clusterfs.raft.recovery import recover
from kvorum.node import RAFT_PORT, Identity, Pki


class RaftReplica:
    """`clusterfs.raft.Replica`, on the one port that all nodes use."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        # Asked at each open: not by way of another call.
        self.is_behind = replica.is_behind

    def start(self) -> None:
        self._replica.start()

    def stop(self) -> None:
        self._replica.stop()

    def propose(self, entry: bytes, *, deadline_s: float) -> object:
        return self._replica.propose(entry, deadline_s=deadline_s)

    def submit(self, entry: bytes, on_done: Callable[[object], None], on_open: Callable[[bool], None]) -> None:
        self._replica.submit(entry, on_done, on_open)

    def barrier(self, *, deadline_s: float) -> int:
        return self._replica.barrier(deadline_s=deadline_s)

    def add_member(self, uid: str, host: str, *, deadline_s: float) -> None:
        self._replica.add_member(uid, Address(host, RAFT_PORT), deadline_s=deadline_s)

    def add_learner(self, uid: str, host: str, *, deadline_s: float) -> None:
        self._replica.add_learner(uid, Address(host, RAFT_PORT), deadline_s=deadline_s)

    def move_member(self, uid: str, host: str, *, deadline_s: float) -> None:
        self._replica.move_member(uid, Address(host, RAFT_PORT), deadline_s=deadline_s)

    def suggest(self, op: Literal["add", "learn", "move", "remove"], uid: str, host: str) -> None:
        self._replica.suggest(Change(op, uid, host, RAFT_PORT if host else 0))

    def hand_over(self) -> None:
        self._replica.hand_over()

    def remove_member(self, uid: str, *, deadline_s: float) -> None:
        self._replica.remove_member(uid, deadline_s=deadline_s)

    def allow_peer(self, uid: str, host: str) -> None:
        self._replica.allow_peer(uid, Address(host, RAFT_PORT))

    def listen(self, on_whisper: Callable[[str, bytes], None], on_links: Callable[[frozenset[str]], None]) -> None:
        self._replica.listen(on_whisper, on_links)

    def whisper(self, payload: bytes, uid: str | None = None) -> None:
        self._replica.whisper(payload, uid)

    def unapplied(self) -> list[bytes]:
        return self._replica.unapplied()

    def unapplied_with(self, needle: bytes) -> int:
        return self._replica.unapplied_with(needle)

    def wait_applied(self, index: int, timeout_s: float) -> bool:
        return self._replica.wait_applied(index, timeout_s)

    def status(self) -> ReplicaStatus:
        return self._replica.status()


def make_replica(
    *,
    identity: Identity,
    members: Mapping[str, str],
    directory: Path,
    machine: StoreMachine,
    pki: Pki,
    joining: bool,
    epoch: int,
) -> RaftReplica:
    """Implements `clusterfs.consensus.ReplicaFactory`. Raises StorageDamaged.

    A cluster is founded by one node alone. One that knows others had a log; without it, it has forgotten whom it voted for and
    what it has acknowledged, and as a voter with an empty log it could undo that.
    """
    if not joining and (len(members) > 1 or epoch) and not _has_log(directory):
        raise StorageDamaged(
            f"this node is a member of a cluster, but its log in {directory} is gone",
            remedy="put the directory back; or else remove this node from the cluster on another one, delete "
            f"{directory.parent} and join again",
            details={"path": str(directory)},
        )
    return RaftReplica(
        Replica(
            uid=identity.uid,
            members={uid: Address(host, RAFT_PORT) for uid, host in members.items()},
            directory=directory,
            machine=machine,
            tls=TlsFiles(ca=pki.ca, certificate=pki.certificate, key=pki.key),
            bind=Address(identity.address, RAFT_PORT),
            stamp=machine.stamp,
            may_wait=is_renewal,
            joining=joining,
            epoch=epoch,
        )
    )


def _has_log(directory: Path) -> bool:
    return directory.is_dir() and segments.is_there(LocalFiles(directory))


def recover_files(directory: Path, identity: Identity, *, mark: int, above: int) -> tuple[int, int]:
    """Make the stopped replica in `directory` the only voter, under an epoch higher than its own and than `above`.

    The new epoch, and the last entry from before. Raises StorageDamaged, AlreadyExists while it runs.
    """
    address = Address(identity.address, RAFT_PORT)
    found = recover(directory, uid=identity.uid, address=address, mark=mark, above=above)
    return found.configuration.epoch, found.last_index - 1
