"""The files in a new node's /etc, as text. Pure: the cluster module writes them."""

from collections.abc import Mapping

from lab import libvirt_conf
from lab.layout import NETWORK, NODES_MAX, NodeLayout


def etc_files(node: NodeLayout, *, machine_id: str) -> Mapping[str, str]:
    """Path below /etc -> content. `machine_id` is 32 hex digits and becomes libvirt's host UUID too."""
    host = libvirt_conf.Host(address=node.address, host_uuid=libvirt_conf.host_uuid(machine_id))
    return {
        "hostname": f"{node.name}\n",
        "hosts": hosts(),
        "machine-id": f"{machine_id}\n",
        "subuid": "root:100000:65536\n",
        "subgid": "root:100000:65536\n",
        "libvirt/libvirtd.conf": libvirt_conf.render_libvirtd(host),
        "libvirt/qemu.conf": libvirt_conf.render_qemu(host),
    }


def hosts() -> str:
    """Every node the lab may ever have, so that names work before and after nodes are added."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{NETWORK}.{number} n{number}" for number in range(1, NODES_MAX + 1)]
    return "\n".join(lines) + "\n"
