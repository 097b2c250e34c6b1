"""The agent's line to the clusterfs of its own node: generated stubs over the local socket, with deadlines and our errors.

For the services that speak the generated messages anyway (the cluster's and the store's). Rooms that only want files use
`AgentContext.store`. The socket may come and go: nothing here connects before the first call.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from kvorum.errors import NotFound, Unreachable
from kvorum.rpc import from_rpc_error
from kvorum.v1 import store_pb2
from kvorum.v1.history_pb2_grpc import HistoryServiceStub
from kvorum.v1.lock_pb2_grpc import LockServiceStub
from kvorum.v1.replica_pb2_grpc import ReplicaServiceStub
from kvorum.v1.settings_pb2_grpc import SettingsServiceStub
from kvorum.v1.status_pb2_grpc import StatusServiceStub
from kvorum.v1.store_pb2_grpc import StoreServiceStub

AUTHOR_KEY = "kvorum-author"
SOURCE_KEY = "kvorum-source"

READ_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 15.0
# How long a call waits for a clusterfs that is just (re)starting.
PATIENCE_S = 3.0

CHANNEL_OPTIONS = [
    # The other process may start later than this one: do not wait long before trying again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]


class LocalClusterfs:
    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
        self.store = StoreServiceStub(self._channel)
        self.replica = ReplicaServiceStub(self._channel)
        self.history = HistoryServiceStub(self._channel)
        self.locks = LockServiceStub(self._channel)
        self.settings = SettingsServiceStub(self._channel)
        self.status = StatusServiceStub(self._channel)

    async def ask(
        self,
        method: Callable[..., Any],
        request: object,
        *,
        timeout_s: float = WRITE_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        author: str = "",
    ) -> Any:
        """One call, answered within `timeout_s` once there is a connection, for which it waits at most `patience_s`.

        Raises what clusterfs answers, Unreachable when it does not run.
        """
        metadata = ((AUTHOR_KEY, author or "agent"), (SOURCE_KEY, "agent"))
        await self._wait_for_connection(patience_s)
        try:
            return await method(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise explain(error) from error

    async def read(self, path: str, *, linearizable: bool = False) -> store_pb2.Entry | None:
        """A file or directory; None when there is none."""
        request = store_pb2.GetEntryRequest(path=path, linearizable=linearizable)
        try:
            response: store_pb2.GetEntryResponse = await self.ask(
                self.store.GetEntry, request, timeout_s=READ_TIMEOUT_S
            )
        except NotFound:
            return None
        return response.entry

    async def entries(self, directory: str, *, with_content: bool = False) -> list[store_pb2.Entry]:
        """What lies in a directory, sorted by path; nothing when it is not there."""
        request = store_pb2.ListEntriesRequest(path=directory, with_content=with_content)
        found: list[store_pb2.Entry] = []
        while True:
            try:
                page: store_pb2.ListEntriesResponse = await self.ask(
                    self.store.ListEntries, request, timeout_s=READ_TIMEOUT_S
                )
            except NotFound:
                return found
            found.extend(page.entries)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def names(self, directory: str) -> list[str]:
        """Names in a directory, sorted; none when it is not there."""
        return sorted(entry.path.rpartition("/")[2] for entry in await self.entries(directory))

    async def watch(self, request: store_pb2.WatchEntriesRequest) -> AsyncIterator[store_pb2.WatchEntriesResponse]:
        """Until the caller stops or clusterfs does (then raises). The first answer is a bookmark."""
        try:
            async for response in self.store.WatchEntries(request):
                yield response
        except grpc.aio.AioRpcError as error:
            raise explain(error) from error

    async def _wait_for_connection(self, patience_s: float) -> None:
        """Not gRPC's wait_for_ready, whose failure cannot be told from a call that was sent and not answered."""
        try:
            async with asyncio.timeout(patience_s):
                while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            return  # the call itself will fail, with the reason

    async def close(self) -> None:
        await self._channel.close()


def explain(error: grpc.aio.AioRpcError) -> Exception:
    """An answer of clusterfs as one of our errors; silence as Unreachable with a remedy."""
    mapped = from_rpc_error(error)
    if type(mapped) is Unreachable and not mapped.remedy:
        return Unreachable(
            "the config store of this node does not answer", remedy="see 'journalctl -u kvorum-clusterfs' on that node"
        )
    return mapped
