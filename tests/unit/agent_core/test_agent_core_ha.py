"""HaService over files in memory, with the real manager deciding about them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agent.operations import ha_commands
from agent.operations.ha_picture import Painter, keeps_quorum
from agent.services.ha import HaService
from clusterfs.client import Listing
from ha.black_box import STATUS_KEY, Shown
from ha.keeper.records import Record
from ha.leases import NORMAL
from ha.manager import decide
from ha.status import (
    MANAGER_STATUS,
    LrmStatus,
    ManagerStatus,
    NodeState,
    Remedy,
    Result,
    Service,
    State,
    lrm_status_path,
    render,
)
from kvorum.errors import AlreadyExists, InvalidInput, NotFound, Refused, StaleVersion
from kvorum.node import Identity
from kvorum.v1 import ha_pb2 as pb
from kvorum.v1 import replica_pb2, status_pb2, store_pb2

NAMES = ("n1", "n2", "n3")
SIDS = ("ct:101", "vm:100")


class Store:
    """What the agent and the manager use of the store's client."""

    def __init__(self) -> None:
        self.index = 10
        self.entries: dict[str, store_pb2.Entry] = {}
        self.reasons: list[str] = []
        self.ages = dict.fromkeys(NAMES, 0.5)
        self.connected = set(NAMES)
        # As `agent.publishing` tells them, by node.
        self.loads: dict[str, bytes] = {}

    def put(self, path: str, content: bytes | str) -> store_pb2.Entry:
        self.index += 1
        data = content.encode() if isinstance(content, str) else content
        self.entries[path] = store_pb2.Entry(path=path, content=data, version=self.index, placement=self.index)
        return self.entries[path]

    def text(self, path: str) -> str:
        return self.entries[path].content.decode()

    async def get(self, path: str, **_more: Any) -> store_pb2.Entry:
        if path not in self.entries:
            raise NotFound(path)
        return self.entries[path]

    async def get_at(self, path: str, **_more: Any) -> store_pb2.GetEntryResponse:
        return store_pb2.GetEntryResponse(entry=await self.get(path), applied_index=self.index)

    async def list(self, path: str = "", **_more: Any) -> Listing:
        below = [self.entries[name] for name in sorted(self.entries) if name.startswith(f"{path}/")]
        return Listing(tuple(below), self.index)

    async def write(
        self,
        path: str,
        content: bytes,
        *,
        expected_version: int | None = None,
        absent: bool = False,
        reason: str = "",
        **_more: Any,
    ) -> store_pb2.Entry:
        there = self.entries.get(path)
        if absent and there is not None:
            raise AlreadyExists(path)
        if expected_version and (there is None or there.version != expected_version):
            raise StaleVersion(path)
        self.reasons.append(reason)
        return self.put(path, content)

    async def status(self) -> replica_pb2.GetReplicaStatusResponse:
        members = [
            replica_pb2.Member(uid=f"u-{name}", name=name, voter=True, connected=name in self.connected)
            for name in NAMES
        ]
        return replica_pb2.GetReplicaStatusResponse(active=True, quorate=True, ready=True, members=members)

    async def list_leases(self) -> replica_pb2.ListLeasesResponse:
        terms = replica_pb2.LeaseTerms(
            pause_after_ms=int(NORMAL.pause_after_s * 1000), takeover_after_ms=int(NORMAL.takeover_after_s * 1000)
        )
        leases = [
            replica_pb2.Lease(uid=f"u-{name}", incarnation=1, renewal=4, age_seconds=age_s, terms=terms)
            for name, age_s in self.ages.items()
        ]
        return replica_pb2.ListLeasesResponse(leases=leases, leader=True, quorate=True)

    async def list_status(self, *, prefix: str, **_more: Any) -> status_pb2.ListStatusResponse:
        if prefix != STATUS_KEY:
            values = {
                name: status_pb2.StatusValue(key=f"{prefix}{name}", value=load) for name, load in self.loads.items()
            }
            nodes = [status_pb2.NodeStatus(node=name, values=[value]) for name, value in values.items()]
            return status_pb2.ListStatusResponse(nodes=nodes)
        records = (Record(kind="paused", cause="the lease is 8 s old", time=1000.0, number=1),)
        shown = Shown(
            phase="live",
            cause="",
            profile="normal",
            tolerates_s=8.0,
            takeover_after_s=18.018,
            watchdog="none: nothing resets this host",
            records=records,
        )
        value = status_pb2.StatusValue(key=STATUS_KEY, value=msgspec.json.encode(shown))
        odd = status_pb2.StatusValue(key=STATUS_KEY, value=b"[1]")
        nodes = [status_pb2.NodeStatus(node="n1", values=[value]), status_pb2.NodeStatus(node="n2", values=[odd])]
        return status_pb2.ListStatusResponse(nodes=nodes)


