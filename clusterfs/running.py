"""One replica at work: its state machine, its mount, and the small chores that keep them in step with the cluster.

The chores run in a thread of their own, away from consensus and from FUSE: entering the first member, letting peers in that the
state has learnt of, remembering the members for the next start, mounting again what somebody unmounted, and noting
changes of quorum in the cluster log. Starting and retiring is `clusterfs.daemon`.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from clusterfs import seed as seeds
from clusterfs import special
from clusterfs.commands import MemberPut
from clusterfs.consensus import ReplicaFactory
from clusterfs.machine import StoreMachine
from clusterfs.membership import Member
from clusterfs.mount import Mount, Store
from clusterfs.mounting import Mounted, group_id
from clusterfs.proposer import Author, Proposer, Quorum
from clusterfs.seed import Seed
from clusterfs.state import State
from kvorum.errors import KvorumError
from kvorum.node import Identity, Pki

log = logging.getLogger(__name__)

CHORE_INTERVAL_S = 0.25
LOG_LINES = 50
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
    ) -> None:
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
        )
        self.proposer = Proposer(
            replica=self.replica,
            machine=self.machine,
            node_uid=identity.uid,
            names={member.uid: member.name for member in seed.members},
        )
        self.quorum = Quorum(self.replica)
        self._mounted: Mounted | None = None
        self._start_time = int(time.time())
        self._log_lines: deque[special.LogLine] = deque(maxlen=LOG_LINES)
        self._stopping = threading.Event()
        self._chores = threading.Thread(target=self._work, name="chores", daemon=True)
        self._members_seen = -1
        self._was_quorate = False
        self._is_failure_told = False
        self._online: dict[str, bool] = {}
        self._members_counter = 0

    def start(self) -> None:
        self.replica.start()
        try:
            self._mount()
        except KvorumError:
            self.replica.stop()
            raise
        self._note(_SYSLOG_INFO, "starting cluster log")
        self._chores.start()

    def stop(self) -> None:
        """Watches end first, then the mount, then consensus: nobody is left who would wait for it."""
        self._stopping.set()
        self.machine.close()
        if self._chores.is_alive():
            self._chores.join(timeout=10.0)
        if self._mounted is not None:
            self._mounted.unmount()
        self.replica.stop()

    @property
    def is_mounted(self) -> bool:
        return self._mounted is not None and self._mounted.is_alive

    def members(self) -> list[Member]:
        """By the state; by the seed as long as the state has none."""
        known = list(self.machine.state.members.values()) or self.seed.members
        return sorted(known, key=lambda member: member.number)

    def online(self) -> dict[str, bool]:
        return {**self.replica.status().members, self.identity.uid: True}

    def _mount(self) -> None:
        store = Store(
            state=lambda: self.machine.state,
            propose=lambda op, deadline_s: self.proposer.propose(
                op, Author("root@pam", "mount"), deadline_s=deadline_s
            ),
            is_quorate=lambda: self.quorum.is_quorate,
            lock_age_s=self.machine.lock_age_s,
            specials={
                ".version": self._version,
                ".members": self._members,
                ".vmlist": self._vmlist,
                ".clusterlog": lambda: special.cluster_log(list(self._log_lines)),
                ".rrd": lambda: b"",
                ".debug": lambda: b"1\n" if logging.getLogger("clusterfs").level == logging.DEBUG else b"0\n",
            },
            links=special.links(self.identity.name),
            set_debug=lambda is_on: logging.getLogger("clusterfs").setLevel(logging.DEBUG if is_on else logging.NOTSET),
            node_uid=self.identity.uid,
        )
        mounted = Mounted(Mount(store, mountpoint=self._mountpoint, gid=group_id()), self._mountpoint)
        mounted.start()
        self._mounted = mounted

    def _version(self) -> bytes:
        view = self.machine.view
        names = sorted(member.name for member in self.members())
        return special.version(
            view.state.root,
            start_time=self._start_time,
            members_version=self._members_counter,
            guests_version=view.guests_version,
            nodes=names,
        )

    def _members(self) -> bytes:
        status = self.replica.status()
        return special.members(
            special.ClusterView(
                node_name=self.identity.name,
                cluster_name=self.seed.cluster_name,
                version=self._members_counter,
                config_version=self.machine.state.members_version,
                is_quorate=status.is_quorate,
                members=self.members(),
                online=self.online(),
            )
        )

    def _vmlist(self) -> bytes:
        view = self.machine.view
        return special.vmlist(view.state.root, guests_version=view.guests_version)

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
        online = self.online()
        view = self.machine.view
        if (
            online != self._online
            or status.is_quorate != self._was_quorate
            or view.members_version != self._members_seen
        ):
            self._members_counter += 1
        self._online = online
        if status.is_quorate != self._was_quorate:
            self._was_quorate = status.is_quorate
            self._note_quorum(status.is_quorate)
        if view.members_version != self._members_seen:
            self._learn_members(view.state)
            self._members_seen = view.members_version
        if not self.seed.joining and status.is_quorate and not view.state.members and len(self.seed.members) == 1:
            self._enter_first_member()
        if not self.is_mounted and not self._stopping.is_set():
            log.warning("%s is not mounted: mounting it again", self._mountpoint)
            self._mount()

    def _learn_members(self, state: State) -> None:
        voters = self.replica.status().members
        for uid, member in state.members.items():
            if uid != self.identity.uid and uid not in voters:
                self.replica.allow_peer(uid, member.address)
        if self.identity.uid in state.members:
            ordered = sorted(state.members.values(), key=lambda member: member.number)
            seed = Seed(cluster_name=self.seed.cluster_name, members=ordered, joining=False)
            if seed != self.seed:
                seeds.save(seed, self._directory)
                self.seed = seed

    def _enter_first_member(self) -> None:
        (member,) = self.seed.members
        self.proposer.execute(
            MemberPut(member.uid, member.name, member.address, member.number),
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

    def _note(self, priority: int, message: str) -> None:
        self._log_lines.append(
            special.LogLine(
                uid=len(self._log_lines) + 1,
                time=int(time.time()),
                priority=priority,
                tag="cluster",
                pid=os.getpid(),
                node=self.identity.name,
                user="root",
                message=message,
            )
        )
