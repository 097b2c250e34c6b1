import random

import pytest
from unit.operations.operation_fakes import FakeStorages

from agent.guests.driver import RunState
from agent.inventory import GuestFile, GuestKind, next_free, parse_guest_path
from agent.operations.create import plan_create
from agent.operations.disks import owned_volumes
from agent.operations.migration_plan import MigrationWish, Mode, moved_in, plan_migration
from agent.operations.schema import check_config, in_order
from agent.operations.update import plan_update
from agent.operations.volumes import plan_volumes
from kvorum.config import GuestConfig
from kvorum.config.sizes import GIB
from kvorum.errors import ConfigError, InvalidInput, Refused
from kvorum.ids import NodeName, Vmid, Volid


def guest(text: str, kind: GuestKind = GuestKind.vm) -> GuestFile:
    return GuestFile(Vmid(100), kind, NodeName("n1"), text, version=7, generation=3)


def test_only_paths_of_guests_are_guests() -> None:
    assert parse_guest_path("nodes/n1/qemu-server/100.conf") == ("n1", GuestKind.vm, 100)
    assert parse_guest_path("nodes/n1/lxc/101.conf") == ("n1", GuestKind.container, 101)
    for path in (
        "nodes/n1/qemu-server/100.conf.bak",
        "nodes/n1/qemu-server/099.conf",
        "nodes/n1/x/100.conf",
        "100.conf",
    ):
        assert parse_guest_path(path) is None


