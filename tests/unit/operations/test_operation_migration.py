"""Both sides of a migration in one process, over one fake store: whatever fails, at most one copy runs, and it runs where
the config is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from unit.operations.operation_fakes import FakeDriver, FakeEntry, FakeHandle, FakeStorages, FakeStore, fake_host

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind
from agent.migration.plan import Look, Owner
from agent.operations import arrivals
from agent.operations.arrival_rounds import Verdict, decide, settle_arrivals, sweep_strays
from agent.operations.arrivals import Announced, ArrivalDesk
from agent.operations.departures import settle_departures
from agent.operations.migrate import DiskOffer, MigrationDesk, Prepared, migrate_guest
from agent.operations.migration_plan import MigrationWish
from agent.operations.migration_records import Arrival, MigrationRecords
from agent.operations.power import start_guest
from agent.tasks import TaskRunner, TaskState
from ha.lease_state import LeaseState
from kvorum.errors import CommandFailed, NoQuorum, NotFound, OutcomeUnknown, Refused, Unreachable
from kvorum.ids import NodeName, Vmid

VMID = Vmid(100)
HERE, THERE = "nodes/n1/qemu-server/100.conf", "nodes/n2/qemu-server/100.conf"
SHARED = "scsi0: shared:100/vm-100-disk-0.qcow2\n"
LOCAL = "scsi0: local:100/vm-100-disk-0.qcow2\n"
WISH = MigrationWish(VMID, NodeName("n2"), with_local_disks=True)


class World:
    """Nodes n1 (with the guest, running) and n2, their storages, and one store."""

    def __init__(self, tmp_path: Path, text: str = SHARED, *, lease: LeaseState | None = None, **files: str) -> None:
        self.store = FakeStore({HERE: text, **files})
        self.source, self.target = FakeDriver(), FakeDriver()
        self.source.states[VMID] = RunState.running
        self.source.on_running = self.target.on_running = self.check_where
        self.source_disks, self.target_disks = FakeStorages(), FakeStorages()
        self.carry: Callable[[], None] = self.arrive
        self.is_reachable = True
        self.is_whole = True
        self.steps: list[str] = []
        self.source_records, self.target_records = MigrationRecords(tmp_path / "out"), MigrationRecords(tmp_path / "in")
        host = fake_host(self.store, driver=self.source, storages=self.source_disks, lease=lease)
        host.is_migrating = self.source_records.is_moving
        self.desk = MigrationDesk(
            host=host,
            records=self.source_records,
            mover=self,
            target=lambda node: self,
            resume=self.source.resume,
            retry_s=0.001,
        )
        self.arrivals = ArrivalDesk(
            host=fake_host(self.store, node="n2", driver=self.target, storages=self.target_disks, lease=lease),
            records=self.target_records,
            address=lambda: "10.0.0.2",
            serve_relays=self._serve_relays,
            prepare_driver=self._nothing,
            resume=self.target.resume,
            is_whole=self._is_whole,
            listening=frozenset,
        )
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "out").mkdir(exist_ok=True)

    def mark(self, migration_id: str) -> None:
        """As the source's agent does when its own copy is gone."""
        self.store._put(HERE, f"{self.store.text(HERE)}migration: {migration_id}\n".encode(), placed=False)

    def arrive(self) -> None:
        del self.source.states[VMID]
        self.target.states[VMID] = RunState.paused

    async def _nothing(self) -> None:
        return None

    async def _is_whole(self, vmid: Vmid) -> bool:
        return self.is_whole

    @asynccontextmanager
    async def _serve_relays(self, arrival: Arrival) -> AsyncIterator[None]:
        self.steps.append(f"serve {arrival.memory_port} {arrival.disk_port}")
        yield
        self.steps.append("close")

    # As the mover

    async def domain_xml(self, vmid: Vmid) -> str:
        return "<domain/>"

    @asynccontextmanager
    async def connected(self, target: NodeName, prepared: Prepared) -> AsyncIterator["Carrier"]:
        yield Carrier(self)

    # As the target's agent

    def _reach(self) -> None:
        if not self.is_reachable:
            raise Unreachable("node n2 does not answer")

    async def prepare(
        self, vmid: Vmid, config: str, disks: Sequence[DiskOffer], domain_xml: str, *, kind: GuestKind
    ) -> Prepared:
        self._reach()
        guest = Announced(vmid, kind, NodeName("n1"), config, tuple(disks), is_live=bool(domain_xml))
        return await arrivals.prepare(self.arrivals, guest)

    async def finish(self, migration_id: str) -> None:
        self._reach()
        await arrivals.finish(self.arrivals, migration_id)

    async def abort(self, migration_id: str) -> None:
        self._reach()
        await arrivals.abort(self.arrivals, migration_id)

    async def start(self, vmid: Vmid) -> None:
        self.steps.append("start")
        self.target.states[vmid] = RunState.running

    # What is looked at afterwards

    def check_where(self) -> None:
        """At the moment at which a copy begins to run: it is the only one, and where the config is."""
        self.check_one_copy()
        is_here = self.source.states.get(VMID) is RunState.running
        assert (THERE if not is_here else HERE) in self.store.entries or "nodes/n1/lxc/100.conf" in self.store.entries

    def check_one_copy(self) -> None:
        running = [driver for driver in (self.source, self.target) if driver.states.get(VMID) is RunState.running]
        assert len(running) <= 1

    def is_at_source(self) -> bool:
        self.check_one_copy()
        return (
            HERE in self.store.entries
            and self.source.states.get(VMID) is RunState.running
            and VMID not in self.target.states
        )

    def is_at_target(self) -> bool:
        self.check_one_copy()
        return (
            THERE in self.store.entries
            and self.target.states.get(VMID) is RunState.running
            and VMID not in self.source.states
        )

    def is_clean(self) -> bool:
        left = [arrival for arrival in self.target_records.arrivals() if not arrival.is_finished]
        return not (left or self.source_records.departures() or self.arrivals.ports.holds or self.arrivals.open)


