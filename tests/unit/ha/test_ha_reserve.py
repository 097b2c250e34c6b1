"""Whether any nodes may die: the same answer as that of the manager's own rounds, for every set of nodes."""

from dataclasses import replace
from itertools import combinations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha import foresight, reserve
from ha.leases import NORMAL, Lease
from ha.load import Demand, Mode, Use
from ha.options import Options
from ha.placement import Policy
from ha.resources import Resource
from ha.rules import Affinity, NodeAffinity, ResourceAffinity, Rule, compile_rules
from ha.status import LrmStatus, ManagerStatus, Result, Service, State
from ha.view import Config, Node, View
from kvorum.ids import NodeName, NodeUid, Sid

GIB = 1 << 30
NAMES = tuple(NodeName(f"n{number}") for number in range(1, 5))
SIDS = tuple(Sid(f"vm:{number}") for number in range(100, 106))


def view(
    places: dict[Sid, NodeName],
    *rules: Rule,
    gib: int = 4,
    sizes: dict[Sid, int] | None = None,
    names: tuple[NodeName, ...] = NAMES[:3],
    priorities: dict[Sid, int] | None = None,
) -> View:
    """Nodes of `gib`; guests of 1 GiB unless given. All is well."""
    services, nodes = {}, {}
    for sid, place in places.items():
        services[sid] = Service(state=State.started, node=place, uid=f"o-{sid}", incarnation=1, running=1)
    for name in names:
        results = {f"o-{sid}": Result(sid=sid, state="started", exit_code=0) for sid in places if places[sid] == name}
        lrm = LrmStatus(incarnation=1, tracked=tuple(places), results=results)
        lease = Lease(1, 9, False, 0.5, NORMAL.terms)
        nodes[name] = Node(name, NodeUid(f"u-{name}"), lease, lrm, Use(8, gib * GIB))
    demands = {sid: Demand(Use(1, (sizes or {}).get(sid, 1) * GIB)) for sid in places}
    return View(
        is_leader=True,
        is_quorate=True,
        self_node=names[0],
        nodes=nodes,
        resources={sid: Resource(sid, priority=(priorities or {}).get(sid, 0)) for sid in places},
        configs={sid: Config(place, 5, demand=demands[sid]) for sid, place in places.items()},
        status=ManagerStatus(service_status=services),
        status_version=17,
        rules=compile_rules(rules, tuple(places), names),
        options=Options(policy=Policy(Mode.static)),
    )


def always(_nodes: frozenset[NodeName]) -> bool:
    return True


A, B, C = SIDS[:3]
N1, N2, N3 = NAMES[:3]


def test_any_node_may_die_while_the_others_have_room() -> None:
    found = reserve.survey(view({A: N1, B: N2, C: N3}), 1, always)
    assert (found.is_survived, found.looked_at, found.every) == (True, 3, 3)


def test_what_is_not_borne_is_named_with_the_reason_and_the_worst_comes_first() -> None:
    full = view({A: N1, B: N1, C: N2, SIDS[3]: N3}, gib=3, sizes={C: 3})
    found = reserve.survey(full, 1, always)
    assert not found.is_survived
    assert [(loss.nodes, [one.sid for one in loss.homeless]) for loss in found.losses] == [((N2,), [C])]
    assert found.losses[0].homeless[0].node == N2
    assert "has no room" in found.losses[0].homeless[0].why
    both = reserve.survey(full, 2, always)
    assert (len(both.losses), both.every, both.losses[0].nodes) == (3, 3, (N1, N3))


def test_two_that_are_kept_apart_need_a_node_each() -> None:
    apart = ResourceAffinity("apart", frozenset({A, B}), Affinity.negative)
    assert reserve.survey(view({A: N1, B: N2}, apart), 1, always).is_survived
    lost = reserve.survey(view({A: N1, B: N2}, apart, names=NAMES[:2]), 1, always).losses
    assert [loss.nodes for loss in lost] == [(N1,), (N2,)]


def test_without_a_majority_nothing_is_asked() -> None:
    found = reserve.survey(view({A: N1}), 2, lambda nodes: N3 not in nodes)
    assert [(loss.nodes, loss.keeps_quorum) for loss in found.losses] == [((N1, N3), False), ((N2, N3), False)]


