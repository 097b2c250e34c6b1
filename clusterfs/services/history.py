"""HistoryService: what the store was, from the local replica's own memory, and the writes that bring it back."""

# ruff: noqa: N802 - methods are named as in the proto

from collections.abc import Iterator

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from clusterfs import history
from clusterfs.commands import Forget, Restore, Write
from clusterfs.daemon import Daemon
from clusterfs.forgetting import is_mark
from clusterfs.history import Kind, Record, Version
from clusterfs.outcomes import done
from clusterfs.services.calls import answering, author, deadline
from clusterfs.services.store import done_entry, path_parts
from clusterfs.state import State
from clusterfs.tree import Directory, File, Parts, join, lookup, walk
from kvorum.errors import HistoryGone, InvalidInput, NotFound, Refused
from kvorum.v1 import history_pb2 as pb
from kvorum.v1 import history_pb2_grpc

PAGE_CHANGES = 500
PAGE_BYTES = 2 << 20

_KINDS = {
    Kind.write: pb.CHANGE_KIND_WRITE,
    Kind.mkdir: pb.CHANGE_KIND_MKDIR,
    Kind.touch: pb.CHANGE_KIND_TOUCH,
    Kind.delete: pb.CHANGE_KIND_DELETE,
    Kind.move: pb.CHANGE_KIND_MOVE,
    Kind.unlock: pb.CHANGE_KIND_UNLOCK,
    Kind.earlier: pb.CHANGE_KIND_EARLIER,
}


