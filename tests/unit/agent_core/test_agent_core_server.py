"""What the TLS port lets in: handshakes, certificates, claims, and what errors look like from outside."""

import datetime
import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent.access import certificates
from agent.access.certificates import ANY_NODE, Authority, key_to_pem, make_authority, make_request, new_key
from agent.access.join_token import make_token, parse_token, stored, token_credentials
from agent.access.proof import prove, read_claim
from agent.peers import secure_channel
from kvorum import errors
from kvorum.v1 import cluster_pb2, store_pb2
from kvorum.v1.cluster_pb2_grpc import ClusterServiceStub
from kvorum.v1.store_pb2_grpc import StoreServiceStub

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest_asyncio.fixture
async def node(world: Any) -> Any:
    made = await world.node()
    request = cluster_pb2.BootstrapClusterRequest(cluster_name="test", address=made.address)
    await made.cluster.BootstrapCluster(request)
    return made


@pytest_asyncio.fixture
async def dial(node: Any) -> AsyncIterator[Any]:
    """`dial(key, certificate)`: a channel that trusts the cluster's CA and shows this certificate."""
    channels = []

    def make(key: bytes, certificate: bytes, name: str = ANY_NODE) -> grpc.aio.Channel:
        ca = node.paths.pki.ca.read_bytes()
        channels.append(secure_channel(node.target, name=name, ca=ca, certificate=certificate, key=key))
        return channels[-1]

    yield make
    for channel in channels:
        await channel.close()


def authority_of(node: Any) -> Authority:
    entries = node.store.entries
    return Authority(entries["kvorum-root-ca.pem"].content, entries["priv/kvorum-root-ca.key"].content)


def user(authority: Authority, name: str, *, now: datetime.datetime = NOW) -> tuple[bytes, bytes]:
    key = new_key()
    return key_to_pem(key), certificates.sign_user(make_request(key, "x"), authority, user=name, ttl=DAY, now=now)


def member(authority: Authority, uid: str, name: str = "n9") -> tuple[bytes, bytes]:
    key = new_key()
    certificate = certificates.sign_node(
        make_request(key, "x"), authority, uid=uid, name=name, address="127.0.0.99", now=NOW
    )
    return key_to_pem(key), certificate


async def list_nodes(channel: grpc.aio.Channel, **metadata: str) -> Any:
    pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
    return await ClusterServiceStub(channel).ListNodes(cluster_pb2.ListNodesRequest(), timeout=5, metadata=pairs)


async def test_a_root_certificate_of_the_cluster_works_and_writes_under_its_name(node: Any, dial: Any) -> None:
    key = new_key()
    issued = await node.cluster.IssueClientCertificate(
        cluster_pb2.IssueClientCertificateRequest(certificate_signing_request=make_request(key, "me").decode())
    )
    channel = dial(key_to_pem(key), issued.certificate.encode())
    assert [found.name for found in (await list_nodes(channel)).nodes] == ["nodes/n1"]
    await StoreServiceStub(channel).WriteEntry(store_pb2.WriteEntryRequest(path="priv/x", content=b"1"))
    assert node.store.authors["priv/x"] == "root@pam"
    assert issued.ca_certificate == node.paths.pki.ca.read_text()


async def test_strangers_do_not_get_through_the_handshake(node: Any, dial: Any, raises: Any) -> None:
    stranger = make_authority("test", now=NOW)
    for key, certificate in (user(stranger, "root@pam"), member(stranger, node.clusterfs.uid)):
        with raises(errors.Unreachable):
            await list_nodes(dial(key, certificate))
    ca = node.paths.pki.ca.read_bytes()
    options = [("grpc.ssl_target_name_override", ANY_NODE)]
    async with grpc.aio.secure_channel(node.target, grpc.ssl_channel_credentials(ca), options=options) as bare:
        with raises(errors.Unreachable):
            await list_nodes(bare)


async def test_a_user_that_is_not_root_may_not_do_a_thing(node: Any, dial: Any, raises: Any) -> None:
    channel = dial(*user(authority_of(node), "alice@pve"))
    with raises(errors.PermissionDenied, "alice@pve may not call"):
        await list_nodes(channel)
    with raises(errors.PermissionDenied):
        await StoreServiceStub(channel).GetEntry(store_pb2.GetEntryRequest(path="storage.cfg"))


async def test_an_expired_certificate_is_refused(node: Any, dial: Any, raises: Any) -> None:
    with raises(errors.Unreachable):
        await list_nodes(dial(*user(authority_of(node), "root@pam", now=NOW - 3 * DAY)))


