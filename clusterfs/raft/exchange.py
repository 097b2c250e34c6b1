"""What consensus needs of whatever carries its messages: pysyncobj's Transport, narrowed and completed.

Two carriers exist: `transport` (TCP and mutual TLS) and the simulation's, under virtual time. Messages are handed over in the
raft thread only, and `send` never blocks.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

from pysyncobj.node import Node
from pysyncobj.transport import Transport

from .messages import Message, Whisper
from .values import Address

Outgoing = Message | dict[str, object]


@functools.lru_cache(1024)
def node_named(uid: str) -> Node:
    """One object for each uid: what is looked up by it, some sixty times a commit, then needs no comparison."""
    return Node(uid)


class Exchange(Transport):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(None, None, ())
        # Consensus completes here what pysyncobj composes itself.
        self.amend: Callable[[Outgoing], Outgoing] = lambda message: message
        # A node that cannot make anything durable says nothing that others might rely on.
        self.is_mute = False
        # A link was ended by the peer's side, as happens when its process ends; told before the disconnection.
        self.on_closed: Callable[[Node], None] = lambda _node: None
        # What this side says to others when they connect; those of another epoch are turned away.
        self.epoch = 0
        # Who showed a higher one, and which.
        self.superseded_by: tuple[str, int] | None = None

    def send(self, node: Node, message: Outgoing) -> bool:
        """False when it certainly will not arrive. True promises nothing."""
        if self.is_mute and not isinstance(message, Whisper):
            return False
        return self.transmit(node.id, self.amend(message))

    @abstractmethod
    def transmit(self, uid: str, message: Outgoing) -> bool: ...

    @abstractmethod
    def set_peers(self, peers: Mapping[str, Sequence[Address]]) -> None:
        """Who may be connected, and where each may be found; others are cut off."""

    @abstractmethod
    def heard_at(self, uid: str) -> float | None:
        """When anything last came from a connected peer."""

    @abstractmethod
    def backlog_bytes(self, uid: str) -> int:
        """Bytes waiting to leave for a peer."""

    @abstractmethod
    def wake(self) -> None:
        """Make the raft thread tick at once; from any thread."""
