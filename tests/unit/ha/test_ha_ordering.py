"""Who waits for whom: start-order rules and `startup` options in the manager's rounds, told as they go."""

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import pytest

from ha.foresight import play
from ha.leases import NORMAL, Lease
from ha.load import Demand, Use
from ha.manager import decide
from ha.manager.ordering import LEAVE_S, STARTUP_S, STOP_S
from ha.manager.round import in_order
from ha.resources import Request, Resource
from ha.rules import Affinity, ResourceAffinity, StartOrder, compile_rules
from ha.status import Disarm, DisarmState, LrmStatus, ManagerStatus, Mode, Remedy, Result, Service, State
from ha.view import Config, Node, Startup, View
from kvorum.ids import NodeName, NodeUid, Sid

DB, WEB, MAIL = Sid("vm:100"), Sid("vm:101"), Sid("ct:102")
SIDS = (DB, WEB, MAIL)
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
NOW = 1000.0


def order(*, then: Sid = WEB, first: Sid = DB, **more: object) -> StartOrder:
    return replace(StartOrder(f"{then}-after-{first}", frozenset({then}), frozenset({first})), **more)  # type: ignore[arg-type]


def node(name: NodeName, *, age_s: float = 0.5, incarnation: int = 1, fenced: bool = False) -> Node:
    lease = Lease(incarnation, 9, fenced, age_s, NORMAL.terms)
    return Node(name, NodeUid(f"u-{name}"), lease, LrmStatus(incarnation=incarnation, tracked=SIDS))


def view(services: Mapping[Sid, Service], *rules: StartOrder, **requests: Request) -> View:
    """`requests` by kind and number: vm100=Request.stopped. Each file lies where its order is."""
    services = {sid: msgspec.structs.replace(service, uid=f"{service.uid}-{sid}") for sid, service in services.items()}
    asked = {Sid(f"{name[:2]}:{name[2:]}"): request for name, request in requests.items()}
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=N3,
        nodes={name: node(name) for name in (N1, N2, N3)},
        resources={sid: Resource(sid, asked.get(sid, Request.started)) for sid in services},
        configs={sid: Config(NodeName(service.node), 5) for sid, service in services.items()},
        status=ManagerStatus(service_status=dict(services)),
        status_version=17,
        rules=compile_rules(rules, SIDS, (N1, N2, N3)),
    )


def entry(state: State, node: str = "n1", **more: object) -> Service:
    return msgspec.structs.replace(Service(state=state, node=node, uid=f"o-{node}-{state}", incarnation=1), **more)


def runs(node: str = "n1", since: int = 0) -> Service:
    return entry(State.started, node, running=1, running_since=since)


def after(view: View, now: float = NOW) -> View:
    status = decide(view, now).status
    return replace(view, status=status, status_version=view.status_version + 1) if status is not None else view


def next_of(view: View, sid: Sid = WEB, now: float = NOW) -> Service:
    return after(view, now).status.service_status[sid]


def answered(view: View, sid: Sid, exit_code: int = 0) -> View:
    """The order's node has answered it."""
    service = view.status.service_status[sid]
    held = view.nodes[NodeName(service.node)]
    result = Result(sid=sid, state=service.state, exit_code=exit_code)
    lrm = msgspec.structs.replace(held.lrm, results={**held.lrm.results, service.uid: result})
    return replace(view, nodes={**view.nodes, held.name: replace(held, lrm=lrm)})


