"""Who is in the cluster, as the replica of this node sees it, kept fresh by a short loop.

A view is a value: whoever decides something takes one and decides from it. Nothing here changes membership.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from agent.local_clusterfs import LocalClusterfs
from kvorum.errors import KvorumError, NoQuorum
from kvorum.v1 import replica_pb2

log = logging.getLogger(__name__)

REFRESH_S = 1.0
# A call is judged by a view of at most this age: how long a removed node's certificate can still count.
MAX_AGE_S = 1.5
STATUS_TIMEOUT_S = 2.0
# As in clusterfs.voting: from the first number on, an odd number of voters is enough.
MIN_VOTERS, MAX_VOTERS = 3, 7


@dataclass(frozen=True, slots=True)
class Member:
    uid: str
    name: str
    address: str
    is_connected: bool
    number: int = 0
    is_voter: bool = True
    is_witness: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The cluster at one moment. An empty one: this node's replica does not run."""

    self_uid: str = ""
    cluster_name: str = ""
    is_active: bool = False
    is_quorate: bool = False
    # Caught up with the leader since its start.
    is_ready: bool = False
    leader_uid: str = ""
    term: int = 0
    applied_index: int = 0
    members: tuple[Member, ...] = ()
    epoch: int = 0
    # The higher epoch of the cluster, which goes on without this replica; and why the replica stopped, if it did.
    superseded_by: int = 0
    failure: str = ""

    def is_settled(self, uid: str) -> bool:
        """Whether that member votes, or will not soon: an odd number does, and nobody is there to make it a greater one with."""
        member = self.by_uid(uid)
        voters = sum(other.is_voter for other in self.members)
        able = sum(self.is_online(other) and not other.is_voter for other in self.members)
        is_enough = voters >= MAX_VOTERS or (voters >= MIN_VOTERS and voters % 2 == 1 and able < 2)
        return member is not None and (member.is_voter or is_enough)

    @property
    def names(self) -> dict[str, str]:
        """uid to name."""
        return {member.uid: member.name for member in self.members}

    @property
    def leader(self) -> str:
        """Name of the leader, empty when none is known."""
        return self.names.get(self.leader_uid, "")

    @property
    def missing(self) -> list[str]:
        """Names of the members that this node does not hear."""
        return [member.name for member in self.members if not self.is_online(member)]

    def is_online(self, member: Member) -> bool:
        return member.is_connected or member.uid == self.self_uid

    def by_name(self, name: str) -> Member | None:
        """Host names have no case."""
        return next((member for member in self.members if member.name.lower() == name.lower()), None)

    def by_uid(self, uid: str) -> Member | None:
        return next((member for member in self.members if member.uid == uid), None)


class Membership:
    def __init__(self, clusterfs: LocalClusterfs) -> None:
        self._clusterfs = clusterfs
        self._asking = asyncio.Lock()
        self._taken_at = float("-inf")
        self._is_failing = False
        self.view = View()

    async def refresh(self) -> View:
        """Ask the replica now. Raises Unreachable."""
        asked_at = time.monotonic()
        async with self._asking:
            if self._taken_at < asked_at:  # nobody else asked while this call waited
                started_at = time.monotonic()
                response: replica_pb2.GetReplicaStatusResponse = await self._clusterfs.ask(
                    self._clusterfs.replica.GetReplicaStatus,
                    replica_pb2.GetReplicaStatusRequest(),
                    timeout_s=STATUS_TIMEOUT_S,
                    patience_s=0.5,
                )
                self.view, self._taken_at = view_of(response), started_at
            return self.view

    async def fresh(self, max_age_s: float = MAX_AGE_S) -> View:
        """A view that is not older. Raises Unreachable."""
        if time.monotonic() - self._taken_at <= max_age_s:
            return self.view
        return await self.refresh()

    async def run(self) -> None:
        """Keep the view fresh for ever; says once when clusterfs does not answer, and once when it does again."""
        while True:
            try:
                await self.refresh()
                if self._is_failing:
                    log.info("the config store of this node answers")
                self._is_failing = False
            except KvorumError as error:
                if not self._is_failing:
                    log.warning("waiting for the config store of this node: %s", error)
                self._is_failing = True
            await asyncio.sleep(REFRESH_S)


def view_of(status: replica_pb2.GetReplicaStatusResponse) -> View:
    members = [
        Member(
            uid=member.uid,
            name=member.name,
            address=member.address,
            is_connected=member.connected,
            number=member.number,
            is_voter=member.voter,
            is_witness=member.witness,
        )
        for member in status.members
    ]
    return View(
        self_uid=status.self_uid,
        cluster_name=status.cluster_name,
        is_active=status.active,
        is_quorate=status.quorate,
        is_ready=status.ready,
        leader_uid=status.leader_uid,
        term=status.term,
        applied_index=status.applied_index,
        epoch=status.epoch,
        superseded_by=status.superseded_by,
        failure=status.failure,
        members=tuple(sorted(members, key=lambda member: member.name)),
    )


def require_quorum(view: View) -> None:
    """Raises NoQuorum that names who is missing."""
    if not view.is_quorate:
        raise no_quorum(view)


def no_quorum(view: View) -> NoQuorum:
    missing = view.missing
    who = f": {', '.join(missing)} missing" if missing else ""
    return NoQuorum(
        f"no quorum{who}", missing=missing, remedy="bring back enough nodes for a majority; reads go on meanwhile"
    )


def naming_nodes(error: KvorumError, view: View) -> KvorumError:
    """The error as people should see it: lack of quorum names nodes, not the UUIDs that consensus knows."""
    if not isinstance(error, NoQuorum) or not view.members:
        return error
    names = view.names
    missing = [names.get(known, known) for known in error.missing] or view.missing
    who = f": {', '.join(missing)} missing" if missing else ""
    return NoQuorum(
        f"no quorum{who}",
        missing=missing,
        remedy=error.remedy or "bring back enough nodes for a majority; reads go on meanwhile",
        details={key: value for key, value in error.details.items() if key != "missing"},
    )
