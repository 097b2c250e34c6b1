"""HA on real nodes: whatever ends a node, a daemon or a guest, the guest runs on, and never on two nodes at one time.

One lab for the whole module; a watcher that believes nobody looks at the processes of all nodes from the first test to the
last. Where a guest is at the beginning of a test is whatever the test before left; each asks.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from cluster.guest_lab import BUSYBOX, SHARED_TEMPLATE, beats, client_of, micro, until

import kvorum
from kvorum.errors import KvorumError, NotFound
from kvorum.v1 import guest_pb2, ha_pb2
from lab.cluster import Lab
from lab.node import Node
from lab.single_run import SingleRunWatch

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

VM, CONTAINER = "vm:100", "ct:101"
SIDS = (VM, CONTAINER)
STATE_FILE = "/run/kvorum/keeper/state.json"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"wha{secrets.token_hex(2)}") as one:
        one.up(3)
        with client_of(one.node("n1")) as client:
            client.tasks.wait(client.guests.create(100, guest_pb2.GUEST_KIND_VM, micro("shared"), node="n1"))
            box = {**BUSYBOX, "rootfs": "shared:0.1"}
            kind = guest_pb2.GUEST_KIND_CONTAINER
            client.tasks.wait(client.guests.create(101, kind, box, node="n1", template=SHARED_TEMPLATE))
            one.node("n1").run(
                ["sh", "-c", "mkdir -p /etc/kvorum/ha && echo profile: fast >/etc/kvorum/ha/settings.cfg"]
            )
            for sid in SIDS:
                client.ha.add(sid)
        yield one
    assert one.leftovers() == []


@pytest.fixture(scope="module")
def watch(lab: Lab) -> Iterator[SingleRunWatch]:
    with SingleRunWatch(lab.layout) as one:
        yield one


@pytest.fixture(autouse=True)
def all_is_well_before_and_nothing_ran_twice(lab: Lab, watch: SingleRunWatch) -> Iterator[None]:
    lab.heal()
    for node in lab.nodes:
        if not node.is_on:
            node.start()
    until(lambda: is_all_well(lab, watch), "three nodes online and both guests started")
    yield
    assert watch.doubles == []


def test_both_guests_of_a_dead_node_run_elsewhere_and_its_return_does_not_touch_them(
    lab: Lab, watch: SingleRunWatch
) -> None:
    victim = owner(lab, VM)
    assert owner(lab, CONTAINER).name == victim.name
    victim.kill()
    for sid in SIDS:
        runs_elsewhere(lab, watch, sid, victim)
    until(lambda: all(is_started(lab, sid) for sid in SIDS), "both started")
    before = {sid: (owner(lab, sid).name, pid(lab, sid)) for sid in SIDS}
    victim.start()
    until(lambda: is_all_well(lab, watch), "the node's return")
    assert {sid: (owner(lab, sid).name, pid(lab, sid)) for sid in SIDS} == before


def test_a_live_migration_takes_the_guest_along_unharmed_and_ha_follows(lab: Lab, watch: SingleRunWatch) -> None:
    source = owner(lab, VM)
    target = next(node for node in lab.nodes if node.name != source.name)
    boot, count = newest_beat(lab)
    migrate(lab, target)
    assert watch.where(VM) == {target.name}
    # Some rounds later, too: HA has nothing to mend.
    goes_on(lab, boot, count + 4)
    assert (owner(lab, VM).name, is_started(lab, VM)) == (target.name, True)


def test_the_death_of_the_managers_own_node_is_survived_too(lab: Lab, watch: SingleRunWatch) -> None:
    victim = manager(lab)
    if owner(lab, VM).name != victim.name:
        migrate(lab, victim)
    assert manager(lab).name == victim.name
    victim.kill()
    runs_elsewhere(lab, watch, VM, victim)
    until(lambda: is_started(lab, VM), "the guest started")
    assert manager(lab).name != victim.name


def test_a_node_cut_off_has_ended_its_guest_before_another_starts_it(lab: Lab, watch: SingleRunWatch) -> None:
    victim = owner(lab, VM)
    begin = len(watch.samples)
    lab.cut(victim.name)
    new = runs_elsewhere(lab, watch, VM, victim)
    until(lambda: seen(watch, begin, VM, new), "the watcher's look at it")
    assert max(seen(watch, begin, VM, victim.name)) < min(seen(watch, begin, VM, new))
    assert victim.is_on, "a node that ends its guests in time is not reset"
    lab.heal(victim.name)
    until(lambda: is_all_well(lab, watch), "the node's return")
    assert owner(lab, VM).name == new


def test_a_node_frozen_for_long_loses_its_power_and_its_guests_run_once(lab: Lab, watch: SingleRunWatch) -> None:
    victim = owner(lab, VM)
    begin = len(watch.samples)
    victim.freeze()
    new = runs_elsewhere(lab, watch, VM, victim)
    until(lambda: seen(watch, begin, VM, new), "the watcher's look at it")
    # Frozen processes are there and do not count as stopped for the watcher: they must be gone.
    assert max(seen(watch, begin, VM, victim.name)) < min(seen(watch, begin, VM, new))
    with pytest.raises(NotFound, match="its watchdog cut its power"):
        victim.thaw()
    assert "did not feed its watchdog" in lab.status()["nodes"][victim.layout.number - 1]["cause"]
    victim.start()
    until(lambda: is_all_well(lab, watch), "the node's return")
    assert owner(lab, VM).name == new
    assert lab.status()["nodes"][victim.layout.number - 1]["cause"] == ""


def test_a_node_whose_keeper_is_gone_for_good_loses_its_power_and_its_guests_run_once(
    lab: Lab, watch: SingleRunWatch
) -> None:
    victim = owner(lab, VM)
    victim.stop_unit("keeper")
    runs_elsewhere(lab, watch, VM, victim)
    assert not victim.is_on
    assert "did not feed its watchdog" in lab.status()["nodes"][victim.layout.number - 1]["cause"]


def test_a_node_frozen_for_a_moment_goes_on_with_its_guests(lab: Lab) -> None:
    node = owner(lab, VM)
    boot, count = newest_beat(lab)
    number = pid(lab, VM)
    node.freeze()
    time.sleep(1.5)
    node.thaw()
    renewed(node)
    goes_on(lab, boot, count + 1)
    assert (owner(lab, VM).name, pid(lab, VM)) == (node.name, number)


@pytest.mark.parametrize("unit", ["clusterfs", "agent", "ha", "keeper", "libvirtd"])
def test_no_daemons_restart_or_death_touches_a_guest(lab: Lab, unit: str) -> None:
    node = owner(lab, VM)
    boot, count = newest_beat(lab)
    number = pid(lab, VM)
    node.restart(unit)
    renewed(node)
    starts = node.unit(unit)["starts"]
    node.kill_unit(unit)
    until(lambda: node.unit(unit)["starts"] > starts, "its next start")
    renewed(node)
    node.wait_ready([unit])
    until(lambda: is_started(lab, VM), "HA in charge")
    goes_on(lab, boot, count + 2)
    assert (owner(lab, VM).name, pid(lab, VM)) == (node.name, number)


def test_a_guest_that_dies_on_a_live_node_is_started_there_again(lab: Lab) -> None:
    node = owner(lab, VM)
    boot, _ = newest_beat(lab)
    node.run(["kill", "-9", str(pid(lab, VM))])
    until(lambda: has_booted_anew(lab, boot), "the guest's next boot")
    assert owner(lab, VM).name == node.name


def test_a_guest_is_stopped_and_started_by_what_is_asked_of_ha(lab: Lab, watch: SingleRunWatch) -> None:
    node = owner(lab, VM)
    boot, _ = newest_beat(lab)
    node.run(["kvorum", "ha", "set", VM, "--state", "stopped"])
    until(lambda: resource(lab, VM).state == "stopped" and not watch.where(VM), "the guest's end")
    node.run(["kvorum", "ha", "set", VM, "--state", "started"])
    until(lambda: has_booted_anew(lab, boot), "the guest's next boot")
    until(lambda: is_started(lab, VM), "HA in charge")


def test_one_starts_after_the_other_and_stops_before_it(lab: Lab, watch: SingleRunWatch) -> None:
    """Asked for, and when their node dies; what is told before is what happens."""
    operator = next(node for node in lab.nodes if node.name != owner(lab, VM).name)
    rule = ("start-order", "order", "--resources", CONTAINER, "--after", VM)
    kvorum_ha(operator, "rule", "add", *rule, "--delay", "4", "--strict")
    refused = kvorum_ha(
        operator, "rule", "add", "start-order", "back", "--resources", VM, "--after", CONTAINER, fails=True
    )
    assert f"{VM} after {CONTAINER} after {VM}" in refused
    begin = len(watch.samples)
    with client_at(lab) as client:
        # The other way round the first would have stopped before anybody knew that both shall.
        for sid in SIDS[::-1]:
            client.ha.set_state(sid, ha_pb2.HA_REQUEST_STATE_STOPPED)
    until(lambda: all(resource(lab, sid).state == "stopped" and not watch.where(sid) for sid in SIDS), "their end")
    ends = {sid: max(time_s for node in lab.nodes for time_s in seen(watch, begin, sid, node.name)) for sid in SIDS}
    assert ends[CONTAINER] < ends[VM]
    starts_in_order(lab, watch, lambda: [kvorum_ha(operator, "set", sid, "--state", "started") for sid in SIDS[::-1]])
    victim = owner(lab, VM)
    if owner(lab, CONTAINER).name != victim.name:
        migrate(lab, lab.node(owner(lab, CONTAINER).name))
        victim = owner(lab, VM)
    asker = next(node for node in lab.nodes if node.name != victim.name)
    assert f"starts after {VM}" in kvorum_ha(asker, "simulate", "--kill", victim.name)
    assert "may die" in kvorum_ha(asker, "status")
    starts_in_order(lab, watch, victim.kill)
    kvorum_ha(asker, "rule", "remove", "order")


def starts_in_order(lab: Lab, watch: SingleRunWatch, cause: Callable[[], object]) -> None:
    """The container starts at least the rule's delay after the VM, but for the watcher's interval."""
    begin = len(watch.samples)
    before = watch.samples[-1].runs
    cause()

    def starts(sid: str) -> list[float]:
        samples = watch.samples[begin:]
        return [one.time_s for one in samples if any(run.sid == sid and run not in before for run in one.runs)]

    until(lambda: all(starts(sid) for sid in SIDS), "both running anew")
    until(lambda: all(is_started(lab, sid) for sid in SIDS), "HA in charge of both")
    assert starts(CONTAINER)[0] - starts(VM)[0] > 3.8


def test_an_operator_asks_plans_and_moves_and_the_cluster_does_what_was_foretold(
    lab: Lab, watch: SingleRunWatch
) -> None:
    """add, rule, explain, maintenance, migrate, disarm and arm, and a death that comes as it was simulated."""
    operator = next(node for node in lab.nodes if node.name != owner(lab, VM).name)
    kvorum_ha(operator, "remove", CONTAINER)
    kvorum_ha(operator, "add", CONTAINER, "--max-relocate", "2", "--comment", "of the operator")
    until(lambda: is_started(lab, CONTAINER), "the container under HA again")
    both = ("--resources", f"{VM},{CONTAINER}")
    kvorum_ha(operator, "rule", "add", "resource-affinity", "apart", *both, "--affinity", "negative")
    until(lambda: owner(lab, VM).name != owner(lab, CONTAINER).name and is_all_well(lab, watch), "them apart")
    pair = ("rule", "add", "resource-affinity", "pair", *both, "--affinity", "positive")
    refused = kvorum_ha(operator, *pair, fails=True)
    assert "apart (ct:101, vm:100 apart) and pair (ct:101, vm:100 together)" in refused

    # Maintenance takes the running guest away and gives it back.
    boot, _ = newest_beat(lab)
    drained = owner(lab, VM)
    plan = kvorum_ha(operator, "maintenance", "enable", drained.name, "--yes")
    target = owner(lab, VM).name
    assert target != drained.name
    assert f"{VM}  {drained.name}    {target}" in plan
    assert next(one for one in known_status(lab).nodes if one.name.endswith(drained.name)).maintenance
    assert "takes no guests" in kvorum_ha(operator, "migrate", VM, drained.name, fails=True)
    kvorum_ha(operator, "maintenance", "disable", drained.name)
    until(lambda: owner(lab, VM).name == drained.name and is_started(lab, VM), "the guest's return by itself")
    third = next(node for node in lab.nodes if node.name not in (drained.name, owner(lab, CONTAINER).name))
    assert "done" in kvorum_ha(operator, "migrate", VM, third.name)
    assert (owner(lab, VM).name, newest_beat(lab)[0]) == (third.name, boot)

    # While HA is disarmed no lease is held and the guest runs on.
    assert "HA is disarmed" in kvorum_ha(operator, "disarm", "--for", "5m")
    found = known_status(lab)
    assert (found.disarm.state, {node.lease_age_seconds for node in found.nodes}) == ("disarmed", {-1.0})
    assert newest_beat(lab)[0] == boot
    kvorum_ha(operator, "arm")
    until(lambda: is_all_well(lab, watch), "HA armed again")

    # What is foretold happens.
    foretold = json.loads(kvorum_ha(operator, "simulate", "--kill", third.name, "-o", "json"))
    (outcome,) = (one for one in foretold["outcomes"] if one["sid"] == VM)
    assert outcome["target_node"].removeprefix("nodes/") in told_after(kvorum_ha(operator, "explain", VM), "starts on")
    third.kill()
    new = runs_elsewhere(lab, watch, VM, third)
    assert f"nodes/{new}" == outcome["target_node"]
    kvorum_ha(next(node for node in lab.nodes if node.is_on), "rule", "remove", "apart")


def test_an_operators_command_moves_the_guest_live_and_is_answered(lab: Lab, watch: SingleRunWatch) -> None:
    source = owner(lab, VM)
    target = next(node for node in lab.nodes if node.name != source.name)
    boot, count = newest_beat(lab)
    answer = command(lab, source, f"migrate {VM} {target.name}")
    assert answer["state"] == "done", answer
    until(lambda: watch.where(VM) == {target.name} and is_started(lab, VM), "HA in charge at the target")
    goes_on(lab, boot, count + 4)
    refused = command(lab, source, f"migrate {VM} {target.name}")
    assert (refused["state"], "already" in refused["cause"]) == ("refused", True)


def test_disarmed_no_lease_is_held_and_guests_run_on(lab: Lab, watch: SingleRunWatch) -> None:
    node = owner(lab, VM)
    number = pid(lab, VM)
    command(lab, node, "disarm-ha freeze 25")
    until(lambda: {one.state for one in found.nodes} == {"idle"} if (found := status(lab)) else False, "no lease")
    assert pid(lab, VM) == number
    until(lambda: is_all_well(lab, watch), "HA armed again, by itself")
    assert pid(lab, VM) == number


def test_a_node_that_leaves_by_force_has_ended_its_guest_before_another_starts_it(
    lab: Lab, watch: SingleRunWatch
) -> None:
    # The last test: the cluster has two nodes after it.
    victim = owner(lab, VM)
    begin = len(watch.samples)
    victim.run(["kvorum", "cluster", "leave", "--force"])
    new = runs_elsewhere(lab, watch, VM, victim)
    until(lambda: seen(watch, begin, VM, new), "the watcher's look at it")
    assert max(seen(watch, begin, VM, victim.name)) < min(seen(watch, begin, VM, new))
    assert victim.is_on


# Asking


def command(lab: Lab, node: Node, text: str) -> dict[str, str]:
    """What HA finally answers to an operator's command."""
    name = secrets.token_hex(4)
    script = f"mkdir -p /etc/kvorum/ha/commands && echo '{text}' >/etc/kvorum/ha/commands/{name}"
    node.run(["sh", "-c", script])

    def answer() -> dict[str, str] | None:
        told = json.loads(node.run(["cat", "/etc/kvorum/ha/manager_status"]).stdout).get("answers", {}).get(name)
        return told if told is not None and told["state"] != "accepted" else None

    return until(answer, f"the answer to {text!r}")


