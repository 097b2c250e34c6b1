"""The leader's chore with locks: ends sessions that nobody renews, and breaks locks by `mkdir` that grew old while others wait.

How old they are, is what this replica has seen on its own boot-time clock (`clusterfs.machine`); each proposal names what was
seen, so that a renewal which came first wins, and a leader that slept can take nothing away.
"""

import logging

from clusterfs.commands import SessionExpire, Unlock
from clusterfs.consensus import ReplicaStatus
from clusterfs.machine import StoreMachine
from clusterfs.outcomes import Refusal
from clusterfs.proposer import Author, Proposer

log = logging.getLogger(__name__)

DEADLINE_S = 2.0


def round_of_locks(machine: StoreMachine, proposer: Proposer, status: ReplicaStatus, *, uid: str) -> None:
    """Does nothing anywhere but on a leader with a quorum. Raises NoQuorum, OutcomeUnknown."""
    if status.leader != uid or not status.is_quorate or not status.caught_up:
        return
    for name, session in machine.old_sessions():
        author = Author("root@pam", "clusterfs", f"not renewed for {session.ttl_s} s")
        result = proposer.propose(SessionExpire(name, session.renewed), author, deadline_s=DEADLINE_S)
        if not isinstance(result, Refusal):
            log.info("the session %s was not renewed for %d s: its locks are free", name, session.ttl_s)
    for path, version in machine.old_lock_directories():
        author = Author("root@pam", "clusterfs", "the lock was not renewed, and others wait for it")
        result = proposer.propose(Unlock(path, version), author, deadline_s=DEADLINE_S)
        if not isinstance(result, Refusal):
            log.info("broke the lock %s, for which others wait", path)
