"""The first node of a new cluster: makes the CA, starts a quorum of one, and puts the first files into the store."""

import asyncio
import logging
import socket
import uuid

from agent.access import key_files
from agent.access.caller import ROOT_USER
from agent.access.certificates import Authority, key_to_pem, make_authority, make_request, new_key, sign_node
from kvorum.errors import InvalidInput
from kvorum.node import Identity
from kvorum.v1 import replica_pb2, store_pb2

from .core import CA_CERTIFICATE, CA_KEY, Core, parse_cluster_name, require_own_address
from .undo import Undo

log = logging.getLogger(__name__)

QUORUM_TIMEOUT_S = 30.0
RESOLVE_TIMEOUT_S = 5.0

STORAGE_CFG = """dir: local
\tpath /var/lib/vz
\tcontent images,rootdir,vztmpl,iso,backup,snippets
"""
DATACENTER_CFG = ""


async def found_cluster(core: Core, *, cluster_name: str, address: str) -> None:
    """Raises Refused (already in a cluster), InvalidInput; on any error the node is as before."""
    core.require_no_cluster()
    core.require_idle()
    async with core.changing, Undo("founding a cluster") as undo:
        cluster_name = parse_cluster_name(cluster_name)
        name = core.node_name("")
        address = require_own_address(address or await _address_of(core.host_name()), field_name="address")
        identity = Identity(uid=str(uuid.uuid4()), name=name, address=address, cluster_name=cluster_name)
        authority = make_authority(cluster_name, now=core.now())
        key = new_key()
        certificate = sign_node(
            make_request(key, name), authority, uid=identity.uid, name=name, address=address, now=core.now()
        )
        undo.add("identity, keys and replica", core.retire)
        key_files.install(core.paths.pki, ca=authority.certificate, certificate=certificate, key=key_to_pem(key))
        member = replica_pb2.Member(uid=identity.uid, name=name, address=address)
        await core.activate(identity, [member])
        await core.wait_until(lambda view: view.is_quorate, timeout_s=QUORUM_TIMEOUT_S, what="no quorum of one")
        await _write_first_files(core, name, authority)
        await core.presence.open(identity)
        undo.add("the TLS listener", core.presence.close)
        await core.membership.refresh()
    log.info("founded cluster %s as node %s (%s)", cluster_name, name, identity.uid)


async def _write_first_files(core: Core, name: str, authority: Authority) -> None:
    files = {
        CA_CERTIFICATE: authority.certificate,
        CA_KEY: authority.key,
        "storage.cfg": STORAGE_CFG.encode(),
        "datacenter.cfg": DATACENTER_CFG.encode(),
    }
    for path, content in files.items():
        request = store_pb2.WriteEntryRequest(
            path=path,
            content=content,
            precondition=store_pb2.Precondition(absent=True),
            parents=True,
            reason="cluster founded",
        )
        await core.clusterfs.ask(core.clusterfs.store.WriteEntry, request, author=ROOT_USER)


async def _address_of(host: str) -> str:
    """What the host name resolves to. Raises InvalidInput when that is nothing that other nodes can reach."""
    remedy = "name the address on the cluster network: 'kvorum cluster init NAME --address ADDRESS'"
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        raise InvalidInput(f"cannot resolve {host}: {error}", field="address", remedy=remedy) from error
    addresses = [str(entry[4][0]) for entry in found]
    # Debian maps the host name to 127.0.1.1 unless told otherwise.
    usable = [address for address in addresses if not address.startswith("127.") and address != "::1"]
    if not usable:
        raise InvalidInput(f"{host} resolves to loopback only", field="address", remedy=remedy)
    return usable[0]
