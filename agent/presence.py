"""This node on the network of its cluster: its identity in force, the TLS listener, and who is at the other end of a call.

Opened when the node founds or joins a cluster and at each start of an agent that is in one; closed when it leaves. The order
in which that happens belongs to `agent.membership`.
"""

import asyncio
import datetime
import logging
from collections.abc import Sequence
from typing import Any

from kvorum.errors import KvorumError, PermissionDenied, Unreachable
from kvorum.node import AGENT_PORT, Identity, Pki

from .access import key_files
from .access.caller import LOCAL_ROOT, Caller, CallerKind
from .access.proof import prove, read_claim
from .access.trust import Trust
from .background import Background
from .local_clusterfs import LocalClusterfs
from .membership.view import Membership, naming_nodes
from .server import Listener, Services, listen_with_tls

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
RETRY_S = 1.0
RETRY_MAX_S = 15.0


async def identify_local(_context: Any) -> Caller:
    """Whoever could open the local socket is root."""
    return LOCAL_ROOT


class Presence:
    def __init__(
        self,
        *,
        clusterfs: LocalClusterfs,
        membership: Membership,
        services: Services,
        background: Background,
        pki: Pki,
        port: int = AGENT_PORT,
        listen: Sequence[str] = (),
    ) -> None:
        """`listen`: addresses to serve on besides the node's own and loopback."""
        self._clusterfs = clusterfs
        self._membership = membership
        self._services = services
        self._background = background
        self._pki = pki
        self._port = port
        self._listen = tuple(listen)
        self._ca = b""
        self._listener: Listener | None = None
        self._follower: asyncio.Task[None] | None = None
        self._opener: asyncio.Task[None] | None = None
        self.identity: Identity | None = None
        self.trust: Trust | None = None

    async def open(self, identity: Identity) -> None:
        """Take this identity and listen. Raises ConfigError (certificates), Unreachable (address); then nothing has changed."""
        assert self._listener is None, "the listener is open already"
        ca, certificate, key = key_files.read(self._pki)
        trust = Trust(self._clusterfs, ca)
        self._ca = ca
        addresses = list(dict.fromkeys([identity.address, LOOPBACK, *self._listen]))
        self._listener = await listen_with_tls(
            addresses,
            self._port,
            self._services,
            roots=trust.roots,
            certificate=certificate,
            key=key,
            identify=self.identify_peer,
            explain=self.explain,
        )
        self.identity, self.trust = identity, trust
        self._follower = self._background.start("join tokens", trust.run())

    def open_soon(self, identity: Identity) -> None:
        """For a start of the agent: the identity counts at once, the address may still be missing from the network."""
        self.identity = identity
        self._opener = self._background.start("TLS listener", self._open_when_possible(identity))

    async def close(self) -> None:
        """Forget the identity and stop listening; calls that are served get a moment to end."""
        self.identity = None
        for task in (self._opener, self._follower):
            if task is not None:
                task.cancel()
        listener, self._listener, self._opener, self._follower, self.trust = self._listener, None, None, None, None
        if listener is not None:
            await listener.close()

    async def identify_peer(self, context: Any) -> Caller:
        """The caller that a TLS connection proves. Raises PermissionDenied, or Unreachable when that cannot be told now."""
        properties = context.auth_context()
        version = properties.get("ssl_tls_version", [b""])[0]
        chain = properties.get("x509_pem_cert", [])
        if version != b"TLSv1.3" or not chain:
            raise PermissionDenied("only TLS 1.3 with a certificate is taken")
        claim = read_claim(bytes(chain[0]), self._ca)
        members: dict[str, str] = {}
        token = None
        if claim.kind is CallerKind.node:
            members = await self._members(claim.name)
        elif claim.kind is CallerKind.token and self.trust is not None:
            token = await self.trust.lookup(claim.name)
        return prove(claim, members=members, token=token, now=datetime.datetime.now(datetime.UTC))

    def explain(self, error: KvorumError) -> KvorumError:
        return naming_nodes(error, self._membership.view)

    async def _members(self, uid: str) -> dict[str, str]:
        view = await self._membership.fresh()
        if view.by_uid(uid) is None:
            view = await self._membership.refresh()  # it may have joined this very moment
        if not view.is_active:
            raise Unreachable("this node cannot tell its members: its config store is not up")
        return view.names

    async def _open_when_possible(self, identity: Identity) -> None:
        delay_s, is_first = RETRY_S, True
        while True:
            try:
                await self.open(identity)
                return
            except KvorumError as error:
                log.log(logging.WARNING if is_first else logging.DEBUG, "not on the network yet: %s", error)
            await asyncio.sleep(delay_s)
            delay_s, is_first = min(2 * delay_s, RETRY_MAX_S), False
