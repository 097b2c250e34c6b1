"""The scenario's file: nodes, services, rules, options, and commands with their seconds. Pure.

Keys that are not known are passed over. Services of the type `fa` are guests that fail by design: in `fa:abcdef`, b starts
fail, then c moves; with d it never stops, and with f the starts fail on that node only. Inside they are VMs. Groups, the
older form of node-affinity rules, are read as such rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ha.load import Demand, Use
from ha.options import Options, parse_options
from ha.resources import Resource, parse_request
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rule, Rules, StartOrder
from kvorum.config.properties import render_properties
from kvorum.ids import NodeName, Sid

NODE_CORES = 24.0
NODE_MEMORY = 128.0 * (1 << 30)
GUEST_MOST = Use(4.0, 4.0 * (1 << 30))
GUEST_MEASURED = Use(2.0, 2.0 * (1 << 30))
# Guests of the type `fa` become VMs of these numbers.
_FAILING_BASE = 90_000_000

Command = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cue:
    """One command at its time. `raw` is its text as it was."""

    at_s: float
    command: Command
    raw: str


@dataclass(frozen=True, slots=True)
class Failings:
    """How a guest fails by design."""

    starts: int = 0
    moves: int = 0
    never_stops: bool = False
    # The only node on which starts fail; empty for any.
    node: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What an earlier manager had written about a service."""

    state: str
    node: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    nodes: Mapping[NodeName, Use]
    # Nodes that run from the first second.
    up: frozenset[NodeName]
    places: Mapping[Sid, NodeName]
    resources: Mapping[Sid, Resource]
    rules: Rules
    options: Options
    demands: Mapping[Sid, Demand]
    failings: Mapping[Sid, Failings]
    held: Mapping[Sid, Held]
    # By node, as the earlier manager saw it.
    held_nodes: Mapping[str, str]
    cues: tuple[Cue, ...]
    end_s: float
    # Sids of the file by ours, where they differ.
    names: Mapping[Sid, str] = field(default_factory=dict)

    def told(self, sid: str) -> str:
        return self.names.get(Sid(sid), sid)


def read(scenario: Mapping[str, Any]) -> Script:
    cues = tuple(
        Cue(float(event["t"]), _inside(event["cmd"]), str(event.get("raw", ""))) for event in scenario["events"]
    )
    services: Mapping[str, Any] = scenario["services"]
    added = [cue.command["sid"] for cue in cues if cue.command["op"] == "service-add"]
    sids = {inside(sid): str(sid) for sid in (*services, *_raw_sids(scenario["events"]))}
    resources, unwilling = _resources(services, scenario.get("groups", ()))
    last = max((cue.at_s for cue in cues), default=0.0)
    status: Mapping[str, Any] = scenario.get("manager_status") or {}
    return Script(
        name=str(scenario["name"]),
        nodes={NodeName(name): _size(facts) for name, facts in sorted(scenario["nodes"].items())},
        up=frozenset(NodeName(name) for name, facts in scenario["nodes"].items() if facts.get("power") == "on"),
        places={inside(sid): NodeName(held["node"]) for sid, held in sorted(services.items())},
        resources={sid: replace(one, failback=False) if sid in unwilling else one for sid, one in resources.items()},
        rules=Rules((*_rules(scenario.get("rules", ())), *_group_rules(services, scenario.get("groups", ())))),
        options=_options(scenario.get("options") or {}),
        demands={
            sid: _demand(scenario.get("static_stats") or {}, scenario.get("dynamic_stats") or {}, sids.get(sid, sid))
            for sid in sorted({*sids, *added})
        },
        failings={sid: _failings(told, scenario["nodes"]) for sid, told in sids.items() if told.startswith("fa:")},
        held={
            inside(sid): Held(str(one["state"]), str(one["node"]), str(one.get("target") or ""))
            for sid, one in sorted((status.get("service_status") or {}).items())
        },
        held_nodes={str(name): str(state) for name, state in (status.get("node_status") or {}).items()},
        cues=cues,
        end_s=float(scenario.get("planned_end") or last + 500.0),
        names={sid: told for sid, told in sids.items() if sid != told},
    )


