"""The guests that are struck: two virtual machines and a container, all on one node at a time, each stamping its own disk.

The VMs boot the lab's micro guest, which writes its boot's id and a counter to its second sector, past every cache (QEMU opens
it with O_DIRECT). The container is the lab's, with a line more in its PID 1 that forces the same to a file.
"""

import io
import tarfile

from array_control import StorageArray
from cluster.guest_lab import BUSYBOX, client_of, micro

from kvorum.v1 import guest_pb2
from lab.cluster import Lab

VMIDS = {"vm:100": 100, "vm:101": 101, "ct:102": 102}
SIDS = tuple(VMIDS)
TEMPLATE = "stamping.tar.gz"

_INIT = "sbin/init"
_PRINTED = b'    echo "$line"\n'
_STAMPED = b'    echo "STAMP $boot COUNT $count" | dd of=/stamp conv=notrunc,fsync 2>/dev/null\n'


def stamping_template(plain: bytes) -> bytes:
    """The container's template with a PID 1 that stamps; both packed."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(plain), mode="r:gz") as source,
        tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.GNU_FORMAT) as target,
    ):
        for member in source:
            content = source.extractfile(member) if member.isfile() else None
            data = content.read() if content is not None else b""
            if member.name == _INIT:
                assert data.count(_PRINTED) == 1, "the container's PID 1 no longer prints as it did"
                data = data.replace(_PRINTED, _PRINTED + _STAMPED)
                member.size = len(data)
            target.addfile(member, io.BytesIO(data))
        stamp = tarfile.TarInfo("stamp")
        stamp.size = 512
        target.addfile(stamp, io.BytesIO(bytes(stamp.size)))
    return packed.getvalue()


def make(lab: Lab, array: StorageArray) -> None:
    """On n1, under HA, and bound to be together."""
    templates = array.files / "template/cache"
    (templates / TEMPLATE).write_bytes(stamping_template((templates / "busybox.tar.gz").read_bytes()))
    node = lab.node("n1")
    with client_of(node) as client:
        for sid, vmid in VMIDS.items():
            if sid.startswith("vm:"):
                task = client.guests.create(vmid, guest_pb2.GUEST_KIND_VM, micro("shared"), node="n1")
            else:
                box, template = {**BUSYBOX, "rootfs": "shared:0.1"}, f"shared:vztmpl/{TEMPLATE}"
                kind = guest_pb2.GUEST_KIND_CONTAINER
                task = client.guests.create(vmid, kind, box, node="n1", template=template)
            client.tasks.wait(task)
        for sid in SIDS:
            client.ha.add(sid)
    rule = ["rule", "add", "resource-affinity", "together", "--resources", ",".join(SIDS), "--affinity", "positive"]
    node.run(["kvorum", "ha", *rule, "--strict"])
