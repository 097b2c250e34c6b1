"""The keeper's hands: one thread that guards, one that calls the store, and files between it and the others.

The guarding loop never waits for anything but its own queue: calls hang in the other thread, signals and /proc do not
hang. Memory is locked and the scheduling real-time where the kernel permits.
"""

import ctypes
import fcntl
import logging
import math
import os
import queue
import signal
import sys
import threading
from pathlib import Path

import grpc
import msgspec

from ha.lease_state import GUESTS_FILE, LIVE, NONE, STATE_FILE, LeaseState, boot_id, boottime, read
from ha.leases import DEFAULT, Profile
from kvorum.errors import InvalidInput, KvorumError, NotFound
from kvorum.node import CLUSTERFS_SOCKET, load_identity
from kvorum.rpc import from_rpc_error
from kvorum.v1 import replica_pb2, replica_pb2_grpc

from . import core
from .processes import Guarded, Guests
from .watchdog import Watchdog, find

log = logging.getLogger("kvorum-keeper")

TICK_LIVE_S = 0.1
TICK_ENDING_S = 0.03
IDENTITY_POLL_S = 1.0
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


class GuestEntry(msgspec.Struct, frozen=True):
    sid: str
    uuid: str = ""


class GuestList(msgspec.Struct, frozen=True):
    """guests.json, written by the local resource manager."""

    revision: int = 0
    guests: tuple[GuestEntry, ...] = ()
    lease_wanted: bool = False
    profile: Profile | None = None


class Caller(threading.Thread):
    """Performs one call after the other; a call under way never delays the guard."""

    def __init__(self, uid: str, socket: Path, events: "queue.SimpleQueue[core.Event]") -> None:
        super().__init__(name="caller", daemon=True)
        self._uid = uid
        self._events = events
        self._deadline_s = DEFAULT.call_deadline_s
        self._calls: queue.SimpleQueue[core.Renew | core.Acquire | core.Rest] = queue.SimpleQueue()
        # A channel that lost its server must try again within a call's deadline, not after gRPC's minutes.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        self._stub = replica_pb2_grpc.ReplicaServiceStub(channel)

    def call(self, action: core.Renew | core.Acquire | core.Rest) -> None:
        self._calls.put(action)

    def run(self) -> None:
        while True:
            action = self._calls.get()
            self._events.put(self._perform(action))

    def _perform(self, action: core.Renew | core.Acquire | core.Rest) -> core.Event:
        sent_at = boottime()
        try:
            if isinstance(action, core.Acquire):
                asked = replica_pb2.AcquireLeaseRequest(uid=self._uid, terms=_terms(action.profile))
                taken = self._stub.AcquireLease(asked, timeout=action.profile.call_deadline_s)
                return core.Acquired(sent_at, taken.incarnation)
            if isinstance(action, core.Rest):
                request = replica_pb2.RestLeaseRequest(uid=self._uid, incarnation=action.incarnation)
                self._stub.RestLease(request, timeout=self._deadline_s)
                return core.Rested(action.incarnation)
            renewal = replica_pb2.RenewLeaseRequest(
                uid=self._uid,
                incarnation=action.incarnation,
                terms=_terms(action.profile),
                sent_ms=int(sent_at * 1000),
            )
            self._stub.RenewLease(renewal, timeout=action.profile.call_deadline_s)
            return core.Renewed(sent_at, action.incarnation)
        except grpc.RpcError as error:
            reason = from_rpc_error(error)
            if reason.reason == "FENCED" and isinstance(action, core.Renew | core.Rest):
                return core.Refused(sent_at, action.incarnation)
            return core.Failed(f"{reason.reason.lower()}: {reason.message}")


def _terms(profile: Profile) -> replica_pb2.LeaseTerms:
    terms = profile.terms
    return replica_pb2.LeaseTerms(
        pause_after_ms=int(terms.pause_after_s * 1000), takeover_after_ms=math.ceil(terms.takeover_after_s * 1000)
    )


