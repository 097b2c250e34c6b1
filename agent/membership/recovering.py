"""Recovery from a lost majority and the way back, as the agent passes them on to this node's clusterfs.

Only from this node's own socket: who does this should stand before the machine that is to go on alone.
"""

import logging

from kvorum import epochs
from kvorum.errors import Refused
from kvorum.v1 import replica_pb2

from .core import Core

log = logging.getLogger(__name__)

RECOVER_TIMEOUT_S = 60.0
REJOIN_TIMEOUT_S = 60.0


async def plan_recovery(core: Core) -> replica_pb2.PlanRecoveryResponse:
    core.require_identity()
    found: replica_pb2.PlanRecoveryResponse = await core.clusterfs.ask(
        core.clusterfs.replica.PlanRecovery, replica_pb2.PlanRecoveryRequest()
    )
    return found


async def recover(core: Core, *, confirm: str, force: bool, author: str) -> replica_pb2.RecoverReplicaResponse:
    """Raises InvalidInput (not confirmed), Refused (others live)."""
    core.require_identity()
    core.require_idle()
    async with core.changing:
        found: replica_pb2.RecoverReplicaResponse = await core.clusterfs.ask(
            core.clusterfs.replica.RecoverReplica,
            replica_pb2.RecoverReplicaRequest(confirm=confirm, force=force),
            author=author,
            timeout_s=RECOVER_TIMEOUT_S,
        )
        await core.membership.refresh()
    log.warning(
        "recovered as epoch %s by %s; the data from before is in %s",
        epochs.text(found.done.epoch),
        author,
        found.archive_path,
    )
    return found


async def rejoin(core: Core) -> str:
    """Where the data from before is. Raises Refused when nobody has recovered this cluster, Timeout when it does not take us."""
    identity = core.require_identity()
    core.require_idle()
    async with core.changing:
        found: replica_pb2.RejoinReplicaResponse = await core.clusterfs.ask(
            core.clusterfs.replica.RejoinReplica, replica_pb2.RejoinReplicaRequest(), timeout_s=REJOIN_TIMEOUT_S
        )
        view = await core.wait_until(
            lambda view: view.is_ready and view.is_quorate,
            timeout_s=REJOIN_TIMEOUT_S,
            what="this node did not catch up with the recovered cluster",
        )
    if view.by_uid(identity.uid) is None:
        raise Refused(
            "the recovered cluster does not have this node among its members any more",
            remedy="run 'kvorum cluster leave --force', then 'kvorum cluster join'",
        )
    log.warning("rejoined; what this node held before is in %s", found.archive_path)
    return found.archive_path
