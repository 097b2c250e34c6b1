"""SettingsService for Python callers: the store's limits and how full it is."""

from typing import TYPE_CHECKING

from kvorum.v1 import settings_pb2 as pb
from kvorum.v1.settings_pb2_grpc import SettingsServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection


class SettingsApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stub = SettingsServiceStub(connection.channel)

    def get(self) -> pb.GetSettingsResponse:
        response: pb.GetSettingsResponse = self._call(self._stub.GetSettings, pb.GetSettingsRequest())
        return response

    def update(self, *, reason: str = "", **settings: int) -> pb.Settings:
        """By the names of the message's fields: `update(history_days=30)`. Raises InvalidInput."""
        request = pb.UpdateSettingsRequest(settings=pb.Settings(**settings), reason=reason)
        response: pb.UpdateSettingsResponse = self._call(self._stub.UpdateSettings, request)
        return response.settings
