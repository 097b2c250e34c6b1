"""Whatever a guest's config says, liblxc's file is well formed or the config is refused with the key named."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.guests.driver import Guest, Volume
from agent.guests.lxc_config import MARKER, Host, lxc_config
from kvorum.config.guest import GuestConfig
from kvorum.errors import ConfigError, InvalidInput, Unsupported
from kvorum.ids import NodeName, Vmid

HOST = Host(v1_controllers=frozenset(("cpu", "cpuset", "memory")), cpus=(0, 1))
KEYS = st.sampled_from(
    [
        "hostname",
        "arch",
        "memory",
        "swap",
        "cores",
        "cpulimit",
        "cpuunits",
        "net0",
        "net7",
        "mp0",
        "tty",
        "features",
        "unprivileged",
        "ostype",
        "nameserver",
        "x",
    ]
)
WORDS = st.sampled_from(
    [
        *[
            "1",
            "512",
            "-1",
            "1.5",
            "veth",
            "name=eth0",
            "bridge=vmbr0",
            "ip=dhcp",
            "ip=10.0.0.5/24",
            "gw=10.0.0.1",
            "mp=/data",
            "nesting=1",
            "ro=1",
        ],
        *(
            "local:101/x.subvol",
            "/srv",
            "mp=/a b",
            "lxc.hook.start = /bin/evil",
            "amd64",
            "busybox",
            "x" * 70,
            '"',
            "\\",
            "é",
        ),
    ]
)
VALUES = st.one_of(
    st.lists(WORDS, max_size=5).map(",".join),
    st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=15),
)
ROOT = Volume("rootfs", Path("/srv/root"), "subvol")


@given(st.dictionaries(KEYS, VALUES, max_size=6), st.sampled_from(["subvol", "raw"]))
def test_a_config_becomes_a_file_of_whole_lines_or_a_named_error(entries: dict[str, str], image_format: str) -> None:
    config = GuestConfig.of(entries)
    guest = Guest(Vmid(101), config, (ROOT, Volume("mp0", Path("/srv/data"), image_format)), NodeName("n1"), 1)
    try:
        text = lxc_config(guest, HOST)
    except ConfigError as error:
        assert error.field
        return
    except (InvalidInput, Unsupported):
        return
    lines = text.split("\n")
    assert lines[0] == MARKER
    assert lines[-1] == ""
    for line in lines[1:-1]:
        key, equals, _ = line.partition(" = ")
        assert equals
        assert key.startswith("lxc.")
        assert " " not in key
    # Nobody but an administrator's own `lxc.` lines may make liblxc run something.
    hooks = [line for line in lines if line.startswith("lxc.hook.") and "version" not in line]
    assert all(
        line.startswith(("lxc.hook.pre-start = mount -t ext4", "lxc.hook.pre-start = chown --from")) for line in hooks
    )


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_the_same_config_makes_the_same_file(entries: dict[str, str]) -> None:
    guest = Guest(Vmid(101), GuestConfig.of(entries), (ROOT,), NodeName("n1"), 1)
    try:
        first = lxc_config(guest, HOST)
    except (InvalidInput, Unsupported):
        return
    assert lxc_config(guest, HOST) == first