def inside(sid: str) -> Sid:
    kind, _, number = sid.partition(":")
    return Sid(f"vm:{_FAILING_BASE + int(number)}" if kind == "fa" else sid)


def _inside(command: Command) -> Command:
    return {**command, "sid": inside(command["sid"])} if "sid" in command else command


def _raw_sids(events: Sequence[Mapping[str, Any]]) -> list[str]:
    return [event["cmd"]["sid"] for event in events if "sid" in event["cmd"]]


def _size(facts: Mapping[str, Any]) -> Use:
    return Use(float(facts.get("maxcpu") or NODE_CORES), float(facts.get("maxmem") or NODE_MEMORY))


def _resources(
    services: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> tuple[dict[Sid, Resource], set[Sid]]:
    """The second are those that a group forbids to go back by themselves."""
    nofailback = {group["id"] for group in groups if group.get("nofailback")}
    found = {
        inside(sid): Resource(
            inside(sid),
            parse_request(held.get("request") or "started"),
            max_restart=int(held.get("max_restart", 1)),
            max_relocate=int(held.get("max_relocate", 1)),
            failback=bool(held.get("failback", True)),
        )
        for sid, held in services.items()
    }
    return found, {inside(sid) for sid, held in services.items() if held.get("group") in nofailback}


def _rules(rules: Sequence[Mapping[str, Any]]) -> list[Rule]:
    found: list[Rule] = []
    for rule in rules:
        sids, is_enabled = frozenset(map(inside, rule["resources"])), not rule.get("disabled")
        if rule["type"] == "node-affinity":
            nodes = {NodeName(name): int(priority) for name, priority in rule["nodes"].items()}
            found.append(NodeAffinity(rule["id"], sids, nodes, bool(rule.get("strict")), is_enabled))
        elif rule["type"] == "start-order":
            after, delay_s, deadline_s = (
                frozenset(map(inside, rule["after"])),
                rule.get("delay", 0),
                rule.get("deadline"),
            )
            is_strict = bool(rule.get("strict"))
            found.append(StartOrder(rule["id"], sids, after, delay_s, deadline_s, is_strict, is_enabled))
        else:
            is_strict = bool(rule.get("strict", True))
            found.append(ResourceAffinity(rule["id"], sids, Affinity(rule["affinity"]), is_strict, is_enabled))
    return found


def _group_rules(services: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> list[Rule]:
    found: list[Rule] = []
    for group in groups:
        sids = frozenset(inside(sid) for sid, held in services.items() if held.get("group") == group["id"])
        nodes = {NodeName(name): int(priority) for name, priority in group["nodes"].items()}
        if sids:
            found.append(NodeAffinity(f"group-{group['id']}", sids, nodes, bool(group.get("restricted"))))
    return found


def _options(options: Mapping[str, Mapping[str, Any]]) -> Options:
    lines = [
        f"{key}: {render_properties({name: str(value) for name, value in properties.items()})}\n"
        for key, properties in sorted(options.items())
    ]
    return parse_options("".join(lines))


def _demand(static: Mapping[str, Any], dynamic: Mapping[str, Any], told: str) -> Demand:
    most, measured = static.get(told) or {}, dynamic.get(told) or {}
    return Demand(
        Use(float(most.get("maxcpu", GUEST_MOST.cores)), float(most.get("maxmem", GUEST_MOST.memory_bytes))),
        Use(float(measured.get("cpu", GUEST_MEASURED.cores)), float(measured.get("mem", GUEST_MEASURED.memory_bytes))),
    )


def _failings(told: str, nodes: Mapping[str, Any]) -> Failings:
    digits = [int(digit) for digit in told.partition(":")[2]] + [0] * 6
    only = sorted(nodes)[digits[5] - 1] if 0 < digits[5] <= len(nodes) else ""
    return Failings(digits[1], digits[2], bool(digits[3]), only)