class Keeper:
    """Reads the world, steps the core, performs what comes back."""

    def __init__(self, uid: str, *, socket: Path, watchdog: Watchdog, guests: Guests) -> None:
        self._boot = boot_id()
        self._watchdog = watchdog
        self._guests = guests
        self._events: queue.SimpleQueue[core.Event] = queue.SimpleQueue()
        self._caller = Caller(uid, socket, self._events)
        self._uid = uid
        self._state = core.initial(read(STATE_FILE), boottime(), uid=uid)
        self._published: LeaseState | None = None
        self._loaded: tuple[int, int] = (0, 0)
        # None: as the keeper before left it.
        self._is_armed: bool | None = None
        self._look_again_at = 0.0
        self._stopping = threading.Event()
        self._last_failure = ""

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Until stopped. A stop leaves guests, lease and watchdog as they are: the next keeper goes on in time, or else."""
        self._caller.start()
        self._load_guests()
        while not self._stopping.is_set() and self._is_still_member():
            self._tick()
            try:
                event = self._events.get(timeout=TICK_LIVE_S if self._state.phase == LIVE else TICK_ENDING_S)
            except queue.Empty:
                continue
            if isinstance(event, core.Acquired):
                # What came up while the call was under way belongs to no lease.
                self._tick()
            self._step(event)

    def end(self) -> None:
        """The node is no member any more: ends its HA guests, which others may start now, and only then lets go.

        Without a mount and a membership nobody else here would. The reset stands behind it, as always. A stop leaves the
        list where it is, so that the next keeper goes on.
        """
        self._load_guests()
        self._step(core.Left())
        while self._state.phase != NONE and not self._stopping.is_set():
            self._tick()
            self._stopping.wait(TICK_ENDING_S)
        if self._state.phase == NONE:
            self._watchdog.disarm()
            GUESTS_FILE.unlink(missing_ok=True)
            STATE_FILE.unlink(missing_ok=True)

    def _is_still_member(self) -> bool:
        """An identity that cannot be read is no reason to give up guests: only none, or another one."""
        now = boottime()
        if now < self._look_again_at:
            return True
        self._look_again_at = now + IDENTITY_POLL_S
        try:
            return load_identity().uid == self._uid
        except NotFound:
            return False
        except KvorumError:
            return True

    def _tick(self) -> None:
        self._load_guests()
        is_looking = self._state.phase != LIVE
        self._step(core.Tick(self._guests.is_any_left() if is_looking else None))

    def _step(self, event: core.Event) -> None:
        before = self._state
        self._state, actions = core.step(before, event, boottime())
        if before.phase != self._state.phase:
            log.log(
                logging.INFO if self._state.phase == LIVE else logging.WARNING,
                "%s => %s (%s)",
                before.phase,
                self._state.phase,
                self._state.cause,
            )
        if isinstance(event, core.Failed) and event.cause != self._last_failure:
            log.warning("the lease was not renewed: %s", event.cause)
        if isinstance(event, core.Failed | core.Renewed | core.Acquired):
            self._last_failure = event.cause if isinstance(event, core.Failed) else ""
        if before.profile.watchdog_s != self._state.profile.watchdog_s and self._is_armed:
            self._watchdog.arm(self._state.profile.watchdog_s)
        calls = [action for action in actions if isinstance(action, core.Renew | core.Acquire | core.Rest)]
        for action in actions:
            # Before a resume the agents must read `live`, before an end they must not; signals first is right for both:
            # a start that slips in between is ended by the next step.
            if action not in calls:
                self._perform(action)
        # Calls last: whoever goes on after this process must already live by what a call says.
        self._publish()
        for call in calls:
            self._caller.call(call)

    def _perform(self, action: core.Action) -> None:
        match action:
            case core.Renew() | core.Acquire() | core.Rest():
                raise AssertionError("calls come last")
            case core.Pause():
                if count := self._guests.pause():
                    log.warning("paused %d processes of HA guests", count)
            case core.Resume():
                self._guests.resume()
            case core.Kill():
                if count := self._guests.kill():
                    log.warning("killed %d processes of HA guests", count)
            case core.PetWatchdog():
                self._feed()
            case core.ResetHost():
                log.critical("RESETTING THIS HOST: %s: %s", action.cause, ", ".join(self._guests.left()))
                self._watchdog.reset()

    def _feed(self) -> None:
        """Armed only while there is something to guard."""
        if self._state.sids and not self._is_armed:
            self._watchdog.arm(self._state.profile.watchdog_s)
            self._is_armed = True
        elif not self._state.sids and self._is_armed is not False:
            self._watchdog.disarm()
            self._is_armed = False
        self._watchdog.pet()

    def _load_guests(self) -> None:
        """guests.json, when it is new. A damaged file changes nothing; what is guarded stays guarded."""
        try:
            stat = GUESTS_FILE.stat()
            if (stat.st_ino, stat.st_mtime_ns) == self._loaded:
                return
            content = msgspec.json.decode(GUESTS_FILE.read_bytes(), type=GuestList)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, InvalidInput) as error:
            log.error("cannot read %s: %s", GUESTS_FILE, error)
            return
        self._loaded = (stat.st_ino, stat.st_mtime_ns)
        self._guests.guard(Guarded(entry.sid, entry.uuid) for entry in content.guests)
        sids = tuple(entry.sid for entry in content.guests)
        self._step(core.GuestsLoaded(content.revision, sids, content.lease_wanted, content.profile))

    def _publish(self) -> None:
        state = core.published(self._state, boot_id=self._boot, uid=self._uid)
        if state == self._published:
            return
        # No fsync: the file matters to processes of this boot only.
        temporary = STATE_FILE.with_suffix(".new")
        try:
            temporary.write_bytes(msgspec.json.encode(state))
            temporary.replace(STATE_FILE)
            self._published = state
        except OSError as error:
            log.error("cannot write %s: %s", STATE_FILE, error)


def lock_memory() -> None:
    """Pages that are swapped out would stall the guard when it matters. Best effort."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        log.warning("cannot lock memory: %s", os.strerror(ctypes.get_errno()))


