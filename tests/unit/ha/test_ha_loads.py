"""How full nodes are, from what they tell."""

from agent import load as agent_load
from ha.load import Use
from ha.loads import NodeLoad, parse_nodes

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
