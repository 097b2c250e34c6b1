"""Puts the agent together: one object of each kind, and the order in which they begin and end.

No arguments, signals or logging set-up (`agent.main`), and nothing that a service does.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from kvorum.errors import NotFound
from kvorum.node import AGENT_PORT, Identity, load_identity

from .background import Background
from .context import Paths
from .local_clusterfs import LocalClusterfs
from .membership import naming
from .membership.core import Core, host_name
from .membership.view import Membership
from .peers import Peers
from .presence import Presence, identify_local
from .server import Listener, Services, listen_locally
from .services import cluster, history, lock, settings, status, store

log = logging.getLogger(__name__)

Probe = Callable[[], Awaitable[str]]


class Agent:
    """`probe`: what guests run on, `kvm` or `tcg`; takes seconds and runs in the background."""

    def __init__(
        self,
        *,
        paths: Paths,
        port: int = AGENT_PORT,
        listen: Sequence[str] = (),
        name: Callable[[], str] = host_name,
        probe: Probe | None = None,
    ) -> None:
        self._probe = probe
        self._acceleration = ""
        self._local: Listener | None = None
        self.services = Services()
        self.background = Background()
        clusterfs = LocalClusterfs(paths.clusterfs_socket)
        membership = Membership(clusterfs)
        self.core = Core(
            clusterfs=clusterfs,
            membership=membership,
            presence=Presence(
                clusterfs=clusterfs,
                membership=membership,
                services=self.services,
                background=self.background,
                pki=paths.pki,
                port=port,
                listen=listen,
            ),
            peers=Peers(lambda: membership.view, self.background, pki=paths.pki, port=port),
            background=self.background,
            paths=paths,
            port=port,
            acceleration=lambda: self._acceleration,
            host_name=name,
        )
        cluster.register(self.services, self.core)
        store.register(self.services, self.core)
        history.register(self.services, self.core)
        lock.register(self.services, self.core)
        settings.register(self.services, self.core)
        status.register(self.services, self.core)

    @property
    def identity(self) -> Identity | None:
        return self.core.identity

    def node_name(self) -> str:
        """In a cluster or not."""
        return self.identity.name if self.identity is not None else self.core.host_name()

    @property
    def acceleration(self) -> str:
        return self._acceleration

    async def start(self) -> None:
        """Serve. Raises ConfigError (damaged identity), Refused (another agent runs), Unreachable (the local socket)."""
        identity = _identity_or_none(self.core.paths)
        self.services.add_standard()
        await self.services.set_serving()
        self.core.presence.identity = identity
        self._local = await listen_locally(
            self.core.paths.socket, self.services, identify=identify_local, explain=self.core.presence.explain
        )
        self.background.start("members", self.core.membership.run())
        self.background.start("name and address", naming.follow(self.core))
        if self._probe is not None:
            self.background.start("acceleration", self._find_acceleration(self._probe))
        if identity is None:
            log.info("this node is in no cluster yet")
        else:
            log.info("node %s (%s) of cluster %s", identity.name, identity.uid, identity.cluster_name)
            self.core.presence.open_soon(identity)

    async def stop(self) -> None:
        """Answer what is being served, then end. Touches no guest."""
        if self._local is not None:
            await self._local.close()
        await self.core.presence.close()
        await self.background.stop()
        await self.core.peers.close()
        await self.core.clusterfs.close()

    async def _find_acceleration(self, probe: Probe) -> None:
        self._acceleration = await probe()
        log.info("guests run on %s", self._acceleration)


def _identity_or_none(paths: Paths) -> Identity | None:
    try:
        return load_identity(paths.identity)
    except NotFound:
        return None
