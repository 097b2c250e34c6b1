"""`make demo`: the main job on real guests, told as it happens, one line a step with its time.

Three nodes, one file, a VM and a container, a live migration, a node's death and the recovery; then everything is taken down.
It asserts what it says: a step that does not hold ends the demo with an error.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import kvorum
from kvorum.errors import KvorumError, Timeout
from kvorum.node import AGENT_PORT, AGENT_SOCKET, MIGRATION_PORTS, write_atomically
from kvorum.v1 import guest_pb2
from lab import relay
from lab.cluster import Lab
from lab.node import Node
from lab.single_run import SingleRunWatch

VM, CONTAINER = 100, 101
VM_CONFIG = {
    "name": "counter",
    "memory": "96",
    "cores": "1",
    "serial0": "socket",
    "vga": "none",
    "scsi0": "shared:0.01",
    "args": "-kernel /srv/shared/images/vmlinux -initrd /srv/shared/images/initrd.cpio -append "
    "'console=ttyS0 panic=-1 quiet no_timer_check tsc=reliable mitigations=off nokaslr 8250.nr_uarts=1'",
}
CONTAINER_CONFIG = {"hostname": "box", "memory": "64", "rootfs": "shared:0.1", "ostype": "busybox"}
# Left stopped by --keep, for the example client to start.
SPARE_VM = 102
SPARE_CONFIG = {
    "name": "spare",
    "memory": "16",
    "serial0": "socket",
    "vga": "none",
    "scsihw": "virtio-scsi-pci",
    "scsi0": "shared:0,import-from=/srv/shared/images/micro.raw,format=raw",
}
TEMPLATE = "shared:vztmpl/busybox.tar.gz"
BOOT_TIMEOUT_S = 90.0
RECOVERY_TIMEOUT_S = 90.0

_COUNT = re.compile(rb"BOOT (\S+) COUNT (\d+)")

Answer = TypeVar("Answer")


class Story:
    """Prints one line a step, with the time since the beginning and the time the step took."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()

    def tell(self, line: str) -> None:
        now = time.monotonic()
        print(f"[{now - self._begin:6.1f} s] (+{now - self._last:5.1f} s)  {line}", flush=True)
        self._last = now


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the cluster up and say what to try")
    parser.add_argument("--name", default="lab")
    options = parser.parse_args()
    story, lab = Story(), Lab(options.name)
    is_kept = False
    lab.down()  # what an interrupted demo left
    try:
        tell_all(story, lab)
        is_kept = options.keep
    except (KvorumError, AssertionError) as error:
        print(f"the demo failed: {error}\n  {getattr(error, 'remedy', '')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if not is_kept:
            lab.down()
            story.tell("taken down; " + (f"LEFT BEHIND: {lab.leftovers()}" if lab.leftovers() else "nothing is left"))
    if is_kept:
        say_what_to_try(lab)
    return 0


def tell_all(story: Story, lab: Lab) -> None:
    lab.up(3, progress=lambda line: story.tell(line.strip().partition("  ")[2]))
    n1, n2, n3 = lab.nodes
    share_a_file(story, n1, n3)
    with SingleRunWatch(lab.layout) as watch, client_of(n1) as client:
        start_guests(story, client)
        migrate(story, client, n2)
        survive(story, client, n2, watch)
        assert not watch.doubles, watch.doubles
        story.tell(f"no guest ever ran twice ({len(watch.samples)} looks at all nodes' processes)")
    n2.start()
    wait_for(lambda: is_online(n1, "n2"), "n2 back", 60.0)
    story.tell("n2 is powered on again and has rejoined by itself")


def share_a_file(story: Story, writer: Node, reader: Node) -> None:
    content = "written on n1\n"
    writer.run(["tee", "/etc/kvorum/hello"], stdin=content)
    begin = time.monotonic()
    wait_for(lambda: reader.path("/etc/kvorum/hello").exists(), "the file on the other node", 10.0)
    assert reader.run(["cat", "/etc/kvorum/hello"]).stdout == content
    story.tell(
        f"a file written under {writer.name}'s /etc/kvorum is read on {reader.name} ({time.monotonic() - begin:.2f} s)"
    )


def start_guests(story: Story, client: kvorum.Client) -> None:
    client.tasks.wait(client.guests.create(VM, guest_pb2.GUEST_KIND_VM, VM_CONFIG, node="n1", start=True))
    story.tell(f"VM {VM} is made and started on n1")
    boot, count = wait_for(lambda: counter(client), "the VM's first count", BOOT_TIMEOUT_S)
    story.tell(f"it has booted Linux: boot id {boot[:8]}, its counter in RAM is at {count}")
    upid = client.guests.create(
        CONTAINER, guest_pb2.GUEST_KIND_CONTAINER, CONTAINER_CONFIG, node="n2", template=TEMPLATE, start=True
    )
    client.tasks.wait(upid)
    assert client.guests.get(CONTAINER).state == guest_pb2.GUEST_STATE_RUNNING
    story.tell(f"container {CONTAINER} is made from the busybox template and runs on n2")
    client.ha.add(f"vm:{VM}")
    client.ha.add(f"ct:{CONTAINER}")
    story.tell("both are put under HA")


def migrate(story: Story, client: kvorum.Client, target: Node) -> None:
    boot, count = wait_for(lambda: counter(client), "the counter", BOOT_TIMEOUT_S)
    upid = client.guests.migrate(VM, target.name)
    ports: set[int] = set()
    while not client.tasks.get(upid).end_time.seconds:
        ports |= migration_ports(target)
    client.tasks.wait(upid)
    new_boot, new_count = wait_for(lambda: newer(client, count), "the counter after the move", BOOT_TIMEOUT_S)
    assert new_boot == boot, f"the VM was rebooted: {boot} became {new_boot}"
    assert ports, "no migration port was seen"
    seen = ", ".join(map(str, sorted(ports)))
    story.tell(f"VM {VM} was live-migrated to {target.name}: same boot id, counter {count} -> {new_count}, port {seen}")


def survive(story: Story, client: kvorum.Client, victim: Node, watch: SingleRunWatch) -> None:
    boot = wait_for(lambda: counter(client), "the counter", BOOT_TIMEOUT_S)[0]
    wait_for(lambda: is_guarded(client, victim), "HA in charge of both guests", 60.0)
    victim.kill()
    begin = time.monotonic()
    story.tell(f"{victim.name}, which runs both guests, is killed (SIGKILL of everything on it)")
    for sid in (f"vm:{VM}", f"ct:{CONTAINER}"):
        node = wait_for(partial(elsewhere, watch, sid, victim.name), f"{sid} elsewhere", RECOVERY_TIMEOUT_S)
        story.tell(f"{sid} runs on {node}, {time.monotonic() - begin:.1f} s after its node died")
    new_boot = wait_for(lambda: booted_anew(client, boot), "the VM's new boot", BOOT_TIMEOUT_S)
    story.tell(f"the VM has booted and counts again: boot id {new_boot[:8]}")


# Looking


def client_of(node: Node) -> kvorum.Client:
    return kvorum.connect(f"unix:{node.path(AGENT_SOCKET)}", timeout_s=30.0)


def counter(client: kvorum.Client) -> tuple[str, int] | None:
    """Boot id and count that the VM printed last; None while it has not, or while its owner cannot be asked."""
    try:
        lines = _COUNT.findall(client.guests.console_log(VM, tail_bytes=4096))
    except KvorumError:
        return None
    return (lines[-1][0].decode(), int(lines[-1][1])) if lines else None


def newer(client: kvorum.Client, count: int) -> tuple[str, int] | None:
    now = counter(client)
    return now if now is not None and now[1] > count else None


def booted_anew(client: kvorum.Client, boot: str) -> str:
    now = counter(client)
    return now[0] if now is not None and now[0] != boot else ""


def migration_ports(node: Node) -> set[int]:
    """Ports of the migration range on which somebody listens or is connected on the node."""
    text = node.path("/proc/1/net/tcp").read_text()
    local = {int(line.split()[1].rpartition(":")[2], 16) for line in text.splitlines()[1:]}
    return local & set(MIGRATION_PORTS)


def elsewhere(watch: SingleRunWatch, sid: str, victim: str) -> str:
    return min(watch.where(sid) - {victim}, default="")


def is_guarded(client: kvorum.Client, node: Node) -> bool:
    """HA has seen both guests started where they are, so that it may recover them."""
    try:
        resources = client.ha.status().resources
    except KvorumError:
        return False
    return len(resources) == 2 and all(r.state == "started" and r.node == f"nodes/{node.name}" for r in resources)


def is_online(node: Node, other: str) -> bool:
    with client_of(node) as client:
        status = client.cluster.status()
        return status.quorate and f"nodes/{other}" not in status.missing_nodes


def wait_for(question: Callable[[], Answer | None], what: str, timeout_s: float) -> Answer:
    deadline = time.monotonic() + timeout_s
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Timeout(f"{what} did not come within {timeout_s:.0f} s")
        time.sleep(0.1)


def say_what_to_try(lab: Lab) -> None:
    """A stopped guest to start, a credentials file for clients outside, and commands."""
    with client_of(lab.node("n1")) as client:
        client.tasks.wait(client.guests.create(SPARE_VM, guest_pb2.GUEST_KIND_VM, SPARE_CONFIG, node="n3"))
    program = Path(sys.executable).parent / "kvorum"
    address = relay.publish(lab.node("n1").layout, AGENT_PORT).address
    credentials = lab.layout.directory / "credentials.json"
    inside = "/var/lib/kvorum/credentials.json"
    lab.node("n1").run(["kvorum", "cluster", "credentials", "--out", inside, "--address", address])
    write_atomically(credentials, lab.node("n1").path(inside).read_bytes(), mode=0o600)
    is_default = lab.layout.name == "lab"
    name = "" if is_default else f" --name {lab.layout.name}"
    example = "" if is_default else f" --credentials {credentials}"
    print(f"""
The cluster is up. Try:
  {program} lab{name} status
  {program} lab{name} exec n1 -- kvorum guest list
  {program} lab{name} exec n1 -- kvorum vm log {VM}
  {program} lab{name} exec n1 -- kvorum vm migrate {VM} n3
  {program} lab{name} cut n3 ; {program} lab{name} heal n3
  {program} --credentials {credentials} cluster status
  {sys.executable} docs/examples/client.py{example}
  {program} lab{name} down
""")


if __name__ == "__main__":
    sys.exit(main())
