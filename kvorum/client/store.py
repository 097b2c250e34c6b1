"""StoreService for Python callers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvorum.v1 import store_pb2 as pb
from kvorum.v1.store_pb2_grpc import StoreServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection
    from kvorum.client.locks import HeldLock


class StoreApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stream = connection.stream
        self._stub = StoreServiceStub(connection.channel)

    def get(self, path: str, *, linearizable: bool = False) -> pb.Entry:
        response: pb.GetEntryResponse = self._call(
            self._stub.GetEntry, pb.GetEntryRequest(path=path, linearizable=linearizable)
        )
        return response.entry

    def list(self, path: str = "", *, recursive: bool = False, with_content: bool = False) -> Iterator[pb.Entry]:
        """Entries below a directory, sorted by path; pages are fetched as they are needed."""
        request = pb.ListEntriesRequest(path=path, recursive=recursive, with_content=with_content)
        while True:
            response: pb.ListEntriesResponse = self._call(self._stub.ListEntries, request)
            yield from response.entries
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def write(
        self,
        path: str,
        content: bytes,
        *,
        expected_version: int | None = None,
        absent: bool = False,
        parents: bool = False,
        reason: str = "",
        fencing: "HeldLock | None" = None,
    ) -> pb.Entry:
        """Replace the file, or only if it has `expected_version`, or only if there is none (`absent`).

        With `fencing`, only as long as that lock is held: raises Fenced when it was lost.
        """
        condition = None
        if absent:
            condition = pb.Precondition(absent=True)
        elif expected_version is not None:
            condition = pb.Precondition(expected_version=expected_version)
        request = pb.WriteEntryRequest(
            path=path,
            content=content,
            precondition=condition,
            parents=parents,
            reason=reason,
            fencing=_fencing(fencing),
        )
        response: pb.WriteEntryResponse = self._call(self._stub.WriteEntry, request)
        return response.entry

    def mkdir(self, path: str, *, parents: bool = False, reason: str = "") -> pb.Entry:
        request = pb.WriteEntryRequest(
            path=path, directory=True, parents=parents, precondition=pb.Precondition(absent=True), reason=reason
        )
        response: pb.WriteEntryResponse = self._call(self._stub.WriteEntry, request)
        return response.entry

    def move(
        self,
        path: str,
        new_path: str,
        *,
        expected_version: int = 0,
        replace: bool = False,
        reason: str = "",
        fencing: "HeldLock | None" = None,
    ) -> pb.Entry:
        request = pb.MoveEntryRequest(
            path=path,
            new_path=new_path,
            expected_version=expected_version,
            replace=replace,
            reason=reason,
            fencing=_fencing(fencing),
        )
        response: pb.MoveEntryResponse = self._call(self._stub.MoveEntry, request)
        return response.entry

    def delete(
        self,
        path: str,
        *,
        expected_version: int = 0,
        recursive: bool = False,
        reason: str = "",
        fencing: "HeldLock | None" = None,
    ) -> None:
        request = pb.DeleteEntryRequest(
            path=path,
            expected_version=expected_version,
            recursive=recursive,
            reason=reason,
            fencing=_fencing(fencing),
        )
        self._call(self._stub.DeleteEntry, request)

    def watch(
        self, path: str = "", *, from_index: int = 0, with_content: bool = False
    ) -> Iterator[pb.WatchEntriesResponse]:
        """Changes as they are applied on the node that answers, until the iterator is dropped."""
        request = pb.WatchEntriesRequest(path=path, from_index=from_index, with_content=with_content)
        return self._stream(self._stub.WatchEntries, request)


def _fencing(lock: "HeldLock | None") -> pb.Fencing | None:
    return pb.Fencing(lock=lock.name, token=lock.token) if lock is not None else None
