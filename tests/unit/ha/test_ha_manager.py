"""The manager's transitions: a view in, the next entry of `vm:100` out."""

from dataclasses import replace

import msgspec
import pytest

from ha.leases import FAST, Lease
from ha.manager import FenceLease, MoveConfig, decide, has_released
from ha.resources import Request, Resource
from ha.status import CAME_BACK, LrmStatus, ManagerStatus, Result, Service, State
from ha.view import Command, Config, Node, View, config_path, parse_config_path
from kvorum.errors import KvorumError
from kvorum.ids import NodeName, NodeUid, Sid

SID = Sid("vm:100")
N1, N2, N3 = NodeName("n1"), NodeName("n2"), NodeName("n3")
SILENT_S = FAST.takeover_after_s + 0.1


def _node(name: str, *, age_s: float = 0.5, tracked: bool = True, incarnation: int = 1, fenced: bool = False) -> Node:
    lrm = LrmStatus(incarnation=incarnation, tracked=(SID,) if tracked else (), uid=f"u-{name}")
    return Node(NodeName(name), NodeUid(f"u-{name}"), Lease(incarnation, 9, fenced, age_s, FAST.terms), lrm)


def _service(state: State, node: str = "n1", **more: object) -> Service:
    return msgspec.structs.replace(Service(state=state, node=node, uid="o1", incarnation=1), **more)


def _view(service: Service | None, *nodes: Node, place: str = "n1", request: Request | None = Request.started) -> View:
    every = {name: _node(name) for name in (N1, N2, N3)} | {node.name: node for node in nodes}
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=N3,
        nodes=every,
        resources={SID: Resource(SID, request)} if request is not None else {},
        configs={SID: Config(NodeName(place), 5)} if place else {},
        status=ManagerStatus(service_status={SID: service} if service else {}),
        status_version=17,
    )


def _answered(node: Node, exit_code: int, uid: str = "o1", cause: str = "", state: State = State.started) -> Node:
    result = Result(sid=SID, state=state, exit_code=exit_code, cause=cause)
    return replace(node, lrm=msgspec.structs.replace(node.lrm, results={uid: result}))


def _next(view: View, now: float = 1000.0) -> Service:
    status = decide(view, now).status
    return status.service_status[SID] if status is not None else view.status.service_status[SID]


FENCED_1 = _node("n1", age_s=SILENT_S, fenced=True)


@pytest.mark.parametrize(
    ("view", "state", "node"),
    [
        pytest.param(_view(None), State.started, "n1", id="a new resource starts where its file lies"),
        pytest.param(_view(None, request=Request.stopped), State.request_stop, "n1", id="a new stopped one stops"),
        pytest.param(_view(None, place=""), State.error, "", id="a resource without a guest is an error"),
        pytest.param(_view(None, _node("n1", tracked=False)), State.request_start, "n1", id="waits for the guard"),
        pytest.param(_view(None, _node("n1", age_s=4.0)), State.request_start, "n1", id="waits for a live lease"),
        pytest.param(_view(_service(State.started)), State.started, "n1", id="nothing happens"),
        pytest.param(_view(_service(State.started), _node("n1", age_s=9.0)), State.started, "n1", id="T is not over"),
        pytest.param(_view(_service(State.started), _node("n1", age_s=SILENT_S)), State.fence, "n1", id="T is over"),
        pytest.param(_view(_service(State.fence), FENCED_1), State.recovery, "n1", id="fenced, so it is free"),
        pytest.param(
            _view(_service(State.fence), _node("n1", age_s=SILENT_S, fenced=True, tracked=False)),
            State.fence, "n1", id="fenced, but it never guarded the guest",
        ),
        pytest.param(_view(_service(State.fence)), State.started, "n1", id="it renewed before the fence"),
        pytest.param(_view(_service(State.recovery, target="n2"), FENCED_1, place="n2"), State.started, "n2", id="moved"),
        pytest.param(
            _view(_service(State.started), place="n2"), State.migrate, "n1", id="the file lies elsewhere: let go first"
        ),
        pytest.param(
            _view(_service(State.migrate, target="n2"), _answered(_node("n1"), 0, state=State.migrate), place="n2"),
            State.started, "n2", id="let go, so it starts at the new place",
        ),
        pytest.param(
            _view(
                _service(State.migrate, target="n2"), _answered(_node("n1"), 0, uid="o0", state=State.migrate), place="n2"
            ),
            State.migrate, "n1", id="an answer to another order is none",
        ),
        pytest.param(_view(_service(State.started), request=Request.stopped), State.request_stop, "n1", id="stop"),
        pytest.param(
            _view(
                _service(State.request_stop), _answered(_node("n1"), 0, state=State.request_stop), request=Request.stopped
            ),
            State.stopped, "n1", id="stopped",
        ),
        pytest.param(_view(_service(State.stopped)), State.started, "n1", id="start of a stopped one"),
        pytest.param(
            _view(_service(State.started), _answered(_node("n1"), 1)), State.recovery, "n1", id="did not start here"
        ),
        pytest.param(
            _view(_service(State.started, failed_nodes=("n2",)), _answered(_node("n1"), 1)),
            State.error, "n1", id="did not start on two nodes",
        ),
        pytest.param(_view(_service(State.error, retry_at=1001)), State.error, "n1", id="error waits"),
        pytest.param(_view(_service(State.error, retry_at=1000)), State.started, "n1", id="error is tried again"),
        pytest.param(
            _view(_service(State.error, retry_at=999_999)), State.started, "n1", id="a clock set back delays no retry"
        ),
        pytest.param(
            _view(_service(State.started), _node("n1", incarnation=2)), State.started, "n1", id="a new life runs it again"
        ),
    ],
)  # fmt: skip
def test_the_next_state_is(view: View, state: State, node: str) -> None:
    service = _next(view)
    assert (service.state, service.node) == (state, node)
    assert decide(view, 1000.0) == decide(view, 1000.0)


