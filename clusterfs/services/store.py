"""StoreService: the tree over gRPC, served from the local replica."""

# ruff: noqa: N802 - methods are named as in the proto

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from clusterfs import rules
from clusterfs.commands import Delete, Mkdir, Move, Write
from clusterfs.daemon import Daemon
from clusterfs.machine import Compacted, StoreMachine
from clusterfs.outcomes import Deleted, Done, Moved, Refusal, Result, Written
from clusterfs.pending import OnResult
from clusterfs.refusals import to_error
from clusterfs.running import Running
from clusterfs.services.calls import answering, answering_later, author, deadline, streaming
from clusterfs.tree import Directory, File, Node, Parts, crosses_file, join, lookup, walk
from clusterfs.watching import seen_from
from kvorum.errors import HistoryGone, InvalidInput, KvorumError, NotFound, QuotaExceeded, Refused, Unreachable
from kvorum.v1 import store_pb2, store_pb2_grpc

# One page of a list: far below the size that gRPC lets a message have.
PAGE_ENTRIES = 5_000
PAGE_BYTES = 2 << 20
# Each watch holds a thread; the pool (`clusterfs.server`) has more than that.
MAX_WATCHES = 64
BOOKMARK_INTERVAL_S = 5.0
WAKE_INTERVAL_S = 1.0


class StoreService(store_pb2_grpc.StoreServiceServicer):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._watches = threading.BoundedSemaphore(MAX_WATCHES)

    @answering_later
    def GetEntry(
        self,
        request: store_pb2.GetEntryRequest,
        context: grpc.ServicerContext,
        answer: Callable[[store_pb2.GetEntryResponse | Exception], None],
    ) -> None:
        running = self._daemon.running
        parts = path_parts(request.path)

        def read() -> store_pb2.GetEntryResponse:
            view = running.machine.view
            node = _find(view.state.root, parts)
            return store_pb2.GetEntryResponse(entry=entry(parts, node, with_content=True), applied_index=view.index)

        def passed(error: KvorumError | None) -> None:
            try:
                answer(error or read())
            except KvorumError as refusal:
                answer(refusal)

        if request.linearizable:
            running.proposer.pass_barrier(passed, deadline_s=deadline(context))
        else:
            answer(read())

    @answering
    def ListEntries(
        self, request: store_pb2.ListEntriesRequest, _context: grpc.ServicerContext
    ) -> store_pb2.ListEntriesResponse:
        view = self._daemon.running.machine.view
        parts = path_parts(request.path)
        directory = _find(view.state.root, parts)
        if not isinstance(directory, Directory):
            raise Refused(f"{request.path} is a file", remedy="get it instead")
        if request.recursive:
            below = [(at, node) for at, node in walk(directory, parts) if at != parts]
        else:
            below = [((*parts, name), node) for name, node in directory.entries.items()]
        found = sorted(((join(at), at, node) for at, node in below), key=lambda item: item[0])
        response = store_pb2.ListEntriesResponse(applied_index=view.index)
        limit = min(request.page_size or PAGE_ENTRIES, PAGE_ENTRIES)
        size = 0
        for path, at, node in found:
            if path <= request.page_token:
                continue
            if len(response.entries) >= limit or size > PAGE_BYTES:
                response.next_page_token = response.entries[-1].path
                break
            response.entries.append(entry(at, node, with_content=request.with_content))
            if request.with_content and isinstance(node, File):
                size += len(node.content)
        return response

    @answering_later
    def WriteEntry(
        self,
        request: store_pb2.WriteEntryRequest,
        context: grpc.ServicerContext,
        answer: Callable[[store_pb2.WriteEntryResponse | Exception], None],
    ) -> None:
        condition = request.precondition.WhichOneof("condition")
        is_absent = condition == "absent" and request.precondition.absent
        if request.directory:
            if condition == "expected_version":
                raise InvalidInput("a directory is not replaced", field="precondition")
            op: Mkdir | Write = Mkdir(request.path, parents=request.parents, exist_ok=not is_absent)
        else:
            op = Write(
                request.path,
                request.content,
                expected_version=request.precondition.expected_version if condition == "expected_version" else None,
                absent=is_absent,
                parents=request.parents,
            )
        self._daemon.running.proposer.submit(
            op,
            author(context, request.reason, request.fencing),
            on_result=_answering(answer, lambda done: store_pb2.WriteEntryResponse(entry=done_entry(done))),
            deadline_s=deadline(context),
        )

    @answering_later
    def MoveEntry(
        self,
        request: store_pb2.MoveEntryRequest,
        context: grpc.ServicerContext,
        answer: Callable[[store_pb2.MoveEntryResponse | Exception], None],
    ) -> None:
        self._daemon.running.proposer.submit(
            Move(request.path, request.new_path, request.expected_version, request.replace),
            author(context, request.reason, request.fencing),
            on_result=_answering(answer, lambda done: store_pb2.MoveEntryResponse(entry=done_entry(done))),
            deadline_s=deadline(context),
        )

    @answering_later
    def DeleteEntry(
        self,
        request: store_pb2.DeleteEntryRequest,
        context: grpc.ServicerContext,
        answer: Callable[[store_pb2.DeleteEntryResponse | Exception], None],
    ) -> None:
        self._daemon.running.proposer.submit(
            Delete(request.path, request.expected_version, request.recursive),
            author(context, request.reason, request.fencing),
            on_result=_answering(answer, lambda _done: store_pb2.DeleteEntryResponse()),
            deadline_s=deadline(context),
        )

    @streaming
    def WatchEntries(
        self, request: store_pb2.WatchEntriesRequest, context: grpc.ServicerContext
    ) -> Iterator[store_pb2.WatchEntriesResponse]:
        running = self._daemon.running
        parts = path_parts(request.path)
        if not self._watches.acquire(blocking=False):
            raise QuotaExceeded(f"{MAX_WATCHES} watches are open already", remedy="share one, or close some")
        try:
            yield from _watch(running, parts, request, context)
        except Compacted as error:
            raise HistoryGone(str(error), oldest_index=error.oldest_index, remedy="list and watch anew") from error
        finally:
            self._watches.release()


