"""What counts as a double run."""

from lab.layout import LabLayout
from lab.single_run import Run, Sample, _is_stopped, _node, verdict

VM1, VM2 = Run("vm:100", "n1"), Run("vm:100", "n2")
ARRIVING = Run("vm:100", "n2", is_incoming=True)


def samples(*runs: set[Run]) -> list[Sample]:
    return [Sample(float(time), frozenset(present)) for time, present in enumerate(runs)]


def test_a_guest_that_moves_with_a_gap_never_ran_twice() -> None:
    assert verdict(samples({VM1}, set(), {VM2})) == []


def test_a_guest_seen_on_two_nodes_at_once_ran_twice() -> None:
    assert verdict(samples({VM1}, {VM1, VM2}, {VM2})) == ["vm:100 ran on n1 and n2 at 1.00 s"]


def test_the_waiting_target_of_a_migration_is_no_second_run() -> None:
    assert verdict(samples({VM1}, {VM1, ARRIVING}, {ARRIVING})) == []


def test_a_guest_that_has_migrated_can_migrate_again() -> None:
    onwards = Run("vm:100", "n3", is_incoming=True)
    assert verdict(samples({VM1}, {VM1, ARRIVING}, {ARRIVING}, {ARRIVING, onwards}, {onwards})) == []


def test_a_guest_that_has_migrated_is_a_run_like_any_other() -> None:
    history = samples({VM1}, {VM1, ARRIVING}, {ARRIVING}, {VM1, ARRIVING})
    assert verdict(history[:3]) == []
    assert verdict(history) == ["vm:100 ran on n1 and n2 at 3.00 s"]


def test_two_targets_of_one_guest_are() -> None:
    assert verdict(samples({ARRIVING, Run("vm:100", "n3", is_incoming=True)})) != []


def test_different_guests_do_not_disturb_each_other() -> None:
    assert verdict(samples({VM1, Run("ct:101", "n2"), Run("vm:102", "n2")})) == []


def test_the_node_of_a_process_is_read_from_its_control_group() -> None:
    layout = LabLayout("lab")
    groups = f"4:memory:/{layout.cgroup_prefix}n2/kvorum-ct-101\n0::/x\n"
    assert _node(layout, groups) == "n2"
    assert _node(LabLayout("other"), groups) is None


def test_a_stopped_or_dead_process_does_not_run() -> None:
    assert _is_stopped("12 (qemu (x) T) T 1 12")
    assert _is_stopped("12 (qemu) Z 1 12")
    assert not _is_stopped("12 (qemu) S 1 12")