class HistoryService(history_pb2_grpc.HistoryServiceServicer):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @answering
    def ListChanges(self, request: pb.ListChangesRequest, _context: grpc.ServicerContext) -> pb.ListChangesResponse:
        view = self._daemon.running.machine.view
        state = view.state
        parts = path_parts(request.path)
        before = _number(request.page_token)
        response = pb.ListChangesResponse(oldest_index=max(0, state.history.since), applied_index=view.index)
        limit = min(request.page_size or PAGE_CHANGES, PAGE_CHANGES)
        size = 0
        for change in _changes(state, parts, before):
            if not request.with_content:
                change.ClearField("content")
            size += len(change.content)
            is_full = len(response.changes) >= limit or size > PAGE_BYTES
            # All of one command, so that an index is enough to go on from.
            if is_full and response.changes and change.index != response.changes[-1].index:
                response.next_page_token = str(response.changes[-1].index)
                break
            response.changes.append(change)
        return response

    @answering
    def GetVersion(self, request: pb.GetVersionRequest, _context: grpc.ServicerContext) -> pb.GetVersionResponse:
        state = self._daemon.running.machine.state
        return pb.GetVersionResponse(version=_change(_wanted(state, path_parts(request.path), request.index)))

    @answering
    def BlameEntry(self, request: pb.BlameEntryRequest, _context: grpc.ServicerContext) -> pb.BlameEntryResponse:
        state = self._daemon.running.machine.state
        parts = path_parts(request.path)
        if not isinstance(lookup(state.root, parts), File):
            raise NotFound(f"there is no file {join(parts)}", remedy=f"see 'kvorum store log {join(parts)}'")
        return pb.BlameEntryResponse(
            lines=[
                pb.BlameEntryResponse.Line(
                    text=line.text, index=line.index, time=_time(line.time_ms), author=line.author, reason=line.reason
                )
                for line in history.blame(state.history, state.root, join(parts))
            ]
        )

    @answering
    def RestoreEntry(self, request: pb.RestoreEntryRequest, context: grpc.ServicerContext) -> pb.RestoreEntryResponse:
        running = self._daemon.running
        state = running.machine.state
        parts = path_parts(request.path)
        if _was_directory(state, parts, request.index):
            who = author(context, request.reason or f"restore of {request.index}")
            op = Restore(join(parts), request.index)
            index = running.proposer.execute(op, who, deadline_s=deadline(context)).index
            now = lookup(running.machine.state.root, parts)
            found = walk(now, parts) if now is not None else ()
            written = [(at, node) for at, node in found if isinstance(node, File) and node.version == index]
            return pb.RestoreEntryResponse(entries=[done_entry(done(index, join(at), node)) for at, node in written])
        version = _restored(state, parts, request.index)
        assert version.content is not None
        who = author(context, request.reason or f"restore of {version.index}")
        write = Write(join(parts), version.content, parents=True)
        answer = running.proposer.execute(write, who, deadline_s=deadline(context))
        return pb.RestoreEntryResponse(entries=[done_entry(answer)] if answer.version == answer.index else [])

    @answering
    def ForgetVersions(
        self, request: pb.ForgetVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ForgetVersionsResponse:
        parts = path_parts(request.path)
        who = author(context, request.reason)
        running = self._daemon.running
        answer = running.proposer.execute(Forget(join(parts), request.index), who, deadline_s=deadline(context))
        upto = f" up to {request.index}" if request.index else ""
        running.note_warning(f"{who.name} had the history forget what {join(parts)} held{upto}")
        return pb.ForgetVersionsResponse(versions=answer.number)


def _was_directory(state: State, parts: Parts, index: int) -> bool:
    tree = history.tree_at(state.history, state.root, index) if index else None
    return tree is not None and isinstance(lookup(tree, parts), Directory)


def _restored(state: State, parts: Parts, index: int) -> Version:
    """The version of a file that it is to have again."""
    if not index and isinstance(lookup(state.root, parts), Directory):
        raise InvalidInput(
            "a directory is restored as of an index", field="index", remedy=f"see 'kvorum store log {join(parts)}'"
        )
    version = _wanted(state, parts, index)
    if version.content is None:
        raise Refused(
            f"there was no file {join(parts)} at {index or version.index}",
            remedy=f"choose another index from 'kvorum store log {join(parts)}'",
        )
    if is_mark(version.content):
        raise Refused(f"what {join(parts)} held at {index or version.index} was forgotten")
    return version


def _wanted(state: State, parts: Parts, index: int) -> Version:
    """Raises NotFound or HistoryGone."""
    path = join(parts)
    found = history.versions(state.history, state.root, path)
    at = [version for version in found if (version.index <= index if index else version.is_there)]
    if at:
        return at[-1]
    since = max(0, state.history.since)
    if found and index and index <= since:
        raise HistoryGone(
            f"{path} at {index} is compacted: kept since {since}",
            oldest_index=since,
            remedy=f"'kvorum store log {path}' shows what there is",
        )
    when = f" at {index}" if index else ""
    raise NotFound(f"{path} did not exist{when}", remedy=f"see 'kvorum store log {path}'", details={"path": path})


def _changes(state: State, parts: Parts, before: int) -> Iterator[pb.Change]:
    """Newest first: of the file, or below the directory."""
    path = join(parts)
    found = history.versions(state.history, state.root, path) if parts else ()
    if found and not any(version.is_directory for version in found):
        yield from (_change(version) for version in reversed(found) if not before or version.index < before)
    else:
        for record in history.changes(state.history, path, before_index=before):
            yield _of_record(record)


def _of_record(record: Record) -> pb.Change:
    after = record.after
    return _change(
        Version(
            index=record.index,
            time_ms=record.time_ms,
            kind=record.kind,
            path=record.place,
            other_path=record.path if record.new_path else "",
            author=record.author,
            source=record.source,
            node=record.node,
            reason=record.reason,
            content=after.content if isinstance(after, File) else None,
            is_directory=isinstance(after, Directory),
        ),
        was_directory=isinstance(record.before, Directory),
    )


def _change(version: Version, *, was_directory: bool = False) -> pb.Change:
    return pb.Change(
        index=version.index,
        time=_time(version.time_ms),
        kind=_KINDS[version.kind],
        path=version.path,
        other_path=version.other_path,
        author=version.author,
        source=version.source,
        node_uid=version.node,
        reason=version.reason,
        gone=not version.is_there,
        directory=version.is_directory or was_directory,
        size_bytes=len(version.content or b""),
        content=version.content or b"",
    )


def _time(time_ms: int) -> Timestamp:
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)


def _number(token: str) -> int:
    if not token:
        return 0
    if not token.isascii() or not token.isdigit():
        raise InvalidInput("this is no page token of ours", field="page_token")
    return int(token)