@pytest.fixture
def store() -> Store:
    """Both guests run on n1."""
    made = Store()
    made.put("nodes/n1/qemu-server/100.conf", "memory: 16\n")
    made.put("nodes/n1/lxc/101.conf", "memory: 16\n")
    made.put("nodes/n2/qemu-server/200.conf", "memory: 16\n")
    made.put("ha/resources.cfg", "vm: 100\n\tstate started\n\tcolour blue\n\nct: 101\n")
    services = {
        sid: Service(state=State.started, node="n1", uid=f"o-{sid}", incarnation=1, cause="n1 runs it", running=1)
        for sid in SIDS
    }
    status = ManagerStatus(
        master_node="n2", service_status=services, node_status=dict.fromkeys(NAMES, NodeState.online)
    )
    made.put(MANAGER_STATUS, render(status))
    for name in NAMES:
        results = {f"o-{sid}": Result(sid=sid, state="started", exit_code=0) for sid in SIDS} if name == "n1" else {}
        lrm = LrmStatus(state="active", incarnation=1, tracked=SIDS, results=results)
        made.put(lrm_status_path(name), render(lrm))
    return made


def identity() -> Identity:
    return Identity(uid="u-n2", name="n2", address="127.0.0.2", cluster_name="home")


@pytest.fixture
def service(store: Store) -> HaService:
    return HaService(cast(Any, store), identity)


@pytest.fixture
async def manager(store: Store) -> AsyncIterator[None]:
    """The real one, deciding whenever it can; it performs nothing."""

    async def run() -> None:
        painter = Painter(cast(Any, store))
        while True:
            picture = await painter.paint(identity())
            decision = decide(picture.view, time.time())
            if decision.status is not None:
                version = picture.view.status_version
                with contextlib.suppress(StaleVersion):
                    await store.write(MANAGER_STATUS, render(decision.status), expected_version=version)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(run())
    yield
    task.cancel()


def status_of(store: Store) -> ManagerStatus:
    return msgspec.json.decode(store.entries[MANAGER_STATUS].content, type=ManagerStatus)


def edit(store: Store, sid: str, **changes: Any) -> None:
    status = status_of(store)
    services = {**status.service_status, sid: msgspec.structs.replace(status.service_status[sid], **changes)}
    store.put(MANAGER_STATUS, render(msgspec.structs.replace(status, service_status=services)))


# Resources


async def test_a_resource_is_added_changed_and_removed_without_losing_anything(
    service: HaService, store: Store
) -> None:
    wish = pb.HaResource(sid="vm:200", max_restart=3, failback=False, priority=9, comment="mail")
    added = (await service.AddHaResource(pb.AddHaResourceRequest(resource=wish), None)).resource
    assert (added.request_state, added.max_restart, added.max_relocate, added.failback) == (
        pb.HA_REQUEST_STATE_STARTED, 3, 1, False,
    )  # fmt: skip
    assert "\tpriority 9\n" in store.text("ha/resources.cfg")
    change = pb.HaResource(sid="vm:100", request_state=pb.HA_REQUEST_STATE_DISABLED, max_relocate=0)
    changed = (await service.UpdateHaResource(pb.UpdateHaResourceRequest(resource=change), None)).resource
    assert (changed.request_state, changed.max_relocate) == (pb.HA_REQUEST_STATE_DISABLED, 0)
    await service.RemoveHaResource(pb.RemoveHaResourceRequest(sid="ct:101"), None)
    text = store.text("ha/resources.cfg")
    assert "colour blue" in text
    assert "state disabled" in text
    assert "ct: 101" not in text
    cleared = pb.HaResource(sid="vm:200", comment="")
    await service.UpdateHaResource(pb.UpdateHaResourceRequest(resource=cleared), None)
    assert "mail" not in store.text("ha/resources.cfg")
    assert [one.sid for one in (await service.ListHaResources(pb.ListHaResourcesRequest(), None)).resources] == [
        "vm:100", "vm:200",
    ]  # fmt: skip


