"""What the format of a guest's file means, line by line."""

import pytest

from kvorum.config.guest import CONTAINER_VOLUME_KEY, VM_DISK_KEY, GuestConfig
from kvorum.errors import ConfigError, InvalidInput

FILE = """\
#a web server%3A do not touch
#second line

boot: order=scsi0
cores:2
name:   web\x20\x20
scsi0: local:100/vm-100-disk-0.qcow2,size=4G
some-future_key.x: kept
parent: before

[before]
#why
cores: 1
snaptime: 1700000000

[PENDING]
memory: 1024
"""


def test_a_file_that_nobody_changes_renders_as_it_was() -> None:
    assert GuestConfig.parse(FILE).render() == FILE


def test_keys_and_values_are_found_whatever_the_blanks() -> None:
    config = GuestConfig.parse(FILE)
    assert config["cores"] == "2"
    assert config["name"] == "web"
    assert config["some-future_key.x"] == "kept"
    assert config.get("memory") is None
    assert list(config) == ["boot", "cores", "name", "scsi0", "some-future_key.x", "parent"]
    assert len(config) == 6


def test_the_description_is_decoded_and_belongs_to_its_block() -> None:
    config = GuestConfig.parse(FILE)
    assert config.description == "a web server: do not touch\nsecond line"
    section = config.section("before")
    assert section is not None
    assert section.description == "why"


def test_snapshots_have_keys_of_their_own() -> None:
    config = GuestConfig.parse(FILE)
    assert config.snapshots == ("before",)
    section = config.section("before")
    assert section is not None
    assert dict(section) == {"cores": "1", "snaptime": "1700000000"}
    assert [s.name for s in config.sections] == ["before", "PENDING"]


def test_setting_a_key_changes_one_line() -> None:
    changed = GuestConfig.parse(FILE).set("cores", "4")
    assert changed.render() == FILE.replace("cores:2", "cores: 4")


def test_a_new_key_comes_after_the_last_one_and_before_the_snapshots() -> None:
    changed = GuestConfig.parse(FILE).set("lock", "migrate")
    assert changed.render() == FILE.replace("parent: before\n", "parent: before\nlock: migrate\n")


def test_setting_what_is_already_so_changes_nothing() -> None:
    assert GuestConfig.parse(FILE).set("name", "web").render() == FILE


def test_removing_keys_removes_their_lines() -> None:
    changed = GuestConfig.parse(FILE).without("parent", "cores", "absent")
    assert changed.render() == FILE.replace("parent: before\n", "").replace("cores:2\n", "")


def test_a_snapshot_is_added_replaced_and_removed() -> None:
    config = GuestConfig.parse("cores: 2").with_section("one", {"cores": "2"}).with_section("two", {"cores": "2"})
    assert config.render() == "cores: 2\n\n[one]\ncores: 2\n\n[two]\ncores: 2\n"
    assert config.with_section("one", {"cores": "8"}).render() == "cores: 2\n\n[one]\ncores: 8\n\n[two]\ncores: 2\n"
    assert config.without_section("two").snapshots == ("one",)


def test_liblxc_keys_may_be_repeated_and_written_with_an_equals_sign() -> None:
    config = GuestConfig.parse("lxc.mount.entry = a b none bind\nlxc.mount.entry: c d none bind\nlxc.cap.drop =\n")
    assert config.pairs() == [
        ("lxc.mount.entry", "a b none bind"),
        ("lxc.mount.entry", "c d none bind"),
        ("lxc.cap.drop", ""),
    ]


def test_numbered_keys_come_in_the_order_of_their_numbers() -> None:
    config = GuestConfig.parse("net10: c\nnet2: b\nnet0: a\nnetx: no\nnet01: no\n")
    assert list(config.numbered("net").items()) == [(0, "a"), (2, "b"), (10, "c")]


def test_the_keys_of_disks_and_container_volumes_are_known() -> None:
    assert all(VM_DISK_KEY.fullmatch(key) for key in ("scsi0", "virtio15", "ide2", "efidisk0", "tpmstate0"))
    assert not any(VM_DISK_KEY.fullmatch(key) for key in ("scsihw", "net0", "unused0"))
    assert all(CONTAINER_VOLUME_KEY.fullmatch(key) for key in ("rootfs", "mp0", "mp255"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"cores: 2\nwhat is this\n", 2),
        (b"cores: 2\n= 5\n", 2),
        (b"a: 1\n\n[s]\nb: 1\n[s]\n", 5),
        (b"name: \xff\n", 1),
        (b"a: 1\nname: x\0y\n", 2),
        (b"[]\n", 1),
        (b"cores = 2\n", 1),
    ],
)
def test_a_line_that_is_nothing_is_named_in_the_error(content: bytes, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        GuestConfig.parse(content, "nodes/n1/lxc/101.conf")
    assert caught.value.details == {"path": "nodes/n1/lxc/101.conf", "line": str(line)}


@pytest.mark.parametrize(("key", "value"), [("name", "x\nhookscript: evil"), ("na me", "x"), ("", "x"), ("#a", "x")])
def test_a_value_cannot_smuggle_in_another_key(key: str, value: str) -> None:
    with pytest.raises(InvalidInput):
        GuestConfig().set(key, value)


def test_a_config_can_be_made_of_a_mapping() -> None:
    assert GuestConfig.of({"cores": "2", "name": "web"}).render() == "cores: 2\nname: web\n"