def test_who_comes_first_gets_the_room() -> None:
    full = view({A: N1, B: N1, C: N2}, gib=2, names=NAMES[:2], priorities={B: 5})
    (loss,) = (loss for loss in reserve.survey(full, 1, always).losses if loss.nodes == (N1,))
    assert [one.sid for one in loss.homeless] == [A]


def test_a_node_that_takes_no_guests_is_no_reserve_and_no_loss() -> None:
    silent = replace(view({A: N1}).nodes[N3], lease=None)
    today = view({A: N1})
    found = reserve.survey(replace(today, nodes={**today.nodes, N3: silent}), 1, always)
    assert found.every == 2


def test_guests_without_ha_take_room_where_they_are_known_to_run() -> None:
    today = view({A: N1, B: N2}, gib=2, names=NAMES[:2])
    assert reserve.survey(today, 1, always).is_survived
    other = Config(N2, 5, demand=Demand(Use(1, GIB)))
    for is_running, is_survived in ((True, False), (False, True), (None, True)):
        configs = {**today.configs, SIDS[5]: replace(other, is_running=is_running)}
        assert reserve.survey(replace(today, configs=configs), 1, always).is_survived is is_survived


def test_where_there_are_too_many_sets_it_is_not_called_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "MAX_SETS", 2)
    found = reserve.survey(view({A: N1, B: N2}), 1, always)
    assert (found.looked_at, found.every, found.losses, found.is_survived) == (2, 3, (), False)


def test_one_more_is_worse_where_it_takes_the_last_room() -> None:
    before, after = (view({A: N1, B: N2, **more}, gib=2) for more in ({}, {C: N3, SIDS[3]: N1, SIDS[4]: N2}))
    first, second = reserve.survey(before, 1, always), reserve.survey(after, 1, always)
    assert reserve.worse(first, second) == list(second.losses) != []
    assert reserve.worse(second, second) == []


def test_a_set_that_was_not_looked_at_before_says_nothing() -> None:
    before, after = (view({A: N1, B: N2, **more}, gib=2) for more in ({}, {C: N3, SIDS[3]: N1, SIDS[4]: N2}))
    first, second = reserve.survey(before, 1, always), reserve.survey(after, 1, always)
    half = replace(first, asked=frozenset({second.losses[0].nodes}))
    assert reserve.worse(half, second) == [second.losses[0]]


@st.composite
def views(draw: st.DrawFn) -> View:
    names = NAMES[: draw(st.integers(2, 4))]
    sids = SIDS[: draw(st.integers(1, 6))]
    places = {sid: draw(st.sampled_from(names)) for sid in sids}
    rules: list[Rule] = []
    for number in range(draw(st.integers(0, 2))):
        some = frozenset(draw(st.lists(st.sampled_from(SIDS), min_size=2, max_size=3, unique=True)))
        if draw(st.booleans()):
            nodes = draw(st.dictionaries(st.sampled_from(names), st.integers(0, 1), min_size=1))
            rules.append(NodeAffinity(f"r{number}", some, nodes, draw(st.booleans())))
        else:
            rules.append(ResourceAffinity(f"r{number}", some, draw(st.sampled_from(Affinity)), draw(st.booleans())))
    sizes = {sid: draw(st.integers(1, 3)) for sid in sids}
    priorities = {sid: draw(st.integers(0, 2)) for sid in sids}
    return view(places, *rules, gib=draw(st.integers(3, 9)), sizes=sizes, names=names, priorities=priorities)


@settings(max_examples=200, deadline=None)
@given(views(), st.integers(1, 2))
def test_it_says_what_the_managers_own_rounds_come_to(today: View, size: int) -> None:
    # A cluster in motion is another question.
    rested = foresight.play(today, 1000.0).end
    places = {sid: config.node for sid, config in rested.configs.items()}
    if any(one.state is not State.started for one in rested.status.service_status.values()):
        return
    rested = replace(
        rested,
        status=msgspec.structs.replace(
            rested.status,
            service_status={
                sid: msgspec.structs.replace(one, node=places[Sid(sid)])
                for sid, one in rested.status.service_status.items()
            },
        ),
    )
    found = {loss.nodes: {one.sid for one in loss.homeless} for loss in reserve.survey(rested, size, always).losses}
    for nodes in combinations(sorted(rested.nodes), size):
        outcomes = foresight.if_killed(rested, nodes, 1000.0)
        assert found.get(nodes, set()) == {one.sid for one in outcomes if not one.target}, nodes