def sized(store: Store, mib: int) -> None:
    """Nodes of so much memory, as they tell each other."""
    for name in NAMES:
        store.loads[name] = f"0:0:0:0:8:0.1:0:{mib << 20}:0".encode()


async def test_a_resource_that_takes_the_last_room_is_warned_of_and_refused_where_there_is_a_reserve(
    service: HaService, store: Store
) -> None:
    store.put("nodes/n2/qemu-server/200.conf", "memory: 24\n")
    sized(store, 24)
    wish = pb.HaResource(sid="vm:200")
    store.put("datacenter.cfg", "crs: reserve-nodes=1\n")
    with pytest.raises(Refused, match="reserve for the loss of 1 node "):
        await service.AddHaResource(pb.AddHaResourceRequest(resource=wish), None)
    assert "vm: 200" not in store.text("ha/resources.cfg")
    # One that is not to run takes no room.
    stopped = pb.HaResource(sid="vm:200", request_state=pb.HA_REQUEST_STATE_STOPPED)
    assert not (await service.AddHaResource(pb.AddHaResourceRequest(resource=stopped), None)).warnings
    await service.RemoveHaResource(pb.RemoveHaResourceRequest(sid="vm:200"), None)
    forced = await service.AddHaResource(pb.AddHaResourceRequest(resource=wish, force=True), None)
    assert len(forced.warnings) == 1
    assert "without n1, vm:100 would start nowhere" in forced.warnings[0]
    await service.RemoveHaResource(pb.RemoveHaResourceRequest(sid="vm:200"), None)
    store.put("datacenter.cfg", "")
    assert (await service.AddHaResource(pb.AddHaResourceRequest(resource=wish), None)).warnings == forced.warnings


