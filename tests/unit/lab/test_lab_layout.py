"""Names and addresses of labs and nodes."""

from pathlib import Path

import pytest

from kvorum.errors import InvalidInput
from lab.layout import NODES_MAX, LabLayout, parse_node


def test_a_node_is_named_and_addressed_by_its_number() -> None:
    node = LabLayout("demo").node(3)
    assert (node.name, node.address, node.switch_port, node.hardware_address) == (
        "n3",
        "10.77.0.3",
        "p3",
        "02:6b:76:00:00:03",
    )
    assert node.directory == Path("/var/lib/kvorum-lab/demo/n3")


def test_the_control_groups_of_one_lab_never_match_those_of_another() -> None:
    first, second = LabLayout("a"), LabLayout("a-b")
    assert not second.node(1).cgroup.startswith(first.cgroup_prefix)
    assert not first.node(1).cgroup.startswith(second.cgroup_prefix)


@pytest.mark.parametrize("name", ["", "A", "1a", "a.b", "a/b", "..", "a-", "a" * 25])
def test_a_name_that_could_leave_its_directory_or_control_group_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        LabLayout(name)


@pytest.mark.parametrize("text", ["", "n0", "n33", "n01", "1", "n1 ", "node1"])
def test_only_n1_to_n32_are_nodes(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_node(text)


def test_every_possible_node_is_understood() -> None:
    assert [parse_node(f"n{number}") for number in range(1, NODES_MAX + 1)] == list(range(1, NODES_MAX + 1))
