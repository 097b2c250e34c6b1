"""The member's side of a join: makes tokens, and lets a node in that proves one.

The order is what keeps it safe: everything that may be refused is checked first, then the name is reserved (two nodes may ask for
it at once on two members), then the token is redeemed by deleting its entry at the version that was read, which succeeds
once in the whole cluster, and only then is anything signed. The vote comes after the answer, when the new node's replica
connects; a node that does not come up is taken out again.
"""

import asyncio
import logging
import os

import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.access import join_token
from agent.access.certificates import fingerprint, parse_address, sign_node
from agent.access.join_token import StoredToken
from kvorum.errors import AlreadyExists, KvorumError, Locked, NotFound, StaleVersion
from kvorum.ids import parse_node_name, parse_node_uid
from kvorum.v1 import replica_pb2, store_pb2

from .core import CA_CERTIFICATE, Core, authority
from .view import View, require_quorum

log = logging.getLogger(__name__)

COME_UP_TIMEOUT_S = 60.0
HEALTH_TIMEOUT_S = 3.0
ADMISSIONS_DIRECTORY = "priv/admissions"


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A name that a node is just joining under, at `priv/admissions/<name>.json`; void after `expires`."""

    uid: str
    expires: int


class _Expiring(msgspec.Struct):
    """What tokens and admissions have in common."""

    expires: int = 0


async def make_token(core: Core, *, ttl_s: int, author: str) -> join_token.JoinToken:
    """A new token, whose certificate every member trusts from now on. Raises NoQuorum, InvalidInput."""
    core.require_identity()
    ca = await core.clusterfs.read(CA_CERTIFICATE)
    if ca is None:
        raise NotFound("the cluster's CA is not in the store", remedy=f"restore {CA_CERTIFICATE}")
    token = join_token.make_token(
        ca_hash=fingerprint(ca.content),
        ttl_s=ttl_s or join_token.DEFAULT_TTL_S,
        now=core.now(),
        random=os.urandom(join_token.ID_BYTES + join_token.SECRET_BYTES),
    )
    kept = join_token.stored(token, author=author)
    await _create(
        core, join_token.entry_path(token.id), msgspec.json.encode(kept), author=author, reason="join token made"
    )
    if core.presence.trust is not None:
        core.presence.trust.add(kept)
    await _forget_expired(core)
    return token


async def admit(
    core: Core, *, token_id: str, name: str, address: str, uid: str, request: bytes, witness: bool = False
) -> tuple[bytes, bytes, View]:
    """The new node's certificate, the CA's, and the members so far; the vote follows in the background.

    Raises InvalidInput, AlreadyExists (name, address, uid), Locked (name, at this moment), NoQuorum: the token stays good.
    Raises PermissionDenied or Refused when the token itself does not count (any longer).
    """
    core.require_identity()
    name, uid = parse_node_name(name, field="node_name"), parse_node_uid(uid)
    address = str(parse_address(address))
    view = await core.membership.refresh()
    require_quorum(view)
    _require_new(view, name=name, address=address, uid=uid)
    entry = await core.clusterfs.read(join_token.entry_path(token_id), linearizable=True)
    if entry is None:
        raise join_token.unknown_token()
    token = join_token.parse_stored(entry.content)
    join_token.require_unexpired(token.expires, now=core.now())
    ca = await authority(core.clusterfs)
    certificate = sign_node(request, ca, uid=uid, name=name, address=address, now=core.now())
    author = f"token/{token_id}"
    await _reserve(core, name, uid, author=author)
    try:
        await _redeem(core, token, entry.version, author=author)
    except BaseException:
        await _release(core, name)
        raise
    member = replica_pb2.Member(uid=uid, name=name, address=address, witness=witness)
    core.background.start(f"admission of {name}", _see_through(core, member))
    log.info("node %s (%s, %s): admitted by join token %s", name, address, uid, token_id)
    return certificate, ca.certificate, view


def _require_new(view: View, *, name: str, address: str, uid: str) -> None:
    other = "give another one: 'kvorum cluster join --name NAME', or remove the node that has it"
    if view.by_name(name) is not None:
        raise AlreadyExists(f"a node named {name} is in the cluster already", remedy=other)
    if view.by_uid(uid) is not None:
        raise AlreadyExists(f"node {uid} is in the cluster already")
    same = next((member.name for member in view.members if member.address == address), "")
    if same:
        raise AlreadyExists(f"address {address} is that of node {same}", remedy="give another one, by '--address'")


async def _reserve(core: Core, name: str, uid: str, *, author: str) -> None:
    path = _admission_path(name)
    now_s = int(core.now().timestamp())
    content = msgspec.json.encode(Admission(uid=uid, expires=now_s + 2 * int(COME_UP_TIMEOUT_S)))
    try:
        await _create(core, path, content, author=author, reason="a node joins")
    except AlreadyExists:
        entry = await core.clusterfs.read(path)
        if entry is not None and _expiry_of(entry.content) > now_s:
            raise Locked(f"another node is just joining as {name}", remedy="wait, or join under another name") from None
        if entry is not None:  # left by an agent that died
            await _delete(core, path, version=entry.version, author=author, reason="left over")
        await _create(core, path, content, author=author, reason="a node joins")


async def _redeem(core: Core, token: StoredToken, version: int, *, author: str) -> None:
    """Exactly once in the cluster: whoever comes second finds the entry gone."""
    try:
        await _delete(
            core, join_token.entry_path(token.id), version=version, author=author, reason="join token redeemed"
        )
    except (NotFound, StaleVersion):
        raise join_token.unknown_token() from None
    if core.presence.trust is not None:
        core.presence.trust.remove(token.id)


async def _see_through(core: Core, member: replica_pb2.Member) -> None:
    """Give the new node its vote, and take it back when the node does not come up in time."""
    is_member = False
    try:
        async with asyncio.timeout(COME_UP_TIMEOUT_S):
            request = replica_pb2.AddMemberRequest(member=member)
            is_member = True  # from here on it may be one, whatever the answer
            await core.clusterfs.ask(core.clusterfs.replica.AddMember, request, timeout_s=COME_UP_TIMEOUT_S)
            await _wait_for_agent(core, member)
        log.info("node %s: joined", member.name)
    except (KvorumError, TimeoutError) as error:
        log.warning("node %s: did not come up, its membership is undone: %s", member.name, error or "time is over")
        if is_member:
            await take_out(core, member.uid)
    finally:
        await asyncio.shield(_release(core, member.name))


async def take_out(core: Core, uid: str) -> None:
    """Remove a member if it is one. Logs what goes wrong."""
    try:
        request = replica_pb2.RemoveMemberRequest(uid=uid)
        await core.clusterfs.ask(core.clusterfs.replica.RemoveMember, request)
        await core.membership.refresh()
    except NotFound:
        return
    except KvorumError as error:
        log.error("member %s: not removed: %s", uid, error)


async def _wait_for_agent(core: Core, member: replica_pb2.Member) -> None:
    """Until the new node's agent answers as that very node, over mutual TLS."""
    while True:
        try:
            await core.membership.refresh()
            stub = health_pb2_grpc.HealthStub(core.peers.agent(member.name))
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
            return
        except Exception as error:
            log.debug("node %s: no answer yet: %s", member.name, error)
        await asyncio.sleep(0.5)


