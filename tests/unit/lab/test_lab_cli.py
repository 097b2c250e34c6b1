"""What the lab's commands refuse, and how they show what they find. Real nodes are driven by tests/cluster."""

import secrets

import pytest
from click.testing import CliRunner, Result

from kvorum.errors import InvalidInput, NotFound
from lab.cli import lab, status_rows

NAME = f"cli{secrets.token_hex(3)}"


def invoke(*words: str) -> Result:
    return CliRunner().invoke(lab, ["--name", NAME, *words])


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["exec", "n1", "--", "true"],
        ["kill", "n1"],
        ["start", "n1"],
        ["cut", "n1"],
        ["heal"],
        ["freeze", "n1"],
        ["thaw", "n1"],
        ["publish", "n1", "8005"],
        ["unpublish", "n1", "8005"],
        ["logs", "n1"],
        ["restart", "n1", "agent"],
    ],
    ids=" ".join,
)
def test_a_lab_that_is_not_up_is_said_so_with_the_remedy(words: list[str]) -> None:
    error = invoke(*words).exception
    assert isinstance(error, NotFound)
    assert "up" in error.remedy


def test_taking_down_a_lab_that_is_not_there_is_no_error() -> None:
    assert invoke("down").exit_code == 0


def test_a_name_that_is_none_is_refused() -> None:
    assert isinstance(CliRunner().invoke(lab, ["--name", "../x", "down"]).exception, InvalidInput)


@pytest.mark.parametrize("words", [["cut", "n1", "--one-way"], ["heal", "n1", "n2", "n3"], ["up", "--nodes", "33"]])
def test_what_makes_no_sense_is_a_usage_error(words: list[str]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Usage:" in result.output


def test_the_table_tells_power_cuts_partitions_and_units() -> None:
    unit = {"unit": "kvorum-agent", "state": "running", "ready": True}
    found = {
        "nodes": [
            {"name": "n1", "address": "10.77.0.1", "state": "on", "is_cut": True, "units": [unit]},
            {"name": "n2", "address": "10.77.0.2", "state": "off", "is_cut": False, "units": []},
        ],
        "cuts": [["n1", "n2"]],
        "published": [{"node": "n1", "port": 8005, "address": "127.0.0.1:4711"}],
    }
    rows, notes = status_rows(found)
    assert rows == [("n1", "10.77.0.1", "on, cut off", "agent:running"), ("n2", "10.77.0.2", "off", "")]
    assert notes == ["n1 cannot send to n2", "n1:8005 is 127.0.0.1:4711 here"]
