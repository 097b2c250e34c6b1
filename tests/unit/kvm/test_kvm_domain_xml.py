"""The domain's XML against golden text, against libvirt's own schema, and against mistakes in the config.

The golden files are made anew with REWRITE=1 in the environment; their difference is a change of behaviour.
"""

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from agent.guests.completion import complete_config
from agent.guests.domain_disks import target_names
from agent.guests.domain_xml import Host, boot_order, describe, domain_uuid, domain_xml, vmid_of
from agent.guests.driver import Guest, Volume
from kvorum.config.guest import GuestConfig
from kvorum.errors import ConfigError, InvalidInput, KvorumError, Unsupported
from kvorum.ids import NodeName, Vmid

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = etree.RelaxNG(etree.parse("/usr/share/libvirt/schemas/domain.rng"))
TCG = Host("tcg", cluster="c1")
KVM = Host("kvm", cluster="c1")

MICRO = (
    "memory: 16\nscsihw: virtio-scsi-pci\nscsi0: local:100/vm-100-disk-0.raw\nserial0: socket\nvga: none\nballoon: 0\n"
)
FULL = """\
#a description
agent: enabled=1
args: -kernel /srv/k -append 'console=ttyS0 quiet'
bios: seabios
boot: order=virtio0;ide2;net0
cores: 2
cpu: x86-64-v2-AES,flags=+pcid;-aes
ide2: local:iso/debian.iso,media=cdrom,size=600M
keyboard: de
machine: pc-i440fx-7.2+pve1
memory: 2048
meta: creation-qemu=7.2.0,ctime=1700000000
name: web-1
net0: virtio=BC:24:11:AA:BB:CC,bridge=vmbr0,firewall=1,rate=10
net1: e1000=BC:24:11:AA:BB:CD,bridge=vmbr1,link_down=1,mtu=1400
numa: 0
onboot: 1
ostype: win10
rng0: source=/dev/urandom
sata1: local:100/vm-100-disk-1.qcow2,cache=writeback,discard=on,ssd=1,mbps_rd=10,iops=500
scsi0: none,media=cdrom
scsi13: local:100/vm-100-disk-2.qcow2,iothread=1,serial=abc
smbios1: uuid=0f6f9bd4-9c8b-4b6f-9d0c-2f0f1e2d3c4b,manufacturer=S3Zvcg==,base64=1
serial0: socket
serial1: /dev/ttyS5
sockets: 2
tags: a;b
virtio0: shared:100/vm-100-disk-0.raw,aio=io_uring,ro=1
"""
Q35 = "machine: q35\nide0: local:100/a.raw\nsata0: local:100/b.raw\nscsi30: local:100/c.raw\nvga: virtio\ncpu: host\n"


def guest(text: str) -> Guest:
    """With a volume for each disk that names one."""
    config = GuestConfig.parse(text)
    volumes = []
    for key, value in config.items():
        name = value.split(",")[0]
        if key in target_names(config) and name != "none":
            path = Path("/images") / name.partition(":")[2]
            volumes.append(Volume(key, path, "qcow2" if path.suffix == ".qcow2" else "raw"))
    return Guest(Vmid(100), config, tuple(volumes), NodeName("n1"), 1)


def found(text: str, path: str, *, host: Host = TCG) -> list[Any]:
    made: list[Any] = etree.fromstring(domain_xml(guest(text), host)).xpath(path)
    return made


@pytest.mark.parametrize(
    ("name", "text", "host"),
    [("micro", MICRO, TCG), ("full", FULL, KVM), ("q35", Q35, TCG), ("empty", "", TCG), ("q35-kvm", Q35, KVM)],
)
def test_the_domain_is_as_it_was(name: str, text: str, host: Host) -> None:
    made = describe(guest(text), host)
    content = made.xml + "".join(f"<!-- {note} -->\n" for note in made.notes)
    file = GOLDEN / f"{name}.xml"
    if os.environ.get("REWRITE"):
        file.write_text(content)
    assert content == file.read_text()
    SCHEMA.assertValid(etree.fromstring(made.xml))