@contextmanager
def client_at(lab: Lab, node: Node | None = None) -> Iterator[kvorum.Client]:
    """Of `node`, or of any node that is on, runs and is not cut off."""
    if node is None:
        isolated, _ = lab.switch.cuts()
        well = (n for n in lab.nodes if n.is_on and not n.is_frozen and n.layout.switch_port not in isolated)
        node = next(well)
    with client_of(node) as client:
        yield client


def status(lab: Lab) -> ha_pb2.GetHaStatusResponse | None:
    """None while nobody can say, as between two leaders."""
    with suppress(KvorumError), client_at(lab) as client:
        return client.ha.status()
    return None


def kvorum_ha(node: Node, *arguments: str, fails: bool = False) -> str:
    """What the command says on that node, on both outputs."""
    done = node.run(["kvorum", "--timeout", "60", "ha", *arguments], timeout_s=120.0, is_checked=False)
    assert (done.returncode != 0) == fails, (arguments, done.stdout, done.stderr)
    return str(done.stdout + done.stderr)


def told_after(text: str, words: str) -> str:
    return text.partition(words)[2].partition(" about")[0]


def known_status(lab: Lab) -> ha_pb2.GetHaStatusResponse:
    return until(lambda: status(lab), "HA's status")


def resource(lab: Lab, sid: str) -> ha_pb2.HaResource:
    found = until(lambda: status(lab), "HA's status")
    return next((one for one in found.resources if one.sid == sid), ha_pb2.HaResource())


