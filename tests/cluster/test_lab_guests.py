"""The test guests on a real node: they count, they stop when asked, and no daemon's death ends them."""

import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.cluster import Lab
from lab.images import container
from lab.images.linux import COMMAND_LINE
from lab.node import Node

pytestmark = pytest.mark.cluster

# Other work shares the machine.
PATIENCE_S = 90.0

MICRO = """
<domain type='qemu'>
  <name>kvorum-100</name><memory unit='MiB'>4</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <controller type='scsi' model='virtio-scsi'/>
    <disk type='file'><driver name='qemu' type='raw'/><source file='/srv/shared/micro-100.raw'/>
      <target dev='sda' bus='scsi'/></disk>
    <serial type='file'><source path='/var/log/100.log'/></serial>
  </devices>
</domain>
"""
LINUX = f"""
<domain type='qemu'>
  <name>kvorum-102</name><memory unit='MiB'>96</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>/srv/shared/images/vmlinux</kernel>
    <initrd>/srv/shared/images/initrd.cpio</initrd>
    <cmdline>{COMMAND_LINE} kv.name=tiny kv.ip=10.77.0.102/24</cmdline></os><features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <interface type='bridge'><source bridge='vmbr0'/><model type='virtio'/></interface>
    <serial type='file'><source path='/var/log/102.log'/></serial>
  </devices>
</domain>
"""
CONTAINER = """
lxc.include = /usr/share/lxc/config/common.conf
lxc.rootfs.path = dir:/var/lib/lxc/101/rootfs
lxc.apparmor.profile = unconfined
lxc.uts.name = box
lxc.console.logfile = /var/log/101.log
lxc.net.0.type = veth
lxc.net.0.link = vmbr0
lxc.net.0.flags = up
lxc.net.0.ipv4.address = 10.77.0.101/24
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"guests{secrets.token_hex(3)}") as one:
        one.up(1, join=False)
        yield one
    assert one.leftovers() == []


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.node("n1")


def beats(node: Node, vmid: int) -> list[tuple[str, int]]:
    log = node.layout.disk / f"var/log/{vmid}.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    return [(boot, int(count)) for boot, count in re.findall(r"BOOT (\S+) COUNT (\d+)\r?\n", text)]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def domains(node: Node) -> list[str]:
    return node.run(["virsh", "list", "--name"]).stdout.split()


def create(node: Node, xml: str) -> None:
    node.run(["virsh", "create", "/dev/stdin"], stdin=xml)


def test_the_micro_guest_counts_on_through_the_deaths_of_libvirtd_and_powers_off(node: Node) -> None:
    node.run(["cp", "/srv/shared/images/micro.raw", "/srv/shared/micro-100.raw"])
    create(node, MICRO)
    wait_for(lambda: len(beats(node, 100)) >= 2, "its first counts")
    node.kill_unit("libvirtd")
    node.wait_ready(["libvirtd"])
    node.restart("libvirtd")
    seen = len(beats(node, 100))
    wait_for(lambda: len(beats(node, 100)) >= seen + 2, "it counts on")
    found = beats(node, 100)
    assert len({boot for boot, _ in found}) == 1, "it was never rebooted"
    assert [count for _, count in found] == list(range(1, len(found) + 1)), "it lost no count"
    node.wait_ready(["libvirtd"])
    assert "kvorum-100" in domains(node)
    node.run(["virsh", "shutdown", "kvorum-100"])
    wait_for(lambda: "kvorum-100" not in domains(node), "it powers off")


def test_the_micro_guest_leaves_its_boot_and_count_on_its_disk(node: Node) -> None:
    disk = node.layout.lab.shared / "micro-100.raw"
    node.run(["cp", "/srv/shared/images/micro.raw", "/srv/shared/micro-100.raw"])
    create(node, MICRO)
    wait_for(lambda: stamp(disk), "its first stamp")
    node.run(["virsh", "destroy", "kvorum-100"])
    first = stamp(disk)
    assert first in beats(node, 100)
    create(node, MICRO)
    wait_for(lambda: stamp(disk)[0] != first[0], "the next boot's stamp")
    node.run(["virsh", "destroy", "kvorum-100"])


def stamp(disk: Path) -> tuple[str, int] | tuple[()]:
    """What the guest wrote to block 1 last: the first thing a checker looks at to see who ran."""
    with disk.open("rb") as stream:
        stream.seek(512)
        match = re.match(r"BOOT (\S+) COUNT (\d+)\n", stream.read(512).decode(errors="replace"))
    return (match[1], int(match[2])) if match else ()


def test_the_linux_guest_is_ready_answers_on_the_network_and_powers_off(node: Node) -> None:
    create(node, LINUX)
    wait_for(lambda: beats(node, 102), "it boots")
    log = (node.layout.disk / "var/log/102.log").read_text()
    assert log.index("READY linux tiny") < log.index("COUNT 1")
    answer = node.run(["busybox", "wget", "-qO-", "http://10.77.0.102/count"]).stdout
    boot, count = re.fullmatch(r"BOOT (\S+) COUNT (\d+)\n", answer).groups()  # type: ignore[union-attr]
    assert boot == beats(node, 102)[0][0]
    wait_for(lambda: beats(node, 102)[-1][1] > int(count), "it counts on")
    node.run(["virsh", "shutdown", "kvorum-102"])
    wait_for(lambda: "kvorum-102" not in domains(node), "it powers off")


def test_a_container_of_the_template_counts_answers_and_halts_at_once(node: Node) -> None:
    place = "/var/lib/lxc/101"
    node.run(["mkdir", "-p", f"{place}/rootfs"])
    node.run(["tar", "-C", f"{place}/rootfs", "-xzf", f"/var/lib/vz/template/cache/{container.FILE_NAME}"])
    node.run(["tee", f"{place}/config"], stdin=CONTAINER)
    assert (node.layout.lab.shared / "template/cache" / container.FILE_NAME).exists()
    node.run(["lxc-start", "-n", "101"])
    wait_for(lambda: len(beats(node, 101)) >= 2, "its first counts")
    answer = node.run(["busybox", "wget", "-qO-", "http://10.77.0.101/count"]).stdout
    assert answer.startswith(f"BOOT {beats(node, 101)[0][0]} COUNT ")
    begin = time.monotonic()
    node.run(["lxc-stop", "-n", "101", "--timeout", "30"])
    assert time.monotonic() - begin < 15, "it did not wait to be killed"
    assert "OFF" in (node.layout.disk / "var/log/101.log").read_text()
    assert "STOPPED" in node.run(["lxc-info", "-n", "101"]).stdout


def test_a_power_cut_takes_containers_and_virtual_machines_along(lab: Lab, node: Node) -> None:
    node.run(["cp", "/srv/shared/images/micro.raw", "/srv/shared/micro-100.raw"])
    create(node, MICRO)
    node.run(["lxc-start", "-n", "101"])
    assert any("qemu-system" in one.what for one in lab.leftovers())
    node.freeze()
    node.kill()
    inside = [one for one in lab.leftovers() if "qemu" in one.what or "lxc" in one.what]
    assert inside == []
    node.start()
    node.wait_ready(["libvirtd"])
    assert domains(node) == []
