import asyncio
import random
from pathlib import Path

import pytest
from msgspec.structs import replace
from unit.operations.operation_fakes import FakeDriver, FakeHandle, FakeStorages, FakeStore, fake_host

from agent.guests.driver import Guest, RunState
from agent.inventory import GuestKind
from agent.operations import ha_resources, power
from agent.operations.create import create_guest, plan_create
from agent.operations.delete import delete_guest
from agent.operations.power import shutdown_guest, start_guest, stop_guest
from agent.operations.queue import GuestQueue
from agent.operations.update import update_guest
from agent.tasks import undoing
from ha.lease_state import LeaseState
from kvorum.errors import AlreadyExists, Fenced, Locked, NoQuorum, Refused, StaleVersion, Timeout
from kvorum.ids import Vmid

PATH = "nodes/n1/qemu-server/100.conf"
VMID = Vmid(100)
HA = {"ha/resources.cfg": "vm: 100\n\tstate started\n"}
LIVE = LeaseState(phase="live", valid_until_boottime=101.0, sids=("vm:100",))


async def test_a_guest_starts_with_its_volumes_and_its_generation() -> None:
    driver = FakeDriver()
    store = FakeStore({"x": "", PATH: "scsi0: shared:100/vm-100-disk-0.qcow2\nide2: none,media=cdrom\n"})
    await start_guest(fake_host(store, driver=driver), FakeHandle(), VMID)
    (guest,) = driver.started
    assert (guest.generation, guest.node) == (2, "n1")
    assert [(volume.key, volume.is_shared) for volume in guest.volumes] == [("scsi0", True)]


async def test_a_start_that_hangs_says_in_its_task_what_helps_and_one_that_does_not_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power, "HANG_S", 0.01)
    driver, handle, gate = FakeDriver(), FakeHandle(), asyncio.Event()
    start = driver.start

    async def hanging(guest: Guest) -> None:
        await gate.wait()
        await start(guest)

    monkeypatch.setattr(driver, "start", hanging)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(start_guest(fake_host(FakeStore({PATH: ""}), driver=driver), handle, VMID))
        while not any("switch this node off" in phase for phase in handle.phases):
            await asyncio.sleep(0.01)
        gate.set()
    assert driver.states == {VMID: RunState.running}
    quick = FakeHandle()
    await start_guest(fake_host(FakeStore({PATH: ""}), driver=FakeDriver()), quick, VMID)
    await asyncio.sleep(0.05)
    assert quick.phases == ["start"]


async def test_an_agent_that_dies_in_a_start_leaves_word_for_the_next_where_libvirt_goes_on_with_it() -> None:
    handle, driver = FakeHandle(), FakeDriver()
    driver.on_start = Refused("no")
    with pytest.raises(Refused):
        await start_guest(fake_host(FakeStore({PATH: ""}), driver=driver), handle, VMID)
    ((_, step),) = handle.undos
    assert step is not None and (step.kind, step.arguments) == (power.END_LATE_START, {"vmid": "100"})
    await handle.roll_back()


async def test_without_a_quorum_nothing_starts_but_what_runs_can_be_stopped() -> None:
    driver, store = FakeDriver(), FakeStore({PATH: ""})
    host = fake_host(store, driver=driver)
    store.is_quorate = False
    with pytest.raises(NoQuorum):
        await start_guest(host, FakeHandle(), VMID)
    assert not driver.started
    driver.states[VMID] = RunState.running
    await stop_guest(host, FakeHandle(), VMID)
    assert not driver.states


async def test_a_guest_of_another_node_is_not_started_here() -> None:
    driver = FakeDriver()
    with pytest.raises(Refused, match="moved to n2"):
        await start_guest(
            fake_host(FakeStore({"nodes/n2/qemu-server/100.conf": ""}), driver=driver), FakeHandle(), VMID
        )
    assert not driver.started


@pytest.mark.parametrize(
    "lease",
    [
        LeaseState(),
        LeaseState(phase="paused", valid_until_boottime=101.0, sids=("vm:100",)),
        LeaseState(phase="live", valid_until_boottime=100.0, sids=("vm:100",)),
        LeaseState(phase="live", valid_until_boottime=101.0, sids=("vm:101",)),
    ],
)
async def test_an_ha_guest_starts_only_under_a_live_lease_of_a_keeper_that_guards_it(lease: LeaseState) -> None:
    driver = FakeDriver()
    with pytest.raises(Fenced):
        await start_guest(
            fake_host(FakeStore({PATH: "", **HA}), driver=driver, lease=lease), FakeHandle(), VMID, by_ha=True
        )
    assert not driver.started
    await start_guest(fake_host(FakeStore({PATH: "", **HA}), driver=driver, lease=LIVE), FakeHandle(), VMID, by_ha=True)
    assert driver.started