async def test_the_status_tells_whether_any_node_may_die(service: HaService, store: Store) -> None:
    sized(store, 32)
    assert not (await service.GetHaStatus(pb.GetHaStatusRequest(), None)).HasField("reserve")
    asked = pb.GetHaStatusRequest(with_reserve=True)
    found = (await service.GetHaStatus(asked, None)).reserve
    assert (found.nodes, found.survived, found.every) == (1, True, 3)
    store.put("nodes/n1/qemu-server/100.conf", "memory: 64\n")
    found = (await service.GetHaStatus(asked, None)).reserve
    assert (found.survived, found.loss_count, list(found.losses[0].nodes)) == (False, 1, ["nodes/n1"])
    assert [one.sid for one in found.losses[0].homeless] == ["vm:100"]
    pairs = await service.SimulateHa(pb.SimulateHaRequest(any_nodes=2), None)
    assert {loss.keeps_quorum for loss in pairs.reserve.losses} == {False}
    for wrong in (pb.SimulateHaRequest(any_nodes=9), pb.SimulateHaRequest(any_nodes=1, killed_nodes=["n1"])):
        with pytest.raises(InvalidInput):
            await service.SimulateHa(wrong, None)


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (pb.HaResource(sid="ct:200"), InvalidInput),
        (pb.HaResource(sid="vm:300"), NotFound),
        (pb.HaResource(sid="vm:100"), AlreadyExists),
        (pb.HaResource(sid="vm:200", max_restart=11), InvalidInput),
        (pb.HaResource(sid="../x"), InvalidInput),
    ],
)
async def test_what_cannot_be_under_ha_is_refused_and_nothing_is_written(
    service: HaService, store: Store, wish: pb.HaResource, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await service.AddHaResource(pb.AddHaResourceRequest(resource=wish), None)
    assert store.reasons == []


# Status


async def test_the_status_says_everything_that_an_operator_needs(service: HaService, store: Store) -> None:
    edit(store, "vm:100", state=State.error, cause="no", retry_at=int(time.time()) + 100, remedies=(Remedy.disable,))
    store.ages["n3"] = 12.0
    store.put("ha/settings.cfg", "profile: normal\n")
    store.put("ha/rules.cfg", "node-affinity: x\n\tresources vm:100\n\tnodes n1:way-too-high\n")
    found = await service.GetHaStatus(pb.GetHaStatusRequest(), None)
    assert (found.quorate, found.manager_node, found.profile.name) == (True, "nodes/n2", "normal")
    assert found.profile.takeover_after_seconds == pytest.approx(18.018, abs=0.01)
    assert not found.HasField("disarm")
    first, _, third = found.nodes
    assert (first.name, first.state, first.fence_in_seconds, first.watchdog) == (
        "nodes/n1", "online", -1.0, "none: nothing resets this host",
    )  # fmt: skip
    assert third.fence_in_seconds == pytest.approx(6.018, abs=0.01)
    resource = found.resources[1]
    assert 90 < resource.retry_in_seconds <= 100
    assert "kvorum ha set vm:100 --state disabled" in resource.remedies[0]
    edit(store, "vm:100", state=State.request_start, remedies=(Remedy.wait,), is_stuck=True)
    stuck = (await service.GetHaStatus(pb.GetHaStatusRequest(), None)).resources[1]
    assert [line.split(",")[0].split(":")[0] for line in stuck.remedies] == ["start what it waits for", "wait"]
    assert any("x" in problem and "ha/rules.cfg" in problem for problem in found.problems)


async def test_a_profile_that_cannot_be_read_is_a_problem_and_hides_nothing_else(
    service: HaService, store: Store
) -> None:
    store.put("ha/settings.cfg", "profile: hasty\n")
    found = await service.GetHaStatus(pb.GetHaStatusRequest(), None)
    assert not found.profile.name
    assert len(found.resources) == 2
    assert any("hasty" in problem for problem in found.problems)


async def test_the_guests_files_are_read_anew_for_each_question(service: HaService, store: Store) -> None:
    before = await service.GetHaStatus(pb.GetHaStatusRequest(), None)
    store.put("nodes/n3/qemu-server/100.conf", store.entries.pop("nodes/n1/qemu-server/100.conf").content)
    after = await service.GetHaStatus(pb.GetHaStatusRequest(), None)
    assert (before.resources[1].node, after.resources[1].node) == ("nodes/n1", "nodes/n3")


async def test_a_store_that_was_recovered_to_an_earlier_state_is_shown_as_it_is(
    service: HaService, store: Store
) -> None:
    store.index += 1000
    store.put("ha/settings.cfg", "profile: fast\n")
    assert (await service.GetHaStatus(pb.GetHaStatusRequest(), None)).profile.name == "fast"
    # The same version with another content, in a log that is shorter now.
    store.entries["ha/settings.cfg"].content = b"profile: patient\n"
    store.put("nodes/n3/qemu-server/100.conf", store.entries.pop("nodes/n1/qemu-server/100.conf").content)
    store.index = 20
    found = await service.GetHaStatus(pb.GetHaStatusRequest(), None)
    assert (found.profile.name, found.resources[1].node) == ("patient", "nodes/n3")


async def test_questions_at_one_time_do_not_mix_their_answers(service: HaService, store: Store) -> None:
    asked = [service.GetHaStatus(pb.GetHaStatusRequest(), None) for _ in range(5)]
    assert {one.resources[1].node for one in await asyncio.gather(*asked)} == {"nodes/n1"}
    store.put("nodes/n3/qemu-server/100.conf", store.entries.pop("nodes/n1/qemu-server/100.conf").content)
    asked = [service.GetHaStatus(pb.GetHaStatusRequest(), None) for _ in range(5)]
    assert {one.resources[1].node for one in await asyncio.gather(*asked)} == {"nodes/n3"}


# Commands


@pytest.mark.usefixtures("manager")
async def test_a_migration_is_taken_up_by_the_manager_and_can_be_followed(service: HaService, store: Store) -> None:
    request = pb.MigrateHaResourceRequest(sid="vm:100", target_node="nodes/n3")
    command = (await service.MigrateHaResource(request, None)).command
    assert (command.text, command.state) == ("migrate vm:100 n3", "accepted")
    assert store.text(f"ha/commands/{command.id}") == "migrate vm:100 n3\n"
    assert status_of(store).service_status["vm:100"].target == "n3"
    again = (await service.GetHaCommand(pb.GetHaCommandRequest(id=command.id), None)).command
    assert (again.id, again.state) == (command.id, "accepted")


@pytest.mark.usefixtures("manager")
async def test_a_refusal_carries_the_managers_reason_and_a_remedy(service: HaService) -> None:
    with pytest.raises(Refused, match="vm:100 is on n1 already"):
        await service.RelocateHaResource(pb.RelocateHaResourceRequest(sid="vm:100", target_node="n1"), None)
    with pytest.raises(Refused, match="there is no node n9"):
        await service.SetHaMaintenance(pb.SetHaMaintenanceRequest(node="n9", enabled=True), None)
    with pytest.raises(Refused, match="not disarmed"):
        await service.ArmHa(pb.ArmHaRequest(), None)


@pytest.mark.usefixtures("manager")
async def test_maintenance_disarming_and_stopping_reach_the_manager(service: HaService, store: Store) -> None:
    enabled = await service.SetHaMaintenance(pb.SetHaMaintenanceRequest(node="n3", enabled=True), None)
    assert enabled.command.state == "done"
    assert status_of(store).is_drained("n3")
    await service.SetHaMaintenance(pb.SetHaMaintenanceRequest(node="n3", enabled=False), None)
    stopping = await service.StopHaResource(pb.StopHaResourceRequest(sid="ct:101", timeout_seconds=7), None)
    assert (stopping.command.text, stopping.command.state) == ("stop ct:101 7", "accepted")
    await service.DisarmHa(pb.DisarmHaRequest(for_seconds=600), None)
    found = await service.GetHaStatus(pb.GetHaStatusRequest(), None)
    assert found.disarm.mode == "freeze"
    assert 590 < found.disarm.arms_in_seconds <= 600
    await service.ArmHa(pb.ArmHaRequest(), None)
    assert status_of(store).disarm is None


async def test_without_a_manager_a_command_waits_and_says_so(store: Store) -> None:
    asked = await ha_commands.give(cast(Any, store), "arm-ha", patience_s=0.0)
    assert (asked.state, "no manager" in asked.cause) == ("waiting", True)
    assert (await ha_commands.look(cast(Any, store), asked.id)).state == "waiting"
    with pytest.raises(NotFound, match="nothing is known"):
        await ha_commands.look(cast(Any, store), "17")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ha_commands.move_text("migrate", "vm:100", "n2 arm-ha"),
        lambda: ha_commands.move_text("migrate", "vm:100\nstop", "n2"),
        lambda: ha_commands.stop_text("vm:100", -1),
        lambda: ha_commands.disarm_text("forever", 10),
        lambda: ha_commands.disarm_text("freeze", 0),
        lambda: ha_commands.disarm_text("freeze", 10**6),
    ],
)
def test_what_is_no_command_is_never_written(make: Any) -> None:
    with pytest.raises(InvalidInput):
        make()


