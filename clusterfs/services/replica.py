"""ReplicaService: what the other processes of this node ask of its replica. Local socket only."""

# ruff: noqa: N802 - methods are named as in the proto

import math
from collections.abc import Iterable

import grpc

from clusterfs import meeting
from clusterfs.commands import LeaseAcquire, LeaseFence, LeaseRenew, LeaseRest
from clusterfs.daemon import Daemon
from clusterfs.machine import LeaseView
from clusterfs.membership import Member
from clusterfs.recovering import Plan
from clusterfs.services.calls import answering, author, deadline
from kvorum.errors import Refused
from kvorum.ids import parse_node_name, parse_node_uid
from kvorum.v1 import replica_pb2, replica_pb2_grpc

JOIN_S = 60.0
NO_SPACE = "no space for the log: this node only reads until there is some"


class ReplicaService(replica_pb2_grpc.ReplicaServiceServicer):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @answering
    def ActivateReplica(
        self, request: replica_pb2.ActivateReplicaRequest, _context: grpc.ServicerContext
    ) -> replica_pb2.ActivateReplicaResponse:
        members = [_member(message) for message in request.members]
        self._daemon.activate(members, request.cluster_name, epoch=request.epoch)
        return replica_pb2.ActivateReplicaResponse()

    @answering
    def RetireReplica(
        self, _request: replica_pb2.RetireReplicaRequest, _context: grpc.ServicerContext
    ) -> replica_pb2.RetireReplicaResponse:
        return replica_pb2.RetireReplicaResponse(archive_path=str(self._daemon.retire()))

    @answering
    def GetReplicaStatus(
        self, _request: replica_pb2.GetReplicaStatusRequest, _context: grpc.ServicerContext
    ) -> replica_pb2.GetReplicaStatusResponse:
        running = self._daemon.active
        if running is None:
            return replica_pb2.GetReplicaStatusResponse(active=False)
        status = running.replica.status()
        online = running.online()
        return replica_pb2.GetReplicaStatusResponse(
            active=True,
            quorate=status.is_quorate,
            leader_uid=status.leader or "",
            term=status.term,
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            members=[
                _message(member, is_connected=online.get(member.uid, False), is_voter=member.uid in status.members)
                for member in running.members()
            ],
            self_uid=running.identity.uid,
            cluster_name=running.seed.cluster_name,
            mounted=running.is_mounted,
            ready=status.caught_up,
            epoch=status.epoch,
            superseded_by=status.superseded_by,
            failure=status.failure or (NO_SPACE if status.disk_full else ""),
        )

    @answering
    def AddMember(
        self, request: replica_pb2.AddMemberRequest, context: grpc.ServicerContext
    ) -> replica_pb2.AddMemberResponse:
        member = self._daemon.add_member(_member(request.member), author(context), deadline_s=deadline(context, JOIN_S))
        is_voter = member.uid in self._daemon.running.replica.status().members
        return replica_pb2.AddMemberResponse(member=_message(member, is_connected=True, is_voter=is_voter))

    @answering
    def RemoveMember(
        self, request: replica_pb2.RemoveMemberRequest, context: grpc.ServicerContext
    ) -> replica_pb2.RemoveMemberResponse:
        uid = parse_node_uid(request.uid)
        self._daemon.remove_member(uid, author(context), deadline_s=deadline(context, JOIN_S))
        return replica_pb2.RemoveMemberResponse()

    @answering
    def RenameMember(
        self, request: replica_pb2.RenameMemberRequest, context: grpc.ServicerContext
    ) -> replica_pb2.RenameMemberResponse:
        uid, name = parse_node_uid(request.uid), parse_node_name(request.name, field="name")
        self._daemon.rename_member(uid, name, author(context, "node renamed"), deadline_s=deadline(context))
        return replica_pb2.RenameMemberResponse()

    @answering
    def MoveMember(
        self, request: replica_pb2.MoveMemberRequest, context: grpc.ServicerContext
    ) -> replica_pb2.MoveMemberResponse:
        uid = parse_node_uid(request.uid)
        self._daemon.move_member(uid, request.address, author(context, "node moved"), deadline_s=deadline(context))
        return replica_pb2.MoveMemberResponse()

    @answering
    def ReaddressReplica(
        self, request: replica_pb2.ReaddressReplicaRequest, _context: grpc.ServicerContext
    ) -> replica_pb2.ReaddressReplicaResponse:
        try:
            self._daemon.readdress(request.address)
        except OSError as error:
            raise Refused(
                f"cannot listen on {request.address}: {error}", remedy="give this host that address"
            ) from error
        return replica_pb2.ReaddressReplicaResponse()

    @answering
    def PlanRecovery(
        self, _request: replica_pb2.PlanRecoveryRequest, _context: grpc.ServicerContext
    ) -> replica_pb2.PlanRecoveryResponse:
        return _plan(self._daemon.plan_recovery())

    @answering
    def RecoverReplica(
        self, request: replica_pb2.RecoverReplicaRequest, context: grpc.ServicerContext
    ) -> replica_pb2.RecoverReplicaResponse:
        plan, copy = self._daemon.recover(request.confirm, author(context), force=request.force)
        return replica_pb2.RecoverReplicaResponse(done=_plan(plan), archive_path=str(copy))

    @answering
    def RejoinReplica(
        self, _request: replica_pb2.RejoinReplicaRequest, _context: grpc.ServicerContext
    ) -> replica_pb2.RejoinReplicaResponse:
        return replica_pb2.RejoinReplicaResponse(archive_path=str(self._daemon.rejoin()))

    @answering
    def AcquireLease(
        self, request: replica_pb2.AcquireLeaseRequest, context: grpc.ServicerContext
    ) -> replica_pb2.AcquireLeaseResponse:
        done = self._daemon.running.proposer.execute(
            LeaseAcquire(request.uid, request.terms.pause_after_ms, request.terms.takeover_after_ms),
            author(context),
            deadline_s=deadline(context),
        )
        return replica_pb2.AcquireLeaseResponse(incarnation=done.number)

    @answering
    def RenewLease(
        self, request: replica_pb2.RenewLeaseRequest, context: grpc.ServicerContext
    ) -> replica_pb2.RenewLeaseResponse:
        running = self._daemon.running
        done = running.proposer.execute(
            LeaseRenew(
                request.uid,
                request.incarnation,
                request.sent_ms,
                request.terms.pause_after_ms,
                request.terms.takeover_after_ms,
            ),
            author(context),
            deadline_s=deadline(context),
        )
        next_in_ms = _next_in_ms(request, running.machine.leases())
        return replica_pb2.RenewLeaseResponse(renewal=done.number, next_in_ms=next_in_ms)

    @answering
    def RestLease(
        self, request: replica_pb2.RestLeaseRequest, context: grpc.ServicerContext
    ) -> replica_pb2.RestLeaseResponse:
        self._daemon.running.proposer.execute(
            LeaseRest(request.uid, request.incarnation), author(context), deadline_s=deadline(context)
        )
        return replica_pb2.RestLeaseResponse()

    @answering
    def FenceLease(
        self, request: replica_pb2.FenceLeaseRequest, context: grpc.ServicerContext
    ) -> replica_pb2.FenceLeaseResponse:
        self._daemon.running.proposer.execute(
            LeaseFence(request.uid, request.incarnation, request.renewal, request.confirmed),
            author(context),
            deadline_s=deadline(context),
        )
        return replica_pb2.FenceLeaseResponse()

    @answering
    def ListLeases(
        self, _request: replica_pb2.ListLeasesRequest, _context: grpc.ServicerContext
    ) -> replica_pb2.ListLeasesResponse:
        running = self._daemon.running
        status = running.replica.status()
        leases = [
            replica_pb2.Lease(
                uid=held.uid,
                incarnation=held.lease.incarnation,
                renewal=held.lease.renewal,
                fenced=held.lease.fenced,
                resting=held.lease.resting,
                age_seconds=held.age_s,
                terms=replica_pb2.LeaseTerms(
                    pause_after_ms=held.lease.pause_ms, takeover_after_ms=held.lease.takeover_ms
                ),
            )
            for held in running.machine.leases()
        ]
        is_leader = status.leader == running.identity.uid and status.is_quorate and status.caught_up
        return replica_pb2.ListLeasesResponse(
            leases=leases, leader=is_leader, term=status.term, quorate=status.is_quorate
        )


