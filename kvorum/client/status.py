"""StatusService for Python callers: what nodes tell each other. Reading only; setting is for the node itself."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvorum.v1 import status_pb2 as pb
from kvorum.v1.status_pb2_grpc import StatusServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection


class StatusApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stream = connection.stream
        self._stub = StatusServiceStub(connection.channel)

    def get(self, key: str, *, node: str = "") -> pb.GetStatusResponse:
        """`node` empty: the one that answers. Raises NotFound."""
        response: pb.GetStatusResponse = self._call(self._stub.GetStatus, pb.GetStatusRequest(node=node, key=key))
        return response

    def list(self, *, node: str = "", prefix: str = "", with_values: bool = False) -> pb.ListStatusResponse:
        request = pb.ListStatusRequest(node=node, prefix=prefix, with_values=with_values)
        response: pb.ListStatusResponse = self._call(self._stub.ListStatus, request)
        return response

    def watch(self, *, node: str = "", prefix: str = "") -> Iterator[pb.WatchStatusResponse]:
        """What there is, then each change, until the iterator is dropped."""
        return self._stream(self._stub.WatchStatus, pb.WatchStatusRequest(node=node, prefix=prefix))

    def log(self, *, limit: int = 50, user: str = "") -> Sequence[pb.LogLine]:
        """Lines of the cluster log, the newest first."""
        response: pb.ListLogResponse = self._call(self._stub.ListLog, pb.ListLogRequest(limit=limit, user=user))
        return response.lines
