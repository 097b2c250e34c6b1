"""A replica as its user sees it: start, stop, blocking calls with deadlines, and a status.

It owns the threads. The raft thread runs `consensus`; when that hits a broken invariant or a failing disk the replica stops by
itself and says so in its status, for one node less is better than a wrong one. What entries mean is not known here.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pysyncobj import FAIL_REASON

from kvorum.errors import (
    AlreadyExists,
    Busy,
    DiskFull,
    InvalidInput,
    NoQuorum,
    NotFound,
    OutcomeUnknown,
    Refused,
    Timeout,
)

from . import membership, segments
from .consensus import Command, Consensus, Poller
from .core import MEMBERSHIP, REGULAR, Surroundings, monotonic, spawn_thread
from .credentials import Credentials
from .files import LocalFiles
from .journal import FileLog
from .membership import Change
from .reads import Read
from .snapshot import SnapshotStore
from .transport import TlsTransport
from .values import Address, ApplyFailed, Options, Role, StateMachine, Status, StorageDamaged, Superseded, TlsFiles

log = logging.getLogger(__name__)

DEFAULTS = Options()

MAX_WHISPER_BYTES = 128 * 2**10

# The raft thread looks around so often although nothing is due, in seconds: for changes of quorum.
_IDLE_S = 0.25
# While no leader is known, ask again after this long; an election takes ten times that.
_RETRY_S = 0.05
_ASK_AGAIN_S = 0.2
# Between two looks at what is applied.
_APPLIED_LOOK_S = 0.0001
_HAND_OVER_S = 0.5
# Between two pieces of a snapshot that is written: what waits for the interpreter gets it.
_SNAPSHOT_REST_S = 0.002
# Certainly not in the log: the command may be sent again without any thought.
_NOT_DONE = (FAIL_REASON.MISSING_LEADER, FAIL_REASON.NOT_LEADER, FAIL_REASON.DISCARDED, FAIL_REASON.QUEUE_FULL)
_DONE = {"add": "added", "learn": "added", "demote": "demoted", "move": "moved", "remove": "removed"}


class Outcome:
    """What becomes of one command; set once, waited for by any number of threads. A bare lock: an event has three of them."""

    __slots__ = ("_open", "reason", "value")

    def __init__(self) -> None:
        self._open = threading.Lock()
        self._open.acquire()
        self.value: object = None
        self.reason: int = FAIL_REASON.UNKNOWN_OUTCOME

    def set(self, value: object, reason: int) -> None:
        self.value, self.reason = value, reason
        self._open.release()

    def wait(self, timeout_s: float) -> bool:
        if not self._open.acquire(timeout=timeout_s):
            return False
        self._open.release()
        return True


class Replica:
    def __init__(
        self,
        *,
        uid: str,
        members: Mapping[str, Address],
        directory: Path,
        machine: StateMachine,
        tls: TlsFiles,
        bind: Address,
        stamp: Callable[[bytes], bytes],
        may_wait: Callable[[bytes], bool] = lambda _entry: False,
        joining: bool = False,
        epoch: int = 0,
        options: Options = DEFAULTS,
        on_change: Callable[[Status], None] | None = None,
    ) -> None:
        """`members`: when the directory is empty and `joining` is not set, they are the first configuration, and must be the
        same on every node that starts so; otherwise the log knows better and they only help to find the others.
        `joining`: begin with an empty log and learn everything from a leader; without meaning once there is a log.
        `epoch`: of the cluster that is joined; replicas of a lower one are not listened to, even before there is a log.
        `may_wait`: entries that the leader may keep for a moment until others of them come; called in any thread.
        `stamp` is called where an entry is appended, `on_change` in the raft thread on each change of role, leader,
        members, connections or quorum; neither may block."""
        self._uid = uid
        self._members = dict(members)
        self._directory = directory
        self._machine = machine
        self._tls = tls
        self._bind = bind
        self._stamp = stamp
        self._may_wait = may_wait
        self._is_joining = joining
        self._epoch = epoch
        self._superseded_by = 0
        self._options = options
        self._on_change = on_change
        self._consensus: Consensus | None = None
        self._log: FileLog | None = None
        self._transport: TlsTransport | None = None
        self._lock = -1
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._last: Status | None = None
        self._reported: object = None
        self._reported_leadership: object = None
        self._reported_at = float("-inf")
        self._barrier_mutex = threading.Lock()
        self._next_barrier: Outcome | None = None

    # Life.

    def start(self) -> None:
        """Load what is on disk, listen, and take part. Raises StorageDamaged, OSError, and AlreadyExists
        when another process uses the directory."""
        assert self._thread is None, "a replica is started once"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._take_directory()
            self._assemble()
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hand leadership over if possible, then end. Safe to repeat."""
        consensus = self._consensus
        if consensus is not None and self._thread is not None and self._thread.is_alive():
            end = time.monotonic() + _HAND_OVER_S
            while consensus.role() is Role.leader and len(consensus.connected) and time.monotonic() < end:
                consensus.call_soon(consensus.hand_over)
                self._stopping.wait(0.02)
        self._end(is_clean=True)

    def abandon(self) -> None:
        """End as a crash would: nothing is said to anybody and nothing more is written."""
        self._end(is_clean=False)

    def _end(self, *, is_clean: bool) -> None:
        self._stopping.set()
        if self._transport is not None:
            self._transport.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(30.0)
        if self._log is not None:
            if is_clean and self._failure is None:
                with contextlib.suppress(OSError, DiskFull):
                    self._log.close()
            self._log.abandon()
        self._release()

    def _take_directory(self) -> None:
        self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists(f"another process uses {self._directory}", remedy="stop it first") from None

    def _assemble(self) -> None:
        files = LocalFiles(self._directory)
        snapshots = SnapshotStore(files, rest=lambda: time.sleep(_SNAPSHOT_REST_S))
        if snapshots.is_there() and not segments.is_there(files):
            raise StorageDamaged(
                f"there is a snapshot but no log in {self._directory}",
                remedy="remove this node from the cluster, empty the directory and join again",
            )
        self._log = FileLog(files, uid=self._uid, spawn=spawn_thread)
        if self._log.last_index == 0 and not self._is_joining:
            self._write_first_configuration(self._log)
        self._transport = TlsTransport(
            uid=self._uid, bind=self._bind, credentials=Credentials(self._tls), options=self._options, clock=monotonic
        )
        around = Surroundings(
            uid=self._uid,
            log=self._log,
            snapshots=snapshots,
            machine=self._machine,
            exchange=self._transport,
            options=self._options,
            stamp=self._stamp,
            clock=monotonic,
            spawn=spawn_thread,
            may_wait=self._may_wait,
            epoch=self._epoch,
        )
        self._consensus = Consensus(around, self._members)
        self._consensus._poller = Poller(self._consensus, self._transport.poll)
        self._transport.start()

    def _write_first_configuration(self, fresh: FileLog) -> None:
        """Entries 1 to n of every founder are the same: term 0, members in order."""
        founders = {self._uid: self._bind, **self._members}
        for index, (uid, address) in enumerate(sorted(founders.items()), 1):
            change = Change("add", uid, address.host, address.port)
            fresh.add(MEMBERSHIP + membership.encode(change), index, 0)
        fresh.sync()

    def _release(self) -> None:
        if self._transport is not None:
            self._transport.destroy()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _run(self) -> None:
        consensus = self._consensus
        assert consensus is not None
        try:
            while not self._stopping.is_set():
                consensus.doTick(_IDLE_S)
                self._report(consensus)
        except Superseded as error:
            log.critical("%s: the replica stops: %s; %s", self._uid, error, error.remedy)
            self._failure = f"{error.message}; {error.remedy}"
            self._superseded_by = int(error.details["epoch"])
        except Exception as error:
            log.critical("%s: the replica stops: %s", self._uid, error, exc_info=True)
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._last = self._ended(consensus)
            consensus.fail_all()
            if self._transport is not None and self._failure is not None:
                self._transport.destroy()
            if self._failure is not None:
                self._tell(self._last)

    def _report(self, consensus: Consensus) -> None:
        now = monotonic()
        leadership = (consensus._isLeader(), consensus._getLeader())
        if self._on_change is None or (
            leadership == self._reported_leadership and now - self._reported_at < self._options.tick_s
        ):
            return
        self._reported_at, self._reported_leadership = now, leadership
        status = consensus.status(now)
        seen = (
            status.role,
            status.leader,
            status.is_quorate,
            status.disk_full,
            status.members,
            status.learners,
            status.missing,
            status.addresses,
            status.caught_up,
        )
        if seen != self._reported:
            self._reported = seen
            self._tell(status)

    def _tell(self, status: Status) -> None:
        try:
            if self._on_change is not None:
                self._on_change(status)
        except Exception:
            log.exception("%s: a listener failed", self._uid)

    def _ended(self, consensus: Consensus) -> Status:
        now = consensus.status(monotonic())
        return Status(
            uid=now.uid,
            role=Role.failed if self._failure is not None else Role.stopped,
            leader=None,
            term=now.term,
            commit_index=now.commit_index,
            applied_index=now.applied_index,
            members=dict.fromkeys(now.members, False),
            addresses=now.addresses,
            is_quorate=False,
            missing=tuple(now.members),
            caught_up=False,
            failure=self._failure,
            learners=dict.fromkeys(now.learners, False),
            epoch=now.epoch,
            superseded_by=self._superseded_by,
        )

    # Calls.

    def status(self) -> Status:
        """Never blocks. Before the start it raises an assertion."""
        assert self._consensus is not None, "the replica is not started"
        return self._last or self._consensus.status(monotonic())

    def propose(self, entry: bytes, *, deadline_s: float) -> object:
        """Have an entry committed; returns what `apply` returned here.

        Raises NoQuorum at once when there is none (and nothing was sent), DiskFull likewise, OutcomeUnknown when the entry may
        or may not come to be, Busy when the leader has too many of this node's, ApplyFailed, InvalidInput for one that is too
        long. An entry may be proposed more than once inside, so it must carry what makes copies recognisable.
        """
        self._require_short(entry)
        may_wait = self._may_wait(entry)

        def submit(consensus: Consensus) -> Outcome:
            outcome = Outcome()
            consensus.submit(Command(REGULAR + entry, outcome.set, may_wait=may_wait))
            return outcome

        result = self._settle(submit, deadline_s)
        if isinstance(result, ApplyFailed):
            raise result
        return result

    def submit(self, entry: bytes, on_done: Callable[[object], None], on_open: Callable[[bool], None]) -> None:
        """One attempt to have an entry committed, for which nobody waits: `on_done` gets what `apply` returned here (may be an
        ApplyFailed), or `on_open` that the attempt ended, and whether the entry may still come to be. At most one of them is
        called, once and in the raft thread: it must be short and must not raise. Neither is while the answer is on its way, or
        when the replica ends at this very moment: whoever wants a deadline keeps it. Raises as `propose` what is known at
        once."""
        self._require_short(entry)
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        self._require_quorum(consensus)

        def settle(value: object, reason: int) -> None:
            if reason == FAIL_REASON.SUCCESS:
                on_done(value)
            else:
                on_open(reason not in _NOT_DONE)

        consensus.submit(Command(REGULAR + entry, settle, may_wait=self._may_wait(entry)))

    def _require_short(self, entry: bytes) -> None:
        if len(entry) > self._options.max_entry_bytes:
            raise InvalidInput(
                f"an entry of {len(entry)} bytes",
                remedy=f"at most {self._options.max_entry_bytes} bytes can be replicated",
            )

    def barrier(self, *, deadline_s: float) -> int:
        """An index that holds everything acknowledged anywhere before this call, applied here. Errors as `propose`."""
        index = self._settle(self._share_barrier, deadline_s)
        assert isinstance(index, int)
        return index

    def _share_barrier(self, consensus: Consensus) -> Outcome:
        """All who come before the next one is taken up wait for the same round."""
        with self._barrier_mutex:
            if (outcome := self._next_barrier) is not None:
                return outcome
            outcome = self._next_barrier = Outcome()
        consensus.submit_read(Read(outcome.set, self._close_barrier))
        return outcome

    def _close_barrier(self) -> None:
        with self._barrier_mutex:
            self._next_barrier = None

    def _settle(self, submit: Callable[[Consensus], Outcome], deadline_s: float) -> object:
        consensus, end = self._consensus, monotonic() + deadline_s
        assert consensus is not None, "the replica is not started"
        may_be_done = False
        while True:
            self._require_quorum(consensus, may_be_done=may_be_done)
            outcome = submit(consensus)
            if not outcome.wait(max(0.0, end - monotonic())):
                raise _unknown(f"no answer within {deadline_s:g} s")
            if outcome.reason == FAIL_REASON.SUCCESS:
                return outcome.value
            if outcome.reason == FAIL_REASON.REQUEST_DENIED:
                raise Refused("the leader could not stamp the entry", remedy="see the leader's log")
            if outcome.reason not in _NOT_DONE:
                may_be_done = True
            if monotonic() + _RETRY_S > end:
                if outcome.reason == FAIL_REASON.QUEUE_FULL and not may_be_done:
                    raise Busy(
                        "too many changes of this node wait for the leader already", remedy="try again in a moment"
                    )
                raise _unknown(f"no leader was found within {deadline_s:g} s")
            self._stopping.wait(_RETRY_S)

    def _require_quorum(self, consensus: Consensus, *, may_be_done: bool = False) -> None:
        ended = self._last
        full, now = consensus.full, monotonic()
        if ended is None and not self._stopping.is_set() and full is None and not consensus.is_out_of_reach(now):
            return
        if may_be_done:
            raise _unknown("quorum was lost on the way" if full is None else full.message)
        if full is not None and ended is None:
            raise DiskFull(full.message, remedy=full.remedy)
        if ended is not None or self._stopping.is_set():
            raise NoQuorum("this replica does not run", remedy="see its log and restart it")
        missing = consensus.missing(now)
        total = len(consensus.configurations.current)
        raise NoQuorum(
            "no quorum" + (f": missing {', '.join(missing)}" if missing else ""),
            missing=missing,
            remedy=f"start the missing nodes or restore their network; {total // 2 + 1} of {total} are needed",
        )

    def unapplied(self, *, deadline_s: float = 2.0) -> list[bytes]:
        """Entries that are in the log and not known to be committed, of which nobody can say more while there is no quorum.
        None of them when the replica has stopped."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        outcome = Outcome()

        def read() -> None:
            log = consensus.log
            after = log[consensus.raftLastApplied - log.base_index + 1 :]
            found = [command[1:] for command, _, _ in after if command[:1] == REGULAR]
            outcome.set(found, FAIL_REASON.SUCCESS)

        if self._last is None:
            consensus.call_soon(read)
            outcome.wait(deadline_s)
        return outcome.value if isinstance(outcome.value, list) else []

    def is_behind(self) -> bool:
        """Whether the log of this node holds entries that are not applied here yet. Costs next to nothing."""
        consensus = self._consensus
        return consensus is not None and consensus.is_behind()

    def unapplied_with(self, needle: bytes) -> int:
        """An index by which every entry is applied that is in the log of this node, not applied here yet, and holds `needle`; 0
        when there is none. A hint: what was cut away or comes in this moment may be missing or too much."""
        consensus = self._consensus
        return consensus.unapplied_with(needle) if consensus is not None else 0

    def wait_applied(self, index: int, timeout_s: float) -> bool:
        """Until the log is applied here up to `index`; False when it is not in time. For waits of milliseconds: it looks again
        and again, so that no commit pays for those who wait."""
        consensus, end = self._consensus, monotonic() + timeout_s
        assert consensus is not None, "the replica is not started"
        while consensus.applied_index < index:
            if monotonic() > end or self._last is not None:
                return False
            time.sleep(_APPLIED_LOOK_S)
        return True

    # Whispers: a side channel to the other replicas for what may be lost.

    def listen(self, on_whisper: Callable[[str, bytes], None], on_links: Callable[[frozenset[str]], None]) -> None:
        """From now on tell what peers whisper, and who is connected when that changes. Both are called in the raft thread and
        may only put something aside."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        consensus.on_whisper, consensus.on_links = on_whisper, on_links
        consensus.call_soon(lambda: on_links(consensus.connected))

    def whisper(self, payload: bytes, uid: str | None = None) -> None:
        """Send bytes past the log, to one peer or to all connected ones, voting or not. Never waits; may be lost."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        assert len(payload) <= MAX_WHISPER_BYTES, "a whisper is short"
        if self._last is None:
            consensus.call_soon(lambda: consensus.whisper(payload, uid))

    # Members.

    def allow_peer(self, uid: str, address: Address) -> None:
        """Let a node connect that is about to join; it follows the log and has no vote. Forgotten at a restart."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        consensus.call_soon(lambda: consensus.allow(uid, address))

    def add_member(self, uid: str, address: Address, *, deadline_s: float) -> None:
        """Give a node a vote, once it is connected and has the log; for a member, change its address.

        Raises NoQuorum, or Timeout that says what was waited for; asking again is harmless.
        """
        self._change(Change("add", uid, address.host, address.port), deadline_s)

    def add_learner(self, uid: str, address: Address, *, deadline_s: float) -> None:
        """Make a node a member without a vote, and wait until it is connected and has the log. A voter stays one.

        Raises as `add_member`; what a Timeout waited for may then still be a member.
        """
        self._change(Change("learn", uid, address.host, address.port), deadline_s)

    def move_member(self, uid: str, address: Address, *, deadline_s: float) -> None:
        """Another address for a member, whatever its role. Raises NotFound, and as `add_member`."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        if uid not in consensus.configurations.whole.everybody:
            raise NotFound(f"no member has the uid {uid}")
        self._change(Change("move", uid, address.host, address.port), deadline_s)

    def suggest(self, change: Change) -> None:
        """Ask for a change once and wait for nothing; the leader forgets about it when it cannot be made within a second."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        consensus.call_soon(lambda: consensus.want_change(change))

    def hand_over(self) -> None:
        """If this node leads, the most caught-up voter shall. Best effort, returns at once."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        consensus.call_soon(consensus.hand_over)

    def remove_member(self, uid: str, *, deadline_s: float) -> None:
        """Take a node's vote; may be this one. A leader hands over first. Raises as `add_member`, Refused for the last member."""
        consensus = self._consensus
        assert consensus is not None, "the replica is not started"
        if set(consensus.configurations.current) == {uid}:
            raise Refused(
                "the last member of a cluster cannot be removed", remedy="stop the daemons and delete their state"
            )
        self._change(Change("remove", uid), deadline_s)

    def _change(self, change: Change, deadline_s: float) -> None:
        consensus, end = self._consensus, monotonic() + deadline_s
        assert consensus is not None, "the replica is not started"
        consensus.change_progress.pop(change.uid, None)
        while True:
            applied = consensus.applied_configuration()
            is_made = membership.changed(applied, change) == applied and bool(applied.voters)
            is_waited_for = change.op == "learn" and change.uid not in applied.voters
            if is_made and not (is_waited_for and consensus.change_progress.get(change.uid) != ""):
                return
            self._require_quorum(consensus)
            consensus.call_soon(lambda: consensus.want_change(change))
            if monotonic() > end:
                break
            self._stopping.wait(min(_ASK_AGAIN_S, max(0.0, end - monotonic())))
        consensus.call_soon(lambda: consensus.withdraw_change(change))
        waiting_for = consensus.change_progress.get(change.uid) or "a leader"
        raise Timeout(
            f"member {change.uid} was not {_DONE[change.op]} within {deadline_s:g} s: waited for {waiting_for}",
            remedy="look at the members before trying again; trying again is harmless",
        )


def _unknown(why: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"{why}: the entry may or may not be committed", remedy="read before trying again")
