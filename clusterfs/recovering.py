"""Going on alone when the majority is lost for good, and coming back after others did: what is asked before, and what is kept.

A recovery is the one operation that can lose what was acknowledged, and that makes two clusters of one if the others live. So it
wants to know that nobody answers and that the operator means it, keeps a copy of the data as it was, and leaves three
records: one beside the data, one in the store's history, one in the cluster log. Consensus' part is `clusterfs.raft.recovery`.
"""

import json
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clusterfs.commands import Malformed, MemberPut, MemberRename, UnknownVersion, decode
from clusterfs.consensus import ReplicaStatus
from clusterfs.membership import Member
from clusterfs.replicas import recover_files
from clusterfs.state import State
from kvorum import epochs
from kvorum.errors import InvalidInput, Refused
from kvorum.node import Identity

RECORDS = "recoveries.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recovery of this node would mean. `obstacles`: why it should not be, in words; empty when nothing speaks against
    it but its nature."""

    cluster_name: str
    # Without its mark until it is done.
    epoch: int
    last_index: int
    # Of the newest change that this node has; what the others acknowledged after it would be lost.
    last_change_ms: int
    lost: tuple[str, ...]
    obstacles: tuple[str, ...]


def names_of(seeded: Iterable[Member], state: State, unapplied: Iterable[bytes]) -> dict[str, str]:
    """Of nodes by uid, as far as anything here tells: a node that was killed early has applied little of its log, and without a
    quorum it applies no more."""
    names = {member.uid: member.name for member in (*seeded, *state.members.values())}
    for entry in unapplied:
        try:
            op = decode(entry).op
        except (Malformed, UnknownVersion):
            continue
        if isinstance(op, MemberPut | MemberRename):
            names[op.uid] = op.name
    return names


def plan_of(identity: Identity, status: ReplicaStatus, state: State, names: Mapping[str, str]) -> Plan:
    """Learners are given up like voters: the new epoch is not theirs."""
    others = [uid for uid in {**status.members, **status.learners} if uid != identity.uid]
    answering = [names.get(uid, uid) for uid in others if status.members.get(uid) and uid not in status.missing]
    obstacles = []
    if status.is_quorate:
        obstacles.append("the cluster has a quorum: there is nothing to recover")
    if answering and not status.is_quorate:
        obstacles.append(
            f"{', '.join(sorted(answering))} can be reached: bring back enough nodes for a majority instead"
        )
    if status.superseded_by:
        obstacles.append(
            f"the cluster was recovered on another node (epoch {epochs.text(status.superseded_by)}): "
            "run 'kvorum cluster rejoin' here instead"
        )
    return Plan(
        cluster_name=identity.cluster_name,
        epoch=epochs.following(max(status.epoch, status.superseded_by), 0),
        last_index=status.applied_index,
        last_change_ms=state.clock_ms,
        lost=tuple(sorted(names.get(uid, uid) for uid in others)),
        obstacles=tuple(obstacles),
    )


def require_meant(plan: Plan, confirmation: str, *, force: bool) -> None:
    """Raises InvalidInput, Refused."""
    if confirmation != plan.cluster_name:
        raise InvalidInput(
            "a recovery must be confirmed by the cluster's name", field="confirm", remedy=f"it is {plan.cluster_name}"
        )
    if plan.obstacles and not force:
        raise Refused("; ".join(plan.obstacles), remedy="add --force only if you are sure that those nodes are lost")


def keep_copy(data: Path, state_directory: Path) -> Path:
    """The data as it was, next to it. Raises OSError, and then nothing has changed."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = free_name(state_directory, f"clusterfs-before-recovery-{stamp}")
    shutil.copytree(data, target, ignore=shutil.ignore_patterns("lock"))
    return target


def free_name(directory: Path, stem: str) -> Path:
    number = 1
    while (target := directory / f"{stem}-{number}").exists():
        number += 1
    return target


def recover_data(data: Path, identity: Identity, *, above: int) -> tuple[int, int]:
    """The new epoch and the last index that is kept."""
    # Never 0, which says that there is no mark yet.
    mark = 1 + secrets.randbelow(2**32 - 1)
    return recover_files(data / "raft", identity, mark=mark, above=above)


def note_locally(state_directory: Path, plan: Plan, *, author: str, copy: Path) -> None:
    record = {
        "time": int(time.time()),
        "author": author,
        "epoch": epochs.text(plan.epoch),
        "last_index": plan.last_index,
        "last_change_ms": plan.last_change_ms,
        "lost": plan.lost,
        "overruled": plan.obstacles,
        "copy": str(copy),
    }
    with (state_directory / RECORDS).open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def in_store(plan: Plan, identity: Identity, members: Mapping[str, Member]) -> tuple[str, bytes]:
    """Path and content of what the store keeps of it."""
    content = {
        "epoch": epochs.text(plan.epoch),
        "node": identity.name,
        "last_index": plan.last_index,
        "lost": plan.lost,
        "members": {member.name: uid for uid, member in sorted(members.items())},
    }
    return f"priv/recoveries/{epochs.text(plan.epoch)}.json", json.dumps(content, indent=1).encode() + b"\n"