def test_the_next_id_is_the_lowest_free_one() -> None:
    assert next_free([]) == 100
    assert next_free({100, 101, 103}) == 102


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"coers": "2"}, "coers"),
        ({"cores": "0"}, "cores"),
        ({"cores": "two"}, "cores"),
        ({"memory": "lots"}, "memory"),
        ({"name": "a b"}, "name"),
        ({"onboot": "maybe"}, "onboot"),
        ({"lock": "migrate"}, "lock"),
        ({"scsi0": "size=4G"}, "scsi0"),
        ({"args": "a\nlock: x"}, "args"),
        ({"cores": ""}, "cores"),
        ({"rootfs": "local:1"}, "rootfs"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_config(settings, GuestKind.vm)
    assert caught.value.field == field


def test_sizes_are_gib_and_may_be_fractions() -> None:
    small, large = plan_volumes({"virtio0": "shared:0.01", "scsi1": "local:4,format=raw"}, GuestKind.vm)
    assert (small.storage, small.size_bytes, small.format) == ("shared", -(-GIB // 100), "qcow2")
    assert (large.storage, large.size_bytes, large.format) == ("local", 4 * GIB, "raw")


def test_volumes_that_exist_are_taken_as_they_are() -> None:
    assert plan_volumes({"scsi0": "local:100/vm-100-disk-0.qcow2", "ide2": "none,media=cdrom"}, GuestKind.vm) == ()


def test_an_import_needs_no_size_but_a_volume_to_make() -> None:
    (wish,) = plan_volumes({"scsi0": "shared:0,import-from=/srv/shared/images/micro.raw,format=raw"}, GuestKind.vm)
    assert (wish.import_from, wish.size_bytes, wish.format) == ("/srv/shared/images/micro.raw", 0, "raw")
    with pytest.raises(InvalidInput):
        plan_volumes({"scsi0": "local:100/vm-100-disk-0.raw,import-from=/x.raw"}, GuestKind.vm)
    with pytest.raises(InvalidInput):
        plan_volumes({"scsi0": "local:0"}, GuestKind.vm)


def test_a_reserved_config_holds_everything_but_the_volumes() -> None:
    rng = random.Random(1)
    plan = plan_create(
        Vmid(100), GuestKind.vm, {"name": "web", "scsi0": "local:4", "net0": "virtio,bridge=vmbr0"}, rng=rng
    )
    assert plan.reserved["lock"] == "create"
    assert "scsi0" not in plan.reserved
    assert plan.settings["net0"].startswith("virtio=")
    assert "uuid=" in plan.settings["smbios1"]
    assert "lock" not in plan.settings


def test_a_container_needs_a_root_and_a_new_root_a_template() -> None:
    rng = random.Random(1)
    with pytest.raises(InvalidInput):
        plan_create(Vmid(101), GuestKind.container, {"hostname": "c"}, template="local:vztmpl/b.tar.gz", rng=rng)
    with pytest.raises(InvalidInput):
        plan_create(Vmid(101), GuestKind.container, {"rootfs": "local:1"}, rng=rng)
    with pytest.raises(InvalidInput):
        plan_create(Vmid(100), GuestKind.vm, {}, template="local:vztmpl/b.tar.gz", rng=rng)
    plan = plan_create(
        Vmid(101),
        GuestKind.container,
        {"rootfs": "local:1", "net0": "bridge=vmbr0"},
        template="local:vztmpl/b.tar.gz",
        rng=rng,
    )
    assert plan.wishes[0].format == "subvol"
    assert "hwaddr=" in plan.settings["net0"] and "name=eth0" in plan.settings["net0"]


def test_only_a_guests_own_volumes_are_freed_with_it() -> None:
    config = GuestConfig.parse(
        "scsi0: local:100/vm-100-disk-0.qcow2,size=4G\nscsi1: local:200/vm-200-disk-0.qcow2\n"
        "ide2: local:iso/debian.iso,media=cdrom\nide3: none,media=cdrom\nvirtio0: /dev/sdb\n"
        "unused0: shared:100/vm-100-disk-7.raw\n"
        "\n[old]\nscsi0: local:100/vm-100-disk-0.qcow2\nscsi3: local:100/vm-100-disk-3.qcow2\n"
    )
    assert owned_volumes(config, GuestKind.vm, Vmid(100)) == (
        "local:100/vm-100-disk-0.qcow2",
        "shared:100/vm-100-disk-7.raw",
        "local:100/vm-100-disk-3.qcow2",
    )


def test_a_disk_that_is_deleted_becomes_unused_and_is_freed_only_when_that_is_deleted() -> None:
    file = guest("scsi0: local:100/vm-100-disk-0.qcow2,size=4G\nmemory: 512\n")
    plan = plan_update(file, {}, ["scsi0"])
    assert (plan.config.get("unused0"), plan.freed) == ("local:100/vm-100-disk-0.qcow2", ())
    again = plan_update(guest(plan.config.render()), {}, ["unused0"])
    assert (again.config.render(), again.freed) == ("memory: 512\n", ("local:100/vm-100-disk-0.qcow2",))


def test_a_disk_line_that_only_changes_its_options_keeps_its_volume() -> None:
    file = guest("scsi0: local:100/vm-100-disk-0.qcow2,size=4G\n")
    plan = plan_update(file, {"scsi0": "local:100/vm-100-disk-0.qcow2,size=4G,ssd=1"}, [])
    assert "unused0" not in plan.config
    replaced = plan_update(file, {"scsi0": "local:8"}, [])
    assert replaced.config["unused0"] == "local:100/vm-100-disk-0.qcow2"
    assert replaced.wishes[0].size_bytes == 8 * GIB


def test_setting_and_deleting_a_key_at_once_is_refused() -> None:
    with pytest.raises(InvalidInput):
        plan_update(guest("cores: 1\n"), {"cores": "2"}, ["cores"])


WISH = MigrationWish(Vmid(100), NodeName("n2"))
LOCAL = "scsi0: local:100/vm-100-disk-0.qcow2\n"
SHARED = "scsi0: shared:100/vm-100-disk-0.qcow2\n"


def test_how_a_guest_moves_follows_from_its_kind_and_state() -> None:
    storages = FakeStorages()
    assert plan_migration(guest(SHARED), RunState.running, WISH, storages).mode is Mode.live
    assert plan_migration(guest(SHARED), RunState.stopped, WISH, storages).mode is Mode.offline
    container = guest("rootfs: shared:101/subvol-101-disk-0.subvol\n", GuestKind.container)
    restart = MigrationWish(Vmid(101), NodeName("n2"), restart=True)
    assert plan_migration(container, RunState.running, restart, storages).mode is Mode.restart
    with pytest.raises(Refused, match="cannot move live"):
        plan_migration(container, RunState.running, WISH, storages)


def test_local_disks_are_copied_only_when_asked_for() -> None:
    with pytest.raises(Refused) as caught:
        plan_migration(guest(LOCAL), RunState.running, WISH, FakeStorages())
    assert "--with-local-disks" in caught.value.remedy
    wish = MigrationWish(Vmid(100), NodeName("n2"), with_local_disks=True)
    plan = plan_migration(
        guest(LOCAL + "scsi1: shared:100/vm-100-disk-1.qcow2\n"), RunState.running, wish, FakeStorages()
    )
    assert ([disk.key for disk in plan.copied], [disk.key for disk in plan.shared]) == (["scsi0"], ["scsi1"])


@pytest.mark.parametrize(
    ("text", "kind", "state", "message"),
    [
        (LOCAL, GuestKind.vm, RunState.stopped, "stopped"),
        (SHARED, GuestKind.vm, RunState.paused, "paused"),
        (SHARED + "ide2: local:iso/x.iso,media=cdrom\n", GuestKind.vm, RunState.running, "ide2"),
        (SHARED + "scsi1: /dev/sdb\n", GuestKind.vm, RunState.running, "scsi1"),
        (LOCAL + "\n[snap]\nmemory: 1\n", GuestKind.vm, RunState.running, "snapshots"),
        ("rootfs: local:101/subvol-101-disk-0.subvol\n", GuestKind.container, RunState.stopped, "local storage"),
    ],
)
def test_what_cannot_move_is_refused_before_anything_is_touched(
    text: str, kind: GuestKind, state: RunState, message: str
) -> None:
    wish = MigrationWish(Vmid(100), NodeName("n2"), with_local_disks=True, restart=True)
    with pytest.raises(Refused, match=message):
        plan_migration(guest(text, kind), state, wish, FakeStorages())


def test_a_guest_does_not_move_to_where_it_is() -> None:
    with pytest.raises(InvalidInput):
        plan_migration(guest(SHARED), RunState.running, MigrationWish(Vmid(100), NodeName("n1")), FakeStorages())


def test_the_config_of_a_moved_guest_names_the_new_volumes_and_no_lock() -> None:
    config = GuestConfig.parse("#hello\nscsi0: local:100/vm-100-disk-0.qcow2,size=4G,ssd=1\nlock: migrate\nx: y\n")
    renamed = {Volid("local:100/vm-100-disk-0.qcow2"): Volid("local:100/vm-100-disk-5.qcow2")}
    assert (
        moved_in(config, GuestKind.vm, renamed).render()
        == "#hello\nscsi0: local:100/vm-100-disk-5.qcow2,size=4G,ssd=1\nx: y\n"
    )


def test_a_broken_disk_line_says_which() -> None:
    with pytest.raises(ConfigError) as caught:
        check_config({"scsi0": "local:4,local:5"}, GuestKind.vm)
    assert caught.value.field == "scsi0"


def test_settings_are_taken_in_the_order_of_their_numbers() -> None:
    assert list(in_order({"scsi10": "", "name": "", "scsi2": "", "cores": ""})) == ["cores", "name", "scsi2", "scsi10"]
