"""How full nodes are and what guests use, from what the nodes tell."""

from dataclasses import replace
from typing import Any, cast

from agent import load as agent_load
from ha.balance import History
from ha.load import Demand, Use
from ha.loads import GuestLoad, Loads, NodeLoad, parse_guests, parse_nodes
from ha.status import ManagerStatus
from ha.view import Config, View
from kvorum.ids import NodeName, Sid

GIB = 1 << 30


def test_what_an_agent_publishes_is_read_back() -> None:
    told = agent_load.NodeLoad(
        uptime_s=7, load_average=0.5, cpus=8, cpu=0.25, memory_bytes=4 * GIB, memory_available_bytes=3 * GIB,
        swap_bytes=0, swap_free_bytes=0, root_bytes=1, root_used_bytes=1, received_bytes=0, sent_bytes=0,
    )  # fmt: skip
    record = agent_load.node_record(told, now_s=1000).encode()
    assert parse_nodes([("n1", record)]) == {"n1": NodeLoad(Use(8.0, 4.0 * GIB), Use(2.0, 1.0 * GIB))}


def test_what_cannot_be_read_is_left_out_and_what_was_not_measured_is_not_known() -> None:
    assert parse_nodes([("n1", b""), ("n2", b"\xff:::"), ("n3", b"1::2:0:U:U:U:U:U")]) == {}
    assert parse_nodes([("n1", b"1::2:0:4:U:U:100:U")]) == {"n1": NodeLoad(Use(4.0, 100.0), None)}


def guest(status: str, **more: Any) -> bytes:
    told = agent_load.GuestLoad(name="a:b", status=status, is_template=False, cpus=4, memory_bytes=2 * GIB, **more)
    return agent_load.guest_record(told, now_s=1000).encode()


def test_what_an_agent_publishes_of_guests_is_read_back() -> None:
    runs = guest("running", cpu=0.5, memory_host_bytes=GIB)
    records = [
        ("n1", "100", runs),
        ("n1", "101", guest("stopped")),
        ("n2", "102", guest("running")),
        ("n1", "103", b""),
    ]
    assert parse_guests(records) == {
        "100": GuestLoad("n1", True, Use(2.0, float(GIB))),
        "101": GuestLoad("n1", False, None),
        # Not measured yet.
        "102": GuestLoad("n2", True, None),
    }
    # Just moved, both tell: what runs counts, in either order.
    for order in (
        (("n1", "100", guest("stopped")), ("n2", "100", runs)),
        (("n2", "100", runs), ("n1", "100", b"0::stopped")),
    ):
        assert parse_guests(order)["100"].node == "n2"


def test_guests_are_known_by_the_node_that_has_their_file_and_merged_once() -> None:
    view = View(
        is_leader=True,
        is_quorate=True,
        self_node=NodeName("n1"),
        nodes={},
        resources={},
        configs={
            Sid(f"vm:{vmid}"): Config(NodeName("n1"), 5, demand=Demand(Use(4.0, 8.0))) for vmid in (100, 101, 102)
        },
        status=ManagerStatus(),
        status_version=1,
    )
    loads = Loads(cast(Any, None))
    loads.guests = {"100": GuestLoad("n1", True, Use(1.0, 2.0)), "101": GuestLoad("n2", True, Use(1.0, 2.0))}
    found = loads.added_to(view, History()).configs
    assert found[Sid("vm:100")] == Config(
        NodeName("n1"), 5, demand=Demand(Use(4.0, 8.0), Use(1.0, 2.0)), is_running=True
    )
    assert [found[sid].is_running for sid in sorted(found)] == [True, None, None]
    assert loads.added_to(view, History()).configs is found
    assert loads.added_to(replace(view, configs=dict(view.configs)), History()).configs is not found
