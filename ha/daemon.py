"""The rounds of kvorum-ha: read, decide, perform; as manager on the Raft leader, as local resource manager on every node.

A round follows each change in the store, each process of a guest that ends, and the clock, since leases age without anybody
writing. What a round decides is refused by the store when it was decided on something old. Nothing is decided here.
"""

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING

import msgspec

from kvorum.errors import AlreadyExists, ConfigError, KvorumError, StaleVersion
from kvorum.node import Identity

from . import lrm, manager
from .acts import Acts
from .balance import History
from .black_box import BlackBox
from .endings import Endings
from .fencing.fencer import Fencer
from .hands import Hands
from .lease_state import boottime
from .loads import Loads
from .mirror import Mirror
from .outage import Outage
from .status import MANAGER_STATUS, LrmStatus, ManagerStatus, lrm_status_path, render
from .world import (
    Absences,
    KeeperFiles,
    Parsed,
    Reading,
    fence_candidates,
    leases_of,
    local_view,
    manager_view,
    read_fence_config,
    read_profile,
    read_store,
)

if TYPE_CHECKING:
    from clusterfs.client import StoreClient

log = logging.getLogger(__name__)

ROUND_S = 0.5
# Changes come in bursts; one round serves them all.
SETTLE_S = 0.02
RETRY_S = 1.0
PERFORM_S = 5.0


