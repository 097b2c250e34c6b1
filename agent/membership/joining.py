"""The joining node's side: find out that the other end is the right cluster, prove the token, and start as a member.

Nothing is believed before the CA is known to be the one whose hash the token carries:
1. read the certificate that the address shows, and trust exactly this one for the next connection;
2. over it, authenticated by the token's key, ask for the CA, and compare its hash and its signature on that certificate;
3. connect anew, trusting only that CA, and have a signing request signed; the key never leaves this node.
The secret itself is never sent: TLS proves that we hold the key that follows from it.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import uuid
from dataclasses import dataclass

import grpc

from agent.access import key_files
from agent.access.certificates import (
    ANY_NODE,
    authority_named_in,
    fingerprint,
    is_issued_by,
    key_to_pem,
    make_request,
    new_key,
)
from agent.access.join_token import (
    JoinToken,
    parse_token,
    require_unexpired,
    token_credentials,
    unknown_token,
    wrong_authority,
)
from agent.peers import host_port, secure_channel
from kvorum.errors import InvalidInput, PermissionDenied, Refused, Timeout, Unreachable
from kvorum.node import Identity
from kvorum.rpc import from_rpc_error
from kvorum.v1 import cluster_pb2, replica_pb2
from kvorum.v1.cluster_pb2_grpc import ClusterServiceStub

from .core import Core, require_own_address
from .undo import Undo

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 10.0
ADMIT_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 60.0
VOTE_TIMEOUT_S = 5.0
# A token made a moment ago on another member may not have reached this one.
TOKEN_TRIES = 4
TOKEN_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Door:
    """What the address shows before anything is trusted. PEM; `source`: our own address on the way there."""

    target: str
    certificate: bytes
    source: str


async def join_cluster(
    core: Core, *, address: str, token_text: str, local_address: str, node_name: str, witness: bool = False
) -> None:
    """Raises InvalidInput, Refused, PermissionDenied, AlreadyExists, Unreachable...; on any error the node is as before."""
    core.require_no_cluster()
    core.require_idle()
    async with core.changing, Undo("joining a cluster") as undo:
        token = parse_token(token_text)
        require_unexpired(token.expires, now=core.now())
        host, port = parse_target(address, core.port)
        name = core.node_name(node_name)
        if local_address:
            local_address = require_own_address(local_address, field_name="local_address")
        door = await asyncio.to_thread(look_at_door, host, port)
        ca = await _verified_authority(door, token)
        local_address = local_address or require_own_address(door.source, field_name="local_address")

        key, uid = new_key(), str(uuid.uuid4())
        request = cluster_pb2.AdmitNodeRequest(
            node_name=name,
            address=local_address,
            certificate_signing_request=make_request(key, name).decode(),
            uid=uid,
            witness=witness,
        )
        answer = await _admitted(door, token, ca, request)
        certificate = answer.certificate.encode()
        if not is_issued_by(certificate, ca):
            raise wrong_authority(address)
        identity = Identity(
            uid=uid, name=name, address=local_address, cluster_name=answer.cluster_name, witness=witness
        )
        undo.add("identity, keys and replica", core.retire)
        undo.add("membership", lambda: _withdraw(door, name, ca, certificate, key_to_pem(key)))
        key_files.install(core.paths.pki, ca=ca, certificate=certificate, key=key_to_pem(key))
        await core.activate(identity, [_member_of(node) for node in answer.nodes], epoch=answer.epoch)
        # The member that admits us calls back before it is content, so listen before the vote.
        await core.presence.open(identity)
        undo.add("the TLS listener", core.presence.close)
        await core.wait_until(
            lambda view: view.is_ready and view.is_quorate and view.by_uid(uid) is not None,
            timeout_s=READY_TIMEOUT_S,
            what="this node did not become a member that has caught up",
        )
        # So that the next failure finds as many votes as there are going to be. A member it is without one as well.
        with contextlib.suppress(Timeout):
            await core.wait_until(lambda view: view.is_settled(uid), timeout_s=VOTE_TIMEOUT_S, what="it has no vote")
    log.info("joined cluster %s as node %s (%s)", identity.cluster_name, name, uid)


def parse_target(text: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]:port`. Raises InvalidInput."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = text.strip(), str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise InvalidInput(f"{text!r} is no address", field="address", remedy="write HOST or HOST:PORT")
    return host, int(port)


def look_at_door(host: str, port: int) -> Door:
    """Blocking. The certificate shown there, of which nothing is believed yet. Raises Unreachable."""
    target = host_port(host, port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it becomes the one root of the connection that follows
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as plain:
            source = str(plain.getsockname()[0])
            with context.wrap_socket(plain) as wrapped:
                der = wrapped.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        raise Unreachable(
            f"{target} does not answer as an agent of Kvorum: {error.reason or error}",
            remedy="check the address and port",
        ) from error
    except OSError as error:
        raise Unreachable(
            f"cannot reach {target}: {error.strerror or error}",
            remedy="check the address, and that kvorum-agent runs there and is in a cluster",
        ) from error
    if der is None:
        raise Unreachable(f"{target} shows no certificate", remedy="check the address and port")
    return Door(target, ssl.DER_cert_to_PEM_cert(der).encode(), source)


async def _verified_authority(door: Door, token: JoinToken) -> bytes:
    """The CA's certificate, once it is known to be the token's and to have signed what the door shows."""
    named = authority_named_in(door.certificate)
    if not named:
        raise Refused(f"{door.target} is no member of a cluster of Kvorum", remedy="check the address and port")
    if named != token.ca_hash:
        raise wrong_authority(door.target)
    ca = await _ask_for_authority(door, token)
    try:
        is_right = fingerprint(ca) == token.ca_hash and is_issued_by(door.certificate, ca)
    except ValueError as error:
        raise wrong_authority(door.target) from error
    if not is_right:
        raise wrong_authority(door.target)
    return ca


async def _ask_for_authority(door: Door, token: JoinToken) -> bytes:
    key, certificate = token_credentials(token)
    for attempt in range(TOKEN_TRIES):
        if attempt:
            await asyncio.sleep(TOKEN_RETRY_S)
        channel = secure_channel(door.target, name=ANY_NODE, ca=door.certificate, certificate=certificate, key=key)
        async with channel:
            try:
                response = await ClusterServiceStub(channel).GetClusterCertificate(
                    cluster_pb2.GetClusterCertificateRequest(), timeout=CALL_TIMEOUT_S
                )
                return response.ca_certificate.encode()
            except grpc.aio.AioRpcError as error:
                answer = from_rpc_error(error)
                # The door stood open a moment ago; that it shuts in the handshake means that our certificate is not known.
                if not isinstance(answer, Unreachable | PermissionDenied) or answer.remedy:
                    raise answer from error
    raise unknown_token()


async def _admitted(
    door: Door, token: JoinToken, ca: bytes, request: cluster_pb2.AdmitNodeRequest
) -> cluster_pb2.AdmitNodeResponse:
    key, certificate = token_credentials(token)
    async with secure_channel(door.target, name=ANY_NODE, ca=ca, certificate=certificate, key=key) as channel:
        try:
            return await ClusterServiceStub(channel).AdmitNode(request, timeout=ADMIT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


async def _withdraw(door: Door, name: str, ca: bytes, certificate: bytes, key: bytes) -> None:
    """Tell the cluster that we do not come after all; it finds out by itself otherwise."""
    async with secure_channel(door.target, name=ANY_NODE, ca=ca, certificate=certificate, key=key) as channel:
        try:
            request = cluster_pb2.RemoveNodeRequest(name=f"nodes/{name}", force=True)
            await ClusterServiceStub(channel).RemoveNode(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.info("not withdrawn from the cluster, it will notice by itself: %s", from_rpc_error(error))


def _member_of(node: cluster_pb2.Node) -> replica_pb2.Member:
    name = node.name.removeprefix("nodes/")
    return replica_pb2.Member(uid=node.uid, name=name, address=node.address, witness=node.witness)
