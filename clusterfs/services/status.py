"""StatusService: the nodes' volatile status and the cluster log over gRPC, from this process' memory."""

# ruff: noqa: N802 - methods are named as in the proto

import threading
from collections.abc import Iterator

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from clusterfs import clusterlog
from clusterfs.daemon import Daemon
from clusterfs.gossip import Change
from clusterfs.running import Running
from clusterfs.services.calls import answering, streaming
from kvorum.errors import InvalidInput, NotFound, QuotaExceeded
from kvorum.v1 import status_pb2, status_pb2_grpc

LOG_LINES = 50
MAX_LOG_LINES = 5_000
# Of one answer; gRPC lets a message have 4 MiB.
ANSWER_BYTES = 3 << 20
# Each watch holds a thread of the pool.
MAX_STATUS_WATCHES = 16
WAKE_INTERVAL_S = 1.0


class StatusService(status_pb2_grpc.StatusServiceServicer):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._watches = threading.BoundedSemaphore(MAX_STATUS_WATCHES)

    @answering
    def SetStatus(
        self, request: status_pb2.SetStatusRequest, _context: grpc.ServicerContext
    ) -> status_pb2.SetStatusResponse:
        self._daemon.running.gossip.set(request.values)
        return status_pb2.SetStatusResponse()

    @answering
    def GetStatus(
        self, request: status_pb2.GetStatusRequest, _context: grpc.ServicerContext
    ) -> status_pb2.GetStatusResponse:
        running = self._daemon.running
        uid = _uid_of(running, request.node) if request.node else running.identity.uid
        value = running.gossip.get(uid, request.key)
        if value is None:
            raise NotFound(f"{request.node or running.identity.name} has set no status {request.key!r:.80}")
        version = running.gossip.versions(uid).get(request.key, 0)
        return status_pb2.GetStatusResponse(
            value=_value(request.key, value, version, with_value=True), age_seconds=running.gossip.age_s(uid)
        )

    @answering
    def ListStatus(
        self, request: status_pb2.ListStatusRequest, _context: grpc.ServicerContext
    ) -> status_pb2.ListStatusResponse:
        running = self._daemon.running
        response = status_pb2.ListStatusResponse()
        left = ANSWER_BYTES if request.with_values else 0
        for name, uid in _nodes(running, request.node):
            node = response.nodes.add(node=name, uid=uid, age_seconds=running.gossip.age_s(uid))
            versions = running.gossip.versions(uid)
            for key, value in sorted(running.gossip.shelves[uid].values.items()):
                if key.startswith(request.prefix):
                    is_shown = len(value) <= left
                    left -= len(value) if is_shown else 0
                    response.truncated |= request.with_values and not is_shown
                    node.values.append(_value(key, value, versions.get(key, 0), with_value=is_shown))
        return response

    @streaming
    def WatchStatus(
        self, request: status_pb2.WatchStatusRequest, context: grpc.ServicerContext
    ) -> Iterator[status_pb2.WatchStatusResponse]:
        running = self._daemon.running
        wanted = _uid_of(running, request.node) if request.node else ""
        if not self._watches.acquire(blocking=False):
            raise QuotaExceeded(f"{MAX_STATUS_WATCHES} watches of status are open already", remedy="share one")
        try:
            yield from _watch(running, wanted, request.prefix, context)
        finally:
            self._watches.release()

    @answering
    def LogMessage(
        self, request: status_pb2.LogMessageRequest, _context: grpc.ServicerContext
    ) -> status_pb2.LogMessageResponse:
        if request.priority > 7:
            raise InvalidInput("a priority is 0 to 7, as in syslog", field="priority")
        if not request.message:
            raise InvalidInput("a message says something", field="message")
        line = self._daemon.running.gossip.log(
            priority=request.priority,
            tag=request.tag,
            user=request.user or "root",
            message=request.message,
            pid=request.pid % (1 << 32),
        )
        return status_pb2.LogMessageResponse(line=_line(line))

    @answering
    def ListLog(self, request: status_pb2.ListLogRequest, _context: grpc.ServicerContext) -> status_pb2.ListLogResponse:
        limit = min(request.limit or LOG_LINES, MAX_LOG_LINES)
        lines = clusterlog.newest(self._daemon.running.gossip.rings, limit, user=request.user)
        return status_pb2.ListLogResponse(lines=[_line(line) for line in lines])


def _watch(
    running: Running, wanted: str, prefix: str, context: grpc.ServicerContext
) -> Iterator[status_pb2.WatchStatusResponse]:
    gossip = running.gossip
    version = gossip.version
    yield from _everything(running, wanted, prefix)
    while context.is_active() and not gossip.is_stopping:
        changes = gossip.changes_after(version, timeout_s=WAKE_INTERVAL_S)
        if changes is None:
            version = gossip.version
            yield status_pb2.WatchStatusResponse(reset=True)
            yield from _everything(running, wanted, prefix)
            continue
        if changes:
            version = changes[-1].version
        # The newest of each key is enough.
        latest = {(change.uid, change.key): change for change in changes}
        names = _names(running)
        for change in latest.values():
            if change.key.startswith(prefix) and change.uid == (wanted or change.uid):
                yield _changed(running, names.get(change.uid, change.uid), change)


def _everything(running: Running, wanted: str, prefix: str) -> Iterator[status_pb2.WatchStatusResponse]:
    names = _names(running)
    for uid, shelf in running.gossip.shelves.items():
        versions = running.gossip.versions(uid)
        for key, value in sorted(shelf.values.items()):
            if key.startswith(prefix) and uid == (wanted or uid):
                message = _value(key, value, versions.get(key, 0), with_value=True)
                yield status_pb2.WatchStatusResponse(
                    set=status_pb2.WatchStatusResponse.Set(node=names.get(uid, uid), value=message)
                )
    yield status_pb2.WatchStatusResponse(current=True)


def _changed(running: Running, node: str, change: Change) -> status_pb2.WatchStatusResponse:
    value = running.gossip.get(change.uid, change.key)
    if value is None:
        deleted = status_pb2.WatchStatusResponse.Deleted(node=node, key=change.key)
        return status_pb2.WatchStatusResponse(deleted=deleted)
    message = _value(change.key, value, change.version, with_value=True)
    return status_pb2.WatchStatusResponse(set=status_pb2.WatchStatusResponse.Set(node=node, value=message))


def _names(running: Running) -> dict[str, str]:
    return {running.identity.uid: running.identity.name} | {member.uid: member.name for member in running.members()}


def _nodes(running: Running, name: str) -> list[tuple[str, str]]:
    """(name, uid) of the nodes that have a status, sorted by name."""
    if name:
        return [(name, _uid_of(running, name))]
    names = _names(running)
    return sorted((names.get(uid, uid), uid) for uid in running.gossip.shelves)


def _uid_of(running: Running, name: str) -> str:
    for uid, known in _names(running).items():
        if name in (known, uid) and uid in running.gossip.shelves:
            return uid
    raise NotFound(f"nothing is known of a node {name!r:.80}", remedy="see 'kvorum node list'")


def _value(key: str, value: bytes, version: int, *, with_value: bool) -> status_pb2.StatusValue:
    shown = value if with_value else b""
    return status_pb2.StatusValue(key=key, value=shown, size_bytes=len(value), version=version)


def _line(line: clusterlog.LogLine) -> status_pb2.LogLine:
    return status_pb2.LogLine(
        time=Timestamp(seconds=min(line.time, 253_402_300_799)),
        node=line.node,
        priority=line.priority,
        tag=line.tag,
        pid=line.pid,
        user=line.user,
        message=line.message,
        uid=line.uid,
    )
