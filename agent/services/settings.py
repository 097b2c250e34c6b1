"""SettingsService over the network: the clusterfs of this node answers."""

# ruff: noqa: N802 - the methods are named by the proto

from typing import Any

from agent.local_clusterfs import LocalClusterfs
from agent.membership.core import Core
from agent.services.store import forward
from kvorum.v1 import settings_pb2 as pb
from kvorum.v1 import settings_pb2_grpc


class SettingsService(settings_pb2_grpc.SettingsServiceServicer):
    def __init__(self, clusterfs: LocalClusterfs) -> None:
        self._settings = clusterfs.settings

    async def GetSettings(self, request: pb.GetSettingsRequest, context: Any) -> pb.GetSettingsResponse:
        response: pb.GetSettingsResponse = await forward(self._settings.GetSettings, request, context)
        return response

    async def UpdateSettings(self, request: pb.UpdateSettingsRequest, context: Any) -> pb.UpdateSettingsResponse:
        response: pb.UpdateSettingsResponse = await forward(self._settings.UpdateSettings, request, context)
        return response


def register(server: Any, core: Core) -> None:
    settings_pb2_grpc.add_SettingsServiceServicer_to_server(SettingsService(core.clusterfs), server)