class Rounds:
    """One node's HA for as long as it has one identity."""

    def __init__(self, store: "StoreClient", identity: Identity, hands: Hands, files: KeeperFiles) -> None:
        self._store = store
        self._identity = identity
        self._hands = hands
        self._files = files
        self._parsed = Parsed()
        self._absences = Absences()
        self._memory = lrm.Memory(session=uuid.uuid4().hex)
        self._wake = asyncio.Event()
        self._mirror = Mirror(store, self._wake.set)
        # The recovery that the store's content belongs to, and who mirrors it; None: not known yet.
        self._epoch: int | None = None
        self._mirroring: asyncio.Task[None] | None = None
        self._acts = Acts(store)
        self._endings = Endings(self._wake.set)
        self._quiet = manager.Quiet()
        self._history = History()
        self._loads = Loads(store)
        self._fencer = Fencer(store)
        self._outage = Outage()
        self._is_manager = False
        self._is_settled = False
        self._shutdown: lrm.Shutdown | None = None
        self._at_rest = asyncio.Event()
        self._trouble = ""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._mirroring = group.create_task(self._mirror.run())
                group.create_task(self._settle())
                group.create_task(BlackBox(self._store).run())
                while True:
                    await self._round(group)
                    try:
                        async with asyncio.timeout(ROUND_S):
                            await self._wake.wait()
                            await asyncio.sleep(SETTLE_S)
                    except TimeoutError:
                        pass
                    self._wake.clear()
        finally:
            self._endings.close()

    async def shut_down(self, *, is_reboot: bool, longest_s: float) -> None:
        """The host goes down: returns when no guest of HA runs here any more, or after so long."""
        self._shutdown = lrm.Shutdown(is_reboot, boottime())
        self._wake.set()
        try:
            async with asyncio.timeout(longest_s):
                await self._at_rest.wait()
        except TimeoutError:
            log.error("guests of HA still run here after %g s", longest_s)

    async def _settle(self) -> None:
        """A start that an earlier life of this daemon asked for must be over before this life answers anything about its guest.
        One that hangs, perhaps for ever, holds up no other guest."""
        session = self._memory.session
        starting = await self._hands.starting()
        if session != self._memory.session:
            return  # the cluster was recovered meanwhile: that life looks for itself
        self._memory = lrm.hold(self._memory, starting)
        self._is_settled = True
        self._wake.set()
        async with asyncio.TaskGroup() as group:
            for sid in sorted(starting):
                group.create_task(self._await_start(sid, session))

    async def _await_start(self, sid: str, session: str) -> None:
        log.info("%s: its start by an earlier life has not ended yet", sid)
        await self._hands.settle(sid)
        if session == self._memory.session:
            self._memory = lrm.let_go_on(self._memory, sid)
        self._wake.set()

    async def _round(self, group: asyncio.TaskGroup) -> None:
        if self._identity.witness:
            self._at_rest.set()
            return  # has no guests, and leads only until another node can
        if not self._mirror.index:
            return
        try:
            reading = await read_store(self._store, self._mirror)
            # A replica that has just started shows the past until it has caught up: decide nothing on it.
            if not reading.replica.ready or self._is_of_another_epoch(reading, group):
                return
            leases = leases_of(reading).values()
            self._outage.look(leases, is_quorate=reading.leases.quorate, now=boottime())
            await self._manage(reading, group)
            if self._is_settled:
                await self._keep_local(reading, group)
            self._say_trouble("")
        except ConfigError as error:
            self._say_trouble(f"{error} ({error.remedy})")
        except KvorumError as error:
            self._say_trouble(str(error))

    def _is_of_another_epoch(self, reading: Reading, group: asyncio.TaskGroup) -> bool:
        """The cluster was recovered, here or without this node, perhaps to an earlier state. Its log counts anew: what is
        mirrored and what is remembered of orders cannot be compared to it, so all of it begins anew."""
        before, self._epoch = self._epoch, reading.replica.epoch
        if before is None or before == self._epoch:
            return False
        log.warning("the cluster was recovered: what is known of it is read anew")
        if self._mirroring is not None:
            self._mirroring.cancel()
        self._mirror = Mirror(self._store, self._wake.set)
        self._mirroring = group.create_task(self._mirror.run())
        self._parsed, self._absences, self._outage = Parsed(), Absences(), Outage()
        self._quiet, self._history = manager.Quiet(), History()
        self._memory = lrm.Memory(session=uuid.uuid4().hex)
        self._is_settled = False
        group.create_task(self._settle())
        return True

    def _say_trouble(self, text: str) -> None:
        """Once, not in every round."""
        if text != self._trouble:
            if text:
                log.warning("this round is skipped: %s", text)
            self._trouble = text

    # As manager

    async def _manage(self, reading: Reading, group: asyncio.TaskGroup) -> None:
        if reading.leases.leader != self._is_manager:
            self._is_manager = reading.leases.leader
            log.info("this node is %s", "the manager now" if self._is_manager else "no longer the manager")
        if not self._is_manager:
            return
        await self._loads.refresh(boottime())
        view = manager_view(reading, self._identity, self._parsed, self._absences, now=boottime())
        view = self._outage.excuse(view, boottime())
        view = self._loads.added_to(view, self._history)
        if view.is_quorate:
            self._fencer.look(
                fence_candidates(view),
                read_fence_config(reading, self._parsed),
                own=self._identity.name,
                # A witness counts, too: it makes the majority that can spare a node.
                members=len(reading.replica.members),
                group=group,
            )
        if self._quiet.is_same(view, reading.revision, time.time()):
            return
        decision = manager.decide(view, time.time())
        if decision.status is not None and not await self._write_status(decision.status, view.status_version):
            self._wake.set()
            return
        self._history = decision.history
        for line in decision.journal:
            log.info("%s", line)
        await self._acts.perform_all(decision.actions)
        if decision.status is not None or decision.actions:
            self._wake.set()
        else:
            self._quiet.keep(view, reading.revision, time.time())

    async def _write_status(self, status: ManagerStatus, version: int) -> bool:
        """False when another manager has written meanwhile: then nothing of the decision counts."""
        try:
            await self._store.write(
                MANAGER_STATUS,
                render(status),
                expected_version=version or None,
                absent=not version,
                parents=True,
                author="ha",
                deadline_s=PERFORM_S,
            )
        except (StaleVersion, AlreadyExists):
            return False
        return True

    # As local resource manager

    async def _keep_local(self, reading: Reading, group: asyncio.TaskGroup) -> None:
        view, processes = await local_view(reading, self._identity, self._files, self._parsed, self._shutdown)
        self._endings.watch(processes)
        self._memory, steps = lrm.step(self._memory, view, boottime())
        known = self._files.profile()
        profile = read_profile(reading, self._parsed) or known
        if (steps.register, steps.is_lease_wanted, profile) != (view.registered, view.is_lease_wanted, known):
            self._files.register(steps.register, is_lease_wanted=steps.is_lease_wanted, profile=profile)
            self._wake.set()
        for action in steps.actions:
            log.info("%s: %s", action.sid, type(action).__name__.lower())
            group.create_task(self._perform(action))
        if lrm.must_write(self._memory, steps.status, view.written):
            await self._write_lrm_status(steps.status, reading)
        if self._shutdown is not None and steps.is_at_rest:
            self._at_rest.set()

    async def _perform(self, action: lrm.Action) -> None:
        session = self._memory.session
        done = await self._hands.perform(action)
        # Since a recovery of the cluster this life has begun anew: how an act of before it ended is no act of its own.
        if session == self._memory.session:
            self._memory = lrm.finish(self._memory, done, boottime())
        self._wake.set()

    async def _write_lrm_status(self, status: LrmStatus, reading: Reading) -> None:
        path = lrm_status_path(self._identity.name)
        version = reading.version(path)
        stamped = msgspec.structs.replace(status, timestamp=int(time.time()))
        self._memory = lrm.writing(self._memory, status)
        try:
            await self._store.write(
                path,
                render(stamped),
                expected_version=version or None,
                absent=not version,
                author="ha",
                deadline_s=PERFORM_S,
            )
        except (StaleVersion, AlreadyExists):
            self._wake.set()
        else:
            self._memory = lrm.answered(self._memory)
