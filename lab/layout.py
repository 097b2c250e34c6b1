"""Names, paths and addresses of a lab: every one follows from the lab's name, so that it can be found again.

That is what lets `down` clean up after anything: it needs no memory of what `up` did. Pure values only; nothing here
looks at the machine.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from kvorum.errors import InvalidInput

BASE = Path("/var/lib/kvorum-lab")
IMAGE_CACHE = Path("/var/cache/kvorum-lab/images")
NODES_MAX = 32
NETWORK = "10.77.0"
PREFIX_LENGTH = 24
SHARED = Path("/srv/shared")
INIT_SOCKET = Path("/run/kvorum-init.sock")

# Directories that survive a power cut: bound from the lab's directory over the machine's own.
DISK_DIRECTORIES = (
    "var/lib/kvorum",
    "var/lib/libvirt",
    "var/lib/lxc",
    "var/lib/vz",
    "var/log",
    "var/cache/libvirt",
)

_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,22}[a-z0-9])?")
_NODE = re.compile(r"n([1-9][0-9]?)")


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Where one node of a lab is; `number` counts from 1."""

    lab: "LabLayout"
    number: int

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def hardware_address(self) -> str:
        """Fixed, so that the neighbours' ARP entries stay right over a power cut."""
        return f"02:6b:76:00:00:{self.number:02x}"

    @property
    def switch_port(self) -> str:
        return f"p{self.number}"

    @property
    def cgroup(self) -> str:
        return f"{self.lab.cgroup_prefix}{self.name}"

    @property
    def directory(self) -> Path:
        return self.lab.directory / self.name

    @property
    def etc(self) -> Path:
        """Upper layer of the node's /etc."""
        return self.directory / "etc"

    @property
    def etc_work(self) -> Path:
        return self.directory / "etc.work"

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def record(self) -> Path:
        """Process id and start time of the node's PID 1; missing when the node is off."""
        return self.directory / "init.json"

    @property
    def power_lock(self) -> Path:
        """Held while the node's power is switched or it is thawed: people and its watchdog both do."""
        return self.lab.lock_file.with_name(f"kvorum-lab.{self.lab.name}.{self.name}.lock")

    @property
    def watchdog_socket(self) -> Path:
        """The node's keeper feeds it; the same path inside and outside."""
        return self.directory / "watchdog.sock"

    @property
    def watchdog_note(self) -> Path:
        """Why the watchdog cut the power, in one line; gone when the node is powered on again."""
        return self.directory / "watchdog.txt"

    @property
    def boot_file(self) -> Path:
        return self.directory / "boot.json"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"


@dataclass(frozen=True, slots=True)
class LabLayout:
    """Where a lab is. Several may run side by side: they share no bridge, directory or cgroup."""

    name: str
    base: Path = BASE

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(
                f"{self.name!r} is no name for a lab",
                field="name",
                remedy="use small letters, digits and inner hyphens, at most 24, a letter first",
            )

    @property
    def directory(self) -> Path:
        return self.base / self.name

    @property
    def shared(self) -> Path:
        return self.directory / "shared"

    @property
    def relays(self) -> Path:
        return self.directory / "relays"

    @property
    def state_file(self) -> Path:
        return self.directory / "lab.json"

    @property
    def switch_record(self) -> Path:
        return self.directory / "switch.json"

    @property
    def watchdog_record(self) -> Path:
        return self.directory / "watchdog.json"

    @property
    def watchdog_log(self) -> Path:
        return self.directory / "watchdog.log"

    @property
    def watchdog_cgroup(self) -> str:
        """None of a node's: it must go on while the node is frozen."""
        return f"{self.cgroup_prefix}watchdog"

    @property
    def lock_file(self) -> Path:
        """Outside the directory, which `down` removes."""
        return Path("/run/lock") / f"kvorum-lab.{self.name}.lock"

    @property
    def cgroup_prefix(self) -> str:
        """Starts the name of each cgroup of this lab; no lab's prefix is the beginning of another's (names hold no dot)."""
        return f"kvorum-lab.{self.name}."

    @property
    def switch_cgroup(self) -> str:
        return f"{self.cgroup_prefix}switch"

    @property
    def relay_cgroup(self) -> str:
        return f"{self.cgroup_prefix}relays"

    def node(self, number: int) -> NodeLayout:
        if not 1 <= number <= NODES_MAX:
            raise InvalidInput(f"a lab has nodes 1 to {NODES_MAX}, not {number}", field="nodes")
        return NodeLayout(lab=self, number=number)


def parse_node(text: str) -> int:
    """Number of the node called `n1` .. `n32`."""
    match = _NODE.fullmatch(text)
    number = int(match[1]) if match else 0
    if not 1 <= number <= NODES_MAX:
        raise InvalidInput(f"{text!r} is no node of a lab", field="node", remedy=f"write n1 to n{NODES_MAX}")
    return number