def owner(lab: Lab, sid: str) -> Node:
    return lab.node(resource(lab, sid).node.removeprefix("nodes/"))


def manager(lab: Lab) -> Node:
    def name() -> str:
        found = status(lab)
        return found.manager_node.removeprefix("nodes/") if found is not None else ""

    return lab.node(until(name, "a manager"))


def is_started(lab: Lab, sid: str) -> bool:
    """HA has seen it run where it shall."""
    found = resource(lab, sid)
    return found.state == "started" and found.cause.endswith("runs it")


def is_all_well(lab: Lab, watch: SingleRunWatch) -> bool:
    found = status(lab)
    if found is None or sorted(node.state for node in found.nodes) != ["online"] * 3:
        return False
    return all(is_started(lab, sid) and watch.where(sid) == {owner(lab, sid).name} for sid in SIDS)


def pid(lab: Lab, sid: str) -> int:
    """As its node sees it."""

    def ask() -> int:
        with suppress(KvorumError), client_at(lab) as client:
            return int(client.guests.get(int(sid.partition(":")[2])).pid)
        return 0

    return until(ask, f"the process of {sid}")


def log_of_vm(lab: Lab) -> list[tuple[str, int]]:
    """(boot id, counter) of each line where it is now; earlier boots on the same node stand before."""
    with client_at(lab) as client:
        return beats(client, 100)


