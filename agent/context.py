"""What every service of the agent is given: the store, the other agents, who this node is, and where things lie.

One value, made in `agent.main` and passed to `register(server, node)` of each service module. It holds no behaviour: a
room that needs more state keeps it itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kvorum.errors import NotFound
from kvorum.node import (
    AGENT_PORT,
    AGENT_SOCKET,
    CLUSTERFS_SOCKET,
    IDENTITY_FILE,
    KEEPER_DIR,
    LOG,
    MOUNT,
    TASK_DIR,
    Identity,
    Pki,
)

from .background import Background

if TYPE_CHECKING:
    from agent.peers import Peers
    from agent.tasks import TaskRunner
    from clusterfs.client import StoreClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where this agent's things lie; tests put them elsewhere."""

    identity: Path = IDENTITY_FILE
    pki: Pki = field(default_factory=Pki)
    socket: Path = AGENT_SOCKET
    clusterfs_socket: Path = CLUSTERFS_SOCKET
    tasks: Path = TASK_DIR
    keeper: Path = KEEPER_DIR
    mount: Path = MOUNT
    log: Path = LOG


@dataclass(kw_only=True)
class AgentContext:
    store: "StoreClient"
    # `peers.agent(node_name)`: a channel to that node's agent, over mutual TLS.
    peers: "Peers"
    # Who this node is; None while it is in no cluster. Changes when the node joins or leaves.
    identity: Callable[[], Identity | None]
    tasks: "TaskRunner"
    background: Background
    paths: Paths = field(default_factory=Paths)
    port: int = AGENT_PORT
    # `kvm`, `tcg`, or empty while the probe has not answered.
    acceleration: Callable[[], str] = lambda: ""

    def require_identity(self) -> Identity:
        """Raises NotFound when the node is in no cluster."""
        identity = self.identity()
        if identity is None:
            raise NotFound(
                "this node is in no cluster",
                remedy="run 'kvorum cluster init' or 'kvorum cluster join ADDRESS TOKEN'",
            )
        return identity
