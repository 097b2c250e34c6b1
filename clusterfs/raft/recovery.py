"""One replica goes on alone when the majority is lost for good: the one change of membership that no majority agrees to.

It works on the files of a replica that does not run. Everything that its log holds counts from now on, this node is the only
voter, everybody else is a learner, and the epoch is higher than any that was seen. Replicas of the epoch before exchange
no message with this one any more (`transport`), so a majority of them that comes back can neither overwrite it nor be fed
by it. Whether it is right to recover is for people; who asks them is `clusterfs.recovering`.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvorum import epochs
from kvorum.errors import AlreadyExists

from . import membership
from .core import MEMBERSHIP, configurations_of, reconcile
from .files import LocalFiles
from .journal import FileLog
from .membership import Change, Configuration, Configurations
from .snapshot import SnapshotStore
from .values import Address

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Survey:
    """What a replica's files hold."""

    configuration: Configuration
    last_index: int
    # As far as the replica knew it to be acknowledged; the entries after it may or may not have been.
    commit_index: int
    term: int


def survey(directory: Path, *, uid: str) -> Survey:
    """Raises StorageDamaged, and AlreadyExists while a replica uses the directory."""
    with _opened(directory, uid) as (held, configurations):
        return Survey(
            configurations.whole,
            held.last_index,
            max(held.getRaftCommitIndex(), held.base_index),
            held.getCurrentTerm(),
        )


def recover(directory: Path, *, uid: str, address: Address, mark: int, above: int = 0) -> Survey:
    """Make this node the only voter under a new epoch, higher than `above` too; what it holds after that. Raises as `survey`.

    `mark`: a random number, for the same log may be recovered on another node as well.

    A crash leaves the files as before or recovered: one entry makes the difference, and it needs nobody else to be committed.
    """
    with _opened(directory, uid) as (held, configurations):
        return recover_log(held, configurations, uid=uid, address=address, mark=mark, above=above)


def recover_log(
    held: FileLog, configurations: Configurations, *, uid: str, address: Address, mark: int, above: int = 0
) -> Survey:
    """As `recover`, on a log that is open; it is closed afterwards."""
    epoch = epochs.following(max(configurations.whole.epoch, above), mark)
    term = held.getCurrentTerm() + 1
    change = Change("recover", uid, address.host, address.port, epoch)
    held.setCurrentTerm(term, uid)
    index = held.last_index + 1
    held.add(MEMBERSHIP + membership.encode(change), index, term)
    held.setRaftCommitIndex(index)
    configurations.append(index, change)
    held.close()
    log.warning("%s: recovered alone in epoch %s, with everything up to entry %d", uid, epochs.text(epoch), index - 1)
    return Survey(configurations.whole, index, index, term)


@contextmanager
def _opened(directory: Path, uid: str) -> Iterator[tuple[FileLog, Configurations]]:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    held: FileLog | None = None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists(f"another process uses {directory}", remedy="stop it first") from None
        files = LocalFiles(directory)
        held = FileLog(files, uid=uid)
        yield held, configurations_of(held, reconcile(held, SnapshotStore(files).current()))
    finally:
        if held is not None:
            held.abandon()
        os.close(lock)