# Rules


def near(name: str, nodes: dict[str, int], *, strict: bool = True) -> pb.AddHaRuleRequest:
    rule = pb.HaRule(
        id=name, kind="node-affinity", resources=["vm:100"], nodes=nodes, strict=strict, enabled=True, comment="c"
    )
    return pb.AddHaRuleRequest(rule=rule)


async def test_a_rule_is_added_replaced_listed_and_removed(service: HaService, store: Store) -> None:
    await service.AddHaRule(near("home", {"n1": 2, "n2": 0}), None)
    found = (await service.ListHaRules(pb.ListHaRulesRequest(), None)).rules[0]
    assert (dict(found.nodes), found.strict, found.enabled, found.comment) == ({"n1": 2, "n2": 0}, True, True, "c")
    found.enabled = False
    found.strict = False
    await service.ReplaceHaRule(pb.ReplaceHaRuleRequest(rule=found), None)
    again = (await service.ListHaRules(pb.ListHaRulesRequest(), None)).rules[0]
    assert (again.enabled, again.strict, again.weight) == (False, False, 100)
    with pytest.raises(AlreadyExists):
        await service.AddHaRule(near("home", {"n3": 0}), None)
    await service.RemoveHaRule(pb.RemoveHaRuleRequest(id="home"), None)
    assert store.text("ha/rules.cfg").strip() == ""
    with pytest.raises(NotFound):
        await service.RemoveHaRule(pb.RemoveHaRuleRequest(id="home"), None)


