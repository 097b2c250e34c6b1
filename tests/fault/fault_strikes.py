"""What strikes a cluster, one fault at a time, and how it is undone."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from fault_nodes import FaultNode, Network, leader_of

KINDS = (
    "leader killed", "node killed", "all killed", "leader frozen", "node frozen", "leader cut off", "node cut off",
    "pair cut", "one-way cut", "cluster split", "disk full", "disk slow", "power of one lost", "power of all lost",
)  # fmt: skip
# Those that nobody can have felt unless packets were dropped.
CUTS = {"leader cut off", "node cut off", "pair cut", "one-way cut", "cluster split"}
# Those that take a while to be felt.
LONG = {"disk full", "disk slow"}


class Strikes:
    def __init__(self, nodes: list[FaultNode], network: Network, luck: random.Random, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        self._nodes, self._network, self._luck = nodes, network, luck
        self.struck: Counter[str] = Counter()
        # Packets that were lost to a kind of strike, and nodes that ended without being struck.
        self.dropped: Counter[str] = Counter()
        self.ended: list[str] = []
        self._left: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await _wait(stop, self._luck.uniform(1.0, 3.0))
            if stop.is_set():
                return
            if not self._left:
                # Each kind once before any comes again.
                self._left = self._luck.sample(self._kinds, len(self._kinds))
            kind = self._left.pop()
            self.struck[kind] += 1
            print(f"  {kind}", flush=True)
            await self._strike(kind)
            await _wait(stop, self._luck.uniform(4.0, 9.0) if kind in LONG else self._luck.uniform(0.5, 4.0))
            await self.undo(kind)

    async def undo(self, kind: str = "") -> None:
        self.dropped[kind] += self._network.heal()
        for node in self._nodes:
            node.restore_disk()
            if node.has_ended_by_itself:
                assert node.process is not None
                self.ended.append(f"{node.identity.name} ended by itself with {node.process.returncode} ({kind})")
            node.thaw()
            node.free_disk()
            if not node.is_running:
                node.start()

    async def _strike(self, kind: str) -> None:
        leader = await leader_of(self._nodes)
        node = self._luck.choice(self._nodes)
        target = leader or node
        names = [node.identity.name for node in self._nodes]
        match kind:
            case "leader killed":
                await asyncio.to_thread(target.kill)
            case "node killed":
                await asyncio.to_thread(node.kill)
            case "all killed":
                await asyncio.gather(*(asyncio.to_thread(one.kill) for one in self._nodes))
            case "leader frozen":
                target.freeze()
            case "node frozen":
                node.freeze()
            case "leader cut off":
                self._split({target.identity.name})
            case "node cut off":
                self._split({node.identity.name})
            case "pair cut":
                self._network.cut(*self._luck.sample(names, 2))
            case "one-way cut":
                self._network.cut(*self._luck.sample(names, 2), both_ways=False)
            case "cluster split":
                self._split(set(self._luck.sample(names, len(names) // 2)))
            case "disk full":
                await asyncio.to_thread(self._luck.choice((target, node)).fill_disk)
            case "disk slow":
                slow, pace = self._luck.choice((target, node)), self._luck.choice((2, 5, 20))
                sync_s = await asyncio.to_thread(slow.slow_disk, pace)
                print(f"    a sync of {slow.identity.name}'s takes {sync_s:.2f} s", flush=True)
            case "power of one lost":
                await asyncio.to_thread(self._luck.choice((target, node)).lose_power)
            case "power of all lost":
                # All at once: first nobody runs, then every disk forgets.
                for one in self._nodes:
                    one.kill()
                await asyncio.gather(*(asyncio.to_thread(one.lose_power) for one in self._nodes))
            case _:
                raise AssertionError(kind)

    def faults(self) -> list[str]:
        """Why these strikes prove nothing, or what they have shown by themselves."""
        found = list(self.ended)
        if not self.struck:
            found.append("nothing was struck")
        found += [
            f"{kind}: no packet was dropped in {self.struck[kind]} of them"
            for kind in sorted(CUTS & self.struck.keys())
            if not self.dropped[kind]
        ]
        return found

    def _split(self, side: set[str]) -> None:
        for node in self._nodes:
            for one in side - {node.identity.name}:
                if node.identity.name not in side:
                    self._network.cut(one, node.identity.name)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