async def _release(core: Core, name: str) -> None:
    try:
        await _delete(core, _admission_path(name), version=0, author="agent", reason="joined")
    except NotFound:
        return
    except KvorumError as error:
        log.warning("node %s: its name stays reserved for a while: %s", name, error)


async def _forget_expired(core: Core) -> None:
    """Delete entries of tokens that nobody used in time."""
    for entry in await core.clusterfs.entries(join_token.TOKENS_DIRECTORY, with_content=True):
        if _expiry_of(entry.content) > core.now().timestamp():
            continue
        try:
            await _delete(core, entry.path, version=entry.version, author="agent", reason="join token expired")
        except (NotFound, StaleVersion):
            continue


def _expiry_of(content: bytes) -> int:
    """0 for what cannot be read."""
    try:
        return msgspec.json.decode(content, type=_Expiring).expires
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0


def _admission_path(name: str) -> str:
    return f"{ADMISSIONS_DIRECTORY}/{name.lower()}.json"


async def _create(core: Core, path: str, content: bytes, *, author: str, reason: str) -> None:
    request = store_pb2.WriteEntryRequest(
        path=path,
        content=content,
        precondition=store_pb2.Precondition(absent=True),
        parents=True,
        reason=reason,
    )
    await core.clusterfs.ask(core.clusterfs.store.WriteEntry, request, author=author)


async def _delete(core: Core, path: str, *, version: int, author: str, reason: str) -> None:
    request = store_pb2.DeleteEntryRequest(path=path, expected_version=version, reason=reason)
    await core.clusterfs.ask(core.clusterfs.store.DeleteEntry, request, author=author)