async def test_only_present_members_are_nodes_and_only_nodes_speak_for_others(
    node: Any, dial: Any, raises: Any
) -> None:
    authority = authority_of(node)
    own = dial(*member(authority, node.clusterfs.uid))
    await list_nodes(own)
    await list_nodes(own, kvorum_on_behalf_of="root@pam")
    with raises(errors.PermissionDenied, "alice@pve may not call"):
        await list_nodes(own, kvorum_on_behalf_of="alice@pve")
    with raises(errors.PermissionDenied, "only nodes may pass"):
        await list_nodes(dial(*user(authority, "root@pam")), kvorum_on_behalf_of="root@pam")
    with raises(errors.PermissionDenied, "only processes of this node"):
        await list_nodes(dial(*user(authority, "root@pam")), kvorum_caller="ha")
    with raises(errors.PermissionDenied, "is not a member"):
        await list_nodes(dial(*member(authority, "00000000-0000-4000-8000-000000000000")))


async def test_a_removed_nodes_open_connection_is_worth_nothing(world: Any, node: Any, dial: Any, raises: Any) -> None:
    second = await world.node()
    token = (await node.cluster.CreateJoinToken(cluster_pb2.CreateJoinTokenRequest())).token
    await second.cluster.JoinCluster(
        cluster_pb2.JoinClusterRequest(address=node.target, token=token, local_address=second.address)
    )
    channel = dial(second.paths.pki.key.read_bytes(), second.paths.pki.certificate.read_bytes())
    await list_nodes(channel)
    await node.cluster.RemoveNode(cluster_pb2.RemoveNodeRequest(name="nodes/n2", force=True))
    with raises(errors.PermissionDenied, "is not a member"):
        await list_nodes(channel)


async def test_a_member_takes_out_itself_only(node: Any, dial: Any, raises: Any) -> None:
    node.store.members["u2"] = type(next(iter(node.store.members.values())))(uid="u2", name="n2", address="127.0.0.55")
    node.store.members["u3"] = type(next(iter(node.store.members.values())))(uid="u3", name="n3", address="127.0.0.56")
    stub = ClusterServiceStub(dial(*member(authority_of(node), "u2", "n2")))
    with raises(errors.PermissionDenied, "itself only"):
        await stub.RemoveNode(cluster_pb2.RemoveNodeRequest(name="nodes/n3", force=True))
    await stub.RemoveNode(cluster_pb2.RemoveNodeRequest(name="nodes/n2"))
    assert "u2" not in node.store.members


async def test_a_token_opens_the_anteroom_only_and_only_while_the_store_has_it(
    node: Any, dial: Any, raises: Any
) -> None:
    token = parse_token((await node.cluster.CreateJoinToken(cluster_pb2.CreateJoinTokenRequest())).token)
    channel = dial(*token_credentials(token))
    stub, request = ClusterServiceStub(channel), cluster_pb2.GetClusterCertificateRequest()
    assert (await stub.GetClusterCertificate(request)).ca_certificate == node.paths.pki.ca.read_text()
    for call in (
        list_nodes(channel),
        StoreServiceStub(channel).GetEntry(store_pb2.GetEntryRequest(path="priv/kvorum-root-ca.key")),
        stub.CreateJoinToken(cluster_pb2.CreateJoinTokenRequest()),
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()),
    ):
        with raises(errors.PermissionDenied):
            await call
    await node.files.DeleteEntry(store_pb2.DeleteEntryRequest(path=f"priv/join-tokens/{token.id}.json"))
    with raises(errors.PermissionDenied, "does not know this join token"):
        await stub.GetClusterCertificate(request)  # on the connection that was open already


