"""A lab as a whole: its life from `up` to `down`, and the network between its nodes.

    lab = Lab("demo")
    lab.up(3)
    lab.node("n1").run(["kvorum", "cluster", "status"])
    lab.cut("n3")
    lab.down()

`up` and `down` may be interrupted anywhere and repeated: everything a lab makes is found again by its name.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from kvorum.errors import AlreadyExists, NotFound
from kvorum.node import write_atomically
from lab import (
    boot,
    capabilities,
    cgroups,
    forming,
    leftovers,
    processes,
    programs,
    relay,
    requirements,
    syscalls,
    watchdog_control,
)
from lab.images import provide
from lab.layout import BASE, LabLayout, parse_node
from lab.locks import held
from lab.node import Node
from lab.switch import Switch

Progress = Callable[[str], None]


class LabState(msgspec.Struct, frozen=True, kw_only=True):
    """`is_whole` turns true at the end of `up`; a lab without it is half made."""

    nodes: int
    is_whole: bool


class Lab:
    """As a context manager it takes the lab down at the end; it does not bring it up."""

    def __init__(self, name: str = "lab", *, base: Path = BASE) -> None:
        self.layout = LabLayout(name=name, base=base)
        self.switch = Switch(self.layout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def shared(self) -> Path:
        """The directory that every node sees as /srv/shared."""
        return self.layout.shared

    @property
    def nodes(self) -> list[Node]:
        """All of the lab, on or off. Raises NotFound when the lab is not up."""
        state = self._state()
        if state is None:
            raise NotFound(f"lab {self.layout.name!r} is not up", remedy="run 'kvorum lab up'")
        return [Node(self.layout.node(number)) for number in range(1, state.nodes + 1)]

    def node(self, name: str) -> Node:
        """Raises NotFound for a node that the lab does not have."""
        number = parse_node(name)
        nodes = self.nodes
        if number > len(nodes):
            raise NotFound(f"the lab has no node {name}", remedy=f"it has n1 to n{len(nodes)}")
        return nodes[number - 1]

    # Life

    def up(
        self,
        nodes: int = 3,
        *,
        join: bool = True,
        images: bool = True,
        witness: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Power on `nodes` nodes, form a cluster of them (`join`), the last one a witness if wanted, and put the test guests'
        images in place (`images`).

        What a half-made or crashed lab of the same name left is cleaned up first. Raises AlreadyExists when it is up.
        """
        say = _timed(progress or (lambda _: None))
        requirements.check()
        self.layout.node(nodes)
        with self._lock():
            state = self._state()
            if state is not None and state.is_whole and any(node.is_on for node in self.nodes):
                raise AlreadyExists(
                    f"lab {self.layout.name!r} is up", remedy="take it down first, or choose another --name"
                )
            self._destroy()
            self._make(nodes)
            say(f"{nodes} nodes power on")
            for node in self.nodes:
                node.wait_ready(["libvirtd"])
            say("libvirtd answers on each")
            if capabilities.learn(self.nodes):
                say("libvirt has learnt what QEMU can do")
            if images:
                provide.provide(self.layout, nodes, say)
                say("guest images are in place")
            if join:
                forming.form(self.nodes, say, witness=witness)
            self._write_state(LabState(nodes=nodes, is_whole=True))

    def down(self) -> None:
        """End and remove everything of the lab. Nothing there is fine. Raises Timeout for what does not die."""
        with self._lock():
            self._destroy()

    def leftovers(self) -> list[leftovers.Leftover]:
        return leftovers.find(self.layout)

    def _make(self, nodes: int) -> None:
        self.layout.shared.mkdir(parents=True)
        self._write_state(LabState(nodes=nodes, is_whole=False))
        self.switch.create()
        switch_pid = self.switch.pid
        booting = []
        for node in self.nodes:
            boot.install(node.layout)
            capabilities.install(node.layout)
            booting.append(boot.Booting(node.layout, switch_pid=switch_pid))
        watchdog_control.ensure(self.layout)
        for one in booting:
            one.wait()
        watchdog_control.wait_ready(self.layout)

    def _destroy(self) -> None:
        """Processes first, by cgroup: nothing else can go while they live, and nothing of them needs its records."""
        cgroups.destroy(f"{self.layout.cgroup_prefix}*")
        processes.reap()
        for point in leftovers.mount_points(self.layout, Path("/proc/self/mountinfo").read_text()):
            syscalls.unmount(point)
        for device in leftovers.loops(self.layout):
            programs.run(["losetup", "--detach", device])
        if self.layout.directory.exists():
            shutil.rmtree(self.layout.directory)

    # Network

    def cut(self, node: str, other: str = "") -> None:
        """Partition at the switch: a node from all others, or from one."""
        first = self.node(node).layout
        if other:
            self.switch.separate(first, self.node(other).layout)
        else:
            self.switch.isolate(first)

    def cut_one_way(self, sender: str, receiver: str) -> None:
        self.switch.separate_one_way(self.node(sender).layout, self.node(receiver).layout)

    def heal(self, *nodes: str) -> None:
        """Undo the cuts of a node, of a pair, or (without names) all."""
        self.switch.heal([self.node(name).layout for name in nodes])

    # Looking

    def status(self) -> dict[str, Any]:
        """Everything for people and programs to look at, as JSON values."""
        isolated, cut = self.switch.cuts()
        ports = {node.layout.switch_port: node.name for node in self.nodes}
        return {
            "name": self.layout.name,
            "directory": str(self.layout.directory),
            "nodes": [self._node_status(node, isolated) for node in self.nodes],
            "cuts": sorted([ports.get(a, a), ports.get(b, b)] for a, b in cut),
            "watchdog": "on" if watchdog_control.is_on(self.layout) else "off",
            "published": [msgspec.to_builtins(one) for one in relay.published(self.layout)],
        }

    def _node_status(self, node: Node, isolated: set[str]) -> dict[str, Any]:
        is_on = node.is_on
        is_frozen = is_on and node.is_frozen
        return {
            "name": node.name,
            "address": node.address,
            "state": "frozen" if is_frozen else "on" if is_on else "off",
            "cause": "" if is_on else watchdog_control.cause(node.layout),
            "pid": node.pid if is_on else None,
            "is_cut": node.layout.switch_port in isolated,
            "units": node.units() if is_on and not is_frozen else [],
        }

    def _state(self) -> LabState | None:
        try:
            return msgspec.json.decode(self.layout.state_file.read_bytes(), type=LabState)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _write_state(self, state: LabState) -> None:
        write_atomically(self.layout.state_file, msgspec.json.encode(state))

    def _lock(self) -> AbstractContextManager[None]:
        """One `up` or `down` of this lab at a time. Raises Locked."""
        return held(self.layout.lock_file, f"lab {self.layout.name!r} is being brought up or down by somebody else")


def find_labs(base: Path = BASE) -> list[str]:
    """Names of the labs whose directories are there, half-made ones too."""
    return sorted(path.name for path in base.glob("*") if path.is_dir())


def _timed(progress: Progress) -> Progress:
    """Lines with the seconds since the beginning."""
    begin = time.monotonic()
    return lambda line: progress(f"{time.monotonic() - begin:6.2f} s  {line}")