def newest_beat(lab: Lab) -> tuple[str, int]:
    """One that came after the asking: what the log ends with may be of an earlier boot on the same node."""
    before = log_of_vm(lab)[-1:]
    return until(lambda: [beat for beat in log_of_vm(lab)[-1:] if [beat] != before], "the guest's voice")[0]


def goes_on(lab: Lab, boot: str, count: int) -> None:
    """Until the same boot of the guest has counted further, which must be the last that is heard."""
    until(lambda: any(one == boot and at > count for one, at in log_of_vm(lab)), "the guest to go on")
    assert log_of_vm(lab)[-1][0] == boot


def has_booted_anew(lab: Lab, boot: str) -> bool:
    return any(one != boot for one, _ in log_of_vm(lab)[-1:])


def runs_elsewhere(lab: Lab, watch: SingleRunWatch, sid: str, victim: Node) -> str:
    return until(lambda: min(watch.where(sid) - {victim.name}, default=""), f"{sid} on another node")


def seen(watch: SingleRunWatch, begin: int, sid: str, node: str) -> list[float]:
    """When the guest was seen running there, since the sample number `begin`."""
    return [one.time_s for one in watch.samples[begin:] if any(r.sid == sid and r.node == node for r in one.runs)]


def migrate(lab: Lab, target: Node) -> None:
    with client_at(lab) as client:
        client.tasks.wait(client.guests.migrate(100, target.name))
    until(lambda: owner(lab, VM).name == target.name and is_started(lab, VM), "HA at the target")


def renewed(node: Node) -> None:
    """The keeper has renewed the lease once more from now on."""
    before = valid_until(node)
    until(lambda: valid_until(node) > before, "the lease's next renewal")


def valid_until(node: Node) -> float:
    try:
        return float(json.loads(node.path(STATE_FILE).read_text())["valid_until_boottime"])
    except (OSError, ValueError):
        return 0.0