def _next_in_ms(request: replica_pb2.RenewLeaseRequest, held: Iterable[LeaseView]) -> int:
    """0: no hint."""
    if not 0 < request.interval_ms <= meeting.MAX_INTERVAL_S * 1000:
        return 0
    ages_s = {one.uid: one.age_s for one in held if one.is_trusted}
    if request.uid not in ages_s:
        return 0
    return math.ceil(meeting.next_in_s(request.uid, ages_s, request.interval_ms / 1000) * 1000)


def _plan(plan: Plan) -> replica_pb2.PlanRecoveryResponse:
    return replica_pb2.PlanRecoveryResponse(
        cluster_name=plan.cluster_name,
        epoch=plan.epoch,
        last_index=plan.last_index,
        last_change_ms=plan.last_change_ms,
        lost_nodes=plan.lost,
        obstacles=plan.obstacles,
    )


def _member(message: replica_pb2.Member) -> Member:
    return Member(
        uid=parse_node_uid(message.uid),
        name=parse_node_name(message.name, field="name"),
        address=message.address,
        number=message.number,
        witness=message.witness,
    )


def _message(member: Member, *, is_connected: bool, is_voter: bool) -> replica_pb2.Member:
    return replica_pb2.Member(
        uid=member.uid,
        name=member.name,
        address=member.address,
        connected=is_connected,
        number=member.number,
        voter=is_voter,
        witness=member.witness,
    )
