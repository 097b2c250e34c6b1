"""`kvorum ha` on the command line, from an API that lives in the test."""

import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner, Result

from kvorum.cli import ha_status, ha_whole, ha_why, live_names
from kvorum.cli.ha import ha
from kvorum.cli.ha_rule import parse_nodes
from kvorum.cli.ha_whole import parse_time
from kvorum.cli.main import root
from kvorum.client.ha import HaApi
from kvorum.errors import InvalidInput, Refused, TaskFailed, Timeout, Unreachable
from kvorum.v1 import ha_pb2 as pb


def command(state: str, cause: str = "because") -> pb.HaCommand:
    return pb.HaCommand(id="1-a", text="migrate vm:100 n2", state=state, cause=cause)


def resource(**changes: Any) -> pb.HaResource:
    fields: dict[str, Any] = {
        "sid": "vm:100", "request_state": pb.HA_REQUEST_STATE_STARTED, "state": "started", "node": "nodes/n1",
        "cause": "n1 runs it", "retry_in_seconds": -1.0,
    }  # fmt: skip
    return pb.HaResource(**{**fields, **changes})


def state_of(*resources: pb.HaResource, **changes: Any) -> pb.GetHaStatusResponse:
    fields: dict[str, Any] = {
        "quorate": True,
        "manager_node": "nodes/n2",
        "nodes": [
            pb.HaNode(name="nodes/n1", state="online", lease_age_seconds=0.4, fence_in_seconds=-1,
                      takeover_after_seconds=18.018, watchdog="none"),
            pb.HaNode(name="nodes/n2", state="maintenance", lease_age_seconds=-1, fence_in_seconds=-1,
                      takeover_after_seconds=-1, maintenance=True),
        ],
        "resources": resources or (resource(),),
        "profile": pb.HaProfile(name="normal", tolerates_seconds=8, takeover_after_seconds=18.018),
    }  # fmt: skip
    return pb.GetHaStatusResponse(**{**fields, **changes})


