"""Whose certificates the TLS listener takes in a handshake: the cluster's CA, and tokens that nobody has used yet.

A copy of the store's `priv/join-tokens`, kept fresh by a watch, since a handshake cannot wait for the store. It only opens the
door to the anteroom: each call of a token is checked against the store itself (`agent.access.proof`).
"""

import asyncio
import datetime
import logging

from agent.local_clusterfs import LocalClusterfs
from kvorum.errors import KvorumError, PermissionDenied
from kvorum.v1 import store_pb2

from .join_token import TOKENS_DIRECTORY, StoredToken, entry_path, parse_stored

log = logging.getLogger(__name__)

RETRY_S = 1.0
# Trusted at once at most; more are a mistake, and each makes every handshake slower.
MAX_TOKENS = 256


class Trust:
    def __init__(self, clusterfs: LocalClusterfs, ca: bytes) -> None:
        self._clusterfs = clusterfs
        self._ca = ca
        self._tokens: dict[str, StoredToken] = {}

    def roots(self, now: datetime.datetime) -> bytes:
        """PEM of all that a peer's certificate may lead to at this moment. Called in gRPC's threads."""
        tokens = list(self._tokens.values())
        good = [token.certificate for token in tokens if token.expires > now.timestamp()]
        return b"".join([self._ca, *(pem.encode() for pem in good[:MAX_TOKENS])])

    def add(self, token: StoredToken) -> None:
        """Trust a token before the watch tells of it: whoever made it here may use it here at once."""
        self._tokens[token.id] = token

    def remove(self, token_id: str) -> None:
        self._tokens.pop(token_id, None)

    async def lookup(self, token_id: str) -> StoredToken | None:
        """The store's entry as it is now. Raises PermissionDenied for a damaged one, Unreachable."""
        if not token_id.isalnum():
            return None
        entry = await self._clusterfs.read(entry_path(token_id))
        return None if entry is None else parse_stored(entry.content)

    async def run(self) -> None:
        """Follow the store for ever. While it does not answer, the last known tokens stay (calls are checked anyway)."""
        while True:
            try:
                await self._follow()
            except KvorumError as error:
                log.debug("join tokens: watch ended: %s", error)
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        request = store_pb2.WatchEntriesRequest(path=TOKENS_DIRECTORY)
        async for change in self._clusterfs.watch(request):
            # Few and rare: reading all anew at each answer is simpler than following changes. The watch began before the read.
            log.debug("join tokens: news at index %s", change.index)
            await self._reload()

    async def _reload(self) -> None:
        tokens: dict[str, StoredToken] = {}
        for entry in await self._clusterfs.entries(TOKENS_DIRECTORY, with_content=True):
            try:
                token = parse_stored(entry.content)
            except PermissionDenied as error:
                log.warning("%s: %s", entry.path, error)
                continue
            tokens[token.id] = token
        self._tokens = tokens