def test_a_new_life_gets_a_new_order() -> None:
    service = _next(_view(_service(State.started), _node("n1", incarnation=2)))
    assert (service.incarnation, service.uid) == (2, "17-1000-vm:100")


def test_a_new_life_releases_no_guest() -> None:
    assert has_released(_node("n1", incarnation=2), SID, _service(State.started)) == ""


def test_a_later_life_that_was_fenced_releases_the_guest() -> None:
    assert has_released(_node("n1", incarnation=2, fenced=True), SID, _service(State.started)) != ""


def test_only_a_node_that_holds_up_a_guest_is_fenced_and_with_what_was_seen() -> None:
    view = _view(_service(State.started), _node("n1", age_s=SILENT_S), _node("n2", age_s=SILENT_S))
    (fence,) = decide(view, 1000.0).actions
    assert isinstance(fence, FenceLease)
    assert (fence.uid, fence.incarnation, fence.renewal) == ("u-n1", 1, 9)


def test_a_config_moves_only_after_the_recovery_is_committed() -> None:
    before = decide(_view(_service(State.fence), FENCED_1), 1000.0)
    assert before.actions == ()
    assert before.status is not None
    committed = replace(_view(None, FENCED_1), status=before.status)
    (move,) = decide(committed, 1000.0).actions
    assert isinstance(move, MoveConfig)
    assert (move.path, move.new_path, move.expected_version) == (
        "nodes/n1/qemu-server/100.conf",
        "nodes/n2/qemu-server/100.conf",
        5,
    )


def test_who_does_not_lead_or_has_no_majority_decides_nothing() -> None:
    view = _view(_service(State.started), _node("n1", age_s=SILENT_S))
    for other in (replace(view, is_leader=False), replace(view, is_quorate=False)):
        decision = decide(other, 1000.0)
        assert (decision.status, decision.actions) == (None, ())


def test_a_resources_file_that_does_not_parse_changes_nothing() -> None:
    view = replace(_view(_service(State.started)), resources=None)
    assert _next(view).state is State.started
    view = replace(_view(_service(State.stopped, request="stopped")), resources=None)
    assert _next(view).state is State.stopped
    dead = replace(_view(_service(State.recovery, request="stopped"), FENCED_1), resources=None)
    assert _next(dead).request == "stopped", "it was not wanted, wherever it is on its way to"


def test_a_removed_resource_is_forgotten() -> None:
    status = decide(_view(_service(State.started), request=None), 1000.0).status
    assert status is not None
    assert status.service_status == {}


