"""The life of this node's replica: none yet, running, retired. What the gRPC services act on.

A node that is in no cluster serves its socket all the same and says so. `activate` writes what a later start needs before
it starts anything, so that the daemon comes up by itself after a crash at any point; `retire` puts the data aside and never
deletes it.
"""

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from msgspec import structs

from clusterfs import seed as seeds
from clusterfs.commands import MemberPut, MemberRemove, MemberRename, Write
from clusterfs.consensus import ReplicaFactory
from clusterfs.membership import Member
from clusterfs.proposer import Author
from clusterfs.recovering import (
    Plan,
    free_name,
    in_store,
    keep_copy,
    names_of,
    note_locally,
    plan_of,
    recover_data,
    require_meant,
)
from clusterfs.running import Running
from clusterfs.seed import Seed
from clusterfs.voting import Promote, next_step
from kvorum import epochs
from kvorum.errors import AlreadyExists, InvalidInput, KvorumError, NoQuorum, NotFound, OutcomeUnknown, Refused
from kvorum.node import MOUNT, STATE, Identity, Pki, load_identity, save_identity

log = logging.getLogger(__name__)

# How long a first member may take to elect itself and to be written into the state.
FIRST_MEMBER_S = 15.0
# Kept back of a join's deadline, to find out what became of it and to undo it.
UNDO_S = 8.0
POLL_S = 0.05
# A vote comes a moment after the log, or waits for somebody else; a join does not fail for want of it.
VOTE_S = 5.0
FOLLOW_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where this daemon keeps and shows things; other than the defaults in tests and labs only."""

    state: Path = STATE
    mount: Path = MOUNT

    @property
    def clusterfs(self) -> Path:
        return self.state / "clusterfs"

    @property
    def rejoining(self) -> Path:
        return self.state / "clusterfs-rejoining"

    @property
    def identity(self) -> Path:
        return self.state / "node.json"

    @property
    def pki(self) -> Pki:
        return Pki(self.state / "pki")


class Daemon:
    def __init__(
        self,
        places: Places,
        *,
        make_replica: ReplicaFactory,
        on_broken: Callable[[AssertionError], None] = lambda _error: None,
    ) -> None:
        self._places = places
        self._make_replica = make_replica
        self._on_broken = on_broken
        self._running: Running | None = None
        # Held while a replica comes or goes.
        self._mutex = threading.Lock()
        self._following: threading.Thread | None = None
        self._lock_file: IO[bytes] | None = None

    def lock(self) -> None:
        """Makes sure that this is the only daemon on this state. Raises Refused."""
        self._places.state.mkdir(parents=True, exist_ok=True)
        self._lock_file = (self._places.state / "clusterfs.lock").open("wb")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(
                f"another kvorum-clusterfs works on {self._places.state}", remedy="stop it before starting this one"
            ) from None

    def resume(self) -> None:
        """Starts the replica that was active before. Does nothing when there was none."""
        with self._mutex:
            self._finish_rejoin()
            seed = seeds.load(self._places.clusterfs)
            if seed is not None and self._running is None:
                self._start(load_identity(self._places.identity), seed)

    def end_watches(self) -> None:
        """So that the server need not wait for those who would never hang up."""
        running = self._running
        if running is not None:
            running.machine.close()

    def stop(self) -> None:
        with self._mutex:
            if self._running is not None:
                self._running.stop()
                self._running = None

    @property
    def active(self) -> Running | None:
        return self._running

    @property
    def running(self) -> Running:
        """Raises Refused when this node is in no cluster."""
        if self._running is None:
            raise Refused(
                "this node is in no cluster",
                remedy="run 'kvorum cluster init' or 'kvorum cluster join ADDRESS TOKEN'",
            )
        return self._running

    def activate(self, members: Sequence[Member], cluster_name: str, *, epoch: int = 0) -> None:
        """Returns when the replica runs and is mounted; as the first member, when it can be written to as well."""
        with self._mutex:
            identity = load_identity(self._places.identity)
            if self._running is not None or seeds.load(self._places.clusterfs) is not None:
                raise Refused("this node's replica is active already", remedy="run 'kvorum cluster leave' first")
            if not members:
                raise InvalidInput("at least one member is needed", field="members")
            is_first = len(members) == 1
            if is_first and members[0].uid != identity.uid:
                raise InvalidInput("the first member of a cluster is this node", field="members")
            seed = Seed(cluster_name=cluster_name, members=list(members), joining=not is_first, epoch=epoch)
            seeds.save(seed, self._places.clusterfs)
            try:
                running = self._start(identity, seed)
            except (KvorumError, OSError):
                # Nothing has been promised to anybody yet.
                self._archive()
                raise
        if is_first:
            _wait_for_first_member(running)

    def retire(self) -> Path:
        """Stops and puts the data aside; returns where."""
        with self._mutex:
            if self._running is None and seeds.load(self._places.clusterfs) is None:
                raise Refused("this node is in no cluster")
            if self._running is not None:
                self._running.stop()
                self._running = None
            archive = self._archive()
        log.info("the replica's data is in %s", archive)
        return archive

    def add_member(self, member: Member, author: Author, *, deadline_s: float) -> Member:
        """Enters the node, makes it a learner, and waits until it has the log and, if it is to vote, its vote; undone when that
        fails. The leader goes on by itself with what is only half done (`tending`), so nothing depends on this caller."""
        running = self.running
        reserve_s = min(UNDO_S, deadline_s / 2)
        end = time.monotonic() + deadline_s - reserve_s
        was_there = member.uid in running.machine.state.members
        done = running.proposer.execute(
            MemberPut(member.uid, member.name, member.address, member.number, member.witness),
            author,
            deadline_s=deadline_s,
        )
        try:
            running.replica.allow_peer(member.uid, member.address)
            if member.uid not in running.replica.status().members:
                left = max(1.0, end - time.monotonic())
                running.replica.add_learner(member.uid, member.address, deadline_s=left)
            _wait_for_vote(running, member.uid, end=end)
        except NoQuorum as error:
            self._undo_member(running, member, was_there=was_there)
            raise running.proposer.no_quorum() from error
        except KvorumError:
            if not self._has_joined(running, member.uid):
                self._undo_member(running, member, was_there=was_there)
                raise
        added = running.machine.state.members.get(member.uid)
        return added or Member(member.uid, member.name, member.address, done.number)

    def remove_member(self, uid: str, author: Author, *, deadline_s: float) -> None:
        """Takes a node out of consensus and out of the state. A second call finishes what a first one left."""
        running = self.running
        is_member = uid in running.machine.state.members
        status = running.replica.status()
        is_known = uid in status.hosts
        if not is_member and not is_known:
            raise NotFound(f"no member has the uid {uid}")
        if uid in status.members and len(status.members) == 1:
            raise Refused("the last node cannot be removed", remedy="run 'kvorum cluster leave' on it")

        def forget() -> None:
            if is_member:
                running.proposer.execute(MemberRemove(uid), author, deadline_s=deadline_s)

        def outvote() -> None:
            if is_known:
                try:
                    running.replica.remove_member(uid, deadline_s=deadline_s)
                except NoQuorum as error:
                    raise running.proposer.no_quorum() from error

        # A node that removes itself cannot write any more once it is out of consensus.
        for step in (forget, outvote) if uid == running.identity.uid else (outvote, forget):
            step()

    def plan_recovery(self) -> Plan:
        running = self.running
        # In this order: what is applied between the two is in both, not in neither.
        unapplied = running.replica.unapplied()
        state = running.machine.state
        names = names_of(running.seed.members, state, unapplied)
        return plan_of(running.identity, running.replica.status(), state, names)

    def recover(self, confirmation: str, author: Author, *, force: bool) -> tuple[Plan, Path]:
        """Goes on alone, with everything that this node holds; returns what was done, and where the data from before is.

        Raises InvalidInput (not confirmed), Refused (others live). When it fails in the middle the data is as it was or
        recovered, and this node starts with it.
        """
        with self._mutex:
            running = self.running
            plan = self.plan_recovery()
            require_meant(plan, confirmation, force=force)
            log.warning(
                "recovering %s alone as epoch %s, asked by %s", plan.cluster_name, epochs.text(plan.epoch), author.name
            )
            superseded_by = running.replica.status().superseded_by
            running.stop()
            self._running = None
            identity, seed = running.identity, running.seed
            try:
                copy = keep_copy(self._places.clusterfs, self._places.state)
                epoch, last_index = recover_data(self._places.clusterfs, identity, above=max(superseded_by, seed.epoch))
                plan = replace(plan, epoch=epoch, last_index=last_index)
                note_locally(self._places.state, plan, author=author.name, copy=copy)
                seed = structs.replace(seed, epoch=epoch, joining=False)
                seeds.save(seed, self._places.clusterfs)
            finally:
                running = self._start(identity, seed)
        _wait_for_quorum(running)
        path, content = in_store(plan, identity, running.machine.state.members)
        reason = f"recovered from {identity.name} alone as epoch {epochs.text(epoch)}: the majority was lost"
        running.proposer.execute(Write(path, content, parents=True), replace(author, reason=reason))
        running.note_warning(f"{reason}; {', '.join(plan.lost) or 'nobody'} must rejoin")
        return plan, copy

    def rejoin(self) -> Path:
        """Begins anew in the cluster that was recovered without this node; returns where its own data is kept."""
        with self._mutex:
            running = self.running
            epoch = running.replica.status().superseded_by
            if not epoch:
                raise Refused(
                    "this node has not heard of a recovery of its cluster",
                    remedy="it must reach the recovered node first; see 'kvorum cluster status'",
                )
            running.stop()
            self._running = None
            seed = structs.replace(running.seed, joining=True, epoch=epoch)
            # Beside the old data first: a node that crashes in between must not be in no cluster.
            seeds.save(seed, self._places.rejoining)
            archive = self._archive()
            self._finish_rejoin()
            self._start(running.identity, seed)
        log.warning("joins epoch %s anew; what this node held is in %s", epochs.text(epoch), archive)
        return archive

    def _finish_rejoin(self) -> None:
        """What a crash may have left of a `rejoin`: the old data is away, the new is not in its place yet."""
        if not self._places.clusterfs.exists() and self._places.rejoining.exists():
            self._places.rejoining.rename(self._places.clusterfs)

    def _start(self, identity: Identity, seed: Seed) -> Running:
        running = Running(
            identity=identity,
            seed=seed,
            directory=self._places.clusterfs,
            mountpoint=self._places.mount,
            pki=self._places.pki,
            make_replica=self._make_replica,
            on_broken=self._on_broken,
            on_identity=self._follow_soon,
        )
        running.start()
        self._running = running
        return running

    def rename_member(self, uid: str, name: str, author: Author, *, deadline_s: float) -> None:
        """Raises NotFound, AlreadyExists, NoQuorum. The node itself takes its new name when it learns of it."""
        self.running.proposer.execute(MemberRename(uid, name), author, deadline_s=deadline_s)

    def move_member(self, uid: str, address: str, author: Author, *, deadline_s: float) -> None:
        """The cluster will look for a member at another address, to which the member itself goes when it learns of it."""
        running = self.running
        member = running.machine.state.members.get(uid)
        if member is None:
            raise NotFound(f"no member has the uid {uid}")
        same = next((other.name for other in running.machine.state.members.values() if other.address == address), "")
        if same not in ("", member.name):
            raise AlreadyExists(f"{address} is the address of {same}")
        running.proposer.execute(MemberPut(uid, member.name, address, member.number), author, deadline_s=deadline_s)

    def readdress(self, address: str) -> None:
        """This node is at another address now, and tells the cluster once it has met it. Also when the replica cannot start
        because its old address is gone. Raises Refused, OSError."""
        with self._mutex:
            identity, seed = load_identity(self._places.identity), seeds.load(self._places.clusterfs)
            if seed is None:
                raise Refused("this node is in no cluster")
            self._restart(structs.replace(identity, address=address), structs.replace(seed, moved=True))

    def _follow_soon(self, identity: Identity) -> None:
        """From the chores of the replica that must end for it; so in a thread of its own."""
        if self._following is None or not self._following.is_alive():
            self._following = threading.Thread(target=self._follow, args=(identity,), name="follow", daemon=True)
            self._following.start()

    def _follow(self, identity: Identity) -> None:
        with self._mutex:
            running = self._running
            if running is None or running.identity == identity:
                return
            before = running.identity
            log.info(
                "this node is %s at %s now, was %s at %s", identity.name, identity.address, before.name, before.address
            )
            try:
                self._restart(identity, running.seed)
            except (KvorumError, OSError) as error:
                log.error("cannot be %s at %s yet: %s", identity.name, identity.address, error)
                self._restart(before, running.seed)
        # Not again at once: somebody has to give this host its address first.
        time.sleep(FOLLOW_AGAIN_S)

    def _restart(self, identity: Identity, seed: Seed) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None
        save_identity(identity, self._places.identity)
        seeds.save(seed, self._places.clusterfs)
        self._start(identity, seed)

    def _archive(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = free_name(self._places.state, f"clusterfs-retired-{stamp}")
        self._places.clusterfs.rename(target)
        return target

    @staticmethod
    def _has_joined(running: Running, uid: str) -> bool:
        """After an unclear answer: asks the log."""
        try:
            running.replica.barrier(deadline_s=UNDO_S / 2)
        except KvorumError:
            # Still unclear. Leaving the member entered is harmless, taking it out of the state while it votes is not.
            return uid in running.replica.status().members
        return uid in running.replica.status().members

    @staticmethod
    def _undo_member(running: Running, member: Member, *, was_there: bool) -> None:
        if was_there:
            return
        try:
            running.replica.remove_member(member.uid, deadline_s=UNDO_S / 2)
        except KvorumError as error:
            log.warning("%s stays a learner for a while: %s", member.name, error)
        try:
            running.proposer.execute(
                MemberRemove(member.uid),
                Author("root@pam", "cluster", "the node could not join"),
                deadline_s=UNDO_S / 2,
            )
        except KvorumError as error:
            log.error("%s stays entered: %s", member.name, error)


def _wait_for_vote(running: Running, uid: str, *, end: float) -> None:
    """Whoever joins may be relied on when it has joined: two voters and one that is about to vote have no spare one."""
    end = min(end, time.monotonic() + VOTE_S)
    while time.monotonic() < end:
        status = running.replica.status()
        able = [known for known, is_up in status.learners.items() if is_up]
        step = next_step(running.machine.state.members, status.hosts, status.members, able)
        if uid in status.members or not isinstance(step, Promote):
            return
        time.sleep(POLL_S)


def _wait_for_quorum(running: Running) -> None:
    end = time.monotonic() + FIRST_MEMBER_S
    while not (running.replica.status().is_quorate and running.replica.status().caught_up):
        if time.monotonic() > end:
            raise OutcomeUnknown(
                "the recovered node does not lead in time", remedy="see its log; 'kvorum cluster status' tells more"
            )
        time.sleep(POLL_S)


def _wait_for_first_member(running: Running) -> None:
    end = time.monotonic() + FIRST_MEMBER_S
    while running.identity.uid not in running.machine.state.members:
        index = running.machine.view.index
        left = end - time.monotonic()
        if left <= 0:
            raise OutcomeUnknown("the first member did not come up in time", remedy="see the log of kvorum-clusterfs")
        running.machine.events_after(index, timeout_s=min(left, 1.0))
