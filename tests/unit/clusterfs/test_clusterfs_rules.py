import stat

import pytest

from clusterfs import rules
from clusterfs.outcomes import Code, Refusal


@pytest.mark.parametrize(
    ("path", "is_directory", "quorate", "without_quorum"),
    [
        ("", True, 0o755, 0o755),
        ("nodes", True, 0o755, 0o555),
        ("storage.cfg", False, 0o640, 0o440),
        ("priv", True, 0o700, 0o500),
        ("priv/shadow.cfg", False, 0o600, 0o400),
        ("priv/lock/x", True, 0o700, 0o500),
        ("nodes/n1/priv", True, 0o700, 0o500),
        ("nodes/n1/priv/key", False, 0o600, 0o400),
        ("nodes-archive/n1.3/priv/key", False, 0o600, 0o400),
        ("nodes/n1/private", False, 0o640, 0o440),
        ("nodes/priv", True, 0o755, 0o555),
        ("private", False, 0o640, 0o440),
    ],
)
def test_modes_follow_from_the_path_and_the_quorum(
    path: str, is_directory: bool, quorate: int, without_quorum: int
) -> None:
    parts = rules.split(path)
    assert not isinstance(parts, Refusal)
    assert stat.S_IMODE(rules.mode(parts, is_directory=is_directory, is_quorate=True)) == quorate
    assert stat.S_IMODE(rules.mode(parts, is_directory=is_directory, is_quorate=False)) == without_quorum


@pytest.mark.parametrize(
    ("path", "vmid"),
    [
        ("nodes/n1/qemu-server/100.conf", 100),
        ("nodes/n1/lxc/101.conf", 101),
        ("nodes/n1/qemu-server/4294967295.conf", 4294967295),
        ("nodes/n1/qemu-server/4294967296.conf", None),
        ("nodes/n1/qemu-server/0100.conf", None),
        ("nodes/n1/qemu-server/100.conf.tmp", None),
        ("nodes/n1/other/100.conf", None),
        ("nodes/-n1/qemu-server/100.conf", None),
        ("nodes/n1/qemu-server/100.conf/x", None),
        ("nodes/n1/qemu-server/٣.conf", None),
        ("100.conf", None),
    ],
)
def test_only_a_plain_number_in_a_guest_directory_is_a_guest(path: str, vmid: int | None) -> None:
    place = rules.guest_at(tuple(path.split("/")))
    assert (place.vmid if place else None) == vmid


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("a//b", Code.invalid),
        ("a/", Code.invalid),
        ("a/../b", Code.invalid),
        (".", Code.invalid),
        ("a\0b", Code.invalid),
        ("\udcff", Code.invalid),
        ("n" * 256, Code.name_too_long),
        ("ä" * 128, Code.name_too_long),
        ("/".join("a" * 129), Code.name_too_long),
    ],
)
def test_what_is_no_path_is_refused_with_its_reason(path: str, code: Code) -> None:
    refusal = rules.split(path)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code


def test_names_up_to_the_limit_and_odd_ones_are_fine() -> None:
    for path in ("n" * 255, "/".join("a" * 128), "a b\nä", 'q"\\', "...", "/leading"):
        assert not isinstance(rules.split(path), Refusal)


def test_a_lock_can_be_broken_only_after_its_life() -> None:
    assert not rules.lock_may_be_broken(0)
    assert not rules.lock_may_be_broken(120.0)
    assert rules.lock_may_be_broken(120.1)


@pytest.mark.parametrize(
    ("path", "bits", "is_directory", "is_harmless"),
    [
        ("f", 0o640, False, True),
        ("f", 0o644, False, False),
        ("f", 0o600, False, False),
        ("priv/f", 0o600, False, True),
        ("priv/f", 0o640, False, False),
        ("d", 0o755, True, True),
        ("d", 0o640, True, True),
        ("d", 0o777, True, False),
    ],
)
def test_a_chmod_that_changes_nothing_is_harmless(path: str, bits: int, is_directory: bool, is_harmless: bool) -> None:
    assert rules.chmod_is_harmless(tuple(path.split("/")), bits, is_directory=is_directory) == is_harmless
