"""ha/resources.cfg and the two status files, as text."""

import msgspec
import pytest

from ha.resources import Request, parse_resources, with_added, with_changed, without_resource
from ha.status import (
    LrmStatus,
    ManagerStatus,
    Remedy,
    Service,
    State,
    parse_lrm_status,
    parse_manager_status,
    render,
)
from kvorum.config import SectionConfig
from kvorum.errors import AlreadyExists, ConfigError, InvalidInput, NotFound


def test_resources_are_read_in_proxmox_ves_format() -> None:
    text = "vm: 100\n\tstate started\n\tmax_restart 3\n\tmax_relocate 0\n\tcomment web\n\nct: 101\n\tstate disabled\n"
    found = parse_resources(text)
    assert [(sid, item.request, item.max_restart, item.max_relocate) for sid, item in found.items()] == [
        ("vm:100", Request.started, 3, 0),
        ("ct:101", Request.disabled, 1, 1),
    ]
    assert found["vm:100"].comment == "web"  # type: ignore[index]


@pytest.mark.parametrize(
    ("word", "request_"),
    [
        ("started", "started"),
        ("enabled", "started"),
        ("stopped", "stopped"),
        ("disabled", "disabled"),
        ("ignored", "ignored"),
    ],
)
def test_words_for_a_state_mean(word: str, request_: str) -> None:
    (found,) = parse_resources(f"vm: 100\n\tstate {word}\n").values()
    assert found.request == request_


def test_other_sections_are_left_out() -> None:
    assert parse_resources("group: a\n\tnodes n1\n") == {}


@pytest.mark.parametrize(
    "text", ["vm: 100\n\tstate running\n", "vm: x\n\tstate started\n", "vm: 100\n\tmax_restart x\n"]
)
def test_a_wrong_section_is_named(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_resources(text)


def test_an_empty_file_is_an_empty_status() -> None:
    assert parse_manager_status(b"\n") == ManagerStatus()
    assert parse_lrm_status(b"", "nodes/n1/lrm_status") == LrmStatus()


def test_remedies_of_a_later_version_are_left_out_and_all_else_is_read() -> None:
    entry = Service(state=State.error, node="n1", uid="u", incarnation=3, remedies=(Remedy.wait, Remedy.mend))
    status = ManagerStatus(master_node="n2", service_status={"vm:100": entry})
    later = render(status).replace(b'"wait"', b'"call-somebody"')
    expected = msgspec.structs.replace(entry, remedies=(Remedy.mend,))
    assert parse_manager_status(later) == msgspec.structs.replace(status, service_status={"vm:100": expected})
    with pytest.raises(ConfigError, match="error-2"):
        parse_manager_status(later.replace(b'"error"', b'"error-2"'))


def test_what_a_manager_writes_can_be_read_by_those_from_before_it() -> None:
    """They know these remedies only, and pass over fields that they do not know."""
    assert set(Remedy) == {"wait", "disable", "mend", "remove-node", "revive-node", "make-room"}


def test_a_status_that_cannot_be_read_is_refused_with_its_path() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_lrm_status(b"{", "nodes/n1/lrm_status")
    assert caught.value.details["path"] == "nodes/n1/lrm_status"


def test_equal_statuses_give_equal_bytes() -> None:
    assert render(LrmStatus(session="a")) == render(LrmStatus(session="a"))
    assert render(LrmStatus()).endswith(b"\n")


# Edits

TEXT = "# mine\nvm: 100\n\tstate started\n\tour-key 7\n\nct: 101\n\tstate stopped\n\n# end\n"


def test_an_edit_keeps_order_comments_and_unknown_keys() -> None:
    config = SectionConfig.parse(TEXT)
    changed = with_changed(config, "vm:100", {"state": "disabled", "max_restart": "3"})
    assert changed.render() == TEXT.replace(
        "state started\n\tour-key 7\n", "state disabled\n\tour-key 7\n\tmax_restart 3\n"
    )
    assert with_changed(changed, "vm:100", {"state": "started"}, delete=("max_restart",)).render() == TEXT
    added = with_added(config, "vm:102", {"failback": "0"})
    assert added.render().startswith(TEXT)
    assert parse_resources(added.render())["vm:102"].failback is False  # type: ignore[index]
    assert without_resource(added, "vm:102").render().rstrip() == TEXT.rstrip()
    assert "ct: 101" not in without_resource(config, "ct:101").render()


def test_an_edit_refuses_what_makes_no_sense() -> None:
    config = SectionConfig.parse(TEXT)
    with pytest.raises(AlreadyExists):
        with_added(config, "vm:100")
    for missing in (lambda: with_changed(config, "vm:999", {}), lambda: without_resource(config, "vm:999")):
        with pytest.raises(NotFound):
            missing()
    assert without_resource(config, "vm:999", missing_ok=True) == config
    for entries in ({"state": "running"}, {"max_restart": "-1"}, {"max_relocate": "x"}, {"failback": "maybe"}):
        with pytest.raises(InvalidInput):
            with_changed(config, "vm:100", entries)