class Carrier:
    def __init__(self, world: World) -> None:
        self._world = world

    async def carry(
        self,
        file: GuestFile,
        copied: Sequence[str],
        shared: Sequence[str],
        paths: Mapping[str, Path],
        *,
        bandwidth_limit: int,
        progress: Callable[[float, str], None],
    ) -> None:
        self._world.steps.append(f"copied {list(copied)} shared {list(shared)} paths {sorted(paths)}")
        progress(0.5, "memory")
        result = self._world.carry()
        if asyncio.iscoroutine(result):
            await result


@pytest.fixture(autouse=True)
def images_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)


async def run(world: World, tmp_path: Path, wish: MigrationWish = WISH) -> tuple[TaskState, str]:
    runner = TaskRunner("n1", tmp_path / "tasks")
    upid = runner.start("qmigrate", "100", "root@pam", lambda handle: migrate_guest(world.desk, handle, wish))
    record = await runner.wait(upid, timeout_s=10)
    return record.state, record.error


async def test_a_guest_on_shared_storage_moves_and_nothing_stays_behind(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert await run(world, tmp_path) == (TaskState.ok, "")
    assert world.is_at_target() and world.is_clean()
    assert world.store.text(THERE) == SHARED
    assert "forget 100" in world.source.calls


async def test_local_disks_travel_and_are_freed_at_the_source(tmp_path: Path) -> None:
    world = World(tmp_path, LOCAL)
    world.source_disks.volumes["local:100/vm-100-disk-0.qcow2"] = 4096
    assert await run(world, tmp_path) == (TaskState.ok, "")
    assert world.is_at_target() and world.is_clean()
    assert not world.source_disks.volumes
    assert world.target_disks.volumes == {"local:100/vm-100-disk-0.qcow2": 4096}
    assert world.steps == ["serve 60000 60001", "copied ['scsi0'] shared [] paths []", "close"]


async def test_a_volume_that_gets_another_name_is_renamed_in_the_config(tmp_path: Path) -> None:
    world = World(tmp_path, LOCAL)
    world.source_disks.volumes["local:100/vm-100-disk-0.qcow2"] = 4096
    world.target_disks.volumes["local:100/vm-100-disk-0.qcow2"] = 1
    assert (await run(world, tmp_path))[0] is TaskState.ok
    assert world.store.text(THERE) == "scsi0: local:100/vm-100-disk-1.qcow2\n"
    assert world.target_disks.volumes["local:100/vm-100-disk-0.qcow2"] == 1


async def test_a_failed_copy_leaves_the_guest_running_and_the_target_clean(tmp_path: Path) -> None:
    world = World(tmp_path, LOCAL)
    world.source_disks.volumes["local:100/vm-100-disk-0.qcow2"] = 4096

    def fail() -> None:
        raise CommandFailed("the connection broke")

    world.carry = fail
    state, error = await run(world, tmp_path)
    assert (state, error) == (TaskState.failed, "the connection broke")
    assert world.is_at_source() and world.is_clean()
    assert world.store.text(HERE) == LOCAL
    assert not world.target_disks.volumes and world.source_disks.volumes


async def test_a_target_that_dies_midway_costs_nothing_at_the_source(tmp_path: Path) -> None:
    world = World(tmp_path)

    def die() -> None:
        world.is_reachable = False
        raise CommandFailed("connection reset")

    world.carry = die
    assert (await run(world, tmp_path))[0] is TaskState.failed
    assert world.is_at_source()
    assert world.store.text(HERE) == SHARED
    # Back again, the target sees that the source has given up.
    await settle_arrivals(world.arrivals)
    assert world.is_clean()


async def test_cancel_before_the_arrival_undoes_everything(tmp_path: Path) -> None:
    world = World(tmp_path)
    copying = asyncio.Event()

    async def hang() -> None:
        copying.set()
        await asyncio.Event().wait()

    world.carry = hang  # type: ignore[assignment]
    runner = TaskRunner("n1", tmp_path / "tasks")
    upid = runner.start("qmigrate", "100", "root@pam", lambda handle: migrate_guest(world.desk, handle, WISH))
    await asyncio.wait_for(copying.wait(), 5)
    assert world.store.text(HERE).endswith("lock: migrate\n")
    runner.cancel(upid)
    assert (await runner.wait(upid, timeout_s=5)).state is TaskState.cancelled
    assert world.is_at_source() and world.is_clean()
    assert world.store.text(HERE) == SHARED


async def test_after_the_arrival_cancel_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    runner = TaskRunner("n1", tmp_path / "tasks")
    moving, gate, move = asyncio.Event(), asyncio.Event(), world.store.move

    async def slow_move(path: str, new_path: str, **options: object) -> FakeEntry:
        moving.set()
        await gate.wait()
        return await move(path, new_path, **options)  # type: ignore[arg-type]

    world.store.move = slow_move  # type: ignore[method-assign,assignment]
    upid = runner.start("qmigrate", "100", "root@pam", lambda handle: migrate_guest(world.desk, handle, WISH))
    await asyncio.wait_for(moving.wait(), 5)
    with pytest.raises(Refused):
        runner.cancel(upid)
    gate.set()
    assert (await runner.wait(upid, timeout_s=5)).state is TaskState.ok
    assert world.is_at_target()


@pytest.mark.parametrize("happened", [True, False])
async def test_a_move_whose_answer_is_lost_is_settled_by_reading_not_by_guessing(
    tmp_path: Path, happened: bool
) -> None:
    world, move, lost = World(tmp_path), None, []
    move = world.store.move

    async def lossy(path: str, new_path: str, **options: object) -> FakeEntry:
        if not lost:
            lost.append(1)
            if happened:
                await move(path, new_path, **options)  # type: ignore[arg-type]
            raise OutcomeUnknown("no answer in time")
        return await move(path, new_path, **options)  # type: ignore[arg-type]

    world.store.move = lossy  # type: ignore[method-assign,assignment]
    assert (await run(world, tmp_path))[0] is TaskState.ok
    assert world.is_at_target() and world.is_clean()


async def test_a_config_edited_on_the_way_still_moves_with_the_edit(tmp_path: Path) -> None:
    world = World(tmp_path)

    def arrive_and_edit() -> None:
        world.arrive()
        world.store._put(HERE, world.store.text(HERE).encode() + b"cores: 2\n", placed=False)

    world.carry = arrive_and_edit
    assert (await run(world, tmp_path))[0] is TaskState.ok
    assert world.is_at_target()
    assert world.store.text(THERE) == SHARED + "cores: 2\n"


async def test_a_guest_that_somebody_else_took_over_runs_on_neither_side(tmp_path: Path) -> None:
    world = World(tmp_path)

    def arrive_and_recover() -> None:
        world.arrive()
        entry = world.store.entries.pop(HERE)
        world.store._put("nodes/n3/qemu-server/100.conf", entry.content, placed=True)

    world.carry = arrive_and_recover
    state, error = await run(world, tmp_path)
    assert state is TaskState.failed and "n3" in error
    assert not world.source.states and not world.target.states
    assert world.is_clean()


async def test_without_a_quorum_the_guest_waits_paused_and_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.operations.migrate.MOVE_LIMIT_S", 0.02)
    monkeypatch.setattr("agent.operations.migrate.move_config.__kwdefaults__", {"limit_s": 0.02})
    world = World(tmp_path, LOCAL)
    world.source_disks.volumes["local:100/vm-100-disk-0.qcow2"] = 4096

    def arrive_and_lose_quorum() -> None:
        world.arrive()
        world.store.is_quorate = False

    world.carry = arrive_and_lose_quorum
    assert (await run(world, tmp_path))[0] is TaskState.failed
    for _ in range(2):
        await settle_departures(world.desk)
        await settle_arrivals(world.arrivals)
        assert not world.source.states and world.target.states[VMID] is RunState.paused
    world.store.is_quorate = True
    await settle_arrivals(world.arrivals)
    assert world.target.states[VMID] is RunState.paused, "it is the source that moves the config"
    await settle_departures(world.desk)
    assert world.is_at_target() and world.is_clean()
    assert not world.source_disks.volumes and world.target_disks.volumes
    assert "lock" not in world.store.text(THERE)


async def test_a_source_agent_that_died_after_the_move_is_not_needed_for_the_resume(tmp_path: Path) -> None:
    world = World(tmp_path)
    prepared = await world.prepare(VMID, SHARED, [], "<domain/>", kind=GuestKind.vm)
    world.arrive()
    world.mark(prepared.migration_id)
    await world.store.move(HERE, THERE)
    await settle_arrivals(world.arrivals)
    assert world.is_at_target()
    assert world.store.text(THERE) == SHARED
    await world.finish(prepared.migration_id)
    with pytest.raises(Refused):
        await world.abort(prepared.migration_id)


async def test_a_restarted_source_takes_back_a_guest_that_never_left(tmp_path: Path) -> None:
    world = World(tmp_path)
    gate = asyncio.Event()

    async def hang() -> None:
        await gate.wait()

    world.carry = hang  # type: ignore[assignment]
    task = asyncio.ensure_future(migrate_guest(world.desk, FakeHandle(), WISH))
    await asyncio.sleep(0.01)
    task.cancel()  # a fake handle undoes nothing: as if the agent had died here
    await asyncio.gather(task, return_exceptions=True)
    assert "lock: migrate" in world.store.text(HERE)
    again = MigrationRecords(tmp_path / "out")
    again.load()
    assert [departure.target for departure in again.departures()] == ["n2"]
    assert again.is_moving(VMID)
    await settle_departures(world.desk)
    assert world.is_at_source() and world.is_clean()
    assert world.store.text(HERE) == SHARED


async def test_half_a_copy_is_no_copy(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.is_whole = False
    prepared = await world.prepare(VMID, SHARED, [], "<domain/>", kind=GuestKind.vm)
    world.arrive()
    world.mark(prepared.migration_id)
    await world.store.move(HERE, THERE)
    with pytest.raises(NotFound):
        await world.finish(prepared.migration_id)
    assert world.target.states[VMID] is RunState.paused


async def test_a_copy_of_the_past_is_not_resumed_when_the_guest_comes_back_by_another_way(tmp_path: Path) -> None:
    """It arrived, its agent was away, the guest ran on n3 and was moved here: its disks are newer than this memory."""
    world = World(tmp_path)
    prepared = await world.prepare(VMID, SHARED, [], "<domain/>", kind=GuestKind.vm)
    world.arrive()
    world.mark(prepared.migration_id)
    elsewhere, there = FakeDriver(), "nodes/n3/qemu-server/100.conf"
    await world.store.move(HERE, there)
    await start_guest(fake_host(world.store, node="n3", driver=elsewhere), FakeHandle(), VMID)
    elsewhere.states.clear()
    await world.store.move(there, THERE)
    with pytest.raises(NotFound):
        await world.finish(prepared.migration_id)
    await settle_arrivals(world.arrivals)
    assert not world.target.states and "resume 100" not in world.target.calls
    assert world.store.text(THERE) == SHARED and world.is_clean()


async def test_a_copy_whose_source_went_on_is_not_resumed_when_the_config_comes_after_it(tmp_path: Path) -> None:
    """The answer that it had arrived was lost, so libvirt let the source's go on; then the source died and was recovered."""
    world = World(tmp_path)
    await world.prepare(VMID, SHARED, [], "<domain/>", kind=GuestKind.vm)
    world.arrive()
    world.store._put(HERE, f"{SHARED}lock: migrate\n".encode(), placed=False)
    await world.store.move(HERE, THERE)
    await settle_arrivals(world.arrivals)
    assert not world.target.states and "resume 100" not in world.target.calls
    assert world.store.text(THERE) == SHARED and world.is_clean()


async def test_a_copy_that_was_taken_over_stays_the_guest_when_the_agent_dies_before_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.operations.arrivals.LEASE_WAIT_S", 0.0)
    world = World(tmp_path, **{"ha/resources.cfg": "vm: 100\n\tstate started\n"})
    assert (await run(world, tmp_path))[0] is TaskState.failed
    assert world.store.text(THERE) == SHARED, "no mark any more"
    again = MigrationRecords(tmp_path / "in")
    again.load()
    world.arrivals.records = again
    world.arrivals.host.lease = lambda: LeaseState(phase="live", valid_until_boottime=101.0, sids=("vm:100",))
    await settle_arrivals(world.arrivals)
    assert world.target.states[VMID] is RunState.running
    assert "stop 100" not in world.target.calls


async def test_a_guest_that_was_away_meanwhile_does_not_follow_its_old_memory(tmp_path: Path) -> None:
    world = World(tmp_path)

    def arrive_and_go_round() -> None:
        world.arrive()
        entry = world.store.entries.pop(HERE)
        world.store._put(HERE, entry.content, placed=True)

    world.carry = arrive_and_go_round
    state, error = await run(world, tmp_path)
    assert state is TaskState.failed and "and is back" in error
    assert not world.source.states and not world.target.states


async def test_a_source_that_ended_unwatched_does_not_follow_a_copy_that_may_be_older(tmp_path: Path) -> None:
    """The agent died, libvirt let the guest go on here, and it powered itself off before the agent was back."""
    world = World(tmp_path)

    def die() -> None:
        world.arrive()
        raise asyncio.CancelledError

    world.carry = die
    await asyncio.gather(migrate_guest(world.desk, FakeHandle(), WISH), return_exceptions=True)
    assert world.target.states[VMID] is RunState.paused
    await settle_departures(world.desk)
    assert not world.target.states and not world.source.states
    assert world.store.text(HERE) == SHARED and world.is_clean()


async def test_what_starts_anew_is_no_waiting_copy_any_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.source.states.clear()
    world.mark("an-old-one")
    await start_guest(world.desk.host, FakeHandle(), VMID)
    assert world.store.text(HERE) == SHARED


async def test_an_ha_guest_is_resumed_only_under_a_lease_that_guards_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.operations.arrivals.LEASE_WAIT_S", 0.0)
    world = World(tmp_path, **{"ha/resources.cfg": "vm: 100\n\tstate started\n"})
    state, error = await run(world, tmp_path)
    assert state is TaskState.failed and "lease" in error
    assert THERE in world.store.entries and world.target.states[VMID] is RunState.paused
    world.arrivals.host.lease = lambda: LeaseState(phase="live", valid_until_boottime=101.0, sids=("vm:100",))
    await settle_arrivals(world.arrivals)
    assert world.is_at_target()


async def test_a_container_moves_by_restart_on_shared_storage(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.entries.clear()
    here, there = "nodes/n1/lxc/100.conf", "nodes/n2/lxc/100.conf"
    world.store._put(here, b"rootfs: shared:100/subvol-100-disk-0.subvol\n", placed=True)
    wish = MigrationWish(VMID, NodeName("n2"), restart=True)
    assert await run(world, tmp_path, wish) == (TaskState.ok, "")
    assert world.source.calls[0] == "shutdown 100 60"
    assert world.store.text(there) == "rootfs: shared:100/subvol-100-disk-0.subvol\n"
    assert world.steps == ["start"] and not world.source.states


async def test_a_container_whose_move_fails_is_started_again_here(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.entries.clear()
    world.store._put("nodes/n1/lxc/100.conf", b"rootfs: shared:100/subvol-100-disk-0.subvol\n", placed=True)

    async def refuse(path: str, new_path: str, **options: object) -> FakeEntry:
        raise Refused("no")

    world.store.move = refuse  # type: ignore[method-assign,assignment]
    assert (await run(world, tmp_path, MigrationWish(VMID, NodeName("n2"), restart=True)))[0] is TaskState.failed
    assert world.source.states == {VMID: RunState.running}
    assert "lock" not in world.store.text("nodes/n1/lxc/100.conf")


async def test_paused_strays_go_unless_they_are_ours(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.target.states[VMID] = RunState.paused
    world.store.is_quorate = False
    with pytest.raises(NoQuorum):
        await sweep_strays(world.arrivals)
    assert VMID in world.target.states
    world.store.is_quorate = True
    await sweep_strays(world.arrivals)
    assert VMID not in world.target.states
    world.source.states.clear()
    await world.store.move(HERE, THERE)
    world.store._put(THERE, b"lock: migrate\n", placed=False)
    world.target.states[VMID] = RunState.paused
    await sweep_strays(world.arrivals)
    assert world.target.states[VMID] is RunState.running
    assert world.store.text(THERE) == ""


@pytest.mark.parametrize("look", list(Look))
@pytest.mark.parametrize("is_locked", [True, False])
@pytest.mark.parametrize("is_guest", [True, False])
def test_what_arrived_is_never_resumed_but_by_its_owner_nor_destroyed_by_it(
    look: Look, is_locked: bool, is_guest: bool
) -> None:
    for owner in Owner:
        for age_s in (0.0, 1e6):
            verdict = decide(owner, look, is_guest=is_guest, is_locked=is_locked, has_tunnel=False, age_s=age_s)
            if owner is not Owner.target:
                assert verdict not in (Verdict.finish, Verdict.keep, Verdict.drop)
            else:
                assert verdict is not Verdict.discard
                assert is_guest or verdict is not Verdict.finish
                assert (verdict is Verdict.drop) == (look is Look.paused and not is_guest)
            if owner is Owner.unknown:
                assert verdict is Verdict.wait
    kept = decide(Owner.source, Look.paused, is_guest=is_guest, is_locked=True, has_tunnel=False, age_s=1e6)
    assert kept is Verdict.wait, "it may be the only whole copy"
