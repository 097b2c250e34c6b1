"""One strike: what is done to which node at what moment, what came of it, and how all is made well again."""

import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import assert_never

from ha_cluster import Cluster, wait_for
from ha_guests import SIDS, VMIDS
from ha_stamps import faults as stamp_faults
from ha_stamps import new_boot, stamps
from ha_verdict import MOVING, Kind, Sample, Strike, stall_limits_s

from ha.lease_state import boottime
from ha.leases import PROFILES, Profile
from kvorum.errors import NotFound, Timeout
from lab import cgroups
from lab.node import Node
from lab.single_run import verdict

# How long a guest may take to run elsewhere before it counts as lost.
PATIENCE_S = 90.0
# What was on its way when a path was cut or a node frozen may still arrive.
_ON_ITS_WAY_S = 0.1
_TRIES = 5
_FREEZES, _FREEZE_S = 20, 0.2


@dataclass(frozen=True, slots=True)
class Planned:
    profile: str
    kind: Kind
    # When to strike between two renewals of the victim's lease: how much of the time from one to the next has gone by.
    phase: float


@dataclass(frozen=True, slots=True)
class Scene:
    """How things stood just before the strike."""

    victim: Node
    boots: dict[str, str]
    incarnations: dict[str, int]
    looks: int
    entries: int
    dropped: int