async def test_an_order_of_an_earlier_lease_starts_nothing() -> None:
    driver = FakeDriver()
    host = fake_host(FakeStore({PATH: "", **HA}), driver=driver)
    host.lease = lambda: replace(LIVE, incarnation=6)
    with pytest.raises(Fenced):
        await start_guest(host, FakeHandle(), VMID, by_ha=True, lease=5)
    assert not driver.started
    await start_guest(host, FakeHandle(), VMID, by_ha=True, lease=6)
    assert driver.started


async def test_an_ha_guest_whose_start_outlasts_its_lease_is_ended_again() -> None:
    driver = FakeDriver()
    host = fake_host(FakeStore({PATH: "", **HA}), driver=driver)
    host.lease = lambda: LIVE

    def overtaken() -> None:
        host.lease = lambda: replace(LIVE, incarnation=LIVE.incarnation + 1)

    driver.on_running = overtaken
    with pytest.raises(Fenced):
        await start_guest(host, FakeHandle(), VMID, by_ha=True)
    assert driver.started and VMID not in driver.states


async def test_ha_may_ask_twice_and_a_person_is_told() -> None:
    driver = FakeDriver()
    host = fake_host(FakeStore({PATH: ""}), driver=driver)
    await start_guest(host, FakeHandle(), VMID)
    await start_guest(host, FakeHandle(), VMID, by_ha=True)
    with pytest.raises(Refused):
        await start_guest(host, FakeHandle(), VMID)
    assert len(driver.started) == 1


async def test_a_locked_guest_does_not_start_but_a_lock_that_nobody_holds_goes() -> None:
    driver = FakeDriver()
    backup = fake_host(FakeStore({PATH: "lock: backup\n"}), driver=driver)
    with pytest.raises(Locked, match="backup"):
        await start_guest(backup, FakeHandle(), VMID)
    store = FakeStore({PATH: "cores: 1\nlock: migrate\n"})
    host = fake_host(store, driver=driver)
    host.is_migrating = lambda vmid: True
    with pytest.raises(Locked):
        await start_guest(host, FakeHandle(), VMID)
    host.is_migrating = lambda vmid: False
    await start_guest(host, FakeHandle(), VMID)
    assert store.text(PATH) == "cores: 1\n"


async def test_shutdown_is_forced_only_when_asked_for() -> None:
    driver = FakeDriver()
    driver.states[VMID], driver.ignores_power_button = RunState.running, True
    host = fake_host(FakeStore({PATH: ""}), driver=driver)
    with pytest.raises(Timeout):
        await shutdown_guest(host, FakeHandle(), VMID, timeout_s=3)
    assert VMID in driver.states
    await shutdown_guest(host, FakeHandle(), VMID, timeout_s=3, force_stop=True)
    assert VMID not in driver.states


async def test_create_writes_the_config_with_its_volumes_and_no_lock() -> None:
    store, storages = FakeStore(), FakeStorages()
    plan = plan_create(VMID, GuestKind.vm, {"name": "web", "scsi0": "local:4"}, rng=random.Random(1))
    handle = FakeHandle()
    await create_guest(fake_host(store, storages=storages), handle, plan, start=False)
    text = store.text(PATH)
    assert "scsi0: local:100/vm-100-disk-0.qcow2,size=4G\n" in text
    assert "lock" not in text
    assert handle.is_committed


async def test_a_create_that_fails_leaves_neither_volumes_nor_a_config() -> None:
    store, storages = FakeStore(), FakeStorages()
    storages.fail_at = "shared"
    plan = plan_create(VMID, GuestKind.vm, {"scsi0": "local:4", "scsi1": "shared:4"}, rng=random.Random(1))
    handle = FakeHandle()
    with pytest.raises(Refused, match="no space"):
        await create_guest(fake_host(store, storages=storages), handle, plan)
    assert storages.volumes and PATH in store.entries
    assert [step.kind for _, step in handle.undos if step] == ["remove-config", "free-volume"]
    await handle.roll_back()
    assert not storages.volumes and PATH not in store.entries


async def test_a_taken_number_is_refused_and_its_guest_left_alone(tmp_path: Path) -> None:
    store = FakeStore({"nodes/n2/lxc/100.conf": "hostname: theirs\n"})
    plan = plan_create(VMID, GuestKind.vm, {}, rng=random.Random(1))
    handle = FakeHandle()
    with pytest.raises(AlreadyExists, match="n2"):
        await create_guest(fake_host(store), handle, plan)
    await handle.roll_back()
    assert list(store.entries) == ["nodes/n2/lxc/100.conf"]