@pytest.mark.parametrize(
    ("first", "is_strict", "waits"),
    [
        pytest.param(runs("n2"), False, False, id="it runs"),
        pytest.param(
            entry(State.migrate, "n2", cmd=("migrate", "n3"), target="n3"), True, False, id="carried over live"
        ),
        pytest.param(entry(State.started, "n2"), False, True, id="ordered, not answered"),
        pytest.param(entry(State.request_start, "n2"), False, True, id="about to start"),
        pytest.param(entry(State.recovery, "n2"), False, True, id="being recovered"),
        pytest.param(entry(State.fence, "n2"), False, True, id="its node is being fenced"),
        pytest.param(entry(State.error, "n2", retry_at=2000), False, False, id="soft: not for one in error"),
        pytest.param(entry(State.error, "n2", retry_at=2000), True, True, id="strict: for one in error too"),
    ],
)
def test_a_guest_starts_once_the_other_runs(first: Service, is_strict: bool, waits: bool) -> None:
    found = next_of(view({DB: first, WEB: entry(State.request_start)}, order(is_strict=is_strict)))
    assert found.state is (State.request_start if waits else State.started)
    assert (found.waits_for == (DB,)) is waits
    assert (f"{DB}, which is" in found.cause) is waits
    assert (found.wait_until == (0 if is_strict else NOW + 300)) or not waits


def test_a_stopped_one_holds_up_the_strict_only_and_they_say_what_to_do() -> None:
    held = {DB: entry(State.stopped), WEB: entry(State.request_start)}
    assert next_of(view(held, order(), vm100=Request.stopped)).state is State.started
    found = next_of(view(held, order(is_strict=True), vm100=Request.stopped))
    assert found.state is State.request_start
    assert (found.remedies, found.is_stuck) == ((Remedy.wait,), True)
    assert f"{DB}, which is requested" in found.cause


def test_what_ha_does_not_look_after_holds_up_nobody() -> None:
    today = view({DB: runs(), WEB: entry(State.request_start)}, order(is_strict=True), vm100=Request.ignored)
    gone = msgspec.structs.replace(today.status, service_status={WEB: today.status.service_status[WEB]})
    assert next_of(replace(today, status=gone)).state is State.started


def test_one_that_waits_does_so_under_an_order_that_its_node_can_answer() -> None:
    today = view({DB: entry(State.recovery, "n2"), WEB: entry(State.request_start)}, order(is_strict=True))
    waiting = after(today)
    back = replace(waiting, nodes={**waiting.nodes, N1: node(N1, incarnation=2)})
    found = next_of(back, now=NOW + 30)
    assert (found.state, found.incarnation, found.waits_for, found.wait_since) == (State.request_start, 2, (DB,), NOW)
    assert found.uid != waiting.status.service_status[WEB].uid


def test_it_runs_only_in_this_life_of_its_node_and_while_that_is_well() -> None:
    today = view({DB: runs("n2"), WEB: entry(State.request_start)}, order())
    assert next_of(today).state is State.started
    for late in (node(N2, age_s=NORMAL.pause_after_s + 0.1), node(N2, incarnation=2)):
        assert next_of(replace(today, nodes={**today.nodes, N2: late})).state is State.request_start


def test_a_guest_on_a_node_that_nobody_has_seen_alive_yet_does_not_count_as_up() -> None:
    """After a power cut of all nodes: it ran when the lights went out, and its node may never come back."""
    today = view({DB: runs("n2"), WEB: entry(State.request_start)}, order())
    lease = today.nodes[N2].lease
    assert lease is not None
    found = replace(today.nodes[N2], lease=replace(lease, is_unproven=True))
    assert next_of(replace(today, nodes={**today.nodes, N2: found})).state is State.request_start


def test_a_delay_counts_from_when_it_ran() -> None:
    today = view({DB: runs("n2", since=990), WEB: entry(State.request_start)}, order(delay_s=20))
    found = next_of(today)
    assert (found.state, found.retry_at) == (State.request_start, 1010)
    assert next_of(today, now=1009.9).state is State.request_start
    assert next_of(today, now=1010.0).state is State.started


def test_when_it_ran_is_written_down_and_outlives_a_live_migration() -> None:
    today = answered(view({DB: entry(State.started), WEB: runs()}, order()), DB)
    service = next_of(today, DB, 1000.2)
    assert (service.running, service.running_since) == (1, 1001)
    moving = entry(State.migrate, cmd=("migrate", "n2"), target="n2", running_since=1001)
    arrived = answered(view({DB: moving}), DB)
    arrived = replace(arrived, configs={DB: Config(N2, 6)})
    assert (next_of(arrived, DB).node, next_of(arrived, DB).running_since) == ("n2", 1001)
    # Not a restart.
    back = replace(view({DB: runs(since=900)}), nodes={N1: node(N1, incarnation=2)})
    assert next_of(back, DB).running_since == 0


