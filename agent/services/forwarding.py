"""Passing a call on to the agent whose node it concerns, with the caller's identity: any node answers for any node.

A call is passed on once at most: what arrives by way of another agent is answered here or refused, so that two nodes with
different views of who owns a guest cannot play ball with it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc

from agent.access.caller import current_caller, forwarded
from agent.context import AgentContext
from kvorum.errors import KvorumError, NotFound, Refused, Unreachable
from kvorum.ids import NodeName
from kvorum.rpc import from_rpc_error

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 30.0
# A list must not wait for a dead node.
FAN_OUT_TIMEOUT_S = 2.0

Answer = TypeVar("Answer")


class Forwarding:
    def __init__(self, context: AgentContext) -> None:
        self._context = context

    @property
    def node(self) -> NodeName:
        """This node's name. Raises NotFound when it is in no cluster."""
        return self._context.require_identity().node_name

    def is_here(self, node: str) -> bool:
        return node == self.node

    def require_first_hop(self, subject: str) -> None:
        """Raises Refused when the call has been passed on already."""
        caller = current_caller()
        if caller.is_node:
            by = caller.via or caller.name
            raise Refused(f"{subject} is not on {self.node} (asked by {by})", remedy="try again: it has just moved")

    def require_guests_here(self) -> None:
        """Raises Refused on a witness."""
        if self._context.require_identity().witness:
            raise Refused(
                f"node {self.node} is a witness and runs no guests", remedy="name another node, see 'kvorum node list'"
            )

    async def call(
        self, node: str, stub: Callable[[Any], Any], method: str, request: Any, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """The other agent's answer, or what it refused with. Raises Unreachable when it says nothing in time."""
        try:
            channel = self._context.peers.agent(node)
            return await getattr(stub(channel), method)(request, timeout=timeout_s, metadata=forwarded())
        except grpc.aio.AioRpcError as error:
            raise unreachable(error, node) from error

    async def stream(self, node: str, stub: Callable[[Any], Any], method: str, request: Any) -> AsyncIterator[Any]:
        try:
            channel = self._context.peers.agent(node)
            async for answer in getattr(stub(channel), method)(request, metadata=forwarded()):
                yield answer
        except grpc.aio.AioRpcError as error:
            raise unreachable(error, node) from error

    async def ask_all(
        self, nodes: Sequence[str], stub: Callable[[Any], Any], method: str, request_for: Callable[[str], Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """Ask several at once, briefly: answers by node, and the nodes that gave none."""

        async def ask(node: str) -> Any:
            return await self.call(node, stub, method, request_for(node), timeout_s=FAN_OUT_TIMEOUT_S)

        results = await asyncio.gather(*(ask(node) for node in nodes), return_exceptions=True)
        answers, silent = {}, []
        for node, result in zip(nodes, results, strict=True):
            if isinstance(result, KvorumError):
                log.debug("node %s: no answer: %s", node, result.message)
                silent.append(node)
            elif isinstance(result, BaseException):
                raise result
            else:
                answers[node] = result
        return answers, sorted(silent)

    async def nodes(self) -> list[NodeName]:
        """Names of all nodes that have a directory in the store, sorted: members, and those that still own guests."""
        try:
            entries = await self._context.store.list("nodes")
        except NotFound:
            return []
        return sorted(NodeName(entry.path.rpartition("/")[2]) for entry in entries)


def unreachable(error: grpc.aio.AioRpcError, node: str) -> KvorumError:
    """What a peer answered; silence names the node."""
    mapped = from_rpc_error(error)
    # An agent that answers says more than a bare code: its own "not in time" is no silence.
    is_silence = not any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
    if is_silence and error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unreachable(f"node {node} does not answer", remedy="see 'kvorum node list'", details={"node": node})
    return mapped