async def test_a_contradiction_is_refused_with_the_smallest_set_and_old_ones_hinder_nothing(
    service: HaService, store: Store
) -> None:
    store.put(
        "ha/rules.cfg",
        "node-affinity: harmless\n\tresources ct:101\n\tnodes n1,n2\n\tstrict 1\n\n"
        "node-affinity: home\n\tresources vm:100\n\tnodes n1\n\tstrict 1\n",
    )
    with pytest.raises(Refused) as refused:
        await service.AddHaRule(near("away", {"n2": 0}), None)
    assert refused.value.details["rules"] == "home,away"
    assert "harmless" not in str(refused.value)
    assert store.reasons == []
    # As a wish it is welcome; and one that came in by an editor's hand does not stand in the way of others.
    await service.AddHaRule(near("away", {"n2": 0}, strict=False), None)
    store.put(
        "ha/rules.cfg",
        store.text("ha/rules.cfg") + "\nnode-affinity: odd\n\tresources vm:100\n\tnodes n3\n\tstrict 1\n",
    )
    apart = pb.HaRule(
        id="apart", kind="resource-affinity", resources=SIDS, affinity="negative", strict=True, enabled=True
    )
    await service.AddHaRule(pb.AddHaRuleRequest(rule=apart), None)
    listed = await service.ListHaRules(pb.ListHaRulesRequest(), None)
    assert [list(conflict.rules) for conflict in listed.conflicts] == [["home", "odd"]]


async def test_a_start_order_is_written_and_one_that_closes_a_cycle_is_refused(
    service: HaService, store: Store
) -> None:
    rule = pb.HaRule(
        id="web", kind="start-order", resources=["ct:101"], after=["vm:100"], delay_seconds=20, enabled=True
    )
    answer = await service.AddHaRule(pb.AddHaRuleRequest(rule=rule), None)
    assert answer.rule == rule
    assert "start-order: web" in store.text("ha/rules.cfg")
    back = pb.HaRule(id="back", kind="start-order", resources=["vm:100"], after=["ct:101"], enabled=True)
    with pytest.raises(Refused) as refused:
        await service.AddHaRule(pb.AddHaRuleRequest(rule=back), None)
    assert refused.value.details["rules"] == "web,back"
    assert "vm:100 after ct:101 after vm:100" in str(refused.value)


async def test_a_dry_run_writes_nothing(service: HaService, store: Store) -> None:
    request = near("home", {"n1": 0})
    request.dry_run = True
    await service.AddHaRule(request, None)
    assert "ha/rules.cfg" not in store.entries


@pytest.mark.parametrize(
    "rule",
    [
        pb.HaRule(kind="node-affinity", resources=["vm:100"], nodes={"n1": 0}),
        pb.HaRule(id="a", kind="node-affinity", resources=["vm:100"]),
        pb.HaRule(id="a", kind="node-affinity", resources=["100"], nodes={"n1": 0}),
        pb.HaRule(id="a", kind="resource-affinity", resources=["vm:100"], affinity="negative"),
        pb.HaRule(id="a", kind="resource-affinity", resources=["vm:100", "ct:101"], affinity="sideways"),
        pb.HaRule(id="a", kind="affinity", resources=["vm:100"]),
        pb.HaRule(id="a", kind="start-order", resources=["vm:100"]),
        pb.HaRule(id="a", kind="start-order", resources=["vm:100"], after=["100"]),
        pb.HaRule(id="a", kind="start-order", resources=["vm:100"], after=["vm:100"]),
        pb.HaRule(id="a", kind="start-order", resources=["vm:100"], after=["ct:101"], delay_seconds=4000),
        pb.HaRule(
            id="a", kind="start-order", resources=["vm:100"], after=["ct:101"], delay_seconds=9, deadline_seconds=9
        ),
        pb.HaRule(id="a b\n", kind="node-affinity", resources=["vm:100"], nodes={"n1": 0}),
        pb.HaRule(id="a", kind="node-affinity", resources=["vm:100"], nodes={"n1": 5000}),
        pb.HaRule(id="a", kind="node-affinity", resources=["vm:100"], nodes={"n1": 0}, comment="a\n\tnodes n2"),
    ],
)
async def test_what_is_no_rule_is_refused(service: HaService, store: Store, rule: pb.HaRule) -> None:
    with pytest.raises(InvalidInput):
        await service.AddHaRule(pb.AddHaRuleRequest(rule=rule), None)
    assert "ha/rules.cfg" not in store.entries


