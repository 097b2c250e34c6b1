"""The store for the other processes of the node: `StoreClient` for asyncio, `SyncStoreClient` for the lease keeper.

Calls have a deadline and raise `kvorum.errors`; the channel connects when it is first used and again whenever the daemon has been
restarted. Answers are messages of kvorum.v1, which hold no reference to the client. Nothing is cached here.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from kvorum.errors import KvorumError, Unreachable
from kvorum.node import CLUSTERFS_SOCKET
from kvorum.rpc import from_rpc_error
from kvorum.v1 import replica_pb2, replica_pb2_grpc, status_pb2, status_pb2_grpc, store_pb2, store_pb2_grpc

READ_S = 5.0
WRITE_S = 10.0
# A member is added when it has connected and caught up.
MEMBER_S = 60.0
ACTIVATE_S = 30.0
RENEW_S = 3.0
# How long a call waits for a daemon that is just (re)starting.
PATIENCE_S = 3.0
# Of a lease, for who has none of its own.
TERMS = replica_pb2.LeaseTerms(pause_after_ms=3500, takeover_after_ms=9509)

_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # The daemon is on this machine: a restart is over within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
)


_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries sorted by path; a watch from `applied_index` misses nothing that is not in here."""

    entries: tuple[store_pb2.Entry, ...]
    applied_index: int

    def __iter__(self) -> Iterator[store_pb2.Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class StoreClient:
    """For one event loop. `author` and `source` are kept with each change and can be given by call as well."""

    def __init__(self, socket: Path = CLUSTERFS_SOCKET, *, author: str = "root@pam", source: str = "") -> None:
        self._socket = socket
        self._author = author
        self._source = source
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    # Entries

    async def get(self, path: str, *, linearizable: bool = False, deadline_s: float = READ_S) -> store_pb2.Entry:
        """The entry with its content. Raises NotFound."""
        return (await self.get_at(path, linearizable=linearizable, deadline_s=deadline_s)).entry

    async def get_at(
        self, path: str, *, linearizable: bool = False, deadline_s: float = READ_S
    ) -> store_pb2.GetEntryResponse:
        """The entry, and the log index that the replica had applied when it answered."""
        request = store_pb2.GetEntryRequest(path=path, linearizable=linearizable)
        return await self._call(self._store.GetEntry, request, deadline_s)

    async def read(self, path: str, *, linearizable: bool = False, deadline_s: float = READ_S) -> bytes:
        """The content of a file. Raises NotFound."""
        return (await self.get(path, linearizable=linearizable, deadline_s=deadline_s)).content

    async def list(
        self, path: str = "", *, recursive: bool = False, with_content: bool = False, deadline_s: float = READ_S
    ) -> Listing:
        """All entries below a directory, whatever number of pages they take. Raises NotFound."""
        entries: list[store_pb2.Entry] = []
        request = store_pb2.ListEntriesRequest(path=path, recursive=recursive, with_content=with_content)
        index: int | None = None
        while True:
            page = await self._call(self._store.ListEntries, request, deadline_s)
            entries.extend(page.entries)
            # The oldest: a watch from there tells again what a later page shows already, and misses nothing.
            index = page.applied_index if index is None else min(index, page.applied_index)
            if not page.next_page_token:
                return Listing(tuple(entries), index)
            request.page_token = page.next_page_token

    async def write(
        self,
        path: str,
        content: bytes = b"",
        *,
        expected_version: int | None = None,
        absent: bool = False,
        directory: bool = False,
        parents: bool = False,
        reason: str = "",
        author: str = "",
        source: str = "",
        deadline_s: float = WRITE_S,
    ) -> store_pb2.Entry:
        """Creates or replaces a file, or makes a directory. The answer has no content.

        Raises StaleVersion, AlreadyExists, NoQuorum, OutcomeUnknown, QuotaExceeded and the like.
        """
        request = store_pb2.WriteEntryRequest(
            path=path, content=content, directory=directory, parents=parents, reason=reason
        )
        if expected_version is not None:
            request.precondition.expected_version = expected_version
        elif absent:
            request.precondition.absent = True
        answer = await self._call(self._store.WriteEntry, request, deadline_s, author=author, source=source)
        return answer.entry

    async def move(
        self,
        path: str,
        new_path: str,
        *,
        expected_version: int = 0,
        replace: bool = False,
        reason: str = "",
        author: str = "",
        source: str = "",
        deadline_s: float = WRITE_S,
    ) -> store_pb2.Entry:
        """Renames; the answer is the entry at its new place."""
        request = store_pb2.MoveEntryRequest(
            path=path, new_path=new_path, expected_version=expected_version, replace=replace, reason=reason
        )
        answer = await self._call(self._store.MoveEntry, request, deadline_s, author=author, source=source)
        return answer.entry

    async def delete(
        self,
        path: str,
        *,
        expected_version: int = 0,
        recursive: bool = False,
        reason: str = "",
        author: str = "",
        source: str = "",
        deadline_s: float = WRITE_S,
    ) -> None:
        request = store_pb2.DeleteEntryRequest(
            path=path, expected_version=expected_version, recursive=recursive, reason=reason
        )
        await self._call(self._store.DeleteEntry, request, deadline_s, author=author, source=source)

    async def watch(
        self, path: str = "", *, from_index: int = 0, with_content: bool = False
    ) -> AsyncIterator[store_pb2.WatchEntriesResponse]:
        """Every change after `from_index`, until the caller stops iterating. The first answer is a bookmark.

        Raises HistoryGone, and Unreachable when the daemon ends: watch again from the last index.
        """
        request = store_pb2.WatchEntriesRequest(path=path, from_index=from_index, with_content=with_content)
        await self._wait_for_daemon(PATIENCE_S)
        call = self._store.WatchEntries(request, metadata=self._metadata("", ""))
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise _explain(error) from error
        finally:
            call.cancel()

    # Status and the cluster log: no quorum is needed, nothing reaches a disk.

    async def set_status(self, values: Mapping[str, bytes], *, deadline_s: float = READ_S) -> None:
        """Of this node; an empty value deletes its key. Raises QuotaExceeded, InvalidInput."""
        await self._call(self._status.SetStatus, status_pb2.SetStatusRequest(values=dict(values)), deadline_s)

    async def get_status(self, key: str, *, node: str = "", deadline_s: float = READ_S) -> bytes:
        """Raises NotFound."""
        request = status_pb2.GetStatusRequest(node=node, key=key)
        return (await self._call(self._status.GetStatus, request, deadline_s)).value.value

    async def list_status(
        self, *, node: str = "", prefix: str = "", with_values: bool = False, deadline_s: float = READ_S
    ) -> status_pb2.ListStatusResponse:
        request = status_pb2.ListStatusRequest(node=node, prefix=prefix, with_values=with_values)
        return await self._call(self._status.ListStatus, request, deadline_s)

    async def status_keys(self, prefix: str, *, deadline_s: float = READ_S) -> Sequence[str]:
        """Of this node."""
        me = (await self.status(deadline_s=deadline_s)).self_uid
        answer = await self.list_status(node=me, prefix=prefix, deadline_s=deadline_s)
        return [value.key for node in answer.nodes for value in node.values]

    async def watch_status(self, *, node: str = "", prefix: str = "") -> AsyncIterator[status_pb2.WatchStatusResponse]:
        """What there is, then each change, until the caller stops iterating. Raises Unreachable when the daemon ends."""
        await self._wait_for_daemon(PATIENCE_S)
        call = self._status.WatchStatus(status_pb2.WatchStatusRequest(node=node, prefix=prefix))
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise _explain(error) from error
        finally:
            call.cancel()

    async def log_message(
        self, message: str, *, priority: int = 6, tag: str = "cluster", user: str = "root", deadline_s: float = READ_S
    ) -> None:
        """A line of the cluster log, in this node's name; `priority` as in syslog."""
        request = status_pb2.LogMessageRequest(priority=priority, tag=tag, user=user, message=message, pid=os.getpid())
        await self._call(self._status.LogMessage, request, deadline_s)

    async def list_log(
        self, *, limit: int = 50, user: str = "", deadline_s: float = READ_S
    ) -> Sequence[status_pb2.LogLine]:
        """Of all nodes, the newest first."""
        request = status_pb2.ListLogRequest(limit=limit, user=user)
        return (await self._call(self._status.ListLog, request, deadline_s)).lines

    # The replica

    async def activate(
        self, members: Sequence[replica_pb2.Member], cluster_name: str, *, deadline_s: float = ACTIVATE_S
    ) -> None:
        """One member, this node: a new cluster. More: this node joins them."""
        request = replica_pb2.ActivateReplicaRequest(members=members, cluster_name=cluster_name)
        await self._call(self._replica.ActivateReplica, request, deadline_s)

    async def retire(self, *, deadline_s: float = ACTIVATE_S) -> str:
        """Where the data has been put."""
        answer = await self._call(self._replica.RetireReplica, replica_pb2.RetireReplicaRequest(), deadline_s)
        return answer.archive_path

    async def status(self, *, deadline_s: float = READ_S) -> replica_pb2.GetReplicaStatusResponse:
        return await self._call(self._replica.GetReplicaStatus, replica_pb2.GetReplicaStatusRequest(), deadline_s)

    async def rename_member(self, uid: str, name: str, *, deadline_s: float = WRITE_S) -> None:
        await self._call(self._replica.RenameMember, replica_pb2.RenameMemberRequest(uid=uid, name=name), deadline_s)

    async def move_member(self, uid: str, address: str, *, deadline_s: float = WRITE_S) -> None:
        """The member goes to this address of its host by itself."""
        request = replica_pb2.MoveMemberRequest(uid=uid, address=address)
        await self._call(self._replica.MoveMember, request, deadline_s)

    async def readdress(self, address: str) -> None:
        """This node is at that address already. Raises Refused."""
        request = replica_pb2.ReaddressReplicaRequest(address=address)
        await self._call(self._replica.ReaddressReplica, request, ACTIVATE_S)

    async def plan_recovery(self) -> replica_pb2.PlanRecoveryResponse:
        return await self._call(self._replica.PlanRecovery, replica_pb2.PlanRecoveryRequest(), READ_S)

    async def recover(self, confirm: str, *, force: bool = False) -> replica_pb2.RecoverReplicaResponse:
        """Go on from this node alone. Raises InvalidInput, Refused."""
        request = replica_pb2.RecoverReplicaRequest(confirm=confirm, force=force)
        return await self._call(self._replica.RecoverReplica, request, ACTIVATE_S)

    async def rejoin(self) -> str:
        """Begin anew in the cluster that was recovered without this node; where its data from before is. Raises Refused."""
        response = await self._call(self._replica.RejoinReplica, replica_pb2.RejoinReplicaRequest(), ACTIVATE_S)
        return response.archive_path

    async def add_member(
        self, member: replica_pb2.Member, *, author: str = "", source: str = "", deadline_s: float = MEMBER_S
    ) -> replica_pb2.Member:
        """The member with its number, once it votes. Nothing has changed when this fails, but for a used-up number."""
        request = replica_pb2.AddMemberRequest(member=member)
        return (await self._call(self._replica.AddMember, request, deadline_s, author=author, source=source)).member

    async def remove_member(
        self, uid: str, *, author: str = "", source: str = "", deadline_s: float = MEMBER_S
    ) -> None:
        request = replica_pb2.RemoveMemberRequest(uid=uid)
        await self._call(self._replica.RemoveMember, request, deadline_s, author=author, source=source)

    async def acquire_lease(
        self, uid: str, terms: replica_pb2.LeaseTerms = TERMS, *, deadline_s: float = WRITE_S
    ) -> int:
        """The new incarnation."""
        request = replica_pb2.AcquireLeaseRequest(uid=uid, terms=terms)
        return (await self._call(self._replica.AcquireLease, request, deadline_s)).incarnation

    async def renew_lease(
        self, uid: str, incarnation: int, terms: replica_pb2.LeaseTerms = TERMS, *, deadline_s: float = RENEW_S
    ) -> int:
        """The count of renewals. Raises Fenced."""
        request = replica_pb2.RenewLeaseRequest(uid=uid, incarnation=incarnation, terms=terms)
        return (await self._call(self._replica.RenewLease, request, deadline_s)).renewal

    async def fence_lease(
        self, uid: str, incarnation: int, renewal: int, *, confirmed: str = "", deadline_s: float = WRITE_S
    ) -> None:
        """Raises StaleVersion when the lease has been renewed meanwhile, or with `confirmed`, is of another life."""
        request = replica_pb2.FenceLeaseRequest(uid=uid, incarnation=incarnation, renewal=renewal, confirmed=confirmed)
        await self._call(self._replica.FenceLease, request, deadline_s)

    async def list_leases(self, *, deadline_s: float = READ_S) -> replica_pb2.ListLeasesResponse:
        return await self._call(self._replica.ListLeases, replica_pb2.ListLeasesRequest(), deadline_s)

    # Leaves

    @property
    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix:{self._socket}", options=_OPTIONS)
        return self._channel

    @property
    def _store(self) -> "store_pb2_grpc.StoreServiceAsyncStub":
        return store_pb2_grpc.StoreServiceStub(self._open)

    @property
    def _status(self) -> "status_pb2_grpc.StatusServiceAsyncStub":
        return status_pb2_grpc.StatusServiceStub(self._open)

    @property
    def _replica(self) -> "replica_pb2_grpc.ReplicaServiceAsyncStub":
        return replica_pb2_grpc.ReplicaServiceStub(self._open)

    def _metadata(self, author: str, source: str) -> tuple[tuple[str, str], ...]:
        return (("kvorum-author", author or self._author), ("kvorum-source", source or self._source))

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        deadline_s: float,
        *,
        author: str = "",
        source: str = "",
    ) -> _Response:
        names = self._metadata(author, source)
        await self._wait_for_daemon(min(deadline_s, PATIENCE_S))
        try:
            return await method(request, timeout=deadline_s, metadata=names)
        except grpc.aio.AioRpcError as error:
            raise _explain(error) from error

    async def _wait_for_daemon(self, patience_s: float) -> None:
        """Until there is a connection. Not gRPC's wait_for_ready, whose failure looks like a call that was sent and got no
        answer; after this one, silence means that nothing was sent."""
        channel = self._open
        try:
            async with asyncio.timeout(patience_s):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            return  # the call itself says why


