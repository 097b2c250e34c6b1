"""What a scenario's file says, as values."""

from typing import Any

from ha.load import Mode
from ha.options import ShutdownPolicy
from ha.rules import NodeAffinity
from ha.sim.scenarios.script import Failings, inside, read
from kvorum.ids import NodeName

SCENARIO: dict[str, Any] = {
    "name": "one",
    "nodes": {"n2": {"power": "on"}, "n1": {"maxcpu": 8, "maxmem": 100}},
    "services": {
        "vm:100": {"node": "n1", "request": "enabled", "max_restart": "3", "group": "g"},
        "fa:120001": {"node": "n2", "request": "disabled"},
    },
    "rules": [
        {"id": "a", "type": "node-affinity", "resources": ["vm:100"], "nodes": {"n1": 2}, "strict": True},
        {"id": "b", "type": "resource-affinity", "resources": ["vm:100", "fa:120001"], "affinity": "negative"},
    ],
    "groups": [{"id": "g", "nodes": {"n2": 0}, "restricted": False, "nofailback": True}],
    "options": {"ha": {"shutdown_policy": "migrate"}, "crs": {"ha": "static"}},
    "static_stats": {"vm:100": {"maxcpu": 3}},
    "events": [{"t": 20, "cmd": {"op": "service-request", "sid": "fa:120001", "state": "started"}, "raw": "x"}],
    "unknown": [],
}


def test_a_scenario_is_read_into_values() -> None:
    script = read(SCENARIO)
    assert list(script.nodes) == ["n1", "n2"]
    assert (script.nodes[NodeName("n1")].cores, script.up) == (8, {"n2"})
    resource = script.resources[inside("vm:100")]
    assert (resource.wants_running, resource.max_restart, resource.failback) == (True, 3, False)
    assert [rule.id for rule in script.rules] == ["a", "b", "group-g"]
    assert [rule.is_strict for rule in script.rules if isinstance(rule, NodeAffinity)] == [True, False]
    assert script.options.shutdown_policy is ShutdownPolicy.migrate
    assert script.options.policy.mode is Mode.static
    assert script.demands[inside("vm:100")].most.cores == 3
    assert script.end_s == 520.0


def test_guests_that_fail_by_design_are_vms_inside_and_keep_their_names_outside() -> None:
    script = read(SCENARIO)
    (sid,) = script.failings
    assert sid.startswith("vm:")
    assert script.told(sid) == "fa:120001"
    assert script.failings[sid] == Failings(starts=2, node="n1")
    assert script.cues[0].command["sid"] == sid
