"""What libvirt found out about this machine's QEMU, kept for nodes to come.

A fresh libvirtd asks each QEMU program what it can do, which takes a node seconds before its first guest; a real host
did so long ago. libvirt itself judges whether such a file is still true, so an old one costs time and nothing else.
"""

import platform
import shutil
from pathlib import Path

from lab.images import cache
from lab.layout import NodeLayout
from lab.node import Node

_CACHED = Path("var/cache/libvirt/qemu/capabilities")
_PROGRAMS = ("/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64")
_PROBE_TIMEOUT_S = 120.0


def place() -> Path:
    """Where they lie, or will, for the programs and the kernel that are here now."""
    facts = [f"{path} {Path(path).stat().st_ctime_ns}" for path in _PROGRAMS]
    return cache.place("capabilities", cache.key([], platform.release(), *facts))


def install(node: NodeLayout) -> None:
    """Onto a disk before its node boots, when they are known."""
    if place().is_dir():
        shutil.copytree(place(), node.disk / _CACHED, dirs_exist_ok=True)


def learn(nodes: list[Node]) -> bool:
    """Have the first node find out, and tell the others; False when that was done before."""
    if place().is_dir():
        return False

    def ask(directory: Path) -> None:
        nodes[0].run(["virsh", "capabilities"], timeout_s=_PROBE_TIMEOUT_S)
        shutil.copytree(nodes[0].layout.disk / _CACHED, directory, dirs_exist_ok=True)

    cache.built(place(), ask)
    for node in nodes[1:]:
        install(node.layout)
    return True
