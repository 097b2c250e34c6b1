"""One connection to one node's agent, and the services reached over it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc

from kvorum.client.cluster import ClusterApi
from kvorum.client.credentials import Credentials
from kvorum.client.guests import GuestApi
from kvorum.client.ha import HaApi
from kvorum.client.history import HistoryApi
from kvorum.client.locks import LockApi
from kvorum.client.settings import SettingsApi
from kvorum.client.status import StatusApi
from kvorum.client.store import StoreApi
from kvorum.client.tasks import TaskApi
from kvorum.errors import InvalidInput, Unreachable
from kvorum.node import AGENT_PORT, AGENT_SOCKET
from kvorum.rpc import from_rpc_error

# Every node's certificate carries this DNS name beside its own: a client that may call any node checks this one.
ANY_NODE = "node.kvorum.internal"

DEFAULT_TIMEOUT_S = 15.0

Response = TypeVar("Response")


class Connection:
    """Calls with a deadline and with KvorumError in place of RpcError. Thread-safe, as the channel below is."""

    def __init__(self, channel: grpc.Channel, *, target: str, timeout_s: float) -> None:
        self.channel = channel
        self.target = target
        self.timeout_s = timeout_s

    def call(self, method: Callable[..., Any], request: object, *, timeout_s: float | None = None) -> Any:
        try:
            return method(request, timeout=timeout_s or self.timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def stream(
        self, method: Callable[..., Iterator[Response]], request: object, *, timeout_s: float | None = None
    ) -> Iterator[Response]:
        try:
            yield from method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def _explain(self, error: grpc.RpcError) -> Exception:
        mapped = from_rpc_error(error)
        if type(mapped) is Unreachable and not mapped.remedy:
            return Unreachable(
                f"cannot reach the agent at {self.target}: {mapped.message}",
                remedy="check that kvorum-agent runs there and that the address is right",
                details=mapped.details,
            )
        return mapped


class Client:
    """A cluster as seen through one of its nodes; use as a context manager, or call `close()`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.cluster = ClusterApi(connection)
        self.store = StoreApi(connection)
        self.history = HistoryApi(connection)
        self.locks = LockApi(connection)
        self.settings = SettingsApi(connection)
        self.status = StatusApi(connection)
        self.guests = GuestApi(connection)
        self.tasks = TaskApi(connection)
        self.ha = HaApi(connection)

    @property
    def target(self) -> str:
        return self._connection.target

    def close(self) -> None:
        self._connection.channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    target: str = "",
    *,
    credentials: Credentials | Path | str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Client:
    """A client of the node at `target`: `host`, `host:port` or `unix:PATH`; empty is this node's agent.

    A network target needs `credentials` (a `Credentials` or the path of its file); with credentials and no target the first
    address in them is used. `timeout_s` bounds each call, not the tasks that calls start. Nothing is sent before the first call.
    """
    if isinstance(credentials, Path | str):
        credentials = Credentials.load(credentials)
    if not target and credentials is not None and credentials.addresses:
        target = credentials.addresses[0]
    if not target:
        target = f"unix:{AGENT_SOCKET}"
    if target.startswith("unix:"):
        return Client(Connection(grpc.insecure_channel(target), target=target, timeout_s=timeout_s))
    if credentials is None:
        raise InvalidInput(
            f"calling {target} over the network needs credentials",
            field="credentials",
            remedy="make them on a node with 'kvorum cluster credentials --out FILE' and pass that file",
        )
    address = _with_port(target)
    channel = grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(
            root_certificates=credentials.ca.encode(),
            private_key=credentials.key.encode(),
            certificate_chain=credentials.certificate.encode(),
        ),
        options=[("grpc.ssl_target_name_override", ANY_NODE)],
    )
    return Client(Connection(channel, target=address, timeout_s=timeout_s))


def _with_port(target: str) -> str:
    host, colon, port = target.rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.startswith("[")):
        return target
    if ":" in target and not target.startswith("["):  # a bare IPv6 address
        target = f"[{target}]"
    return f"{target}:{AGENT_PORT}"
