"""Real kvorum-clusterfs processes, each with its state on an ext4 of its own, on addresses of one private network.

All of it lives in the namespaces that `fault_run` has made (mounts, network, processes): nothing of it can outlive them.
"""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cluster.small_disk import SmallDisk
from cluster.store_daemons import Ca, Node, eventually, join
from fault_disk import Throttle

from kvorum import errors

DISK_MIB = 768


class FaultNode(Node):
    def __init__(self, directory: Path, ca: Ca, name: str, address: str) -> None:
        place = directory / name
        place.mkdir()
        self.disk = SmallDisk(place, size_mib=DISK_MIB)
        (place / "state").symlink_to(self.disk.path / "state")
        (self.disk.path / "state").mkdir()
        self.is_frozen = False
        # Ended by us, so that one which ends by itself is noticed.
        self.is_struck_down = True
        self._throttle = Throttle(name)
        self._filler = self.disk.path / "filler"
        super().__init__(directory, ca, name, address)
        os.sync()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def has_ended_by_itself(self) -> bool:
        return not self.is_running and not self.is_struck_down

    def start(self) -> None:
        super().start()
        self.is_struck_down = False

    def kill(self) -> None:
        if self.is_running:
            super().kill()
            self.is_struck_down = True
        self.is_frozen = False

    def freeze(self) -> None:
        if self.is_running:
            self.signal(signal.SIGSTOP)
            self.is_frozen = True
            assert self.process is not None
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        if self.is_running and self.is_frozen:
            self.signal(signal.SIGCONT)
        self.is_frozen = False

    def lose_power(self) -> None:
        """The process ends, and of its disk only what was synced is there when it is mounted again."""
        self.kill()
        self.disk.fail_power()
        # A helper that the daemon had started may need a moment to end.
        for patience in range(100):
            try:
                self.disk.unmount()
                break
            except subprocess.CalledProcessError:
                assert patience < 99, "who uses this disk?"
                time.sleep(0.1)
        self.disk.mount()

    def fill_disk(self) -> None:
        """To the last block; what is allocated already can still be written."""
        with suppress(OSError), self._filler.open("wb") as filler:
            step = 2**20
            while step >= 4096:
                try:
                    os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, step)
                except OSError:
                    step //= 2
        left = os.statvfs(self.disk.path)
        assert left.f_bavail * left.f_frsize < 2**16, "the disk is not full"

    def free_disk(self) -> None:
        with suppress(OSError):
            self._filler.unlink(missing_ok=True)

    def slow_disk(self, writes_per_s: int) -> float:
        """How long a sync takes now. Raises NotSlow."""
        assert self.process is not None
        return self._throttle.slow(self.disk.path, self.process.pid, writes_per_s=writes_per_s)

    def restore_disk(self) -> None:
        self._throttle.restore()

    def clean(self) -> None:
        self.restore_disk()
        super().clean()
        self._throttle.remove()
        self.disk.unmount()


class Network:
    """Who cannot reach whom: rules in this namespace's own firewall."""

    def __init__(self, nodes: Iterable[FaultNode]) -> None:
        self._addresses = {node.identity.name: node.identity.address for node in nodes}
        _nft("add table inet faults; add chain inet faults in { type filter hook input priority 0; }")

    def cut(self, one: str, other: str, *, both_ways: bool = True) -> None:
        self._drop(one, other)
        if both_ways:
            self._drop(other, one)

    def _drop(self, source: str, target: str) -> None:
        addresses = f"ip saddr {self._addresses[source]} ip daddr {self._addresses[target]}"
        _nft(f"add rule inet faults in {addresses} counter drop")

    def heal(self) -> int:
        """How many packets did not get through since the last time."""
        rules = json.loads(_nft("list chain inet faults in", "-j"))["nftables"]
        expressions = [part for rule in rules for part in rule.get("rule", {}).get("expr", ())]
        _nft("flush chain inet faults in")
        return sum(part["counter"]["packets"] for part in expressions if "counter" in part)


def _nft(rules: str, *options: str) -> str:
    return subprocess.run(["nft", *options, rules], check=True, capture_output=True, text=True, timeout=20).stdout


async def found(directory: Path, count: int) -> list[FaultNode]:
    """A cluster of so many, each mounted and caught up. Who calls cleans them, also when this fails."""
    ca = Ca()
    nodes: list[FaultNode] = []
    try:
        for number in range(1, count + 1):
            nodes.append(FaultNode(directory, ca, f"n{number}", f"127.77.0.{number}"))
        for node in nodes:
            node.start()
        for node in nodes:
            await eventually(node.is_up, seconds=60)
        await nodes[0].client.activate([nodes[0].member], "test")
        for number, node in enumerate(nodes[1:], start=2):
            await join(nodes[0], node, nodes[:number])
        await _all_vote(nodes)
    except BaseException:
        for node in nodes:
            node.clean()
        raise
    return nodes


async def _all_vote(nodes: list[FaultNode]) -> None:
    async def is_so() -> bool:
        states = [await node.client.status() for node in nodes]
        return all(state.ready and state.quorate and len(state.members) == len(nodes) for state in states)

    await eventually(is_so, seconds=60)


async def leader_of(nodes: list[FaultNode]) -> FaultNode | None:
    by_uid = {node.identity.uid: node for node in nodes}
    for node in nodes:
        if node.is_running and not node.is_frozen:
            with suppress(errors.KvorumError, OSError, asyncio.TimeoutError):
                status = await node.client.status(deadline_s=0.5)
                if status.quorate and status.leader_uid in by_uid:
                    return by_uid[status.leader_uid]
    return None
