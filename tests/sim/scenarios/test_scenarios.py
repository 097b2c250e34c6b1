"""Small scenarios told as stories.

`pytest tests/sim/scenarios --rewrite` writes what is expected anew; review the diff as a change of behaviour.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from ha.sim.scenarios import play
from ha.sim.scenarios.story import story

HERE = Path(__file__).parent
NAMES = sorted(path.parent.name for path in HERE.glob("*/scenario.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_goes_as_its_story_says(name: str, pytestconfig: pytest.Config) -> None:
    folder = HERE / name
    scenario: dict[str, Any] = json.loads((folder / "scenario.json").read_text())
    told = "\n".join(story(play(scenario))) + "\n"
    expected = folder / "log.expect"
    if pytestconfig.getoption("--rewrite"):
        expected.write_text(told)
    assert told == expected.read_text()
    assert "RULE" not in told


def test_each_scenario_says_what_it_is_about() -> None:
    assert all(len((HERE / name / "README.md").read_text().split()) > 10 for name in NAMES)
    assert len(NAMES) >= 13


def test_after_all_links_were_cut_every_guest_runs_again_and_once() -> None:
    """Who is first back decides who moves, so there is no one story."""
    nodes = {name: {"power": "on"} for name in ("n1", "n2", "n3")}
    cues = [
        {"t": at_s, "cmd": {"op": "network", "node": name, "value": value}}
        for at_s, value in ((60, "off"), (120, "on"))
        for name in nodes
    ]
    services = {f"vm:{100 + number}": {"node": name} for number, name in enumerate(nodes)}
    events = play({"name": "cut", "nodes": nodes, "services": services, "events": cues, "planned_end": 200})
    assert [event for event in events if event["kind"] in ("violation", "watchdog-reset")] == []
    ended = [event["sid"] for event in events if event["kind"] == "stop-ok" and event["daemon"] == "keeper"]
    assert sorted(ended) == sorted(services)
    again = [event["sid"] for event in events if event["kind"] == "start-ok" and event["t"] > 120]
    assert sorted(again) == sorted(services)


def test_the_same_scenario_goes_the_same_way_again() -> None:
    scenario = json.loads((HERE / NAMES[0] / "scenario.json").read_text())
    assert play(scenario) == play(scenario)
