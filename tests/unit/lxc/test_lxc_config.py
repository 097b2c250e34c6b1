"""The file that liblxc reads, against golden text and against mistakes in the guest's config."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.guests.driver import Guest, Volume
from agent.guests.lxc_config import (
    Host,
    container_cgroup,
    halt_signal,
    lxc_config,
    monitor_cgroup,
)
from agent.guests.lxc_network import interfaces
from kvorum.config.guest import GuestConfig
from kvorum.errors import ConfigError, Unsupported
from kvorum.ids import NodeName, Vmid

GOLDEN = Path(__file__).parent / "golden"
V1 = Host(v1_controllers=frozenset(("cpu", "cpuset", "memory", "pids", "name=systemd")), cpus=(0, 1, 2, 3))
V2 = replace(V1, v1_controllers=frozenset(), v2_controllers=frozenset(("cpu", "cpuset", "memory")), has_apparmor=True)
ROOT = Volume("rootfs", Path("/var/lib/vz/images/101/subvol-101-disk-0.subvol"), "subvol")

FULL = """\
#a web server
arch: amd64
cores: 2
cpulimit: 1.5
cpuunits: 200
features: nesting=1
hostname: web
memory: 256
mp0: local:101/subvol-101-disk-1.subvol,mp=/srv/my data,ro=1,size=1G
net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:AA:BB:CC,ip=10.77.0.50/24,gw=10.77.0.1,type=veth,mtu=1400,tag=7
net1: name=lan,bridge=vmbr1,hwaddr=BC:24:11:AA:BB:CD,ip=dhcp,ip6=fd00::5/64,gw6=fd00::1
net2: name=off,bridge=vmbr0,hwaddr=BC:24:11:AA:BB:CE,ip=10.0.0.2/8,gw=10.0.0.1,link_down=1
ostype: busybox
rootfs: local:101/subvol-101-disk-0.subvol,size=2G
swap: 128
tty: 1
unprivileged: 1
lxc.cap.drop: net_raw
lxc.mount.entry: /dev/fuse dev/fuse none bind,create=file 0 0
"""


def guest(text: str, *volumes: Volume, root: Volume | None = ROOT) -> Guest:
    found = (*((root,) if root else ()), *volumes)
    return Guest(Vmid(101), GuestConfig.parse(text), found, NodeName("n1"), 1)


@pytest.mark.parametrize(
    ("name", "text", "host", "init"),
    [
        ("least-v1", "hostname: small\n", V1, "bin/busybox"),
        ("least-v2", "hostname: small\n", V2, "usr/lib/systemd/systemd"),
        ("full-v1", FULL, V1, ""),
        ("full-v2", FULL, V2, ""),
    ],
)
def test_a_container_becomes_the_file_that_a_reviewer_has_read(name: str, text: str, host: Host, init: str) -> None:
    data = Volume("mp0", Path("/var/lib/vz/images/101/subvol-101-disk-1.subvol"), "subvol")
    assert lxc_config(guest(text, data), host, init=init) == (GOLDEN / f"{name}.conf").read_text()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("hostname: -bad-", "hostname"),
        ("hostname: a\thttp://b", "hostname"),
        ("arch: vax", "arch"),
        ("memory: lots", "memory"),
        ("memory: 1", "memory"),
        ("swap: -1", "swap"),
        ("cpulimit: -1", "cpulimit"),
        ("cores: 1e3", "cores"),
        ("tty: 99", "tty"),
        ("unprivileged: maybe", "unprivileged"),
        ("net0: name=eth0", "net0"),
        ("net0: bridge=../../etc", "net0"),
        ("net0: bridge=vmbr0,name=far-too-long-for-linux", "net0"),
        ("net0: bridge=vmbr0,hwaddr=zz", "net0"),
        ("net0: bridge=vmbr0,ip=10.0.0.1/24 lxc.hook", "net0"),
        ("net0: bridge=vmbr0,gw=x", "net0"),
        ("net0: bridge=vmbr0,bridge=vmbr1", "net0"),
        ("net123456789: bridge=vmbr0", "net123456789"),
        ("mp0: local:101/x.subvol,mp=relative", "mp0"),
        ("mp0: local:101/x.subvol,mp=/a/../../etc", "mp0"),
        ("mp0: local:101/x.subvol", "mp0"),
        ("mp1: local:101/y.subvol,mp=/y", "mp1"),
    ],
)
def test_a_mistake_names_its_key(text: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lxc_config(guest(text, Volume("mp0", Path("/x"), "subvol")), V1)
    assert caught.value.field == field


def test_a_container_without_a_root_file_system_is_refused() -> None:
    with pytest.raises(ConfigError, match="no root file system"):
        lxc_config(guest("hostname: x\n", root=None), V1)


@pytest.mark.parametrize(
    ("root", "text"),
    [
        (Volume("rootfs", Path("/x.qcow2"), "qcow2"), "cores: 1"),
        (ROOT, "net0: bridge=vmbr0,type=macvlan"),
        (ROOT, "mp0: local:101/vm-101-disk-1.qcow2,mp=/data"),
    ],
)
def test_what_this_version_cannot_do_is_said(root: Volume, text: str) -> None:
    with pytest.raises(Unsupported):
        lxc_config(guest(text, Volume("mp0", Path("/x.qcow2"), "qcow2"), root=root), V1)


def test_images_are_mounted_for_the_container_alone() -> None:
    root = Volume("rootfs", Path("/srv/vm-101-disk-0.raw"), "raw", read_only=True)
    data = Volume("mp0", Path("/srv/vm-101-disk-1.raw"), "raw")
    text = lxc_config(guest("mp0: local:x,mp=/data\nunprivileged: 1\n", data, root=root), V1)
    assert [
        line for line in text.splitlines() if any(word in line for word in ("rootfs", "hook", "mount", "monitor.u"))
    ] == [
        "lxc.rootfs.path = dir:/var/lib/lxc/101/rootfs",
        "lxc.monitor.unshare = 1",
        "lxc.hook.version = 1",
        "lxc.hook.pre-start = mount -t ext4 -o loop,ro /srv/vm-101-disk-0.raw /var/lib/lxc/101/rootfs",
        "lxc.hook.pre-start = mount -t ext4 -o loop /srv/vm-101-disk-1.raw /var/lib/lxc/101/mp0",
        "lxc.hook.pre-start = chown --from=0:0 100000:100000 /var/lib/lxc/101/mp0",
        "lxc.mount.entry = /var/lib/lxc/101/mp0 data none bind,create=dir 0 0",
    ]


@pytest.mark.parametrize(
    "path", ["/srv/a b.raw", "/srv/$(reboot).raw", "/srv/a:b.raw", "relative.raw", "/srv/a\nlxc.x = y"]
)
def test_a_path_that_a_shell_could_misread_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot take"):
        lxc_config(guest("cores: 1", root=Volume("rootfs", Path(path), "raw")), V1)
    with pytest.raises(ConfigError, match="cannot take"):
        lxc_config(guest("cores: 1", root=Volume("rootfs", Path(path), "subvol")), V1)


def test_a_path_of_the_host_is_a_bind_mount_whatever_its_name() -> None:
    lines = lxc_config(guest("mp0: /srv/data,mp=/data", Volume("mp0", Path("/srv/data"), "raw")), V1).splitlines()
    assert "lxc.mount.entry = /srv/data data none bind,create=dir 0 0" in lines


def test_limits_that_the_host_cannot_keep_are_left_out() -> None:
    text = lxc_config(guest(FULL, Volume("mp0", Path("/x"), "subvol")), Host(v1_controllers=frozenset()))
    assert "lxc.cgroup.memory" not in text
    assert "lxc.cgroup2." not in text
    text = lxc_config(guest("memory: 64"), replace(V1, counts_swap=False))
    assert "memsw" not in text


def test_neighbouring_containers_get_different_cpus() -> None:
    def cpus(vmid: int, cores: str) -> str:
        made = replace(guest(f"cores: {cores}"), vmid=Vmid(vmid))
        found = [line for line in lxc_config(made, V1).splitlines() if "cpuset" in line]
        return found[0].partition(" = ")[2] if found else ""

    assert cpus(100, "1") != cpus(101, "1")
    assert cpus(103, "2") == "0,3"
    assert cpus(100, "4") == ""
    assert cpus(100, "64") == ""


def test_an_interface_without_an_address_keeps_the_one_it_is_given() -> None:
    (first,) = interfaces(Vmid(101), GuestConfig.parse("net0: bridge=vmbr0"))
    (again,) = interfaces(Vmid(101), GuestConfig.parse("net0: bridge=vmbr0"))
    (other,) = interfaces(Vmid(102), GuestConfig.parse("net0: bridge=vmbr0"))
    assert first == again
    assert first.hwaddr != other.hwaddr
    assert first.hwaddr.startswith("BC:24:11:")
    assert first.name == "eth0"


def test_only_a_busybox_init_is_told_to_halt_in_its_own_way() -> None:
    def halt(ostype: str, init: str) -> str:
        return halt_signal(GuestConfig.parse(f"ostype: {ostype}"), init)

    assert halt("busybox", "") == halt("alpine", "") == halt("unmanaged", "bin/busybox") == "SIGUSR1"
    # What is really there counts more than what the config says.
    assert halt("alpine", "usr/lib/systemd/systemd") == halt("debian", "") == ""


def test_the_cgroup_of_one_container_is_no_part_of_another() -> None:
    assert container_cgroup(Vmid(101)) == "kvorum-ct-101"
    assert not monitor_cgroup(Vmid(101)).startswith(container_cgroup(Vmid(101)))
