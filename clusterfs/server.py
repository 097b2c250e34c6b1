"""The gRPC server on the node's unix socket. Who may connect is decided by the file system: root only.

What is called most (reads and writes of entries) never waits in its handler and gets no thread (`clusterfs.direct`). Others
block, so each runs in a thread. Watches last, so the pool holds more threads than there may be watches, and nobody can starve
the others by watching.
"""

import logging
import os
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from clusterfs.daemon import Daemon
from clusterfs.direct import DirectPool
from clusterfs.services.history import HistoryService
from clusterfs.services.lock import LockService
from clusterfs.services.replica import ReplicaService
from clusterfs.services.settings import SettingsService
from clusterfs.services.status import MAX_STATUS_WATCHES, StatusService
from clusterfs.services.store import MAX_WATCHES, StoreService
from kvorum.errors import KvorumError
from kvorum.v1 import (
    history_pb2,
    history_pb2_grpc,
    lock_pb2,
    lock_pb2_grpc,
    replica_pb2,
    replica_pb2_grpc,
    settings_pb2,
    settings_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
)

log = logging.getLogger(__name__)

CALL_THREADS = 32
MAX_MESSAGE_BYTES = 16 << 20
STORE = store_pb2.DESCRIPTOR.services_by_name["StoreService"].full_name
HISTORY = history_pb2.DESCRIPTOR.services_by_name["HistoryService"].full_name
LOCK = lock_pb2.DESCRIPTOR.services_by_name["LockService"].full_name
SETTINGS = settings_pb2.DESCRIPTOR.services_by_name["SettingsService"].full_name
STATUS = status_pb2.DESCRIPTOR.services_by_name["StatusService"].full_name
REPLICA = replica_pb2.DESCRIPTOR.services_by_name["ReplicaService"].full_name


class Server:
    def __init__(self, daemon: Daemon, socket: Path) -> None:
        self._socket = socket
        self._health = health.HealthServicer()
        self._server = grpc.server(
            DirectPool(max_workers=CALL_THREADS + MAX_WATCHES + MAX_STATUS_WATCHES, thread_name_prefix="call"),
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        store_pb2_grpc.add_StoreServiceServicer_to_server(StoreService(daemon), self._server)
        history_pb2_grpc.add_HistoryServiceServicer_to_server(HistoryService(daemon), self._server)
        lock_pb2_grpc.add_LockServiceServicer_to_server(LockService(daemon), self._server)
        settings_pb2_grpc.add_SettingsServiceServicer_to_server(SettingsService(daemon), self._server)
        status_pb2_grpc.add_StatusServiceServicer_to_server(StatusService(daemon), self._server)
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(ReplicaService(daemon), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (STORE, HISTORY, LOCK, SETTINGS, STATUS, REPLICA, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def start(self) -> None:
        """Raises KvorumError when the socket cannot be made."""
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._socket}")
        except RuntimeError as error:
            raise KvorumError(f"cannot listen on {self._socket}: {error}") from error
        finally:
            os.umask(before)
        self._server.start()
        for name in ("", STORE, HISTORY, LOCK, SETTINGS, STATUS, REPLICA):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("listening on %s", self._socket)

    def stop(self, *, grace_s: float) -> None:
        """Calls under way have `grace_s` to end."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait(grace_s + 1.0)