class FakeApi:
    """Answers with what it was given and notes what was asked."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.asked: list[tuple[str, tuple[object, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: object, **options: Any) -> Any:
            self.asked.append((name, arguments, options))
            answer = self._answers[name]
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, list):
                return answer.pop(0) if len(answer) > 1 else answer[0]
            return answer

        return ask

    def follow(self, command: pb.HaCommand, **_more: Any) -> Iterable[pb.HaCommand]:
        return [command, *self._answers.get("follow", ())]


def run(api: FakeApi, *arguments: str, text: str = "") -> Result:
    session: Any = SimpleNamespace(client=SimpleNamespace(ha=api))
    return CliRunner().invoke(ha, list(arguments), obj=session, input=text)


def done(api: FakeApi, *arguments: str, text: str = "") -> Result:
    result = run(api, *arguments, text=text)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ha_status, ha_whole, ha_why):
        monkeypatch.setattr(module, "POLL_S", 0.0)


# Resources


def test_a_resource_is_added_with_what_is_said_and_nothing_else() -> None:
    api = FakeApi(add=pb.AddHaResourceResponse(resource=resource(), warnings=["without n1, vm:9 would start nowhere"]))
    result = done(api, "add", "vm:100", "--max-restart", "3", "--no-failback", "--comment", "mail", "--priority", "9")
    assert api.asked == [
        ("add", ("vm:100",), {"state": pb.HA_REQUEST_STATE_STARTED, "comment": "mail", "max_restart": 3,
                              "max_relocate": None, "failback": False, "priority": 9, "force": False}),
    ]  # fmt: skip
    assert "warning: without n1, vm:9 would start nowhere" in result.stderr


def test_what_is_not_named_is_left_alone() -> None:
    api = FakeApi(update=resource())
    assert "vm:100 is requested disabled" in done(api, "set", "vm:100", "--state", "disabled").output
    assert api.asked[0][2] == {
        "state": pb.HA_REQUEST_STATE_DISABLED, "comment": None, "max_restart": None, "max_relocate": None, "failback": None,
        "priority": None,
    }  # fmt: skip
    assert "vm:100 is changed" in done(api, "set", "vm:100", "--comment", "").output
    assert api.asked[1][2]["comment"] == ""
    assert api.asked[1][2]["state"] == pb.HA_REQUEST_STATE_UNSPECIFIED


def test_a_change_of_nothing_is_a_mistake() -> None:
    assert isinstance(run(FakeApi(), "set", "vm:100").exception, InvalidInput)


# Status


def test_the_status_is_one_page() -> None:
    lines = done(FakeApi(status=state_of()), "status").output.splitlines()
    assert lines[0].split() == ["quorum", "yes"]
    assert "T = 18.0 s" in lines[2]
    assert lines[3].split() == ["HA", "armed"]
    assert lines[6].split() == ["n1", "online", "0.4", "18.0", "-", "-", "none"]
    assert lines[7].split() == ["n2", "maintenance", "-", "-", "-", "yes", "-"]
    assert lines[10].split() == ["vm:100", "started", "started", "n1", "-", "-", "n1", "runs", "it"]


def test_what_is_wrong_is_said_with_what_to_do() -> None:
    broken = resource(state="error", cause="it did not start", retry_in_seconds=45.0, remedies=["mend it"])
    disarm = pb.HaDisarm(mode="freeze", state="disarmed", cause="no node holds a lease", arms_in_seconds=1700)
    result = done(
        FakeApi(status=state_of(broken, disarm=disarm, problems=["a, b contradict"], quorate=False)), "status"
    )
    assert "NO: nothing is started or fenced" in result.stdout
    assert "DISARMED (freeze): arms itself in 28 min" in result.stdout
    assert "45 s" in result.stdout
    assert "problem: a, b contradict" in result.stderr
    assert "vm:100: mend it" in result.stderr


def test_the_status_for_programs_is_the_apis() -> None:
    shown = json.loads(done(FakeApi(status=state_of()), "status", "-o", "json").output)
    assert shown["resources"][0]["sid"] == "vm:100"
    assert shown["profile"]["takeover_after_seconds"] == 18.018


def test_watching_prints_what_changes_and_only_that() -> None:
    older = state_of()
    older.nodes[0].lease_age_seconds = 1.7
    moving = state_of(resource(state="migrate", target="nodes/n3", cause="an operator wants it"))
    lines = done(FakeApi(status=[state_of(), older, moving]), "watch", "-n", "6").output.splitlines()
    assert [line.split(maxsplit=1)[1].partition(":")[0] for line in lines[:4]] == ["manager", "HA", "n1", "n2"]
    assert lines[4].endswith("vm:100: started on n1 (n1 runs it)")
    assert lines[5].endswith("vm:100: migrate on n1 -> n3 (an operator wants it)")


# Commands


@pytest.mark.parametrize("verb", ["migrate", "relocate"])
def test_a_move_is_followed_to_its_end(verb: str) -> None:
    api = FakeApi(**{verb: command("accepted", "on its way"), "follow": [command("done", "n2 runs it")]})
    result = done(api, verb, "vm:100", "n2")
    assert api.asked == [(verb, ("vm:100", "n2"), {})]
    assert (result.stdout, result.stderr) == ("done: n2 runs it\n", "accepted: on its way\n")


def test_a_move_that_fails_is_an_error_with_its_cause() -> None:
    api = FakeApi(migrate=command("accepted"), follow=[command("failed", "it stays on n1: no space")])
    result = run(api, "migrate", "vm:100", "n2")
    assert isinstance(result.exception, TaskFailed)
    assert "no space" in str(result.exception)


def test_without_waiting_a_command_is_only_given() -> None:
    api = FakeApi(stop=command("accepted"), follow=[command("failed")])
    shown = json.loads(done(api, "stop", "vm:100", "--timeout", "0", "--no-wait", "-o", "json").output)
    assert shown["state"] == "accepted"
    assert api.asked == [("stop", ("vm:100",), {"timeout_s": 0})]


def test_a_client_follows_a_command_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.client.ha.POLL_S", 0.0)
    answers = [command("accepted", "on its way")] * 2 + [command("done", "n2 runs it")]

    def call(_method: object, _request: object) -> pb.GetHaCommandResponse:
        return pb.GetHaCommandResponse(command=answers.pop(0))

    connection: Any = SimpleNamespace(call=call, channel=SimpleNamespace(unary_unary=lambda *_a, **_k: None))
    api = HaApi(connection)
    seen = [(one.state, one.cause) for one in api.follow(command("waiting"))]
    assert seen == [("waiting", "because"), ("accepted", "on its way"), ("done", "n2 runs it")]
    with pytest.raises(Timeout):
        list(api.follow(command("waiting"), timeout_s=-1.0))


# Rules


def test_a_rule_is_made_of_its_options() -> None:
    api = FakeApi(add_rule=pb.HaRule())
    done(api, "rule", "add", "node-affinity", "home", "--resources", "vm:100,ct:101", "--nodes", "n1:2,n2", "--strict")
    wish = api.asked[0][1][0]
    assert wish == pb.HaRule(
        id="home",
        kind="node-affinity",
        resources=["vm:100", "ct:101"],
        nodes={"n1": 2, "n2": 0},
        strict=True,
        enabled=True,
    )
    done(api, "rule", "add", "resource-affinity", "apart", "--resources", "vm:1000,vm:1001", "--affinity", "negative",
         "--soft", "--weight", "7", "--dry-run")  # fmt: skip
    wish = api.asked[1][1][0]
    assert (wish.strict, wish.weight, wish.affinity, api.asked[1][2]) == (False, 7, "negative", {"dry_run": True})
    done(api, "rule", "add", "start-order", "web", "--resources", "vm:101", "--after", "vm:100", "--delay", "20")
    assert api.asked[2][1][0] == pb.HaRule(
        id="web", kind="start-order", resources=["vm:101"], after=["vm:100"], delay_seconds=20, enabled=True
    )
    for wrong in (("--weight", "7"), ("--nodes", "n1"), ("--affinity", "negative")):
        result = run(api, "rule", "add", "start-order", "web", "--resources", "vm:101", "--after", "vm:100", *wrong)
        assert isinstance(result.exception, InvalidInput)


def test_a_rule_is_changed_where_it_is_said() -> None:
    old = pb.HaRule(id="home", kind="node-affinity", resources=["vm:100"], nodes={"n1": 2}, strict=True, enabled=True)
    api = FakeApi(rule=old, replace_rule=old)
    done(api, "rule", "set", "home", "--nodes", "n3", "--disable")
    wish = api.asked[1][1][0]
    assert (dict(wish.nodes), wish.enabled, wish.strict, list(wish.resources)) == ({"n3": 0}, False, True, ["vm:100"])
    assert isinstance(run(api, "rule", "set", "home").exception, InvalidInput)
    assert isinstance(run(api, "rule", "set", "home", "--affinity", "negative").exception, InvalidInput)


def test_a_contradiction_reaches_the_operator() -> None:
    api = FakeApi(add_rule=Refused("these rules cannot be kept all at once over vm:100: home and away"))
    result = run(api, "rule", "add", "node-affinity", "away", "--resources", "vm:100", "--nodes", "n2")
    assert isinstance(result.exception, Refused)


def test_rules_are_listed_and_checked() -> None:
    apart = pb.HaRule(
        id="apart", kind="resource-affinity", resources=["vm:100", "vm:101"], affinity="negative", strict=True
    )
    near = pb.HaRule(
        id="near", kind="node-affinity", resources=["vm:100"], nodes={"n2": 0, "n1": 2}, weight=50, enabled=True
    )
    order = pb.HaRule(
        id="web", kind="start-order", resources=["vm:101"], after=["vm:100"], delay_seconds=20, deadline_seconds=60
    )
    good = pb.ListHaRulesResponse(rules=[apart, near, order])
    rows = done(FakeApi(rules=good), "rule", "list").output.splitlines()
    assert rows[1].split() == ["apart", "resource-affinity", "vm:100,vm:101", "apart", "strict", "no", "-"]
    assert "after vm:100 + 20 s, at most 60 s" in rows[3]
    assert rows[2].split() == ["near", "node-affinity", "vm:100", "on", "n1:2,", "n2", "wish,", "50", "yes", "-"]
    assert "3 rules, no contradiction" in done(FakeApi(rules=good), "rule", "check").output
    bad = pb.ListHaRulesResponse(conflicts=[pb.HaConflict(rules=["a", "b"], message="a and b contradict")])
    result = run(FakeApi(rules=bad), "rule", "check")
    assert "a and b contradict" in result.output
    assert isinstance(result.exception, Refused)


@pytest.mark.parametrize("text", ["n1:", "n1:x", "n1:1001", "n1:-1"])
def test_what_is_no_priority_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_nodes(text)


# Nodes and the whole

PLAN = pb.PlanHaMaintenanceResponse(
    outcomes=[pb.HaOutcome(sid="vm:100", node="nodes/n1", target_node="nodes/n3", state="started", cause="it fits")],
    unmanaged=["vm:200"],
)


def test_the_plan_of_a_maintenance_comes_first_and_a_no_changes_nothing() -> None:
    api = FakeApi(plan_maintenance=PLAN)
    result = run(api, "maintenance", "enable", "n1", text="n\n")
    assert result.exit_code == 1
    assert "vm:100  n1    n3      it fits" in result.output
    assert "stay on n1: vm:200" in result.output
    assert done(api, "maintenance", "enable", "n1", "--dry-run").exit_code == 0
    assert {name for name, _, _ in api.asked} == {"plan_maintenance"}


def test_a_maintenance_is_followed_until_the_node_is_empty() -> None:
    leaving = resource(state="migrate", cause="it leaves n1")
    states = [state_of(), state_of(leaving), state_of(resource(node="nodes/n3"))]
    api = FakeApi(plan_maintenance=PLAN, set_maintenance=command("done"), status=states)
    result = done(api, "maintenance", "enable", "n1", "--yes")
    assert "vm:100: it leaves n1" in result.stderr
    assert "vm:100 has left" in result.stderr
    assert result.stdout.splitlines()[-1] == "no HA guest runs on n1"


def test_a_maintenance_that_takes_too_long_says_what_is_left_and_why() -> None:
    stuck = state_of(resource(cause="it cannot move: no room"))
    api = FakeApi(plan_maintenance=PLAN, set_maintenance=command("done"), status=stuck)
    result = run(api, "maintenance", "enable", "n1", "--yes", "--timeout", "0")
    assert isinstance(result.exception, Timeout)
    assert "vm:100: it cannot move: no room" in str(result.exception)


def test_disarming_waits_until_no_lease_is_held() -> None:
    under_way = state_of(disarm=pb.HaDisarm(mode="freeze", state="disarming", cause="first vm:100", arms_in_seconds=60))
    free = state_of(
        disarm=pb.HaDisarm(mode="freeze", state="disarmed", cause="no node holds a lease", arms_in_seconds=59)
    )
    free.nodes[0].lease_age_seconds = -1
    api = FakeApi(disarm=command("done"), status=[under_way, free])
    result = done(api, "disarm", "--for", "1m")
    assert api.asked[0] == ("disarm", (), {"for_s": 60, "mode": "freeze"})
    assert "disarming: first vm:100" in result.stderr
    assert "HA is disarmed, and arms itself in 59 s" in result.stdout


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("2h", 7200), ("90s", 90), ("45", 45)])
def test_times_are_said_as_people_say_them(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "m", "-1s", "1d", "1.5h", "९m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_time(text)


def test_profiles_are_shown_and_chosen() -> None:
    profiles = [pb.HaProfile(name="fast", tolerates_seconds=3, pause_after_seconds=3.5, kill_after_seconds=4.5,
                             reset_after_seconds=8.5, takeover_after_seconds=9.509, chosen=True)]  # fmt: skip
    api = FakeApi(profiles=(profiles), set_profile=profiles[0])
    api._answers["profiles"] = tuple(profiles)
    row = done(api, "profile", "fast", "--watchdog", "6").output.splitlines()[1]
    assert row.split() == ["fast", "*", "3", "s", "3.5", "s", "4.5", "s", "8.5", "s", "9.5", "s"]
    assert api.asked[0] == ("set_profile", ("fast",), {"watchdog_s": 6})
    assert isinstance(run(api, "profile", "--watchdog", "6").exception, InvalidInput)


# Why


def told(**changes: Any) -> pb.ExplainHaResourceResponse:
    fields: dict[str, Any] = {
        "resource": resource(remedies=["wait: HA goes on by itself"]),
        "placement": ["vm:100: n1 suits it"],
        "if_lost": ["it starts on n3 about 20 s after"],
        "fence_in_seconds": -1.0,
    }
    return pb.ExplainHaResourceResponse(**{**fields, **changes})


def test_an_explanation_reads_from_the_top() -> None:
    text = done(FakeApi(explain=told()), "explain", "vm:100").output
    order = ["vm:100 is started on n1: n1 runs it", "Why there:", "n1 suits it", "If n1 dies now:", "about 20 s",
             "What you can do:", "wait: HA goes on"]  # fmt: skip
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)


def test_a_countdown_is_followed_to_its_end() -> None:
    fence = told(resource=resource(state="fence"), fence_in_seconds=0.0)
    answers = [told(fence_in_seconds=2.5), told(fence_in_seconds=1.5), fence, told()]
    text = done(FakeApi(explain=answers), "explain", "vm:100", "--follow").output
    assert "n1 is silent; its guests may start elsewhere in 1.5 s" in text
    assert "n1 is being fenced now" in text
    assert text.splitlines()[-1] == "vm:100 is started on n1: n1 runs it"
    retried = told(resource=resource(state="error", retry_in_seconds=30.0))
    assert "it is tried again in 30 s" in done(FakeApi(explain=retried), "explain", "vm:100").output


def test_a_simulation_names_targets_time_and_what_is_lost() -> None:
    outcomes = [
        pb.HaOutcome(sid="vm:100", node="nodes/n2", target_node="nodes/n3", state="started", cause="free"),
        pb.HaOutcome(sid="vm:101", node="nodes/n2", state="recovery", cause="no room"),
    ]
    answer = pb.SimulateHaResponse(keeps_quorum=True, outcomes=outcomes, starts_after_seconds=20.0, unmanaged=["vm:9"])
    api = FakeApi(simulate=answer)
    text = done(api, "simulate", "--kill", "n2", "--kill", "n3").output
    assert api.asked == [("simulate", (("n2", "n3"),), {"any_nodes": 0})]
    assert [line.split()[:3] for line in text.splitlines()[1:3]] == [
        ["vm:100", "n2", "n3"],
        ["vm:101", "n2", "NOWHERE"],
    ]
    assert "about 20 s after the death of n2 and n3" in text
    assert "stay down: vm:9" in text
    lost = done(FakeApi(simulate=pb.SimulateHaResponse()), "simulate", "--kill", "n2").output
    assert "without n2 there is no majority" in lost
    assert isinstance(run(FakeApi(), "simulate").exception, InvalidInput)
    assert isinstance(run(FakeApi(), "simulate", "--kill", "n2", "--any", "1").exception, InvalidInput)


def test_the_reserve_is_told_in_the_status_and_asked_for_by_simulate() -> None:
    homeless = pb.HaOutcome(sid="vm:100", node="nodes/n1", cause="n2 has no room")
    losses = [
        pb.HaLoss(nodes=["nodes/n1", "nodes/n2"], message="without n1 and n2 there is no majority"),
        pb.HaLoss(nodes=["nodes/n1", "nodes/n3"], keeps_quorum=True, homeless=[homeless], message="vm:100 nowhere"),
    ]
    bad = pb.HaReserve(nodes=2, looked_at=3, every=3, losses=losses, loss_count=2)
    result = run(FakeApi(simulate=pb.SimulateHaResponse(reserve=bad)), "simulate", "--any", "2")
    assert isinstance(result.exception, Refused)
    assert "NOT for any 2 nodes: without n1 and n2 there is no majority (and 1 more such losses)" in result.output
    assert [line.split()[:4] for line in result.output.splitlines()[2:4]] == [
        ["n1", "n2", "all", "-"], ["n1", "n3", "vm:100", "n1"],
    ]  # fmt: skip
    good = pb.HaReserve(nodes=1, looked_at=3, every=3, survived=True)
    api = FakeApi(simulate=pb.SimulateHaResponse(reserve=good))
    assert "any node may die" in done(api, "simulate", "--any", "1").output
    assert api.asked == [("simulate", ((),), {"any_nodes": 1})]
    some = pb.HaReserve(nodes=2, looked_at=500, every=4950)
    assert "the 500 fullest of 4950" in done(FakeApi(status=state_of(reserve=some)), "status").output


def test_one_that_waits_says_for_whom_and_until_when() -> None:
    waits = resource(state="request_start", waits_for=["vm:9"], waits_at_most_seconds=250.0, retry_in_seconds=250.0)
    text = done(
        FakeApi(explain=pb.ExplainHaResourceResponse(resource=waits, fence_in_seconds=-1.0)), "explain", "vm:100"
    )
    assert "it waits for vm:9; in 4 min at the latest it waits no longer" in text.output
    later = pb.HaOutcome(
        sid="vm:101", node="nodes/n2", target_node="nodes/n3", cause="it is free", waits_for=["vm:9"], later_seconds=20
    )
    answer = pb.SimulateHaResponse(keeps_quorum=True, outcomes=[later], starts_after_seconds=20.0)
    assert "starts after vm:9, 20 s later" in done(FakeApi(simulate=answer), "simulate", "--kill", "n2").output


def test_records_are_a_table() -> None:
    record = pb.HaRecord(node="nodes/n1", kind="paused", text="paused: the lease is 8 s old", time=1_700_000_000.0)
    answer = pb.ListHaRecordsResponse(records=[record], silent_nodes=["nodes/n3"])
    api = FakeApi(records=answer)
    result = done(api, "records", "--node", "n1")
    assert result.stdout.splitlines()[1].endswith("n1    paused: the lease is 8 s old")
    assert "keepers of n3" in result.stderr
    assert api.asked == [("records", (), {"node": "n1"})]


# Help and completion


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(context):
        inner = group.get_command(context, name)
        found += leaves(inner, (*path, name)) if isinstance(inner, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", leaves(ha), ids=" ".join)
def test_every_command_has_an_example(path: tuple[str, ...]) -> None:
    output = CliRunner().invoke(root, ["ha", *path, "--help"]).output
    assert f"kvorum ha {' '.join(path)}" in output.partition("Example")[2]


def test_live_names_complete_and_silence_is_no_error() -> None:
    context = click.Context(
        ha, obj=SimpleNamespace(client=SimpleNamespace(ha=FakeApi(resources=(resource(), resource(sid="ct:7")))))
    )
    parameter: Any = None
    assert live_names.resources(context, parameter, "vm") == ["vm:100"]
    context.obj = SimpleNamespace(client=SimpleNamespace(ha=FakeApi(resources=Unreachable("nobody"))))
    assert live_names.resources(context, parameter, "") == []