def test_nobody_waits_for_ever_but_by_a_strict_rule_without_a_deadline() -> None:
    held = {DB: entry(State.recovery, "n2"), WEB: entry(State.request_start)}
    for rule, until in ((order(deadline_s=50), 1050), (order(), 1300), (order(is_strict=True, deadline_s=50), 1050)):
        waiting = after(view(held, rule))
        assert next_of(waiting, now=until - 0.1).state is State.request_start
        found = next_of(waiting, now=float(until))
        assert (found.state, found.cause) == (State.started, f"n1 shall run it; it has waited long enough for {DB}")
    assert next_of(after(view(held, order(is_strict=True))), now=1e6).state is State.request_start


def test_a_clock_that_was_set_back_begins_the_wait_anew() -> None:
    waiting = after(view({DB: entry(State.recovery, "n2"), WEB: entry(State.request_start)}, order()))
    again = after(waiting, 10.0)
    assert again.status.service_status[WEB].wait_since == 10
    assert next_of(again, now=310.0).state is State.started


def test_what_runs_already_is_not_held_up() -> None:
    """It came by live migration, say, while the other one was down; its node says so, and that ends no order."""
    waiting = after(view({DB: entry(State.recovery, "n2"), WEB: entry(State.request_start)}, order(is_strict=True)))
    assert next_of(waiting).state is State.request_start
    found = next_of(answered(waiting, WEB))
    assert found.state is State.started
    # One that runs is never touched by a rule.
    assert next_of(view({DB: entry(State.recovery, "n2"), WEB: runs()}, order(is_strict=True))).state is State.started


def test_before_a_disarm_only_strict_rules_hold_anybody_up() -> None:
    disarm = Disarm(mode="freeze", state=DisarmState.disarming, since=int(NOW), for_s=600)
    for is_strict, state in ((False, State.started), (True, State.request_start)):
        today = view({DB: entry(State.recovery, "n2"), WEB: entry(State.request_start)}, order(is_strict=is_strict))
        status = msgspec.structs.replace(today.status, disarm=disarm)
        assert next_of(replace(today, status=status)).state is state


def test_a_node_that_is_back_at_once_starts_themin_order() -> None:
    today = view({DB: runs(since=900), WEB: runs(since=900)}, order())
    back = replace(today, nodes={**today.nodes, N1: node(N1, incarnation=2)})
    begun = after(back)
    assert begun.status.service_status[DB].state is State.started
    assert begun.status.service_status[WEB].state is State.request_start
    assert next_of(after(answered(begun, DB))).state is State.started


def test_a_chain_starts_one_after_the_other() -> None:
    rules = (order(), order(then=MAIL, first=WEB))
    now = view(dict.fromkeys(SIDS, entry(State.request_start)), *rules)
    now = replace(now, configs=dict.fromkeys(SIDS, Config(N1, 5)))
    begun: list[Sid] = []
    for _ in range(8):
        now = after(now)
        for sid, service in now.status.service_status.items():
            if service.state is State.started and sid not in begun:
                begun.append(Sid(sid))
                now = answered(now, Sid(sid))
    assert begun == [DB, WEB, MAIL]


def test_who_is_waited_for_gets_room_before_those_that_wait() -> None:
    orders = compile_rules((order(), order(then=MAIL, first=WEB)), SIDS, (N1,)).orders
    resources = {sid: Resource(sid, priority=9 if sid == MAIL else 0) for sid in (*SIDS, Sid("vm:1"))}
    assert in_order(resources, {}, orders) == [DB, WEB, MAIL, "vm:1"]


