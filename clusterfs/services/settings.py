"""SettingsService: the store's limits and how full it is."""

# ruff: noqa: N802 - methods are named as in the proto

import grpc

from clusterfs import usage
from clusterfs.commands import Configure
from clusterfs.daemon import Daemon
from clusterfs.services.calls import answering, author, deadline
from clusterfs.settings import BOUNDS, Settings
from kvorum.errors import InvalidInput
from kvorum.v1 import settings_pb2 as pb
from kvorum.v1 import settings_pb2_grpc


class SettingsService(settings_pb2_grpc.SettingsServiceServicer):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @answering
    def GetSettings(self, _request: pb.GetSettingsRequest, _context: grpc.ServicerContext) -> pb.GetSettingsResponse:
        state = self._daemon.running.machine.state
        return pb.GetSettingsResponse(
            settings=_message(state.settings),
            uses=[
                pb.GetSettingsResponse.Use(name=use.name, used=use.used, limit=use.limit) for use in usage.uses(state)
            ],
            warnings=usage.warnings(state),
            oldest_index=max(0, state.history.since),
        )

    @answering
    def UpdateSettings(
        self, request: pb.UpdateSettingsRequest, context: grpc.ServicerContext
    ) -> pb.UpdateSettingsResponse:
        running = self._daemon.running
        wanted = {field.name: value for field, value in request.settings.ListFields()}
        if not wanted:
            raise InvalidInput("no setting is given", field="settings")
        for name, value in wanted.items():
            least, most = BOUNDS[name]
            if not least <= value <= most:
                raise InvalidInput(f"{name} is {least} to {most}", field=name)
        running.proposer.execute(Configure(**wanted), author(context, request.reason), deadline_s=deadline(context))
        return pb.UpdateSettingsResponse(settings=_message(running.machine.state.settings))


def _message(settings: Settings) -> pb.Settings:
    return pb.Settings(**{name: getattr(settings, name) for name in BOUNDS})