class Striker:
    def __init__(self, cluster: Cluster, luck: random.Random) -> None:
        self._cluster, self._luck = cluster, luck
        self._lab, self._array, self._watch = cluster.lab, cluster.array, cluster.watch

    def strike(self, planned: Planned) -> Strike:
        """Leaves all well. Raises Timeout when that cannot be had; KvorumError."""
        kind, profile = planned.kind, PROFILES[planned.profile]
        victim = self._prepare(kind)
        scene = self._scene(victim)
        self._wait_for_phase(victim, profile, planned.phase)
        begin = self._do(kind, victim)
        if kind in MOVING:
            samples, lost = self._moving(victim, begin)
            faults = self._undo_moving(kind, victim)
        else:
            samples, lost, faults = self._harmless(kind, profile, scene, begin)
        self._cluster.wait_well(profile=profile.name)
        return Strike(
            kind, profile.name, victim.name, samples,
            doubles=self._doubles(scene), lost=lost, needless=self._needless(kind, scene), faults=tuple(faults),
        )  # fmt: skip

    def _prepare(self, kind: str) -> Node:
        """The node that has the guests, and is the manager's or is not, as the kind wants it."""
        for _ in range(_TRIES):
            self._cluster.wait_well()
            home, manager = self._cluster.home(), self._cluster.manager()
            if kind == Kind.leader_killed and home.name != manager.name:
                self._cluster.move(manager)
            elif kind == Kind.node_killed and home.name == manager.name:
                self._cluster.move(next(node for node in self._lab.nodes if node.name != manager.name))
            else:
                return home
        raise Timeout(f"the guests did not come to a node for {kind!r}", remedy="the manager changes all the time")

    def _wait_for_phase(self, victim: Node, profile: Profile, phase: float) -> None:
        last_s = self._cluster.leases()[victim.name].valid_until_boottime - profile.pause_after_s
        time.sleep((phase * profile.renew_period_s - (boottime() - last_s)) % profile.renew_period_s)

    def _scene(self, victim: Node) -> Scene:
        return Scene(
            victim=victim,
            boots=self._cluster.boots(),
            incarnations={name: lease.incarnation for name, lease in self._cluster.leases().items()},
            looks=len(self._watch.samples),
            entries=len(self._array.entries()),
            dropped=self._lab.switch.dropped(),
        )

    def _do(self, kind: Kind, victim: Node) -> float:
        """The strike's moment: just before it."""
        begin = time.monotonic()
        match kind:
            case Kind.node_killed | Kind.leader_killed:
                victim.kill()
            case Kind.network_cut | Kind.short_cut:
                self._lab.cut(victim.name)
            case Kind.node_frozen | Kind.short_freeze:
                begin = self._freeze(victim)
            case Kind.both_cut:
                self._array.cut(victim)
                self._lab.cut(victim.name)
            case Kind.storage_cut:
                self._array.cut(victim)
            case _:
                assert_never(kind)
        return begin

    def _freeze(self, victim: Node) -> float:
        """Who waits for the array's mount when that is frozen already cannot be frozen: then all go on, and once more."""
        for _ in range(_FREEZES):
            begin = time.monotonic()
            try:
                cgroups.freeze(victim.layout.cgroup, timeout_s=_FREEZE_S)
                return begin
            except Timeout:
                victim.thaw()
                time.sleep(_FREEZE_S)
        raise Timeout(f"{victim.name} cannot be frozen", remedy="see which of its processes are in state D")

    # Strikes after which the guests must run elsewhere

    def _moving(self, victim: Node, begin: float) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
        samples: dict[str, Sample] = {}

        def have_all_come() -> bool:
            samples.update({sid: self._sample(sid, victim, begin) for sid in SIDS})
            return all(one.running_s is not None and one.stamped_s is not None for one in samples.values())

        with suppress(Timeout):  # which ones did not come, the samples say
            wait_for(have_all_come, "the guests elsewhere", patience_s=PATIENCE_S)
        lost = tuple(sid for sid, one in samples.items() if one.running_s is None or one.stamped_s is None)
        return tuple(samples.values()), lost

    def _sample(self, sid: str, victim: Node, begin: float) -> Sample:
        running = self._first_seen(sid, victim, begin)
        stamp = new_boot(self._array.entries(), VMIDS[sid], begin)
        if stamp is None or stamp.node == victim.name:
            return Sample(sid, running, None)
        return Sample(sid, running, stamp.time_s - begin)

    def _first_seen(self, sid: str, victim: Node, begin: float) -> float | None:
        for sample in self._watch.samples[self._looks_until(begin) :]:
            if any(run.sid == sid and run.node != victim.name for run in sample.runs):
                return sample.time_s + self._watch.began - begin
        return None

    def _looks_until(self, moment: float) -> int:
        """How many looks the watcher had had then."""
        looks = self._watch.samples
        number = len(looks)
        while number and looks[number - 1].time_s + self._watch.began >= moment:
            number -= 1
        return number

    def _undo_moving(self, kind: Kind, victim: Node) -> list[str]:
        self._lab.heal()
        self._array.mend()
        faults = []
        if kind == Kind.node_frozen and victim.is_on:
            faults.append(f"{victim.name} was frozen for longer than its watchdog waits, and was not reset")
            victim.kill()
        if kind == Kind.network_cut and not victim.is_on:
            faults.append(f"{victim.name} was reset although it could end its guests: {self._cause(victim)}")
        if not victim.is_on:
            victim.start()
            self._array.mount(victim)
        return faults

    def _cause(self, victim: Node) -> str:
        return str(self._lab.status()["nodes"][victim.layout.number - 1]["cause"])

    # Strikes that must lose nothing

    def _harmless(
        self, kind: Kind, profile: Profile, scene: Scene, begin: float
    ) -> tuple[tuple[Sample, ...], tuple[str, ...], list[str]]:
        victim, faults = scene.victim, list[str]()
        until = begin + self._luck.uniform(*stall_limits_s(kind, profile))
        felt_from = time.monotonic() + _ON_ITS_WAY_S
        time.sleep(max(0.0, until - time.monotonic()))
        ended = time.monotonic()
        if kind == Kind.short_cut and self._lab.switch.dropped() == scene.dropped:
            faults.append("the cut stopped no packet")
        faults += self._undo_harmless(kind, victim)
        if kind in (Kind.storage_cut, Kind.short_freeze):
            inside = [one for one in self._array.entries()[scene.entries :] if felt_from < one.time_s < ended]
            faults += [f"{one.node} wrote at {one.time_s:.3f} s, in the midst of it" for one in inside][:1]
        samples = {sid: self._goes_on(sid, scene, ended) for sid in SIDS}
        lost = tuple(sid for sid, one in samples.items() if one.stamped_s is None)
        return tuple(samples.values()), lost, faults

    def _undo_harmless(self, kind: Kind, victim: Node) -> list[str]:
        match kind:
            case Kind.short_freeze:
                with suppress(NotFound):  # reset meanwhile: told below
                    victim.thaw()
            case Kind.short_cut:
                self._lab.heal()
            case _:
                self._array.mend()
        if not victim.is_on:
            told = f"{victim.name} was reset: {self._cause(victim)}"
            victim.start()
            self._array.mount(victim)
            return [told]
        return []

    def _goes_on(self, sid: str, scene: Scene, ended: float) -> Sample:
        """The first stamp after the end, if it is of the boot that the guest had before."""

        def stamped() -> tuple[str, float] | None:
            own = stamps(self._array.entries()[scene.entries :], VMIDS[sid])
            return next(((one.boot, one.time_s) for one in own if one.time_s > ended), None)

        try:
            boot, at = wait_for(stamped, f"a stamp of {sid}")
        except Timeout:
            return Sample(sid, None, None)
        return Sample(sid, None, at - ended if boot == scene.boots.get(sid) else None)

    # Judging

    def _doubles(self, scene: Scene) -> tuple[str, ...]:
        """Of this strike: by the processes of all nodes, and by what reached the disks."""
        looks = self._watch.samples[scene.looks :]
        # From a stamp of each guest on: what came before tells which boot is over.
        entries = self._array.entries()[max(0, scene.entries - 100) :]
        return (*verdict(looks), *stamp_faults(entries))

    def _needless(self, kind: Kind, scene: Scene) -> tuple[str, ...]:
        """Who has another lease than before, and was not to lose it."""
        now = self._cluster.leases()
        spared = set(scene.incarnations) - ({scene.victim.name} if kind in MOVING else set())
        return tuple(sorted(name for name in spared if now[name].incarnation != scene.incarnations[name]))


def order(asked: Mapping[tuple[str, Kind], int], luck: random.Random) -> list[Planned]:
    """The profiles one after the other, within each a mixture. Others count from the last renewal, so each kind gets phases
    from all over: by mere chance a kind might come to look slower than another."""
    found: list[Planned] = []
    for profile in PROFILES:
        own = []
        for (name, kind), count in asked.items():
            if name == profile:
                own += [Planned(profile, kind, (number + luck.random()) / count) for number in range(count)]
        found += luck.sample(own, len(own))
    return found