def test_nothing_in_a_domain_listens_on_the_network() -> None:
    for text in (MICRO, FULL, Q35, ""):
        assert not found(text, "//graphics[@port or @autoport or @websocket or @listen]")
        assert found(text, "//graphics/listen/@type") in ([], ["socket"])
        assert set(found(text, "//serial/@type")) <= {"unix", "dev"}


KEYS = (
    "cores sockets memory ostype boot bootdisk scsihw vga agent args smbios1 machine bios cpu acpi kvm localtime tablet "
    "keyboard reboot balloon rng0 name vcpus scsi0 scsi9 scsi31 virtio0 virtio15 ide2 ide4 sata5 net0 net31 serial0 "
    "serial3 hostpci0"
)
VALUES = (
    "1 0 2 q35 pc virtio-scsi-single lsi none std socket host kvm64 none,media=cdrom local:100/a.raw virtio,bridge=vmbr0 "
    "e1000=BC:24:11:00:00:01 order=scsi0;net0 cdn win11 local:100/b.qcow2,ssd=1,iops=5 local:100/b.qcow2,serial=a_b,mbps=3"
)
ANYTHING = st.text(st.characters(exclude_characters="\n\r"), max_size=30)


@given(st.dictionaries(st.sampled_from(KEYS.split()), st.one_of(ANYTHING, st.sampled_from(VALUES.split()))))
def test_any_config_gives_xml_that_libvirt_takes_or_an_error_that_names_the_key(entries: dict[str, str]) -> None:
    try:
        text = GuestConfig.of(entries).render()
    except InvalidInput:
        # No file can hold such a value.
        return
    try:
        made = domain_xml(guest(text), TCG)
    except KvorumError as error:
        assert isinstance(error, ConfigError | Unsupported)
        return
    assert SCHEMA.validate(etree.fromstring(made)), (SCHEMA.error_log.last_error, made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory: much", "'much' is no number"),
        ("cores: 0", "out of range"),
        ("scsi0: local:100/a.raw\nscsihw: ide", "no SCSI controller"),
        ("scsi31: local:100/a.raw", "goes up to scsi30"),
        ("virtio0: none,media=cdrom", "cannot be a CD drive"),
        ("scsi0: none", "names no volume"),
        ("net0: virtio=zz,bridge=vmbr0", "no address for a network card"),
        ("net0: virtio=01:00:00:00:00:01", "no address for a network card"),
        ("net0: bridge=vmbr0", "no known network card"),
        ("net0: virtio,bridge=vmbr0,tag=7", "VLANs"),
        ("net32: virtio", "net0 to net31"),
        ("serial0: pipe", "no serial port"),
        ("serial4: socket", "serial0 to serial3"),
        ("vga: 3dfx", "no display"),
        ("args: -append 'x", "cannot split"),
        ("machine: virt", "no machine type"),
        ("bios: ovmf", "not supported yet"),
        ("cpu: a b", "no CPU type"),
        ("cpu: host,flags=aes", "no CPU flag"),
        ("smbios1: uuid=7", "no UUID"),
        ("smbios1: serial=%,base64=1", "no base64 text"),
        ("keyboard: german", "no keyboard layout"),
        ("name: a\x01b", "control character"),
        ("acpi: maybe", "neither 1 nor 0"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises((ConfigError, Unsupported), match=message):
        domain_xml(guest(text), TCG)


def test_a_disk_whose_volume_was_not_resolved_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no volume of this guest"):
        domain_xml(replace(guest(MICRO), volumes=()), TCG)


def test_a_disk_keeps_its_place_when_others_come_and_go() -> None:
    alone = target_names(GuestConfig.parse("scsi5: a:b"))
    assert target_names(GuestConfig.parse("scsi0: a:b\nsata0: a:b\nide0: a:b\nscsi5: a:b"))["scsi5"] == alone["scsi5"]
    everything = [
        f"{kind}{n}" for kind, count in (("scsi", 31), ("sata", 6), ("ide", 4), ("virtio", 16)) for n in range(count)
    ]
    for machine in ("pc", "q35"):
        config = GuestConfig.parse(f"machine: {machine}\n" + "".join(f"{key}: a:b\n" for key in everything))
        names = target_names(config)
        assert list(names) == everything
        assert len(set(names.values())) == len(everything)


def test_an_lsi_controller_has_seven_disks_and_single_one() -> None:
    seven = found("scsi8: local:100/a.raw\nscsihw: lsi", "//disk/address")[0]
    assert (seven.get("controller"), seven.get("unit")) == ("1", "1")
    single = found("scsi8: local:100/a.raw\nscsihw: virtio-scsi-single", "//disk/address")[0]
    assert (single.get("controller"), single.get("unit")) == ("8", "0")
    assert found("scsi8: local:100/a.raw\nscsihw: virtio-scsi-single", "//controller[@type='scsi']/@index") == ["8"]


def test_the_boot_order_is_the_configs_or_disk_then_cd() -> None:
    disks = "scsi0: a:b\nscsi1: a:b\nide2: none,media=cdrom\nnet0: virtio\n"
    assert boot_order(GuestConfig.parse(disks)) == ["scsi0", "ide2"]
    assert boot_order(GuestConfig.parse(disks + "boot: order=net0;scsi1")) == ["net0", "scsi1"]
    assert boot_order(GuestConfig.parse(disks + "boot: dcn\nbootdisk: scsi1")) == ["ide2", "scsi1", "net0"]
    # Without a ROM where it is not booted from.
    assert found(disks, "//interface/rom/@enabled") == ["no"]
    assert not found(disks + "boot: order=net0", "//interface/rom")


def test_the_uuid_is_the_configs_or_follows_from_cluster_and_guest() -> None:
    config = GuestConfig.parse("")
    assert domain_uuid(Vmid(100), config, cluster="a") == domain_uuid(Vmid(100), config, cluster="a")
    others = {str(domain_uuid(Vmid(n), config, cluster=cluster)) for n in (100, 101) for cluster in "ab"}
    assert len(others) == 4
    own = GuestConfig.parse("smbios1: uuid=0F6F9BD4-9c8b-4b6f-9d0c-2f0f1e2d3c4b")
    assert str(domain_uuid(Vmid(100), own, cluster="a")) == "0f6f9bd4-9c8b-4b6f-9d0c-2f0f1e2d3c4b"


def test_only_domains_of_ours_have_a_guest_id() -> None:
    assert vmid_of("kvorum-100") == 100
    assert [vmid_of(name) for name in ("100", "kvorum-", "kvorum-7", "kvorum-100x", "web", "kvorum-0100")] == [None] * 6


def test_an_emulated_guest_gets_no_cpu_that_only_kvm_has() -> None:
    assert found("cpu: host", "/domain/cpu/@mode") == ["maximum"]
    assert found("cpu: host", "/domain/cpu/@mode", host=KVM) == ["host-passthrough"]
    assert found("kvm: 0", "/domain/@type", host=KVM) == ["qemu"]
    assert found("", "/domain/features/tcg/tb-cache/text()") == ["32"]
    assert not found("", "/domain/features/tcg", host=KVM)


def test_a_new_guest_gets_addresses_and_a_uuid_and_keeps_what_it_has() -> None:
    config = GuestConfig.parse(
        "net0: virtio,bridge=vmbr0,firewall=1\nnet1: model=e1000\nnet2: virtio=BC:24:11:00:00:01\n"
    )
    done = complete_config(config, random=random.Random(7))
    assert done["net0"].startswith("virtio=BC:24:11:") and done["net0"].endswith(",bridge=vmbr0,firewall=1")
    assert done["net1"].startswith("e1000=BC:24:11:")
    assert done["net2"] == "virtio=BC:24:11:00:00:01"
    assert done["net0"][7:24] != done["net1"][6:23]
    assert done["smbios1"].startswith("uuid=")
    assert complete_config(done, random=random.Random(8)) == done
    assert complete_config(config, random=random.Random(7)) == done
    partly = complete_config(GuestConfig.parse("smbios1: serial=7"), random=random.Random(1))
    assert partly["smbios1"].endswith(",serial=7")