# Profiles


async def test_a_profile_is_chosen_and_what_is_not_safe_is_not_written(service: HaService, store: Store) -> None:
    store.put("ha/settings.cfg", "# ours\ncolour: blue\n")
    chosen = (await service.SetHaProfile(pb.SetHaProfileRequest(name="fast"), None)).profile
    assert chosen.takeover_after_seconds == pytest.approx(9.51, abs=0.01)
    assert store.text("ha/settings.cfg") == "# ours\ncolour: blue\nprofile: fast\n"
    listed = (await service.ListHaProfiles(pb.ListHaProfilesRequest(), None)).profiles
    assert [(one.name, one.chosen) for one in listed] == [("fast", True), ("normal", False), ("patient", False)]
    for request in (pb.SetHaProfileRequest(name="normal", watchdog_seconds=3), pb.SetHaProfileRequest(name="hasty")):
        with pytest.raises(InvalidInput):
            await service.SetHaProfile(request, None)
    assert "fast" in store.text("ha/settings.cfg")


# What would be


async def test_a_simulation_answers_as_the_manager_would_and_writes_nothing(service: HaService, store: Store) -> None:
    found = await service.SimulateHa(pb.SimulateHaRequest(killed_nodes=["n1"]), None)
    assert found.keeps_quorum
    assert {one.sid: one.target_node for one in found.outcomes} == {"ct:101": "nodes/n3", "vm:100": "nodes/n2"}
    assert found.starts_after_seconds == pytest.approx(20.02, abs=0.1)
    lost = await service.SimulateHa(pb.SimulateHaRequest(killed_nodes=["n2", "nodes/n3"]), None)
    assert (lost.keeps_quorum, list(lost.unmanaged)) == (False, ["vm:200"])
    with pytest.raises(NotFound, match="there is no node n9"):
        await service.SimulateHa(pb.SimulateHaRequest(killed_nodes=["n9"]), None)
    assert store.reasons == []


def test_a_majority_is_counted_among_voters_that_answer() -> None:
    def replica(*members: tuple[str, bool, bool]) -> Any:
        return SimpleNamespace(
            members=[SimpleNamespace(name=name, voter=voter, connected=up) for name, voter, up in members]
        )

    two = replica(("n1", True, True), ("n2", True, True))
    assert not keeps_quorum(two, cast(Any, frozenset({"n1"})))
    witness = replica(("n1", True, True), ("n2", True, True), ("w", True, True))
    assert keeps_quorum(witness, cast(Any, frozenset({"n1"})))
    down = replica(("n1", True, True), ("n2", True, True), ("w", True, False))
    assert not keeps_quorum(down, cast(Any, frozenset({"n1"})))
    learner = replica(("n1", True, True), ("n2", False, True))
    assert keeps_quorum(learner, cast(Any, frozenset({"n2"})))


async def test_the_plan_of_a_maintenance_is_told_and_nothing_is_asked(service: HaService, store: Store) -> None:
    plan = await service.PlanHaMaintenance(pb.PlanHaMaintenanceRequest(node="n1"), None)
    assert {one.sid for one in plan.outcomes} == set(SIDS)
    assert all(one.target_node in ("nodes/n2", "nodes/n3") for one in plan.outcomes)
    store.ages["n3"] = 12.0
    with pytest.raises(Refused, match="n3 is not online"):
        await service.PlanHaMaintenance(pb.PlanHaMaintenanceRequest(node="n3"), None)
    assert store.reasons == []