def after_a_power_cut(*rules: StartOrder | ResourceAffinity, size: float = 0.0) -> View:
    """n1, which had what the others wait for, does not come back; n2 and n3 do. Everything that can be done has been done."""
    now = view({DB: runs("n1"), WEB: runs("n2"), MAIL: runs("n3")})
    nodes = {N1: node(N1, age_s=60.0), N2: node(N2, incarnation=2), N3: node(N3, incarnation=2)}
    nodes = {name: replace(one, capacity=Use(8.0, 8.0)) for name, one in nodes.items()}
    configs = {sid: replace(config, demand=Demand(Use(1.0, size))) for sid, config in now.configs.items()}
    now = replace(now, nodes=nodes, configs=configs, rules=compile_rules(rules, SIDS, (N1, N2, N3)))
    return play(now, NOW).end


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize(("is_apart", "size"), [(True, 0.0), (False, 6.0)], ids=["kept apart", "no room"])
def test_whoever_waits_keeps_nobody_from_a_place_for_whom_it_waits(
    is_strict: bool, is_apart: bool, size: float
) -> None:
    waits = StartOrder("after-db", frozenset({WEB, MAIL}), frozenset({DB}), is_strict=is_strict)
    apart = [ResourceAffinity("apart", frozenset(SIDS), Affinity.negative)] if is_apart else []
    found = after_a_power_cut(waits, *apart, size=size).status.service_status
    assert found[DB].state is State.started
    there = [found[sid] for sid in (WEB, MAIL) if found[sid].node == found[DB].node]
    assert [(one.state, Remedy.make_room in one.remedies) for one in there] == [(State.stopped, True)]
    (other,) = (found[sid] for sid in (WEB, MAIL) if found[sid].node != found[DB].node)
    assert other.state is State.started


def test_a_chain_makes_way_for_its_first_link() -> None:
    rules = (order(is_strict=True), order(then=MAIL, first=WEB, is_strict=True))
    found = after_a_power_cut(*rules, size=6.0).status.service_status
    assert [found[sid].state for sid in SIDS].count(State.started) == 2
    assert found[DB].state is State.started


# Stopping


def test_a_guest_stops_after_those_that_start_after_it() -> None:
    stops = {"vm100": Request.stopped, "vm101": Request.stopped}
    today = view({DB: runs(), WEB: runs("n2")}, order(), **stops)
    now = after(today)
    assert now.status.service_status[WEB].state is State.request_stop
    waiting = now.status.service_status[DB]
    assert (waiting.state, waiting.waits_for) == (State.started, (WEB,))
    assert waiting.cause == f"it waits {STOP_S} s at most before it stops: {WEB} stops first (rule {WEB}-after-{DB})"
    stopped = after(answered(now, WEB))
    assert stopped.status.service_status[WEB].state is State.stopped
    assert next_of(stopped, DB).state is State.request_stop
    assert next_of(now, DB, NOW + STOP_S).state is State.request_stop


def test_a_stop_waits_for_nobody_who_goes_on_running() -> None:
    assert next_of(view({DB: runs(), WEB: runs()}, order(), vm100=Request.stopped), DB).state is State.request_stop
    both = {"vm100": Request.disabled, "vm101": Request.stopped}
    assert next_of(view({DB: runs(), WEB: runs()}, order(), **both), DB).state is State.request_stop


def test_a_wish_to_run_ends_the_wait_to_stop() -> None:
    stops = {"vm100": Request.stopped, "vm101": Request.stopped}
    now = after(view({DB: runs(), WEB: runs("n2")}, order(), **stops))
    resources = {sid: Resource(sid) for sid in (DB, WEB)}
    found = next_of(answered(replace(now, resources=resources), DB), DB)
    assert (found.state, found.waits_for, found.retry_at) == (State.started, (), 0)


def test_a_node_that_goes_down_gives_them_away_in_reverse() -> None:
    today = view({DB: runs(), WEB: runs()}, order())
    down = replace(today.nodes[N1], lrm=msgspec.structs.replace(today.nodes[N1].lrm, mode=Mode.shutdown))
    today = answered(answered(replace(today, nodes={**today.nodes, N1: down}), DB), WEB)
    now = after(today)
    states = {sid: service.state for sid, service in now.status.service_status.items()}
    assert states == {DB: State.started, WEB: State.relocate}
    assert "stops first" in now.status.service_status[DB].cause
    assert next_of(answered(now, WEB), DB).state is State.relocate


