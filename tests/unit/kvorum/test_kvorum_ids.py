import pytest

from kvorum import ids
from kvorum.errors import InvalidInput


@pytest.mark.parametrize("text", ["100", "999999999", 100])
def test_guest_ids_from_100_on_are_taken(text: str | int) -> None:
    assert ids.parse_vmid(text) == int(text)


@pytest.mark.parametrize("text", ["99", "1000000000", "", "x", "-100", 0])
def test_other_guest_ids_are_refused_with_their_field(text: str | int) -> None:
    with pytest.raises(InvalidInput) as caught:
        ids.parse_vmid(text)
    assert caught.value.field == "vmid"


@pytest.mark.parametrize("text", ["n1", "a", "A-1", "x" * 63])
def test_host_name_labels_are_node_names(text: str) -> None:
    assert ids.parse_node_name(text) == text


@pytest.mark.parametrize("text", ["", "-a", "a-", "a.b", "a/b", "..", "x" * 64, "a\n"])
def test_what_could_leave_its_directory_is_no_node_name(text: str) -> None:
    with pytest.raises(InvalidInput):
        ids.parse_node_name(text)


def test_resources_are_named_by_type_and_number() -> None:
    assert ids.parse_sid("vm:100") == ("vm", 100)
    assert ids.parse_sid("ct:101") == ("ct", 101)


@pytest.mark.parametrize("text", ["vm:99", "vm:0100", "lxc:100", "100", "vm:100 ", "vm:"])
def test_other_resource_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        ids.parse_sid(text)


def test_a_volume_id_has_a_storage_and_a_name() -> None:
    assert ids.parse_volid("local:100/vm-100-disk-0.qcow2") == ("local", "100/vm-100-disk-0.qcow2")


@pytest.mark.parametrize("text", ["local", "local:", ":x", "local:../../etc/passwd", "local:/etc/passwd", "1:x"])
def test_a_volume_id_cannot_leave_its_storage(text: str) -> None:
    with pytest.raises(InvalidInput):
        ids.parse_volid(text)


def test_resource_names_of_the_api_and_bare_names_mean_the_same() -> None:
    assert ids.parse_node_resource("nodes/n1") == ids.parse_node_resource("n1") == "n1"
    assert ids.parse_guest_resource("guests/100") == ids.parse_guest_resource("100") == 100
