"""A replica that lives in the test: it orders and applies at once, and loses its quorum when told to."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clusterfs import special
from clusterfs.commands import MemberPut, Op, stamped
from clusterfs.machine import StoreMachine
from clusterfs.mount import Mount
from clusterfs.mounting import Mounted, group_id
from clusterfs.outcomes import Result
from clusterfs.proposer import Author, Proposer
from clusterfs.underway import UnderWay
from clusterfs.waist import Store
from kvorum.errors import DiskFull, NoQuorum, OutcomeUnknown

N1 = "11111111-1111-4111-8111-111111111111"
N2 = "22222222-2222-4222-8222-222222222222"
N3 = "33333333-3333-4333-8333-333333333333"


@dataclass(frozen=True)
class FakeStatus:
    role: str
    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    members: Mapping[str, bool]
    is_quorate: bool
    missing: list[str]
    caught_up: bool = True
    failure: str | None = None
    learners: Mapping[str, bool] = field(default_factory=dict)
    ready_learners: tuple[str, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0
    superseded_by: int = 0
    disk_full: bool = False


@dataclass
class FakeReplica:
    """Implements `clusterfs.consensus.Consensus` for one process."""

    machine: StoreMachine
    uid: str = N1
    peers: tuple[str, ...] = ()
    is_quorate: bool = True
    is_disk_full: bool = False
    index: int = 0
    now_ms: int = 1_700_000_000_000
    # Answers that get lost after the entry has been applied.
    lose_answers: int = 0
    log: list[bytes] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)
    held: list[bytes] = field(default_factory=list)
    # Up to where was waited, each time; and how many times longer than it is patient, for a crowded machine.
    waits: list[int] = field(default_factory=list)
    patience: float = 1000.0

    def propose(self, entry: bytes, *, deadline_s: float) -> object:
        with self.mutex:
            if self.is_disk_full:
                raise DiskFull("no space for the log")
            if not self.is_quorate:
                raise NoQuorum(missing=list(self.peers))
            self.index += 1
            entry = stamped(entry, time_ms=self.now_ms)
            self.log.append(entry)
            answer = self.machine.apply(self.index, entry)
            self.machine.settled()
            if self.lose_answers:
                self.lose_answers -= 1
                raise OutcomeUnknown("lost")
            return answer

    # Entries that are in the log and not known to be committed.

    def hold(self, entry: bytes) -> None:
        self.held.append(stamped(entry, time_ms=self.now_ms))

    def apply_held(self) -> None:
        with self.mutex:
            while self.held:
                self.machine.apply(self.index + 1, self.held[0])
                self.index += 1
                del self.held[0]
            self.machine.settled()

    def is_behind(self) -> bool:
        return bool(self.held)

    def unapplied_with(self, needle: bytes) -> int:
        held = list(self.held)
        return self.index + len(held) if any(needle in entry for entry in held) else 0

    def wait_applied(self, index: int, timeout_s: float) -> bool:
        self.waits.append(index)
        end = time.monotonic() + timeout_s * self.patience
        while self.index < index:
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def submit(self, entry: bytes, on_done: Callable[[object], None], on_open: Callable[[bool], None]) -> None:
        try:
            answer = self.propose(entry, deadline_s=0.0)
        except OutcomeUnknown:
            on_open(True)
        else:
            on_done(answer)

    def barrier(self, *, deadline_s: float) -> int:
        if not self.is_quorate:
            raise NoQuorum(missing=list(self.peers))
        return self.index

    def listen(self, on_whisper: Callable[[str, bytes], None], on_links: Callable[[frozenset[str]], None]) -> None:
        """Nobody is there who would whisper."""

    def whisper(self, payload: bytes, uid: str | None = None) -> None:
        """Nobody hears it."""

    def unapplied(self) -> list[bytes]:
        return []

    def status(self) -> FakeStatus:
        members = {self.uid: True, **dict.fromkeys(self.peers, self.is_quorate)}
        missing = [] if self.is_quorate else list(self.peers)
        hosts = {uid: member.address for uid, member in self.machine.state.members.items() if uid in members}
        counts = (1, self.index, self.index)
        return FakeStatus("leader", self.uid, *counts, members, self.is_quorate, missing, hosts=hosts)


@dataclass
class MountedStore:
    """A store with its mount at `root`; `lock_clock` is the boot-time clock of locks."""

    root: Path
    machine: StoreMachine
    replica: FakeReplica
    proposer: Proposer
    clock: list[float]
    mounted: Mounted
    operations: Mount

    def execute(self, op: Op) -> Result:
        return self.proposer.propose(op, Author("test"))

    @property
    def entries(self) -> int:
        return len(self.replica.log)


@pytest.fixture(scope="session")
def uids() -> tuple[str, str, str]:
    return N1, N2, N3


@pytest.fixture
def machine() -> StoreMachine:
    return StoreMachine()


@pytest.fixture
def replica(machine: StoreMachine) -> FakeReplica:
    return FakeReplica(machine, peers=(N2, N3))


@pytest.fixture
def proposer(machine: StoreMachine, replica: FakeReplica) -> Proposer:
    return Proposer(replica=replica, machine=machine, node_uid=N1, names={N2: "n2", N3: "n3"})


def mount_store(directory: Path, *, link_node: str = "n1") -> MountedStore:
    clock = [1000.0]
    machine = StoreMachine(clock=lambda: clock[0])
    replica = FakeReplica(machine, peers=(N2, N3))
    proposer = Proposer(replica=replica, machine=machine, node_uid=N1, names={N2: "n2", N3: "n3"})
    debug = [False]

    def members() -> bytes:
        state = machine.state
        return special.members(
            special.ClusterView(
                "n1", "test", 1, state.members_version, replica.is_quorate, list(state.members.values()), {N1: True}
            )
        )

    specials: dict[str, Callable[[], bytes]] = {
        ".version": lambda: special.version(
            machine.state.root,
            start_time=1,
            members_version=1,
            guests_version=machine.view.guests_version,
            stores=[("n1", {})],
        ),
        ".members": members,
        ".vmlist": lambda: special.vmlist(machine.state.root, guests_version=machine.view.guests_version),
        ".clusterlog": lambda: special.cluster_log([]),
        ".rrd": lambda: b"",
        ".debug": lambda: b"1\n" if debug[0] else b"0\n",
    }
    store = Store(
        state=lambda: machine.state,
        propose=lambda op, deadline_s: proposer.propose(op, deadline_s=deadline_s),
        is_quorate=lambda: replica.is_quorate,
        is_disk_full=lambda: replica.is_disk_full,
        lock_age_s=machine.lock_age_s,
        specials=specials,
        links=special.links(link_node),
        index=lambda: machine.view.index,
        events_after=lambda index, timeout_s: machine.events_after(index, timeout_s=timeout_s),
        set_debug=lambda on: debug.__setitem__(0, on),
        node_uid=N1,
        under_way=UnderWay(
            is_behind=replica.is_behind, unapplied_with=replica.unapplied_with, wait_applied=replica.wait_applied
        ),
    )
    proposer.execute(MemberPut(N1, "n1", "127.0.0.1"))
    operations = Mount(store, mountpoint=directory, gid=group_id(), deadline_s=5.0)
    mounted = Mounted(operations, directory)
    mounted.start()
    return MountedStore(directory, machine, replica, proposer, clock, mounted, operations)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MountedStore]:
    """A real FUSE mount on a replica in this process; needs root and /dev/fuse."""
    assert os.geteuid() == 0, "mounting needs root"
    mounted = mount_store(tmp_path / "kvorum")
    try:
        yield mounted
    finally:
        mounted.mounted.unmount()
