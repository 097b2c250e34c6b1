"""One replica at work: its state machine, its mount, and the small chores that keep them in step with the cluster.

The chores run in a thread of their own, away from consensus and from FUSE: entering the first member, letting peers in that the
state has learnt of, remembering the members for the next start, mounting again what somebody unmounted, and noting
changes of quorum in the cluster log. Starting and retiring is `clusterfs.daemon`.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import structs

from clusterfs import formats, special, usage
from clusterfs import seed as seeds
from clusterfs.commands import MemberPut, RaiseFormat
from clusterfs.computed import Computed, set_debug
from clusterfs.consensus import ReplicaFactory
from clusterfs.gossip import Gossip
from clusterfs.lock_keeping import round_of_locks
from clusterfs.machine import StoreMachine
from clusterfs.membership import Member
from clusterfs.mount import Mount
from clusterfs.mounting import Mounted, group_id
from clusterfs.proposer import Author, Proposer, Quorum
from clusterfs.seed import Seed
from clusterfs.state import State
from clusterfs.tending import Tending
from clusterfs.underway import UnderWay
from clusterfs.waist import Store
from kvorum.errors import KvorumError
from kvorum.node import Identity, Pki

log = logging.getLogger(__name__)

CHORE_INTERVAL_S = 0.25
# The kernel's list of mounts is long on some hosts, so it is read in every eighth round of chores only.
MOUNT_ROUNDS = 8
_SYSLOG_INFO = 6
_SYSLOG_WARNING = 4


class Running:
    def __init__(
        self,
        *,
        identity: Identity,
        seed: Seed,
        directory: Path,
        mountpoint: Path,
        pki: Pki,
        make_replica: ReplicaFactory,
        on_broken: Callable[[AssertionError], None],
        on_identity: Callable[[Identity], None] = lambda _identity: None,
    ) -> None:
        """`on_identity`: the cluster has given this node another name or address; called again until it is taken."""
        self._on_identity = on_identity
        self.identity = identity
        self.seed = seed
        self._directory = directory
        self._mountpoint = mountpoint
        self.machine = StoreMachine(on_broken=on_broken)
        self.replica = make_replica(
            identity=identity,
            members={member.uid: member.address for member in seed.members},
            directory=directory / "raft",
            machine=self.machine,
            pki=pki,
            joining=seed.joining,
            epoch=seed.epoch,
        )
        self.proposer = Proposer(
            replica=self.replica,
            machine=self.machine,
            node_uid=identity.uid,
            names={member.uid: member.name for member in seed.members},
        )
        self.quorum = Quorum(self.replica)
        self._mounted: Mounted | None = None
        self.gossip = Gossip(uid=identity.uid, name=identity.name, send=self.replica.whisper)
        self._computed = Computed(node_name=identity.name, machine=self.machine, gossip=self.gossip, cluster=self)
        self._tending = Tending(self.replica, uid=identity.uid)
        self._stopping = threading.Event()
        self._chores = threading.Thread(target=self._work, name="chores", daemon=True)
        self._members_seen = -1
        self._was_quorate = False
        self._is_failure_told = False
        self._was_full = False
        self._online: dict[str, bool] = {}
        self._addresses: Mapping[str, str] = {}
        self.members_counter = 0
        self._rounds = 0
        self._told: frozenset[str] = frozenset()

    def start(self) -> None:
        self.replica.start()
        try:
            if not self.identity.witness:
                self._mount()
        except KvorumError:
            self.replica.stop()
            raise
        self.replica.listen(self.gossip.receive, self.gossip.links)
        self.gossip.set(formats.announcement())
        self.gossip.start()
        self._note(_SYSLOG_INFO, "starting cluster log")
        self._chores.start()

    def stop(self) -> None:
        """Watches end first, then the mount, then consensus: nobody is left who would wait for it."""
        self._stopping.set()
        self.machine.close()
        self.gossip.stop()
        if self._chores.is_alive():
            self._chores.join(timeout=10.0)
        if self._mounted is not None:
            self._mounted.unmount()
        self.replica.stop()

    @property
    def is_mounted(self) -> bool:
        return self._mounted is not None and self._mounted.is_alive

    @property
    def cluster_name(self) -> str:
        return self.seed.cluster_name

    @property
    def is_quorate(self) -> bool:
        return self.replica.status().is_quorate

    def members(self) -> list[Member]:
        """By the state; by the seed as long as the state has none."""
        known = list(self.machine.state.members.values()) or self.seed.members
        return sorted(known, key=lambda member: member.number)

    def online(self) -> dict[str, bool]:
        status = self.replica.status()
        silent = dict.fromkeys(status.missing, False)
        return {**status.learners, **status.members, **silent, self.identity.uid: True}

    def _mount(self) -> None:
        store = Store(
            state=lambda: self.machine.state,
            propose=lambda op, deadline_s: self.proposer.propose(
                op, Author("root@pam", "mount"), deadline_s=deadline_s
            ),
            is_quorate=lambda: self.quorum.is_quorate,
            is_disk_full=lambda: self.quorum.status().disk_full,
            lock_age_s=self.machine.lock_age_s,
            specials=self._computed.files(),
            links=special.links(self.identity.name),
            index=lambda: self.machine.view.index,
            events_after=lambda index, timeout_s: self.machine.events_after(index, timeout_s=timeout_s),
            set_debug=set_debug,
            node_uid=self.identity.uid,
            under_way=UnderWay(
                is_behind=self.replica.is_behind,
                unapplied_with=self.replica.unapplied_with,
                wait_applied=self.replica.wait_applied,
            ),
        )
        mounted = Mounted(Mount(store, mountpoint=self._mountpoint, gid=group_id()), self._mountpoint)
        mounted.start()
        self._mounted = mounted

    def _work(self) -> None:
        while not self._stopping.wait(CHORE_INTERVAL_S):
            try:
                self._do_chores()
            except (KvorumError, OSError) as error:
                log.warning("%s", error)
            except Exception:
                # A chore that fails must not end the others; the next round tries again.
                log.exception("a chore failed")

    def _do_chores(self) -> None:
        status = self.replica.status()
        if status.failure and not self._is_failure_told:
            self._is_failure_told = True
            log.critical("consensus has stopped, this node only reads from now on: %s", status.failure)
        if status.disk_full != self._was_full:
            self._was_full = status.disk_full
            self._note(
                _SYSLOG_WARNING, "no space for the log" if status.disk_full else "there is space for the log again"
            )
        online = {**status.members, self.identity.uid: True}
        addresses = self._computed.addresses()
        view = self.machine.view
        if (
            online != self._online
            or addresses != self._addresses
            or status.is_quorate != self._was_quorate
            or view.members_version != self._members_seen
        ):
            self.members_counter += 1
        self._online, self._addresses = online, addresses
        if status.is_quorate != self._was_quorate:
            self._was_quorate = status.is_quorate
            self._note_quorum(status.is_quorate)
        if view.members_version != self._members_seen:
            self._learn_members(view.state)
            self._members_seen = view.members_version
        if not self.seed.joining and status.is_quorate and not view.state.members and len(self.seed.members) == 1:
            self._enter_first_member()
        self._tending.round(view.state, status)
        if status.leader == self.identity.uid and status.is_quorate and status.caught_up:
            self._raise_format(view.state)
        if status.is_quorate and status.caught_up and self.identity.uid in view.state.members:
            self._follow_identity(view.state.members[self.identity.uid])
        self._tell_usage(view.state, is_leader=status.leader == self.identity.uid)
        self._rounds += 1
        is_due = self._rounds % MOUNT_ROUNDS == 0 and not self.identity.witness and not self._stopping.is_set()
        if is_due and not self.is_mounted:
            log.warning("%s is not mounted: mounting it again", self._mountpoint)
            self._mount()
        # Last, for it may wait for an answer.
        round_of_locks(self.machine, self.proposer, status, uid=self.identity.uid)

    def _raise_format(self, state: State) -> None:
        told = {uid: self.gossip.get(uid, formats.KEY) for uid in state.members}
        if not formats.may_be_raised(state.format, told, self.online()):
            return
        author = Author("root@pam", "cluster", "all members know this version of the log")
        done = self.proposer.execute(RaiseFormat(), author, deadline_s=5.0)
        log.info("entries of the log are of version %d from now on", done.number)

    def _tell_usage(self, state: State, *, is_leader: bool) -> None:
        # Every node keeps count, so that a new leader does not say it all again.
        self._told, notices = usage.notices(self._told, state)
        for notice in notices if is_leader else ():
            log.warning("%s", notice)
            self._note(_SYSLOG_WARNING, notice)

    def _learn_members(self, state: State) -> None:
        known = self.replica.status().hosts
        for uid, member in state.members.items():
            if uid != self.identity.uid and uid not in known:
                self.replica.allow_peer(uid, member.address)
        if self.identity.uid in state.members:
            ordered = sorted(state.members.values(), key=lambda member: member.number)
            epoch = max(self.seed.epoch, self.replica.status().epoch)
            seed = Seed(
                cluster_name=self.seed.cluster_name, members=ordered, joining=False, epoch=epoch, moved=self.seed.moved
            )
            if seed != self.seed:
                seeds.save(seed, self._directory)
                self.seed = seed

    def _follow_identity(self, member: Member) -> None:
        """The cluster says what this node is called and where it is; but for a node that was moved, which tells the cluster."""
        if self.seed.moved:
            if member.address != self.identity.address:
                put = MemberPut(member.uid, member.name, self.identity.address, member.number)
                author = Author("root@pam", "cluster", "the node has come up at another address")
                self.proposer.execute(put, author, deadline_s=5.0)
            self.seed = structs.replace(self.seed, moved=False)
            seeds.save(self.seed, self._directory)
        elif (member.name, member.address) != (self.identity.name, self.identity.address):
            self._on_identity(structs.replace(self.identity, name=member.name, address=member.address))

    def _enter_first_member(self) -> None:
        (member,) = self.seed.members
        self.proposer.execute(
            MemberPut(member.uid, member.name, member.address, member.number, member.witness),
            Author("root@pam", "cluster", "first member"),
            deadline_s=5.0,
        )
        log.info("%s is the first member of %s", member.name, self.seed.cluster_name)

    def _note_quorum(self, is_quorate: bool) -> None:
        if is_quorate:
            log.info("quorum")
            self._note(_SYSLOG_INFO, "node has quorum")
            return
        error = self.proposer.no_quorum()
        log.warning("%s", error)
        self._note(_SYSLOG_WARNING, error.message)

    def note_warning(self, message: str) -> None:
        self._note(_SYSLOG_WARNING, message)

    def _note(self, priority: int, message: str) -> None:
        self.gossip.log(priority=priority, tag="cluster", user="root", message=message)