class SyncStoreClient:
    """The few calls that a process without an event loop makes. It fails at once while the daemon is down."""

    def __init__(self, socket: Path = CLUSTERFS_SOCKET) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=list(_OPTIONS))
        self._store = store_pb2_grpc.StoreServiceStub(self._channel)
        self._replica = replica_pb2_grpc.ReplicaServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def status(self, *, deadline_s: float = READ_S) -> replica_pb2.GetReplicaStatusResponse:
        return _sync(self._replica.GetReplicaStatus, replica_pb2.GetReplicaStatusRequest(), deadline_s)

    def read(self, path: str, *, deadline_s: float = READ_S) -> bytes:
        """The content of a file. Raises NotFound."""
        return _sync(self._store.GetEntry, store_pb2.GetEntryRequest(path=path), deadline_s).entry.content

    def write(self, path: str, content: bytes, *, parents: bool = False, deadline_s: float = WRITE_S) -> int:
        """The version that the file has now."""
        request = store_pb2.WriteEntryRequest(path=path, content=content, parents=parents)
        return _sync(self._store.WriteEntry, request, deadline_s).entry.version

    def acquire_lease(self, uid: str, terms: replica_pb2.LeaseTerms = TERMS, *, deadline_s: float = WRITE_S) -> int:
        """The new incarnation."""
        request = replica_pb2.AcquireLeaseRequest(uid=uid, terms=terms)
        return _sync(self._replica.AcquireLease, request, deadline_s).incarnation

    def renew_lease(
        self, uid: str, incarnation: int, terms: replica_pb2.LeaseTerms = TERMS, *, deadline_s: float = RENEW_S
    ) -> int:
        """The count of renewals. Raises Fenced."""
        request = replica_pb2.RenewLeaseRequest(uid=uid, incarnation=incarnation, terms=terms)
        return _sync(self._replica.RenewLease, request, deadline_s).renewal

    def list_leases(self, *, deadline_s: float = READ_S) -> replica_pb2.ListLeasesResponse:
        return _sync(self._replica.ListLeases, replica_pb2.ListLeasesRequest(), deadline_s)


def _sync(
    method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, deadline_s: float
) -> _Response:
    try:
        return method(request, timeout=deadline_s)
    except grpc.RpcError as error:
        raise _explain(error) from error


def _explain(error: grpc.RpcError) -> KvorumError:
    """What the daemon answered; its silence with what to do about it."""
    found = from_rpc_error(error)
    if isinstance(found, Unreachable) and not found.remedy:
        return Unreachable(
            "the config store of this node does not answer", remedy="see 'journalctl -u kvorum-clusterfs' on this node"
        )
    return found