def schedule_first() -> None:
    """Real-time, before all threads of ordinary processes. Best effort."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    except OSError as error:
        log.warning("no real-time scheduling: %s", error)


def become_only() -> int:
    """A second keeper on the node would renew what the first has given up. Raises Locked-like SystemExit."""
    STATE_FILE.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(STATE_FILE.parent / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SystemExit("another kvorum-keeper runs on this node") from None
    return handle


def main() -> None:
    """Waits until the node is in a cluster, then keeps its lease until SIGTERM."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopped = threading.Event()
    keeper: list[Keeper] = []

    def stop(_number: int, _frame: object) -> None:
        stopped.set()
        for one in keeper:
            one.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    become_only()
    lock_memory()
    schedule_first()
    watchdog = find()
    while not stopped.is_set():
        try:
            uid = load_identity().uid
        except NotFound:
            uid = ""
        except KvorumError as error:
            log.error("%s (%s)", error, error.remedy)
            stopped.wait(IDENTITY_POLL_S)
            continue
        # No member, and a list of guests: the keeper that was to end them did not come to it.
        if uid or GUESTS_FILE.exists():
            one = Keeper(uid, socket=CLUSTERFS_SOCKET, watchdog=watchdog, guests=Guests())
            keeper.append(one)
            if uid:
                log.info("guards node %s", uid)
                one.run()
            if not stopped.is_set():
                log.info("this node has left its cluster")
                one.end()
            keeper.clear()
        stopped.wait(IDENTITY_POLL_S)


if __name__ == "__main__":
    main()
