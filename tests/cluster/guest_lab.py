"""What the guests' cluster tests share: a cluster in a lab, clients of its nodes, and looking at what guests print."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import kvorum
from kvorum.errors import KvorumError
from kvorum.node import AGENT_SOCKET, MIGRATION_PORTS
from kvorum.v1 import guest_pb2
from lab.cluster import Lab
from lab.node import Node

# Other work shares the machine.
PATIENCE_S = 60.0

MICRO = {
    "name": "micro",
    "memory": "16",
    "balloon": "0",
    "scsihw": "virtio-scsi-pci",
    "serial0": "socket",
    "vga": "none",
}
TEMPLATE = "local:vztmpl/busybox.tar.gz"
SHARED_TEMPLATE = "shared:vztmpl/busybox.tar.gz"
BUSYBOX = {"hostname": "box", "memory": "64", "ostype": "busybox"}

_BEAT = re.compile(rb"BOOT ([0-9a-f-]+) COUNT (\d+)")

Answer = TypeVar("Answer")


@contextmanager
def cluster_lab(name: str, nodes: int) -> Iterator[Lab]:
    with Lab(name) as lab:
        lab.up(nodes)
        yield lab


def client_of(node: Node) -> kvorum.Client:
    return kvorum.connect(f"unix:{node.path(AGENT_SOCKET)}", timeout_s=30.0)


def micro(storage: str, **more: str) -> dict[str, str]:
    """Settings of a micro VM whose disk is a raw copy of the micro image on that storage."""
    return {**MICRO, "scsi0": f"{storage}:0,import-from=/srv/shared/images/micro.raw,format=raw", **more}


def state(client: kvorum.Client, vmid: int) -> str:
    return guest_pb2.GuestState.Name(client.guests.get(vmid).state).removeprefix("GUEST_STATE_").lower()


def beats(client: kvorum.Client, vmid: int) -> list[tuple[str, int]]:
    """(boot id, counter) of each line that a test guest printed where it is now."""
    try:
        text = client.guests.console_log(vmid)
    except KvorumError:
        return []
    return [(boot.decode(), int(count)) for boot, count in _BEAT.findall(text)]


def beat_after(client: kvorum.Client, vmid: int, count: int) -> tuple[str, int]:
    """The first beat above `count`: the guest goes on."""
    return until(
        lambda: next((beat for beat in beats(client, vmid) if beat[1] > count), None), f"guest {vmid} beyond {count}"
    )


def until(look: Callable[[], Answer | None], what: str, *, patience_s: float = PATIENCE_S) -> Answer:
    deadline = time.monotonic() + patience_s
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def migration_ports(node: Node) -> set[int]:
    """Ports of the range on which somebody listens on the node."""
    lines = node.path("/proc/1/net/tcp").read_text().splitlines()[1:]
    listening = {int(line.split()[1].rpartition(":")[2], 16) for line in lines if line.split()[3] == "0A"}
    return listening & set(MIGRATION_PORTS)
