"""The switch of a lab: a bridge in a network namespace of its own, and nft sets that say who is cut off from whom.

A sleeping process holds the namespace; nothing is mounted or named on the machine, so killing that process is all
that cleaning up takes. Only nodes' cables come together here: the machine's own network is never touched.
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from kvorum.errors import NotFound, Timeout
from lab import cgroups, processes, programs
from lab.layout import LabLayout, NodeLayout

_HOLDER = ["unshare", "--net", "sleep", "infinity"]
_RULES = """
table bridge lab {
  set isolated { type ifname; }
  set cut { type ifname . ifname; }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname @isolated counter drop
    oifname @isolated counter drop
    iifname . oifname @cut counter drop
  }
}
"""


class Switch:
    """Raises NotFound from every method but `create` when the lab is not up."""

    def __init__(self, layout: LabLayout) -> None:
        self._layout = layout

    def create(self) -> None:
        cgroups.make(self._layout.switch_cgroup, has_leaf=False)
        command = cgroups.joining(self._layout.switch_cgroup, _HOLDER, leaf=False)
        environment = {"PATH": os.defpath, "KVORUM_LAB": self._layout.name}
        pid = processes.spawn_detached(command, environment=environment, log=self._layout.directory / "switch.log")
        _wait_until_sleeping(pid)
        processes.record(pid, self._layout.switch_record)
        lines = ["link set lo up", "link add br0 type bridge forward_delay 0 stp_state 0", "link set br0 up"]
        self._run(["ip", "-batch", "-"], "\n".join(lines) + "\n")
        self._run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
        self._run(["nft", "-f", "-"], _RULES)

    @property
    def pid(self) -> int:
        noted = processes.recall(self._layout.switch_record)
        if noted is None:
            raise NotFound(
                f"lab {self._layout.name!r} is not up", remedy=f"run 'kvorum lab --name {self._layout.name} up'"
            )
        return noted.pid

    def isolate(self, node: NodeLayout) -> None:
        """Cut a node off from all others."""
        self._nft(f"add element bridge lab isolated {{ {node.switch_port} }}")

    def separate(self, first: NodeLayout, second: NodeLayout) -> None:
        """Cut one pair, both ways."""
        self._nft(f"add element bridge lab cut {{ {_pairs(first, second)} }}")

    def separate_one_way(self, sender: NodeLayout, receiver: NodeLayout) -> None:
        self._nft(f"add element bridge lab cut {{ {sender.switch_port} . {receiver.switch_port} }}")

    def heal(self, nodes: Iterable[NodeLayout] = ()) -> None:
        """Undo the cuts of the nodes named: all of one, those between two; without any, every cut of the lab."""
        ports = {node.switch_port for node in nodes}
        isolated, cut = self.cuts()
        if len(ports) != 2:
            gone = isolated & ports if ports else isolated
            for port in sorted(gone):
                self._nft(f"delete element bridge lab isolated {{ {port} }}")
        for sender, receiver in sorted(cut):
            is_meant = ports <= {sender, receiver}
            if is_meant:
                self._nft(f"delete element bridge lab cut {{ {sender} . {receiver} }}")

    def cuts(self) -> tuple[set[str], set[tuple[str, str]]]:
        """Ports cut off from all, and pairs (from, to) cut."""
        listed = json.loads(self._run(["nft", "-j", "list", "ruleset", "bridge"]))
        return parse_cuts(listed)

    def dropped(self) -> int:
        """Packets that cuts have stopped since the lab came up: a cut that stopped none was felt by nobody."""
        return parse_dropped(json.loads(self._run(["nft", "-j", "list", "ruleset", "bridge"])))

    def unplug(self, node: NodeLayout) -> None:
        """Take the cable away; there may be none."""
        self._run(["ip", "-force", "-batch", "-"], f"link del {node.switch_port}\n", is_checked=False)

    def _nft(self, line: str) -> None:
        self._run(["nft", "-f", "-"], line + "\n")

    def _run(self, command: list[str], stdin: str = "", *, is_checked: bool = True) -> str:
        inside = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]
        return programs.run(inside, stdin=stdin, timeout_s=15.0, is_checked=is_checked)


def parse_cuts(listed: dict[str, list[dict[str, dict[str, object]]]]) -> tuple[set[str], set[tuple[str, str]]]:
    """What `nft -j list ruleset bridge` says of our two sets."""
    isolated: set[str] = set()
    cut: set[tuple[str, str]] = set()
    for entry in listed.get("nftables", []):
        found = entry.get("set", {})
        elements = found.get("elem", [])
        assert isinstance(elements, list)
        if found.get("name") == "isolated":
            isolated |= {str(element) for element in elements}
        elif found.get("name") == "cut":
            cut |= {(str(e["concat"][0]), str(e["concat"][1])) for e in elements}
    return isolated, cut


def parse_dropped(listed: dict[str, list[dict[str, dict[str, object]]]]) -> int:
    """What `nft -j list ruleset bridge` says that our rules have counted."""
    count = 0
    for entry in listed.get("nftables", []):
        expressions = entry.get("rule", {}).get("expr", [])
        assert isinstance(expressions, list)
        count += sum(part["counter"]["packets"] for part in expressions if "counter" in part)
    return count


def _pairs(first: NodeLayout, second: NodeLayout) -> str:
    a, b = first.switch_port, second.switch_port
    return f"{a} . {b}, {b} . {a}"


def _wait_until_sleeping(pid: int, *, timeout_s: float = 10.0) -> None:
    """The holder is in its namespace once the last program of its chain runs."""
    deadline = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}/comm").read_text().strip() != "sleep":
        if time.monotonic() > deadline:
            raise Timeout("the lab's switch does not start")
        time.sleep(0.002)