_Response = TypeVar("_Response")


def _answering(answer: Callable[[_Response | Exception], None], made: Callable[[Done], _Response]) -> OnResult:
    """Where the result of a command goes: to the caller, as a response or as the error that it means."""

    def on_result(result: Result | KvorumError) -> None:
        if isinstance(result, Done):
            answer(made(result))
        else:
            answer(to_error(result) if isinstance(result, Refusal) else result)

    return on_result


def _watch(
    running: Running, parts: Parts, request: store_pb2.WatchEntriesRequest, context: grpc.ServicerContext
) -> Iterator[store_pb2.WatchEntriesResponse]:
    machine: StoreMachine = running.machine
    index = request.from_index or machine.view.index
    machine.events_after(index, timeout_s=0.0)
    yield store_pb2.WatchEntriesResponse(index=index, bookmark=True)
    told, last = index, time.monotonic()
    while context.is_active():
        if machine.is_closed:
            raise Unreachable("the replica has been stopped")
        batches, index = machine.events_after(index, timeout_s=WAKE_INTERVAL_S)
        for batch in batches:
            for event in batch.events:
                for change in seen_from(event, parts):
                    yield _response(batch.index, change, with_content=request.with_content)
                    told, last = batch.index, time.monotonic()
        if index > told and time.monotonic() - last >= BOOKMARK_INTERVAL_S:
            yield store_pb2.WatchEntriesResponse(index=index, bookmark=True)
            told, last = index, time.monotonic()


def _response(index: int, change: Written | Deleted | Moved, *, with_content: bool) -> store_pb2.WatchEntriesResponse:
    match change:
        case Written(path=path, node=node):
            written = entry(tuple(path.split("/")), node, with_content=with_content)
            return store_pb2.WatchEntriesResponse(index=index, written=written)
        case Deleted(path=path):
            return store_pb2.WatchEntriesResponse(index=index, deleted=path)
        case Moved(path=path, new_path=new_path, node=node):
            moved = entry(tuple(new_path.split("/")), node, with_content=with_content)
            return store_pb2.WatchEntriesResponse(
                index=index, moved=store_pb2.WatchEntriesResponse.Move(path=path, entry=moved)
            )


def entry(parts: Parts, node: Node, *, with_content: bool) -> store_pb2.Entry:
    """The message for a node of the tree."""
    message = store_pb2.Entry(
        path=join(parts),
        kind=store_pb2.ENTRY_KIND_DIRECTORY if isinstance(node, Directory) else store_pb2.ENTRY_KIND_FILE,
        version=node.version,
        modify_time=Timestamp(seconds=node.mtime),
        placement=node.placement,
    )
    if isinstance(node, File):
        message.size_bytes = len(node.content)
        if with_content:
            message.content = node.content
    return message


def done_entry(done: Done) -> store_pb2.Entry:
    """What a write left behind, as of its own log index; the content is what the caller sent."""
    return store_pb2.Entry(
        path=done.path,
        kind=store_pb2.ENTRY_KIND_DIRECTORY if done.is_directory else store_pb2.ENTRY_KIND_FILE,
        size_bytes=done.size,
        version=done.version,
        modify_time=Timestamp(seconds=done.mtime),
        placement=done.placement,
    )


def path_parts(path: str) -> Parts:
    parts = rules.split(path)
    if isinstance(parts, Refusal):
        raise to_error(parts)
    return parts


def _find(root: Directory, parts: Parts) -> Node:
    node = lookup(root, parts)
    if node is None:
        if crosses_file(root, parts):
            raise Refused(f"a part of {join(parts)} is a file")
        raise NotFound(f"{join(parts)} does not exist", details={"path": join(parts)})
    return node
