"""What a round reads: files of the mirror, parsed once for each of their versions."""

from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from ha import world
from ha.keeper.processes import Found
from ha.lease_state import LeaseState
from ha.leases import FAST, LONGEST_TAKEOVER_S, PATIENT, Lease
from ha.load import Demand, Use
from ha.options import DATACENTER_CFG
from ha.resources import RESOURCES_CFG
from ha.status import MANAGER_STATUS, LrmStatus, parse_manager_status
from ha.view import Command, Node, Startup
from ha.world import Absences, Parsed, Reading, local_view, manager_view
from kvorum.errors import ConfigError
from kvorum.ids import NodeName, NodeUid
from kvorum.node import Identity
from kvorum.v1 import replica_pb2, store_pb2

ME = Identity(name="n1", uid="u1", address="10.0.0.1", cluster_name="c")
MEMBERS = [replica_pb2.Member(name="n1", uid="u1"), replica_pb2.Member(name="w", uid="u9", witness=True)]


def _reading(files: dict[str, bytes], *, version: int = 7, revision: int = 1) -> Reading:
    entries = {path: store_pb2.Entry(path=path, content=text, version=version) for path, text in files.items()}
    replica = replica_pb2.GetReplicaStatusResponse(active=True, ready=True, members=MEMBERS)
    lease = replica_pb2.Lease(uid="u1", incarnation=3, renewal=9, age_seconds=0.5)
    leases = replica_pb2.ListLeasesResponse(leader=True, quorate=True, leases=[lease])
    return Reading(entries, revision, replica, leases)


def test_a_view_has_guests_with_what_holds_them_and_what_they_may_use() -> None:
    files = {
        "nodes/n1/qemu-server/100.conf": b"cores: 2\nsockets: 2\nmemory: 1024\nlock: backup\nstartup: order=2,up=30\n",
        "nodes/n1/lxc/101.conf": b"no config at all\n",
        RESOURCES_CFG: b"vm: 100\n\tstate started\n",
        "ha/commands/b": b"arm-ha\n",
        "ha/commands/a": b"stop vm:100 10\n",
        "ha/commands/deeper/c": b"arm-ha\n",
        DATACENTER_CFG: b"ha: shutdown_policy=migrate\n",
    }
    view = manager_view(_reading(files), ME, Parsed(), Absences(), now=1.0)
    guest = view.configs["vm:100"]  # type: ignore[index]
    assert guest.startup == Startup(2, 30)
    assert (guest.lock, guest.demand) == ("backup", Demand(Use(4.0, float(1 << 30))))
    assert view.configs["ct:101"].demand == Demand()  # type: ignore[index]
    assert view.commands == (Command("a", 7, "stop vm:100 10\n"), Command("b", 7, "arm-ha\n"))
    assert view.options.shutdown_policy == "migrate"
    assert list(view.nodes) == ["n1"], "a witness runs no guests"
    assert view.nodes["n1"].lease.incarnation == 3  # type: ignore[index, union-attr]


async def test_a_stray_runs_here_while_its_file_lies_elsewhere_and_does_not_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def running(_sids: Iterable[str]) -> tuple[Found, ...]:
        return tuple(Found(pid, f"vm:{pid}", 1, "S") for pid in (100, 101, 102, 103))

    monkeypatch.setattr(world, "guest_processes", running)
    files = {
        "nodes/n1/qemu-server/100.conf": b"memory: 64\n",
        "nodes/n2/qemu-server/101.conf": b"memory: 64\n",
        "nodes/n2/qemu-server/102.conf": b"lock: migrate\nmemory: what is no number\n",
        "nodes/n2/qemu-server/104.conf": b"memory: 64\n",
    }
    keeper: Any = SimpleNamespace(
        registered=lambda: ("vm:100",), lease=lambda _uid: LeaseState(), is_lease_wanted=lambda: True
    )
    view, processes = await local_view(_reading(files), ME, keeper, Parsed())
    assert (view.strays, view.configs, len(processes)) == ({"vm:101"}, {"vm:100"}, 4)