def vouched(issuer: Authority, uri: str, key: Any) -> bytes:
    """A certificate that the issuer's key signs, though the issuer's own certificate says that it may not."""
    builder = certificates._builder(
        certificates._name("forged"),
        certificates.x509.load_pem_x509_certificate(issuer.certificate).subject,
        key.public_key(),
        since=NOW - DAY,
        until=NOW + DAY,
        serial=7,
    )
    builder = certificates._leaf(
        builder, [certificates.x509.UniformResourceIdentifier(uri)], [certificates.ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    signer = load_pem_private_key(issuer.key, None)
    assert isinstance(signer, certificates.ec.EllipticCurvePrivateKey)
    return certificates.to_pem(builder.sign(signer, certificates.hashes.SHA256()))


async def test_neither_a_tokens_nor_a_members_key_can_vouch_for_anybody(node: Any, dial: Any) -> None:
    token = parse_token((await node.cluster.CreateJoinToken(cluster_pb2.CreateJoinTokenRequest())).token)
    token_key, token_certificate = token_credentials(token)
    issuers = [
        Authority(token_certificate, token_key),
        Authority(node.paths.pki.certificate.read_bytes(), node.paths.pki.key.read_bytes()),
    ]
    for issuer in issuers:
        for uri in (f"kvorum://node/{node.clusterfs.uid}", "kvorum://user/root@pam"):
            key = new_key()
            forged = vouched(issuer, uri, key)
            assert not certificates.is_issued_by(forged, node.paths.pki.ca.read_bytes())
            for chain in (forged, forged + issuer.certificate):
                with pytest.raises(grpc.aio.AioRpcError):
                    await list_nodes(dial(key_to_pem(key), chain))
    signer = load_pem_private_key(token_key, None)
    renamed = certificates.sign_for_itself(
        signer,
        name=f"join token {token.id}",
        uri="kvorum://user/root@pam",
        serial=7,
        since=NOW - DAY,
        until=NOW + DAY,
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await list_nodes(dial(token_key, renamed))


def test_a_handshake_that_lets_a_forgery_in_is_not_enough() -> None:
    """What the layer behind TLS says, were TLS to take a token's certificate for an issuer (gRPC's does without keyUsage)."""
    authority = make_authority("test", now=NOW)
    other = make_authority("test", now=NOW)
    for key, certificate in (member(other, "u1"), user(other, "root@pam")):
        del key
        claim = read_claim(certificate, authority.certificate)
        with pytest.raises(errors.PermissionDenied, match="not signed by the cluster's CA"):
            prove(claim, members={"u1": "n1"}, token=None, now=NOW)
    claim = read_claim(member(authority, "u1")[1], authority.certificate)
    assert prove(claim, members={"u1": "n1"}, token=None, now=NOW).name == "n1"
    with pytest.raises(errors.PermissionDenied, match="not valid now"):
        prove(claim, members={"u1": "n1"}, token=None, now=NOW + 11 * 365 * DAY)
    token = make_token(ca_hash="0" * 64, ttl_s=60, now=NOW, random=bytes(25))
    twin = make_token(ca_hash="0" * 64, ttl_s=60, now=NOW, random=bytes(24) + b"1")
    claim = read_claim(token_credentials(token)[1], authority.certificate)
    for kept in (None, stored(twin, author="x")):
        with pytest.raises(errors.PermissionDenied, match="does not know"):
            prove(claim, members={}, token=kept, now=NOW)
    assert prove(claim, members={}, token=stored(token, author="x"), now=NOW).name == token.id
    expired = msgspec.structs.replace(stored(token, author="x"), expires=int(NOW.timestamp()))
    with pytest.raises(errors.Refused, match="has expired"):
        prove(claim, members={}, token=expired, now=NOW)


async def test_the_node_proves_its_uid_and_speaks_tls_1_3(world: Any, node: Any, dial: Any, raises: Any) -> None:
    own = member(authority_of(node), node.clusterfs.uid)
    await list_nodes(dial(*own, name=node.clusterfs.uid))
    with raises(errors.Unreachable):
        await list_nodes(dial(*own, name="00000000-0000-4000-8000-000000000000"))
    assert await handshake(node, ssl.TLSVersion.TLSv1_3)


async def handshake(node: Any, version: ssl.TLSVersion) -> bool:
    import asyncio

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(node.address, node.world.port, ssl=context), 5)
    except (ssl.SSLError, ConnectionError):
        return False
    writer.transport.abort()
    return True


async def test_the_local_socket_is_for_root_and_knows_ha(node: Any) -> None:
    assert node.paths.socket.stat().st_mode & 0o777 == 0o600
    await list_nodes(node.channel, kvorum_caller="ha")
    write = store_pb2.WriteEntryRequest(path="ha/x", content=b"1")
    await node.files.WriteEntry(write, metadata=(("kvorum-caller", "ha"),))
    assert node.store.authors["ha/x"] == "ha"


async def test_health_and_reflection_answer_known_callers(node: Any, dial: Any) -> None:
    for channel in (node.channel, dial(*user(authority_of(node), "root@pam"))):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "kvorum.v1.ClusterService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert {"kvorum.v1.ClusterService", "kvorum.v1.StoreService", "grpc.health.v1.Health"} <= names


async def test_an_unexpected_error_is_logged_here_and_does_not_leak(
    node: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(node.agent.core.membership, "refresh", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await list_nodes(node.channel)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert "RuntimeError: the secret" in caplog.text


async def test_a_store_without_quorum_names_nodes_not_uuids(node: Any, raises: Any) -> None:
    node.store.members["u2"] = type(next(iter(node.store.members.values())))(uid="u2", name="n2", address="127.0.0.55")
    await node.agent.core.membership.refresh()
    node.store.quorate = False
    with raises(errors.NoQuorum, "no quorum: n2 missing"):
        await node.files.WriteEntry(store_pb2.WriteEntryRequest(path="x", content=b"1"))
    entry = await node.files.GetEntry(store_pb2.GetEntryRequest(path="storage.cfg"))
    assert entry.entry.content.startswith(b"dir: local")


async def test_a_watch_passes_through(node: Any) -> None:
    watch = node.files.WatchEntries(store_pb2.WatchEntriesRequest(path="nodes"))
    assert (await watch.read()).bookmark
    await node.files.WriteEntry(store_pb2.WriteEntryRequest(path="nodes/n1/x", content=b"1"))
    assert (await watch.read()).index == node.store.index
    watch.cancel()


async def test_a_second_agent_does_not_take_the_socket_away(node: Any) -> None:
    second = node._make_agent()
    with pytest.raises(errors.Refused, match="another agent serves"):
        await second.start()
    await second.stop()
    await list_nodes(node.channel)
