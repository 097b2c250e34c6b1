"""PID 1 of a node: makes the node's world out of the machine's, then supervises its daemons.

Runs in two steps. `main` is still a process of the machine: it makes the namespaces, plugs the node's cable into the
lab's switch, forks and ends. The child is PID 1 of the new PID namespace: mounts, host name, then `lab.supervisor`.
Standard library only, started with `python -S`: a node must boot in a fraction of a second. Guests, clusters and
Kvorum's own formats are unknown here.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import syscalls
from lab.supervisor import Supervisor, Unit, say

_PROGRAM_TIMEOUT_S = 10.0


def main(boot_file: str) -> int:
    """Says {"pid": N} and then {"ready": true} on standard output, one line each; the rest goes to the console log."""
    boot: dict[str, Any] = json.loads(Path(boot_file).read_text())
    handshake = os.dup(1)
    console = os.open(boot["console_log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    for number in (1, 2):
        os.dup2(console, number)
    os.chdir("/")
    syscalls.unshare(
        syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWNET
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWCGROUP
    )
    # The cgroup namespace has its root above; only an empty v2 cgroup may hand controllers down, so go one level lower.
    for entrance in boot["cgroups"]["leaves"]:
        Path(entrance).write_text(str(os.getpid()))
    _plug_in(boot["network"])
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        _tell(handshake, {"pid": pid})
        return 0
    _be_init(boot, handshake)
    return 0


def _be_init(boot: Mapping[str, Any], handshake: int) -> None:
    say("power on")
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    _mount_disk(boot)
    _mount_kernel(boot["cgroups"])
    socket.sethostname(boot["name"])
    units = {unit["name"]: _unit(unit) for unit in boot["units"]}
    supervisor = Supervisor(units=units, environment=boot["environment"], socket_path=Path(boot["socket"]))
    supervisor.start_all()
    _tell(handshake, {"ready": True})
    os.close(handshake)
    supervisor.run_forever()
    say("power off")


def _unit(raw: Mapping[str, Any]) -> Unit:
    return Unit(
        name=raw["name"],
        command=raw["command"],
        needs=[Path(path) for path in raw["needs"]],
        log=Path(raw["log"]),
        ready=Path(raw["ready"]) if raw.get("ready") else None,
    )


def _plug_in(network: Mapping[str, Any]) -> None:
    """The node's address sits on vmbr0, whose uplink is a cable to the switch, as on a real host with guests."""
    port, hardware = network["switch_port"], network["hardware_address"]
    switch = f"/proc/{network['switch_pid']}/ns/net"
    # The old cable of a node that lost power goes with its namespace, but the kernel takes its time over that.
    _ip([f"link del {port}"], namespace=switch, is_forced=True)
    _ip(
        [
            "link set lo up",
            f"link add uplink type veth peer name {port} netns {network['switch_pid']}",
            "link add vmbr0 type bridge forward_delay 0 stp_state 0",
            f"link set vmbr0 address {hardware}",
            "link set uplink master vmbr0 up",
            f"addr add {network['address']} dev vmbr0",
            "link set vmbr0 up",
        ]
    )
    _ip([f"link set {port} master br0 up"], namespace=switch)


def _ip(lines: list[str], *, namespace: str = "", is_forced: bool = False) -> None:
    command = ["ip", *(["-force"] if is_forced else []), "-batch", "-"]
    if namespace:
        command = ["nsenter", f"--net={namespace}", *command]
    subprocess.run(
        command,
        input="\n".join(lines) + "\n",
        text=True,
        check=not is_forced,
        timeout=_PROGRAM_TIMEOUT_S,
        stderr=subprocess.DEVNULL if is_forced else None,
    )


def _mount_disk(boot: Mapping[str, Any]) -> None:
    """What survives a power cut (/etc, the directories of `disk`) and what all nodes share."""
    etc = boot["etc"]
    syscalls.mount(
        "overlay", "/etc", kind="overlay", options=f"lowerdir=/etc,upperdir={etc['upper']},workdir={etc['work']}"
    )
    for source, target in boot["binds"]:
        syscalls.bind(source, target)


def _mount_kernel(cgroups: Mapping[str, Any]) -> None:
    """What the kernel shows of this node only, and memory that a power cut empties."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("proc", "/proc", kind="proc", flags=flags | syscalls.MS_NOEXEC)
    # liblxc and libvirt look for bridges in /sys/class/net, which shows the namespace that mounted it.
    syscalls.mount("sysfs", "/sys", kind="sysfs", flags=flags | syscalls.MS_NOEXEC)
    _mount_cgroups(cgroups)
    syscalls.mount("tmpfs", "/run", kind="tmpfs", flags=flags, options="mode=755")
    syscalls.mount("tmpfs", "/dev/shm", kind="tmpfs", flags=flags, options="mode=1777")  # noqa: S108 -- the mount point itself
    for directory in ("lock", "kvorum", "libvirt", "lxc"):
        Path("/run", directory).mkdir(mode=0o755)


def _mount_cgroups(cgroups: Mapping[str, Any]) -> None:
    root = Path(cgroups["root"])
    if not any(h["path"] == str(root) for h in cgroups["hierarchies"]):
        syscalls.mount("tmpfs", root, kind="tmpfs", options="mode=755")
    for hierarchy in cgroups["hierarchies"]:
        path = Path(hierarchy["path"])
        path.mkdir(parents=True, exist_ok=True)
        if hierarchy["is_v2"]:
            syscalls.mount("cgroup2", path, kind="cgroup2")
            for controller in (path / "cgroup.controllers").read_text().split():
                (path / "cgroup.subtree_control").write_text(f"+{controller}")
        else:
            syscalls.mount("cgroup", path, kind="cgroup", options=hierarchy["options"])
    for name, target in cgroups["links"]:
        Path(root, name).symlink_to(target)


def _tell(handshake: int, message: Mapping[str, object]) -> None:
    os.write(handshake, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