async def test_delete_frees_the_volumes_and_takes_the_guest_out_of_ha_when_purged() -> None:
    store = FakeStore({PATH: "scsi0: local:100/vm-100-disk-0.qcow2\n", **HA})
    storages, driver = FakeStorages(), FakeDriver()
    storages.volumes["local:100/vm-100-disk-0.qcow2"] = 1
    host = fake_host(store, storages=storages, driver=driver)
    with pytest.raises(Refused, match="HA"):
        await delete_guest(host, FakeHandle(), VMID)
    driver.states[VMID] = RunState.running
    with pytest.raises(Refused, match="running"):
        await delete_guest(host, FakeHandle(), VMID, purge=True)
    assert storages.volumes
    driver.states.clear()
    await delete_guest(host, FakeHandle(), VMID, purge=True)
    assert not storages.volumes and PATH not in store.entries
    assert store.text("ha/resources.cfg").strip() == ""
    assert driver.calls == ["forget 100"]


async def test_a_protected_guest_is_not_deleted() -> None:
    with pytest.raises(Refused, match="protected"):
        await delete_guest(fake_host(FakeStore({PATH: "protection: 1\n"})), FakeHandle(), VMID)


async def test_an_update_with_an_old_version_changes_nothing() -> None:
    store = FakeStore({PATH: "cores: 1\n"})
    with pytest.raises(StaleVersion):
        await update_guest(fake_host(store), FakeHandle(), VMID, {"cores": "2"}, [], expected_version=99)
    assert store.text(PATH) == "cores: 1\n"
    await update_guest(fake_host(store), FakeHandle(), VMID, {"cores": "2"}, [], expected_version=1)
    assert store.text(PATH) == "cores: 2\n"


async def test_an_update_that_fails_frees_the_volume_it_made() -> None:
    store, storages = FakeStore({PATH: "cores: 1\n"}), FakeStorages()
    storages.fail_at = "shared"
    with pytest.raises(Refused):
        async with undoing() as handle:
            await update_guest(
                fake_host(store, storages=storages), handle, VMID, {"scsi0": "local:1", "scsi1": "shared:1"}, []
            )
    assert not storages.volumes
    assert store.text(PATH) == "cores: 1\n"


async def test_a_volume_of_a_running_guest_is_not_freed() -> None:
    store, driver, storages = (
        FakeStore({PATH: "unused0: local:100/vm-100-disk-0.qcow2\n"}),
        FakeDriver(),
        FakeStorages(),
    )
    driver.states[VMID] = RunState.running
    storages.volumes["local:100/vm-100-disk-0.qcow2"] = 1
    with pytest.raises(Refused):
        await update_guest(fake_host(store, driver=driver, storages=storages), FakeHandle(), VMID, {}, ["unused0"])
    assert storages.volumes


async def test_operations_on_a_guest_take_turns_in_order_and_say_who_holds_it() -> None:
    queue, order, gate = GuestQueue(), [], asyncio.Event()

    async def work(name: str) -> None:
        async with queue.turn(VMID, name):
            order.append(name)
            await gate.wait()

    async with asyncio.TaskGroup() as group:
        for name in ("first", "second", "third"):
            group.create_task(work(name))
            await asyncio.sleep(0)
        with pytest.raises(Locked, match="first"):
            async with queue.turn(VMID, "hurried", timeout_s=0.01):
                raise AssertionError("got a turn")
        async with queue.turn(Vmid(101), "another guest", timeout_s=0.01):
            pass
        gate.set()
    assert order == ["first", "second", "third"]
    assert queue.holder(VMID) is None


async def test_the_list_of_ha_is_changed_without_losing_what_else_is_in_it() -> None:
    store = FakeStore({"ha/resources.cfg": "# ours\nvm: 100\n\tstate started\n\tmax_restart 3\n"})
    await ha_resources.change(store, ha_resources.updated("vm:100", state="stopped"), reason="test")
    await ha_resources.change(store, ha_resources.added("ct:101", "started", "hello"), reason="test")
    with pytest.raises(AlreadyExists):
        await ha_resources.change(store, ha_resources.added("ct:101", "started"), reason="test")
    text = store.text("ha/resources.cfg")
    assert text.startswith("# ours\nvm: 100\n\tstate stopped\n\tmax_restart 3\n")
    assert "ct: 101\n\tstate started\n\tcomment hello\n" in text
    found = await ha_resources.HaResources.load(store)
    assert dict(found.states) == {"vm:100": "stopped", "ct:101": "started"}
