"""What the operations on membership share, and steps that more than one of them takes."""

import asyncio
import datetime
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.access import key_files
from agent.access.certificates import Authority, parse_address
from agent.background import Background
from agent.context import Paths
from agent.local_clusterfs import LocalClusterfs
from agent.peers import Peers
from agent.presence import Presence
from kvorum.errors import InvalidInput, KvorumError, NotFound, Refused, Timeout
from kvorum.ids import NodeName, parse_node_name
from kvorum.node import AGENT_PORT, Identity, save_identity
from kvorum.v1 import replica_pb2

from .view import Membership, View

log = logging.getLogger(__name__)

CA_CERTIFICATE = "kvorum-root-ca.pem"
CA_KEY = "priv/kvorum-root-ca.key"

ACTIVATE_TIMEOUT_S = 30.0
POLL_S = 0.2

_CLUSTER_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,13}[a-zA-Z0-9])?")


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def host_name() -> str:
    return socket.gethostname().partition(".")[0]


@dataclass(kw_only=True)
class Core:
    clusterfs: LocalClusterfs
    membership: Membership
    presence: Presence
    peers: Peers
    background: Background
    paths: Paths
    port: int = AGENT_PORT
    acceleration: Callable[[], str] = lambda: ""
    host_name: Callable[[], str] = host_name
    now: Callable[[], datetime.datetime] = utc_now
    # Founding, joining and leaving exclude each other.
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def identity(self) -> Identity | None:
        return self.presence.identity

    def require_identity(self) -> Identity:
        """Raises NotFound when the node is in no cluster."""
        if self.presence.identity is None:
            raise NotFound(
                "this node is in no cluster",
                remedy="run 'kvorum cluster init' or 'kvorum cluster join ADDRESS TOKEN'",
            )
        return self.presence.identity

    def require_no_cluster(self) -> None:
        """Raises Refused when the node is in a cluster."""
        if self.presence.identity is not None:
            raise Refused(
                f"this node is already in cluster {self.presence.identity.cluster_name}",
                remedy="run 'kvorum cluster leave' first",
            )

    def require_idle(self) -> None:
        """Raises Refused while founding, joining or leaving is under way."""
        if self.changing.locked():
            raise Refused("this node is just founding, joining or leaving a cluster", remedy="wait for it to end")

    def node_name(self, wanted: str) -> NodeName:
        return parse_node_name(wanted or self.host_name(), field="node_name")

    async def activate(self, identity: Identity, members: list[replica_pb2.Member], *, epoch: int = 0) -> None:
        """Put the identity in force on disk and have clusterfs start its replica."""
        await self._put_aside()  # what an earlier cluster has left, when clusterfs was down as the node left it
        save_identity(identity, self.paths.identity)
        request = replica_pb2.ActivateReplicaRequest(members=members, cluster_name=identity.cluster_name, epoch=epoch)
        await self.clusterfs.ask(self.clusterfs.replica.ActivateReplica, request, timeout_s=ACTIVATE_TIMEOUT_S)

    async def retire(self) -> None:
        """Stop the replica, and forget identity and keys. Bears being called when only part of them is there."""
        try:
            await self._put_aside()
        finally:
            self.paths.identity.unlink(missing_ok=True)
            key_files.remove(self.paths.pki)
            await self.peers.close()

    async def _put_aside(self) -> None:
        try:
            response: replica_pb2.RetireReplicaResponse = await self.clusterfs.ask(
                self.clusterfs.replica.RetireReplica, replica_pb2.RetireReplicaRequest()
            )
        except (NotFound, Refused) as error:
            log.debug("no replica to retire: %s", error)
        else:
            log.info("the replica's data is kept in %s", response.archive_path)

    async def wait_until(self, condition: Callable[[View], bool], *, timeout_s: float, what: str) -> View:
        """The first view that meets the condition. Raises Timeout; a clusterfs that does not answer just has not met it yet."""
        last: KvorumError | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        view = await self.membership.refresh()
                        if condition(view):
                            return view
                    except KvorumError as error:
                        last = error
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Timeout(f"{what} within {timeout_s:.0f} s" + (f": {last}" if last else "")) from last

    async def guests_of(self, node: str) -> list[str]:
        """`vm:100`, `ct:101`: the guests whose config is in the node's directory."""
        guests: list[str] = []
        for kind, directory in (("vm", "qemu-server"), ("ct", "lxc")):
            names = await self.clusterfs.names(f"nodes/{node}/{directory}")
            guests += [f"{kind}:{name.removesuffix('.conf')}" for name in names if name.endswith(".conf")]
        return guests


async def authority(clusterfs: LocalClusterfs) -> Authority:
    """The CA from the store. Raises NotFound when the store has none."""
    certificate, key = await clusterfs.read(CA_CERTIFICATE), await clusterfs.read(CA_KEY)
    if certificate is None or key is None:
        raise NotFound("the cluster's CA is not in the store", remedy=f"restore {CA_CERTIFICATE} and {CA_KEY}")
    return Authority(certificate=certificate.content, key=key.content)


def parse_cluster_name(text: str) -> str:
    if not _CLUSTER_NAME.fullmatch(text):
        raise InvalidInput(
            f"{text!r} is no cluster name",
            field="cluster_name",
            remedy="use letters, digits and inner hyphens, at most 15",
        )
    return text


def require_own_address(text: str, *, field_name: str) -> str:
    """The address in its normal form. Raises InvalidInput when no interface of this node has it."""
    address = parse_address(text, field=field_name)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError as error:
            raise InvalidInput(
                f"{address} is no address of this node: {error.strerror}",
                field=field_name,
                remedy="give one that 'ip address' shows here",
            ) from error
    return str(address)
