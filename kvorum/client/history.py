"""HistoryService for Python callers: what the store was, who changed it, and back to it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvorum.v1 import history_pb2 as pb
from kvorum.v1 import store_pb2
from kvorum.v1.history_pb2_grpc import HistoryServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection


class HistoryApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stub = HistoryServiceStub(connection.channel)

    def changes(self, path: str = "", *, with_content: bool = False, page_size: int = 0) -> Iterator[pb.Change]:
        """Of a file or below a directory, the newest first; pages are fetched as they are needed."""
        request = pb.ListChangesRequest(path=path, with_content=with_content, page_size=page_size)
        while True:
            response: pb.ListChangesResponse = self._call(self._stub.ListChanges, request)
            yield from response.changes
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def version(self, path: str, index: int = 0) -> pb.Change:
        """The file as it was at a log index, with its content; 0: the newest. Raises NotFound, HistoryGone."""
        response: pb.GetVersionResponse = self._call(
            self._stub.GetVersion, pb.GetVersionRequest(path=path, index=index)
        )
        return response.version

    def blame(self, path: str) -> Sequence[pb.BlameEntryResponse.Line]:
        """The lines of the file and the change that each came with. Raises NotFound."""
        response: pb.BlameEntryResponse = self._call(self._stub.BlameEntry, pb.BlameEntryRequest(path=path))
        return response.lines

    def restore(self, path: str, index: int = 0, *, reason: str = "") -> Sequence[store_pb2.Entry]:
        """Writes what the file, or each file of the directory, held at `index`, all or none; returns what has been written."""
        request = pb.RestoreEntryRequest(path=path, index=index, reason=reason)
        response: pb.RestoreEntryResponse = self._call(self._stub.RestoreEntry, request)
        return response.entries

    def forget(self, path: str, index: int = 0, *, reason: str = "") -> int:
        """Takes what the file held up to `index` (0: before now) out of the history; of how many versions. Raises NotFound."""
        request = pb.ForgetVersionsRequest(path=path, index=index, reason=reason)
        response: pb.ForgetVersionsResponse = self._call(self._stub.ForgetVersions, request)
        return response.versions