@pytest.mark.parametrize("state", [State.started, State.migrate, State.request_stop])
def test_a_removed_resource_is_remembered_while_another_node_may_run_it(state: State) -> None:
    service = _next(_view(_service(state, target="n2"), place="n2", request=None))
    assert (service.state, service.node) == (State.migrate, "n1")


def test_a_removed_resource_is_forgotten_once_its_node_has_let_go() -> None:
    view = _view(_service(State.migrate), _answered(_node("n1"), 0, state=State.migrate), place="n2", request=None)
    status = decide(view, 1000.0).status
    assert status is not None
    assert status.service_status == {}


def test_a_removed_resource_on_a_silent_node_is_fenced_like_any_other() -> None:
    view = _view(_service(State.migrate, target="n2"), _node("n1", age_s=SILENT_S), place="n2", request=None)
    assert _next(view).state is State.fence


def test_the_reason_is_always_told() -> None:
    service = _next(_view(_service(State.fence), _node("n1", age_s=SILENT_S, fenced=True, tracked=False)))
    assert "never confirmed" in service.cause
    failed = _next(_view(_service(State.started), _answered(_node("n1"), 1, cause="no space left")))
    assert "no space left" in failed.cause


def test_the_pause_after_failures_doubles() -> None:
    pauses = []
    for failures in range(7):
        service = _service(State.started, failed_nodes=("n2",), failures=failures)
        pauses.append(_next(_view(service, _answered(_node("n1"), 1))).retry_at - 1000)
    assert pauses == [10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize(
    ("sid", "path"), [("vm:100", "nodes/n1/qemu-server/100.conf"), ("ct:7", "nodes/n1/lxc/7.conf")]
)
def test_the_path_of_a_config_names_its_guest(sid: str, path: str) -> None:
    try:
        assert config_path(sid, "n1") == path
    except KvorumError:
        assert sid == "ct:7", "too small a number for a guest"
        assert parse_config_path(path) is None
        return
    assert parse_config_path(path) == (sid, "n1")


@pytest.mark.parametrize("path", ["", "nodes/n1/lxc", "nodes/n1/lxc/x.conf", "nodes/n1/other/100.conf", "storage.cfg"])
def test_other_paths_are_no_guests(path: str) -> None:
    assert parse_config_path(path) is None


def _without_n1(view: View, left_s: float) -> View:
    members = {name: node for name, node in view.nodes.items() if name != "n1"}
    return replace(view, nodes=members, leaving_s={N1: left_s})


@pytest.mark.parametrize("state", [State.started, State.request_start, State.error])
def test_the_guests_of_a_removed_node_wait_until_its_keeper_has_surely_ended_them(state: State) -> None:
    view = _view(_service(state))
    waiting = decide(_without_n1(view, 0.0), 1000.0)
    assert waiting.status is not None
    entry = waiting.status.service_status[SID]
    assert (entry.state, entry.node, waiting.actions) == (state, "n1", ())
    assert "no member" in entry.cause
    freed = _next(_without_n1(view, -0.1))
    assert (freed.state, freed.target) == (State.recovery, "n2")


@pytest.mark.parametrize("state", [State.started, State.migrate, State.fence, State.request_stop])
def test_a_file_that_was_moved_away_from_a_removed_node_does_not_shorten_the_wait(state: State) -> None:
    view = _view(_service(state, target="n2" if state is State.migrate else ""), place="n2")
    assert _next(_without_n1(view, 1.0)).node == "n1"
    assert _next(_without_n1(view, -0.1)).node == "n2"


def _carried(view: View) -> Service:
    """The order of `vm:100` to migrate from n1 to n2, as an operator wants it."""
    command = Command("a", 5, "migrate vm:100 n2")
    entry = _next(replace(view, commands=(command,)))
    assert (entry.state, entry.node, entry.carried_to) == (State.migrate, "n1", "n2")
    return entry


def test_a_file_that_goes_on_from_a_migrations_target_leads_there_first() -> None:
    """The copy runs on n2 already when somebody moves the file on to n3, before the order has followed."""
    entry = _carried(_view(_service(State.started)))
    entry = _next(_view(entry, place="n3"))
    assert (entry.state, entry.node) == (State.migrate, "n1")
    source = _answered(_node("n1"), 0, uid=entry.uid, state=State.migrate)
    entry = _next(_view(entry, source, place="n3"))
    assert (entry.state, entry.node, entry.target) == (State.migrate, "n2", "n3"), "it may run there"
    assert _next(_view(entry, place="n3")) == entry
    entry = _next(_view(entry, _answered(_node("n2"), 0, uid=entry.uid, state=State.migrate), place="n3"))
    assert (entry.state, entry.node) == (State.started, "n3")


def test_a_file_that_came_back_from_a_migrations_target_leads_there_first() -> None:
    entry = _carried(_view(_service(State.started)))
    source = _answered(_node("n1"), CAME_BACK, uid=entry.uid, state=State.migrate)
    entry = _next(_view(entry, source))
    assert (entry.state, entry.node) == (State.migrate, "n2")
    target = _answered(_node("n2"), 0, uid=entry.uid, state=State.migrate)
    entry = _next(replace(_view(entry, source, target), status_version=18))
    assert (entry.state, entry.node, entry.carried_to) == (State.started, "n1", "")


def test_a_file_that_came_back_after_its_source_had_let_go_leads_to_the_target_first() -> None:
    entry = _carried(_view(_service(State.started)))
    source = _answered(_node("n1"), 0, uid=entry.uid, state=State.migrate)
    for request in (Request.started, None):
        asked = _next(_view(entry, source, request=request))
        assert (asked.state, asked.node) == (State.migrate, "n2"), "it may run there"
    target = _answered(_node("n2"), 0, uid=asked.uid, state=State.migrate)
    after = _next(replace(_view(asked, source, target), status_version=18))
    assert (after.state, after.node, after.carried_to) == (State.started, "n1", "")


def test_a_migration_under_way_is_not_forgotten_with_its_resource() -> None:
    entry = _carried(_view(_service(State.started)))
    assert _next(_view(entry, request=None)) == entry


def test_a_migration_that_failed_asks_nobody_else() -> None:
    entry = _carried(_view(_service(State.started)))
    view = _view(entry, _answered(_node("n1"), 1, uid=entry.uid, state=State.migrate))
    entry = _next(replace(view, status_version=18))
    assert (entry.state, entry.node, entry.carried_to) == (State.started, "n1", "")


@pytest.mark.parametrize("carried_to", ["n2", ""])
def test_a_failure_told_by_a_node_of_the_version_before_leads_to_the_migrations_target_first(carried_to: str) -> None:
    """There "failed" may also mean that the guest has left. What else it did not know, its orders do not say either."""
    entry = msgspec.structs.replace(_carried(_view(_service(State.started))), carried_to=carried_to)
    source = _answered(_node("n1"), 1, uid=entry.uid, state=State.migrate)
    source = replace(source, lrm=msgspec.structs.replace(source.lrm, uid=""))
    asked = _next(_view(entry, source))
    assert (asked.state, asked.node, asked.moves_failed) == (State.migrate, "n2", 1)
    target = _answered(_node("n2"), 0, uid=asked.uid, state=State.migrate)
    after = _next(replace(_view(asked, source, target), status_version=18))
    assert (after.state, after.node, after.moves_failed) == (State.started, "n1", 1), "it is not tried again at once"


def test_a_removed_resource_is_forgotten_only_when_a_migrations_target_has_let_go_too() -> None:
    entry = _carried(_view(_service(State.started)))
    source = _answered(_node("n1"), 0, uid=entry.uid, state=State.migrate)
    entry = _next(_view(entry, source, place="n3", request=None))
    assert (entry.state, entry.node) == (State.migrate, "n2")
    target = _answered(_node("n2"), 0, uid=entry.uid, state=State.migrate)
    status = decide(_view(entry, source, target, place="n3", request=None), 1000.0).status
    assert status is not None and not status.service_status


def test_a_migration_whose_source_dies_is_asked_about_at_its_target_before_a_third_node_gets_it() -> None:
    entry = _carried(_view(_service(State.started)))
    dead = _node("n1", age_s=SILENT_S, fenced=True)
    entry = _next(_view(entry, dead, place="n3"))
    assert (entry.state, entry.node) == (State.migrate, "n2")