def test_a_resources_file_that_does_not_parse_is_no_empty_one() -> None:
    assert manager_view(_reading({RESOURCES_CFG: b"vm 100\n"}), ME, Parsed(), Absences(), now=1.0).resources is None
    assert manager_view(_reading({}), ME, Parsed(), Absences(), now=1.0).resources == {}


def test_a_file_is_parsed_once_for_each_version_and_an_error_stays_one() -> None:
    parsed, calls = Parsed(), []

    def parse(content: bytes) -> str:
        calls.append(content)
        if content == b"bad":
            raise ConfigError("no", path="x")
        return content.decode()

    assert parsed.get(_reading({"x": b"1"}), "x", parse) == "1"
    assert parsed.get(_reading({"x": b"1"}), "x", parse) == "1"
    assert parsed.get(_reading({"x": b"2"}, version=8), "x", parse) == "2"
    for _ in range(2):
        with pytest.raises(ConfigError):
            parsed.get(_reading({"x": b"bad"}, version=9), "x", parse)
    assert calls == [b"1", b"2", b"bad"]


def test_the_same_revision_gives_the_same_guests() -> None:
    parsed = Parsed()
    files = {"nodes/n1/lxc/101.conf": b"memory: 512\n"}
    first = parsed.configs(_reading(files))
    assert parsed.configs(_reading({})) is first
    assert parsed.configs(_reading({}, revision=2)) == {}


def test_a_status_that_cannot_be_read_stops_the_round() -> None:
    with pytest.raises(ConfigError):
        Parsed().get(_reading({MANAGER_STATUS: b"{"}), MANAGER_STATUS, parse_manager_status)


def test_absence_counts_from_the_first_look_and_ends_with_a_return() -> None:
    absences = Absences()
    look = partial(absences.look, longest_s=9.0)
    assert look(["n1", "n2", ""], _members("n1", "n2"), now=90.0) == {}
    assert look(["n1", "n2", ""], _members("n1", "n3"), now=100.0) == {"n2": FAST.takeover_after_s}
    assert look(["n1", "n2"], _members("n1", "n3"), now=109.0) == {"n2": FAST.takeover_after_s - 9.0}
    assert look(["n1", "n2"], _members("n1", "n2"), now=110.0) == {}
    assert look(["n1", "n2"], _members("n1"), now=111.0) == {"n2": FAST.takeover_after_s}


def test_a_node_that_was_gone_before_anybody_looked_may_have_had_the_longest_lease() -> None:
    assert Absences().look(["n2"], _members("n1"), 9.0, 100.0) == {"n2": LONGEST_TAKEOVER_S}


def test_a_node_that_leaves_just_after_a_longer_profile_was_chosen_may_live_by_it() -> None:
    absences = Absences()
    absences.look(["n2"], _members("n1", "n2"), FAST.takeover_after_s, 100.0)
    assert absences.look(["n2"], _members("n1"), PATIENT.takeover_after_s, 100.5) == {"n2": PATIENT.takeover_after_s}


def _members(*names: str) -> dict[NodeName, Node]:
    lease = Lease(1, 1, False, 0.0, FAST.terms)
    return {NodeName(name): Node(NodeName(name), NodeUid(f"u-{name}"), lease) for name in names}


def test_what_a_removed_node_wrote_is_no_word_of_who_has_its_name_now() -> None:
    """Neither that it guards anything nor what it answered."""
    written = {"nodes/n1/lrm_status": b'{"incarnation": 3, "tracked": ["vm:100"], "session": "s", "uid": "u-before"}'}
    view = manager_view(_reading(written), ME, Parsed(), Absences(), now=1.0)
    assert view.nodes["n1"].lrm == LrmStatus()  # type: ignore[index]
    own = {"nodes/n1/lrm_status": written["nodes/n1/lrm_status"].replace(b"u-before", b"u1")}
    assert manager_view(_reading(own), ME, Parsed(), Absences(), now=1.0).nodes["n1"].lrm.tracked == ("vm:100",)  # type: ignore[index]


def test_a_removed_node_is_waited_for_as_long_under_its_uuid_as_under_its_name() -> None:
    absences = Absences()
    absences.look(["n2"], _members("n1", "n2"), 9.0, 100.0)
    assert absences.look(["u-n2"], _members("n1"), 9.0, 101.0) == {"u-n2": FAST.takeover_after_s}
