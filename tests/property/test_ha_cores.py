"""The HA cores under any input: what may never come out of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ha.keeper import core
from ha.lease_state import LIVE
from ha.leases import FAST, Lease
from ha.manager import FenceLease, MoveConfig, decide, has_released
from ha.options import Options
from ha.resources import Request, Resource, parse_resources
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, StartOrder, compile_rules
from ha.status import (
    Disarm,
    DisarmState,
    LrmStatus,
    ManagerStatus,
    Mode,
    Result,
    Service,
    State,
    parse_lrm_status,
    parse_manager_status,
    render,
)
from ha.view import Command, Config, Node, Startup, View
from kvorum.errors import ConfigError
from kvorum.ids import NodeName, NodeUid, Sid

SIDS = (Sid("vm:100"), Sid("ct:101"))
NAMES = ("n1", "n2", "n3")

results = st.builds(Result, sid=st.sampled_from(SIDS), state=st.sampled_from(State), exit_code=st.integers(0, 1))
services = st.builds(
    Service,
    state=st.sampled_from(State),
    node=st.sampled_from((*NAMES, "gone")),
    uid=st.sampled_from(("o1", "o2")),
    incarnation=st.integers(0, 3),
    target=st.sampled_from(("", *NAMES)),
    failed_nodes=st.lists(st.sampled_from(NAMES), max_size=2).map(tuple),
    failures=st.integers(0, 9),
    retry_at=st.integers(0, 2000),
    cmd=st.sampled_from(((), ("migrate", "n2"), ("relocate", "n3"), ("stop", "5"))),
    maintenance_node=st.sampled_from(("", *NAMES)),
    running=st.integers(0, 1),
    running_since=st.integers(980, 1010),
    waits_for=st.sampled_from(((), (SIDS[1],))),
    wait_since=st.integers(0, 1010),
    batch=st.sampled_from(("", "n1/1", "n2/2")),
)
statuses = st.builds(
    LrmStatus,
    results=st.dictionaries(st.sampled_from(("o1", "o2")), results, max_size=2),
    incarnation=st.integers(0, 3),
    tracked=st.lists(st.sampled_from(SIDS), unique=True).map(lambda sids: tuple(sorted(sids))),
    session=st.just("s"),
    mode=st.sampled_from(Mode),
)
disarms = st.none() | st.builds(
    Disarm,
    mode=st.just("freeze"),
    state=st.sampled_from(DisarmState),
    since=st.integers(900, 1100),
    for_s=st.integers(1, 200),
)
APART = ResourceAffinity("apart", frozenset(SIDS), Affinity.negative)
TOGETHER = ResourceAffinity("together", frozenset(SIDS), Affinity.positive)
ONLY = NodeAffinity("only", frozenset(SIDS[:1]), {NodeName("n1"): 0, NodeName("n2"): 1}, is_strict=True)
ORDER = StartOrder("order", frozenset(SIDS[:1]), frozenset(SIDS[1:]), delay_s=5, is_strict=True)
rule_sets = st.sampled_from(((), (APART,), (TOGETHER,), (ONLY,), (APART, ONLY), (ORDER,), (ORDER, ONLY)))
texts = st.sampled_from(
    (
        "migrate vm:100 n2",
        "relocate vm:100 n3",
        "stop vm:100 0",
        "enable-node-maintenance n1",
        "disarm-ha freeze 9",
        "arm-ha",
    )
)
leases = st.none() | st.builds(
    Lease, st.integers(1, 3), st.integers(0, 5), st.booleans(), st.floats(0, 20), st.just(FAST.terms)
)
startups = st.builds(Startup, st.none() | st.integers(0, 2), st.integers(0, 30))


@st.composite
def views(draw: st.DrawFn) -> View:
    nodes = {}
    for name in NAMES:
        nodes[NodeName(name)] = Node(NodeName(name), NodeUid(f"u-{name}"), draw(leases), draw(statuses))
    requests = draw(st.dictionaries(st.sampled_from(SIDS), st.sampled_from(Request)))
    places = draw(st.dictionaries(st.sampled_from(SIDS), st.sampled_from(NAMES)))
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=NodeName("n1"),
        nodes=nodes,
        resources={sid: Resource(sid, request) for sid, request in requests.items()},
        configs={sid: Config(NodeName(place), 3, startup=draw(startups)) for sid, place in places.items()},
        status=ManagerStatus(
            service_status=draw(st.dictionaries(st.sampled_from(SIDS), services)),
            disarm=draw(disarms),
            node_request=draw(st.sampled_from(({}, {"n1": {"maintenance": 1}}))),
        ),
        status_version=7,
        commands=tuple(Command(f"c{number}", 3, text) for number, text in enumerate(draw(st.lists(texts, max_size=2)))),
        rules=compile_rules(draw(rule_sets), SIDS, [NodeName(name) for name in NAMES]),
        options=Options(rebalances_on_start=draw(st.booleans())),
    )


def _may_run_on(view: View, sid: str, service: Service | None) -> str:
    """The node on which the committed order may still run the guest; empty when it has let go."""
    if service is None or service.state in (State.stopped, State.recovery):
        return ""
    return "" if has_released(view.nodes.get(NodeName(service.node)), sid, service) else service.node


@settings(max_examples=400, deadline=None)
@given(views())
def test_no_order_goes_to_a_second_node_before_the_first_has_let_go(view: View) -> None:
    decision = decide(view, 1000.0)
    after = decision.status.service_status if decision.status is not None else view.status.service_status
    for sid, service in after.items():
        before = view.status.service_status.get(sid)
        holder = _may_run_on(view, sid, before)
        if service.state in (State.request_start, State.started) and holder:
            assert service.node == holder


@settings(max_examples=400, deadline=None)
@given(views())
def test_an_order_to_start_is_only_given_to_a_node_that_lives_and_guards_the_guest(view: View) -> None:
    decision = decide(view, 1000.0)
    for sid, service in (decision.status.service_status if decision.status is not None else {}).items():
        before = view.status.service_status.get(sid)
        if service.state is State.started and (before is None or service.uid != before.uid):
            node = view.nodes[NodeName(service.node)]
            assert node.lease is not None
            assert not node.lease.is_fenced
            assert node.lease.age_s < FAST.pause_after_s
            assert (sid in node.lrm.tracked, node.lease.incarnation) == (True, service.incarnation)


@settings(max_examples=400, deadline=None)
@given(views())
def test_a_strict_order_is_never_kept_by_a_guess(view: View) -> None:
    """The dependent gets no new order to start, unless the other one is known to run or its own node says that it runs itself."""
    then, first = SIDS
    if not view.rules.orders.waits.get(then):
        return
    decision = decide(view, 1000.0)
    before, other = view.status.service_status.get(then), view.status.service_status.get(first)
    new = decision.status.service_status.get(then) if decision.status is not None else None
    if new is None or new.state is not State.started or (before is not None and before.uid == new.uid):
        return
    held = view.nodes.get(NodeName(before.node)) if before is not None else None
    said = held.lrm.results.get(before.uid) if held is not None and before is not None else None
    if said is not None and said.state == State.request_start and said.exit_code == 0:
        return
    assert other is not None
    assert other.state is State.started or (other.state is State.migrate and other.cmd)
    node = view.nodes[NodeName(other.node)]
    assert node.lease is not None
    assert (node.lease.incarnation, node.lease.is_fenced) == (other.incarnation, False)


@settings(max_examples=300, deadline=None)
@given(views())
def test_actions_follow_only_from_what_may_be_done(view: View) -> None:
    for action in decide(view, 1000.0).actions:
        match action:
            case FenceLease():
                lease = view.nodes[action.node].lease
                assert lease is not None
                assert lease.age_s > FAST.takeover_after_s
                assert (lease.incarnation, lease.renewal) == (action.incarnation, action.renewal)
            case MoveConfig():
                entry = view.status.service_status[action.sid]
                assert entry.state is State.recovery or not _may_run_on(view, action.sid, entry)
                assert not view.status.is_disarmed
                assert view.configs[action.sid].version == action.expected_version


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.sampled_from("trafgl"), st.booleans(), st.floats(0, 5)), max_size=40))
def test_the_keeper_never_trusts_a_lease_longer_than_it_may(script: list[tuple[float, str, bool, float]]) -> None:
    now, state = 100.0, core.State(phase=core.KILLED, ending_since=100.0)
    last_sent = 0.0
    for delay_s, kind, is_running, ago_s in script:
        now += delay_s
        events: dict[str, core.Event] = {
            "t": core.Tick(is_running),
            "r": core.Renewed(now - ago_s, state.incarnation, ago_s - 1),
            "a": core.Acquired(now - ago_s, state.incarnation + 1),
            "f": core.Failed("no answer"),
            "g": core.Refused(now - ago_s, state.incarnation),
            "l": core.GuestsLoaded(1, ("vm:100",)),
        }
        if kind in "ra":
            last_sent = max(last_sent, now - ago_s)
        state, actions = core.step(state, events[kind], now)
        if state.phase == LIVE:
            assert now - last_sent <= state.profile.pause_after_s
        if core.PetWatchdog() in actions:
            assert state.phase in (LIVE, core.NONE)
        if any(isinstance(action, core.Acquire) for action in actions):
            assert state.phase == core.NONE


@given(st.binary(max_size=200))
def test_any_bytes_are_a_status_or_a_config_error(content: bytes) -> None:
    for parse in (parse_manager_status, lambda data: parse_lrm_status(data, "nodes/n1/lrm_status")):
        try:
            status = parse(content)
        except ConfigError:
            continue
        assert parse(render(status)) == status


@given(st.dictionaries(st.sampled_from(SIDS), services), statuses)
def test_what_is_rendered_is_parsed_back(entries: dict[str, Service], lrm: LrmStatus) -> None:
    status = ManagerStatus(service_status=entries)
    assert parse_manager_status(render(status)) == status
    assert parse_lrm_status(render(lrm), "x") == lrm


@given(st.text(alphabet="vmct: 10\n\tstateredopx_#", max_size=80))
def test_any_text_is_resources_or_a_config_error(text: str) -> None:
    try:
        found = parse_resources(text)
    except ConfigError:
        return
    assert all(sid == resource.sid for sid, resource in found.items())
