"""The KVM driver on a real node: libvirtd, QEMU and the micro guest."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster.kvm_lab import CONFIG, Failed, KvmNode, kvm_lab, micro_disk, until

pytestmark = pytest.mark.cluster

DISK = Path("/var/lib/vz/images/100/vm-100-disk-0.raw")


@pytest.fixture
async def node() -> AsyncIterator[KvmNode]:
    async with kvm_lab(1) as (_, nodes):
        micro_disk(nodes[0].node.layout.disk / "var/lib/vz/images/100/vm-100-disk-0.raw")
        yield nodes[0]


async def test_a_guest_starts_prints_powers_off_and_leaves_nothing(node: KvmNode) -> None:
    assert await node.state() == "stopped"
    await node.start(DISK)
    seen = await node.call("observe")
    assert seen["state"] == "running"
    command_line = Path(node.node.path(f"/proc/{seen['pid']}/cmdline")).read_bytes()
    assert b"guest=kvorum-100," in command_line
    await node.beats_after(2)
    assert await node.call("console_log", tail_bytes=4) == (await node.call("console_log"))[-4:]
    await node.call("shutdown", timeout_s=30)
    assert await node.state() == "stopped"
    assert await node.call("observe_all") == {}
    assert "OFF\n" in await node.call("console_log")
    await node.call("forget")
    assert await node.call("console_log") == ""
    # Idempotent, and nothing is listening anywhere.
    await node.call("stop")
    assert await node.call("listening") == []


async def test_a_paused_guest_stands_still_and_cannot_power_off_before_it_is_resumed(node: KvmNode) -> None:
    await node.start(DISK)
    await node.beats_after(0)
    await node.call("pause")
    assert await node.state() == "paused"
    last = (await node.beats())[-1]
    with pytest.raises(Failed, match="paused"):
        await node.call("shutdown", timeout_s=5)
    assert (await node.beats())[-1] == last
    await node.call("resume")
    await node.beats_after(last[1])
    await node.call("stop")
    assert await node.state() == "stopped"


async def test_a_second_start_of_the_guest_or_of_its_disk_is_refused(node: KvmNode) -> None:
    await node.start(DISK)
    with pytest.raises(Failed, match="REFUSED: guest 100 runs already"):
        await node.start(DISK)
    with pytest.raises(Failed, match="LOCKED: guest 101: a disk image is in use by another process"):
        await node.start(DISK, vmid=101)
    assert list(await node.call("observe_all")) == ["100"]


async def test_what_is_missing_is_named_with_a_remedy(node: KvmNode) -> None:
    with pytest.raises(Failed, match="NOT_FOUND: guest 100: scsi0: there is no disk image /nowhere") as missing:
        await node.start(Path("/nowhere"))
    assert "storage" in missing.value.remedy
    with pytest.raises(Failed, match="NOT_FOUND: guest 100: there is no bridge vmbr7") as bridge:
        await node.start(DISK, config=CONFIG + "net0: virtio=BC:24:11:00:00:01,bridge=vmbr7\n")
    assert "bridge" in bridge.value.remedy
    with pytest.raises(Failed, match="not enough memory"):
        await node.start(DISK, config=CONFIG.replace("memory: 16", "memory: 4000000"))
    assert await node.call("observe_all") == {}


async def test_a_guest_with_a_display_and_a_network_card_listens_on_no_port(node: KvmNode) -> None:
    await node.start(DISK, config=CONFIG.replace("vga: none", "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0"))
    await node.beats_after(0)
    assert Path(node.node.path("/run/kvorum/vnc/100.sock")).is_socket()
    assert await node.call("listening") == []
    traffic = await node.call("traffic")
    assert list(traffic) == ["100"]
    # It was booted from its disk; the bridge is quiet, but counted.
    assert traffic["100"]["read_bytes"] > 0
    assert {type(value) for value in traffic["100"].values()} == {int}


@pytest.mark.parametrize(
    "config",
    [
        "scsi0: a:b\nide2: none,media=cdrom\nscsi7: none,media=cdrom\nagent: 1\nsata5: none,media=cdrom",
        "scsi0: a:b\nscsihw: virtio-scsi-single\nscsi30: none,media=cdrom\nrng0: source=/dev/urandom\nballoon: 0",
        "scsi0: a:b\nmachine: q35\nide0: none,media=cdrom\nsata0: none,media=cdrom\nsata5: none,media=cdrom\ntablet: 1",
        "scsi0: a:b,discard=on,ssd=1,mbps=50,serial=x1\nscsihw: pvscsi\nnet0: e1000,bridge=vmbr0,link_down=1,mtu=1400",
        "scsi0: a:b,aio=threads,cache=writeback\nscsihw: megasas\nvga: none\ncores: 2\nsockets: 2\ncpu: x86-64-v2-AES",
        "scsi0: a:b\nsmbios1: manufacturer=K,serial=7\nboot: order=net0;scsi0\nnet0: virtio,bridge=vmbr0\ncpu: host",
    ],
    ids=lambda config: config.replace("\n", "; ")[:60],
)
async def test_libvirt_and_qemu_take_what_the_config_says(node: KvmNode, config: str) -> None:
    await node.start(DISK, config=config + "\nserial0: socket\nmemory: 32\n")
    assert await node.state() == "running"
    if "order=net0" not in config:
        await node.beats_after(0)
    await node.call("stop")


async def test_a_guest_does_not_notice_that_libvirtd_was_killed(node: KvmNode) -> None:
    await node.start(DISK)
    boot, count = await node.beats_after(0)
    pid = (await node.call("observe"))["pid"]
    await until_event(node, [100, "started"])

    await asyncio.to_thread(node.node.kill_unit, "libvirtd", signal.SIGKILL)
    seen = await until_answer(node)

    assert (seen["state"], seen["pid"]) == ("running", pid)
    assert (await node.beats_after(count + 2))[0] == boot
    # The new connection brings events and orders as the old one did.
    await node.call("stop")
    await until_event(node, [100, "stopped"])
    assert await node.state() == "stopped"


async def test_a_start_that_hangs_when_its_agent_dies_is_over_for_the_next_only_when_nothing_can_come_up(
    node: KvmNode,
) -> None:
    await node.call("end_late_start")  # of a guest that libvirt does not know: at once
    hook = Path(node.node.path("/etc/libvirt/hooks/qemu"))
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(
        '#!/bin/sh\n[ "$2" = prepare ] || exit 0\ntouch /run/hangs\nwhile [ -e /run/hangs ]; do sleep 0.1; done\n'
    )
    hook.chmod(0o755)
    try:
        await asyncio.to_thread(node.node.stop_unit, "libvirtd")
        await asyncio.to_thread(node.node.start_unit, "libvirtd")
        await until_answer(node)
        node.send("start", vmid=100, config=CONFIG, volumes=[["scsi0", str(DISK), "raw"]])
        hangs = Path(node.node.path("/run/hangs"))
        await until(lambda: asyncio.to_thread(hangs.exists))
        await node.kill()
        await node.open()
        ended = asyncio.ensure_future(_ended(node))
        await asyncio.sleep(3.0)
        assert not ended.done(), "the start goes on in libvirt"
        hangs.unlink()
        await ended
    finally:
        hook.unlink()
    await asyncio.sleep(3.0)
    assert await node.call("observe_all") == {}


async def _ended(node: KvmNode) -> None:
    """As the agent does it: asked again until it is certain."""
    while True:
        try:
            await node.call("end_late_start")
            return
        except Failed:
            await asyncio.sleep(0.2)


async def test_a_guest_is_stopped_without_libvirtd_too(node: KvmNode) -> None:
    await node.start(DISK)
    await asyncio.to_thread(node.node.stop_unit, "libvirtd")
    with pytest.raises(Failed, match="UNREACHABLE"):
        await node.call("observe")
    await node.call("stop")
    await asyncio.to_thread(node.node.start_unit, "libvirtd")
    assert (await until_answer(node))["state"] == "stopped"


async def until_event(node: KvmNode, event: list[object]) -> None:
    async def look() -> bool:
        return event in await node.call("events")

    await until(look)


async def until_answer(node: KvmNode) -> dict[str, object]:
    async def look() -> dict[str, object] | None:
        try:
            found: dict[str, object] = await node.call("observe")
        except Failed as error:
            assert error.reason == "UNREACHABLE", error
            return None
        return found

    found: dict[str, object] = await until(look)
    return found
