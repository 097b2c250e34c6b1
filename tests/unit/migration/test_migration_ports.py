"""Ports are promised to one migration at a time, and come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.migration.ports import HOLD_S, Ports, listening
from kvorum.errors import NotFound, QuotaExceeded

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:EA60 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:EA61 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0100007F:EA62 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0        0 0 3
"""


def test_the_lowest_free_ports_are_given() -> None:
    ports, hold = Ports().hold("a", 2, now=0.0)
    assert hold.ports == (60000, 60001)
    ports, hold = ports.hold("b", 2, now=0.0, taken={60002, 60004})
    assert hold.ports == (60003, 60005)
    ports, hold = ports.release("a").hold("c", 1, now=0.0)
    assert hold.ports == (60000,)
    # Asked again, it gets what it can have, not twice as much.
    assert ports.hold("c", 1, now=0.0)[1].ports == (60000,)


def test_a_hold_ends_unless_it_is_renewed() -> None:
    ports, _ = Ports().hold("a", 1, now=0.0)
    ports = ports.renew("a", now=HOLD_S - 1)
    assert ports.hold("b", 1, now=HOLD_S + 1)[1].ports == (60001,)
    assert ports.hold("b", 1, now=2 * HOLD_S)[1].ports == (60000,)
    with pytest.raises(NotFound):
        ports.renew("a", now=2 * HOLD_S)


def test_when_all_are_taken_the_caller_is_told_to_wait() -> None:
    ports, hold = Ports().hold("a", 51, now=0.0)
    assert (hold.ports[0], hold.ports[-1]) == (60000, 60050)
    with pytest.raises(QuotaExceeded, match="0 of 51"):
        ports.hold("b", 1, now=0.0)


def test_ports_in_use_are_read_from_the_kernels_table() -> None:
    assert listening([TABLE, ""]) == {60000, 60001}


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(("hold", "renew", "release")), st.sampled_from("abc"), st.integers(1, 3), st.floats(0.1, 90.0)
    ),
    max_size=30,
)


@given(ACTIONS)
def test_no_port_is_ever_promised_twice(actions: list[tuple[str, str, int, float]]) -> None:
    ports, now = Ports(available=range(5)), 0.0
    for action, owner, count, pause_s in actions:
        now += pause_s
        try:
            match action:
                case "hold":
                    ports, _ = ports.hold(owner, count, now=now)
                case "renew":
                    ports = ports.renew(owner, now=now)
                case _:
                    ports = ports.release(owner)
        except (NotFound, QuotaExceeded):
            continue
        held = [port for hold in ports.holds if hold.expires_at > now for port in hold.ports]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(5))
