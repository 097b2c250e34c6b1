"""`ha/fence.cfg`: Proxmox VE's format, and whom to switch off when."""

import pytest

from ha.fencing.config import AgentCall, Method, parse_fence_config
from ha.fencing.plan import Candidate, switch_off_after_s, targets
from ha.leases import FAST, PROFILES, Lease, Profile
from kvorum.errors import ConfigError

TEXT = """
# two ways
device  ilo fence_ilo5 ipaddr=10.0.0.1 passwd="two words" ssl
device  pdu:1 fence_apc ipaddr=10.0.0.8
device  pdu:2 fence_apc ipaddr=10.0.0.9   # the other supply
connect pdu:1 node=n1 port=3
connect pdu:2 node=n1 port=4
connect ilo node=n1 ipaddr=10.0.0.7
connect ilo node=n2
"""


def test_devices_and_connections_make_methods_for_nodes() -> None:
    methods = parse_fence_config(TEXT).methods
    assert methods["n1"] == (
        Method("ilo", (AgentCall("fence_ilo5", {"ipaddr": "10.0.0.7", "passwd": "two words", "ssl": "1"}),)),
        Method(
            "pdu",
            (
                AgentCall("fence_apc", {"ipaddr": "10.0.0.8", "port": "3"}),
                AgentCall("fence_apc", {"ipaddr": "10.0.0.9", "port": "4"}),
            ),
        ),
    )
    assert [method.name for method in methods["n2"]] == ["ilo"]
    assert parse_fence_config("").methods == {}


def test_what_an_agent_is_called_with_is_not_printed() -> None:
    assert "two words" not in repr(parse_fence_config(TEXT))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("device ilo", "a line is"),
        ("gadget ilo fence_ilo5 a=b", "a line is"),
        ("device ilo /bin/sh -c", "no name of a fence agent"),
        ("device ilo fence_../../bin/sh", "no name of a fence agent"),
        ("device 9 fence_apc a=b", "no name of a device"),
        ("device pdu fence_apc action=reboot", "no parameter"),
        ("device pdu fence_apc =x", "no parameter"),
        ('device pdu fence_apc "passwd=a\x01b"', "control character"),
        ('device pdu fence_apc passwd="x', "quote"),
        ("connect ilo node=n1 port=1", "no device ilo stands above"),
        ("device pdu fence_apc a=b\ndevice pdu fence_apc a=b", "there already"),
        ("device pdu fence_apc a=b\nconnect pdu port=1 node=n1", "comes first"),
    ],
)
def test_what_makes_no_sense_is_refused(line: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse_fence_config(line)


def _candidates(**ages: float) -> dict[str, Candidate]:
    return {name: Candidate(name, f"u-{name}", Lease(4, 9, False, age, FAST.terms)) for name, age in ages.items()}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_nobody_is_switched_off_for_a_stall_that_is_to_be_sat_out(profile: Profile) -> None:
    after_s = switch_off_after_s(profile.terms)
    assert profile.tolerates_s + profile.renew_period_s < profile.kill_after_s < after_s < profile.takeover_after_s


def test_a_silent_node_is_switched_off_in_the_life_that_was_silent() -> None:
    (target,) = targets(_candidates(n1=7.0, n2=0.5), own="n3", members=3)
    assert (target.name, target.uid, target.incarnation, target.renewal) == ("n1", "u-n1", 4, 9)


def test_the_own_node_and_more_than_a_minority_are_left_alone() -> None:
    assert targets(_candidates(n1=7.0), own="n1", members=3) == ()
    assert targets(_candidates(n1=7.0, n2=7.0), own="n3", members=3) == ()
    assert len(targets(_candidates(n1=7.0, n2=7.0), own="n3", members=5)) == 2
    assert targets(_candidates(n1=7.0), own="n2", members=2) == ()