async def test_a_simulation_knows_how_large_the_nodes_are(service: HaService, store: Store) -> None:
    store.put("nodes/n1/qemu-server/100.conf", "memory: 4096\n")
    gib = 1 << 30
    store.loads = {name: f"1:2:3:4:8:0:0:{size * gib}:0:0:0:0:0".encode() for name, size in (("n2", 2), ("n3", 64))}
    found = await service.SimulateHa(pb.SimulateHaRequest(killed_nodes=["n1"]), None)
    assert {one.sid: one.target_node for one in found.outcomes}["vm:100"] == "nodes/n3"


async def explain(service: HaService, sid: str = "vm:100") -> pb.ExplainHaResourceResponse:
    return await service.ExplainHaResource(pb.ExplainHaResourceRequest(sid=sid), None)


async def test_a_start_that_hangs_is_the_cause_that_an_explanation_names(store: Store) -> None:
    async def hung_since(node: str, vmid: int) -> float:
        return time.time() - 300.2 if (node, vmid) == ("n1", 100) else 0.0

    service = HaService(cast(Any, store), identity, hung_since)
    found = (await explain(service)).resource
    assert found.cause.startswith("the hypervisor on n1 has not ended its start for 300 s")
    assert len(found.remedies) == 1 and "switch n1 off" in found.remedies[0]
    assert "hypervisor" not in (await explain(service, "ct:101")).resource.cause
    store.ages["n1"] = 60.0
    assert "hypervisor" not in (await explain(service)).resource.cause, "nobody is asked who is silent"


async def test_an_explanation_says_why_what_if_and_when(service: HaService, store: Store) -> None:
    store.put("ha/rules.cfg", "node-affinity: home\n\tresources vm:100\n\tnodes n1,n3\n\tstrict 1\n")
    found = await explain(service)
    told = "\n".join(found.placement)
    assert "may run on n1, n3 only (home)" in told
    assert "n2" in told
    assert found.if_lost[0].startswith("it starts on n3 about 20 s after the death of n1")
    assert found.fence_in_seconds < 0
    with pytest.raises(NotFound, match="not managed"):
        await explain(service, "vm:200")


async def test_an_explanation_counts_down_while_a_node_is_silent(service: HaService, store: Store) -> None:
    store.ages["n1"] = 15.0
    found = await explain(service)
    assert found.fence_in_seconds == pytest.approx(3.018, abs=0.01)
    assert found.if_lost[0].startswith("n1 is silent: it starts on n")
    assert "in about 5 s" in found.if_lost[0]


async def test_an_explanation_names_what_blocks_a_recovery(service: HaService, store: Store) -> None:
    store.put("ha/rules.cfg", "node-affinity: home\n\tresources vm:100\n\tnodes n1\n\tstrict 1\n")
    found = await explain(service)
    assert "would not start elsewhere by itself" in found.if_lost[0]
    assert "home" in found.if_lost[0]
    assert any("loosen a rule" in line for line in found.if_lost)
    store.connected = {"n1", "n2"}
    assert "no majority" in (await explain(service)).if_lost[0]


async def test_an_explanation_of_what_is_stopped_or_disarmed_promises_nothing(service: HaService, store: Store) -> None:
    edit(store, "vm:100", state=State.stopped, cause="stop requested")
    assert "does not run" in (await explain(service)).if_lost[0]
    with contextlib.suppress(KeyError):
        edit(store, "vm:100", state=State.started)
    status = msgspec.json.decode(store.entries[MANAGER_STATUS].content)
    now = int(time.time())
    status["disarm"] = {"mode": "freeze", "state": "disarmed", "since": now, "for_s": 60}
    store.put(MANAGER_STATUS, msgspec.json.encode(status))
    assert "HA is disarmed" in (await explain(service)).if_lost[0]


async def test_records_of_keepers_are_told_and_silence_is_named(service: HaService) -> None:
    found = await service.ListHaRecords(pb.ListHaRecordsRequest(), None)
    assert [(one.node, one.text) for one in found.records] == [("nodes/n1", "paused: the lease is 8 s old")]
    assert list(found.silent_nodes) == ["nodes/n2", "nodes/n3"]
    assert not (await service.ListHaRecords(pb.ListHaRecordsRequest(node="n3"), None)).records
