"""The manager's hand at the switch: starts agents for nodes that are silent, and tells the log what they confirm.

A life of a node is switched off by one task at a time, all its methods at once; the first method that is confirmed
ends the others. The confirmation names the incarnation that the manager saw *before* the switching: if the node was
switched on again meanwhile and has taken a new lease, the log refuses it. A manager that is deposed midway does no
harm: that the node is off is true all the same.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from kvorum.errors import KvorumError

from . import agents
from .agents import Outcome
from .config import FenceConfig, Method
from .plan import Candidate, Target, targets

log = logging.getLogger(__name__)

# After a failure of all methods of a node.
RETRY_S = 5.0
PROVE_EVERY_S = 3600.0
STATUS_KEY = "ha/fencing"
TELL_S = 10.0


class Store(Protocol):
    """Of the store's client."""

    async def fence_lease(self, uid: str, incarnation: int, renewal: int, *, confirmed: str = "") -> None: ...
    async def log_message(self, message: str, *, priority: int, tag: str) -> None: ...
    async def set_status(self, values: Mapping[str, bytes]) -> None: ...


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Of one method of one node: when it last answered (seconds since the epoch, 0: never), and what is wrong now."""

    node: str
    method: str
    proven_at: int = 0
    cause: str = ""


Switch = Callable[[Method], Coroutine[Any, Any, Outcome]]


@dataclass(eq=False)
class Fencer:
    store: Store
    switch_off: Switch = agents.switch_off
    prove: Switch = agents.prove
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    _busy: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)
    # By node: the life that is over, as the log was told; a replica may show it only later.
    _ended: dict[str, int] = field(default_factory=dict)
    _proofs: dict[tuple[str, str], Proof] = field(default_factory=dict)
    _prove_at: float = 0.0

    def look(
        self,
        candidates: Mapping[str, Candidate],
        config: FenceConfig,
        *,
        own: str,
        members: int,
        group: asyncio.TaskGroup,
    ) -> None:
        """Starts what is to be done now; each round of the manager. Never waits."""
        now = self.clock()
        for target in targets(candidates, own=own, members=members):
            methods = config.methods.get(target.name, ())
            if self._ended.get(target.uid) == target.incarnation:
                continue
            if methods and target.uid not in self._busy and now >= self._not_before.get(target.uid, 0.0):
                log.warning("%s is silent: switching it off (%s)", target.name, ", ".join(one.name for one in methods))
                self._busy[target.uid] = group.create_task(self._end(target, methods))
        if config.methods and now >= self._prove_at:
            self._prove_at = now + PROVE_EVERY_S
            group.create_task(self.prove_all(config))

    async def _end(self, target: Target, methods: tuple[Method, ...]) -> None:
        try:
            outcome = await self._first(methods)
            if outcome is None:
                self._not_before[target.uid] = self.clock() + RETRY_S
                await self._say(f"{target.name} could not be switched off; its lease is waited for")
                return
            self._not_before[target.uid] = self.clock() + RETRY_S
            await self._tell(target, outcome)
        finally:
            del self._busy[target.uid]

    async def _first(self, methods: tuple[Method, ...]) -> Outcome | None:
        """The first confirmed one; the others are given up then."""
        tasks = [asyncio.ensure_future(self.switch_off(method)) for method in methods]
        try:
            for next_one in asyncio.as_completed(tasks):
                outcome = await next_one
                if outcome.is_off:
                    return outcome
                log.error("fence method %s: %s", outcome.method, outcome.cause)
            return None
        finally:
            for task in tasks:
                task.cancel()

    async def _tell(self, target: Target, outcome: Outcome) -> None:
        """Until the log has it or refuses it: the host is off, and nobody else knows."""
        end = self.clock() + TELL_S
        while True:
            try:
                await self.store.fence_lease(target.uid, target.incarnation, target.renewal, confirmed=outcome.method)
                break
            except KvorumError as error:
                if error.reason in ("STALE_VERSION", "NOT_FOUND") or self.clock() > end:
                    log.warning("%s was switched off, but: %s", target.name, error)
                    return
            await asyncio.sleep(0.2)
        self._ended[target.uid] = target.incarnation
        await self._say(f"{target.name} is off, confirmed by {outcome.method} after {outcome.took_s:.1f} s")

    async def _say(self, message: str) -> None:
        log.warning("%s", message)
        try:
            await self.store.log_message(message, priority=4, tag="kvorum-ha")
        except KvorumError as error:
            log.info("not in the cluster log: %s", error)

    async def prove_all(self, config: FenceConfig) -> tuple[Proof, ...]:
        """The self-test of every method; what it found is shown to all nodes."""
        pairs = [(node, method) for node, methods in config.methods.items() for method in methods]
        outcomes = await asyncio.gather(*(self.prove(method) for _, method in pairs))
        for (node, method), outcome in zip(pairs, outcomes, strict=True):
            before = self._proofs.get((node, method.name), Proof(node=node, method=method.name))
            proven_at = int(self.wall()) if outcome.is_off else before.proven_at
            self._proofs[node, method.name] = Proof(
                node=node, method=method.name, proven_at=proven_at, cause=outcome.cause
            )
            if outcome.cause and not before.cause:
                await self._say(f"the fence method {method.name} of {node} does not answer: {outcome.cause}")
        found = tuple(self._proofs[node, method.name] for node, method in pairs)
        try:
            await self.store.set_status({STATUS_KEY: msgspec.json.encode(found)})
        except KvorumError as error:
            log.info("the self-test of fencing is not shown: %s", error)
        return found