def test_a_guest_whose_node_goes_down_waits_no_longer_than_it_says_and_says_so_once() -> None:
    today = view({DB: runs(), WEB: runs()}, order())
    down = replace(today.nodes[N1], lrm=msgspec.structs.replace(today.nodes[N1].lrm, mode=Mode.shutdown))
    # Whoever stops first never comes to an end.
    now = after(answered(answered(replace(today, nodes={**today.nodes, N1: down}), DB), WEB))
    held = now.status.service_status[DB]
    assert (held.waits_for, held.wait_since, held.wait_until) == ((WEB,), NOW, NOW + LEAVE_S)
    for later_s in range(1, LEAVE_S):
        assert decide(now, NOW + later_s).status is None
    assert next_of(now, DB, NOW + LEAVE_S).state is State.relocate


# Startup options


def recovering(*places: Startup) -> View:
    """They lost n1 together and are about to start on n2."""
    services = {sid: entry(State.recovery, "n1", target="n2", batch="n1/1") for sid in SIDS}
    today = view(services)
    configs = {sid: Config(N2, 6, startup=place) for sid, place in zip(SIDS, places, strict=True)}
    fenced = node(N1, age_s=NORMAL.takeover_after_s + 1, fenced=True)
    return replace(today, configs=configs, nodes={**today.nodes, N1: fenced})


def started_of(view: View) -> set[str]:
    return {sid for sid, service in view.status.service_status.items() if service.state is State.started}


def test_those_that_lost_their_node_together_start_by_their_options() -> None:
    now = after(recovering(Startup(2), Startup(1, up_s=10), Startup()))
    assert started_of(now) == {WEB}
    assert "startup order 1" in now.status.service_status[DB].cause
    now = after(answered(now, WEB))
    assert started_of(after(now)) == {WEB}
    now = after(now, NOW + 10)
    assert started_of(now) == {WEB, DB}
    now = after(answered(now, DB), NOW + 10)
    assert started_of(after(now, NOW + 10)) == set(SIDS)


def test_options_hold_nobody_up_for_long_and_not_for_one_that_fails() -> None:
    now = after(recovering(Startup(2), Startup(1, up_s=3600), Startup()))
    assert started_of(after(now, NOW + STARTUP_S)) == set(SIDS)
    failed = msgspec.structs.replace(now.status.service_status[WEB], state=State.error, retry_at=5000)
    status = msgspec.structs.replace(now.status, service_status={**now.status.service_status, WEB: failed})
    assert DB in started_of(after(replace(now, status=status)))


def test_without_options_all_start_at_once() -> None:
    assert started_of(after(recovering(Startup(), Startup(), Startup()))) == set(SIDS)


def test_a_rule_comes_before_options_that_say_the_opposite() -> None:
    today = recovering(Startup(9), Startup(1), Startup(5))
    now = after(replace(today, rules=compile_rules((order(),), SIDS, (N1, N2, N3))))
    # Who is waited for by a rule waits by rules only.
    assert started_of(now) == {DB}
    now = after(answered(now, DB))
    assert started_of(after(now)) == {DB, WEB}


def test_an_ordinary_start_asks_no_options() -> None:
    today = recovering(Startup(2), Startup(1), Startup())
    services = {sid: entry(State.request_start, "n2") for sid in SIDS}
    status = msgspec.structs.replace(today.status, service_status=services)
    assert started_of(after(replace(today, status=status))) == set(SIDS)


def test_a_reboot_starts_them_by_their_options() -> None:
    today = view({sid: runs(since=900) for sid in SIDS})
    configs = {sid: Config(N1, 5, startup=Startup(order)) for sid, order in zip(SIDS, (3, 2, 1), strict=True)}
    today = replace(today, configs=configs, nodes={**today.nodes, N1: node(N1, incarnation=2)})
    assert started_of(after(today)) == {MAIL}
